//! The gate before the store and the identity provider: every call waits there until the schedule says what becomes of it.
//! A call is applied at most once, and its caller learns no more of it than a network would tell.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::oneshot;

/// What a caller learns of a call that brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It did not arrive and never will.
    NeverArrived,
    /// It may have been applied, or may be applied yet.
    AnswerLost,
}

/// Who is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seam {
    Store,
    Identity,
}

/// A call that waits.
pub struct Call {
    pub number: u64,
    pub replica: usize,
    pub seam: Seam,
    pub name: String,
    /// Nobody waits for its answer any more; it may still arrive.
    stray: bool,
    wire: Box<dyn Wire>,
}

/// A call without its types.
trait Wire: Send {
    fn apply(&mut self);
    fn is_applied(&self) -> bool;
    fn answer(&mut self);
    fn fail(&mut self, fault: Fault);
}

struct Typed<T, W> {
    work: Option<W>,
    answer: Option<T>,
    caller: Option<oneshot::Sender<Result<T, Fault>>>,
}

impl<T: Send, W: FnOnce() -> T + Send> Wire for Typed<T, W> {
    fn apply(&mut self) {
        if let Some(work) = self.work.take() {
            self.answer = Some(work());
        }
    }

    fn is_applied(&self) -> bool {
        self.work.is_none()
    }

    fn answer(&mut self) {
        if let (Some(caller), Some(answer)) = (self.caller.take(), self.answer.take()) {
            let _ = caller.send(Ok(answer));
        }
    }

    fn fail(&mut self, fault: Fault) {
        if let Some(caller) = self.caller.take() {
            let _ = caller.send(Err(fault));
        }
    }
}

/// All calls that wait, oldest first.
#[derive(Default)]
pub struct Gate(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    calls: Vec<Call>,
    cut_off: HashSet<usize>,
    numbered: u64,
}

impl Gate {
    /// Waits before `work` is applied, and again before its answer is given.
    pub async fn pass<T: Send + 'static>(
        &self,
        replica: usize,
        seam: Seam,
        name: String,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let (caller, answer) = oneshot::channel();
        {
            let mut waiting = self.lock();
            if seam == Seam::Store && waiting.cut_off.contains(&replica) {
                return Err(Fault::NeverArrived);
            }
            waiting.numbered += 1;
            let wire = Box::new(Typed { work: Some(work), answer: None, caller: Some(caller) });
            let number = waiting.numbered;
            waiting.calls.push(Call { number, replica, seam, name, stray: false, wire });
        }
        answer.await.unwrap_or(Err(Fault::AnswerLost))
    }

    /// The calls whose answers `replica` waits for.
    pub fn waiting(&self, replica: usize) -> Vec<u64> {
        let waiting = self.lock();
        waiting.calls.iter().filter(|call| call.replica == replica && !call.stray).map(|call| call.number).collect()
    }

    /// Whom the call addresses.
    pub fn seam_of(&self, number: u64) -> Option<Seam> {
        self.lock().calls.iter().find(|call| call.number == number).map(|call| call.seam)
    }

    /// The oldest call of `replica` whose name begins with `name`.
    pub fn waiting_named(&self, replica: usize, name: &str) -> Option<u64> {
        let waiting = self.lock();
        let mut calls = waiting.calls.iter().filter(|call| call.replica == replica && !call.stray);
        calls.find(|call| call.name.starts_with(name)).map(|call| call.number)
    }

    /// The calls that may still arrive though nobody waits for them.
    pub fn strays(&self) -> Vec<u64> {
        self.lock().calls.iter().filter(|call| call.stray).map(|call| call.number).collect()
    }

    /// Applies the call, if it was not, and keeps its answer back.
    pub fn apply(&self, number: u64) -> String {
        self.with(number, |call| {
            call.wire.apply();
            true
        })
    }

    /// Applies the call, if it was not, and answers it.
    pub fn answer(&self, number: u64) -> String {
        self.with(number, |call| {
            call.wire.apply();
            call.wire.answer();
            false
        })
    }

    /// Applies the call, if it was not, and loses its answer.
    pub fn lose(&self, number: u64) -> String {
        self.with(number, |call| {
            call.wire.apply();
            call.wire.fail(Fault::AnswerLost);
            false
        })
    }

    /// Lets the call fail before it arrives; the answer of one that was applied is lost.
    pub fn refuse(&self, number: u64) -> String {
        self.with(number, |call| {
            let applied = call.wire.is_applied();
            call.wire.fail(if applied { Fault::AnswerLost } else { Fault::NeverArrived });
            false
        })
    }

    /// Tells the caller that the answer is lost, while the call is still on its way.
    pub fn desert(&self, number: u64) -> String {
        self.with(number, |call| {
            call.wire.fail(Fault::AnswerLost);
            call.stray = true;
            !call.wire.is_applied()
        })
    }

    /// From now on no call of `replica` reaches the store; those on their way fail.
    pub fn cut(&self, replica: usize) {
        self.lock().cut_off.insert(replica);
        let waiting = self.lock();
        let numbers: Vec<u64> = waiting
            .calls
            .iter()
            .filter(|call| call.replica == replica && call.seam == Seam::Store && !call.stray)
            .map(|call| call.number)
            .collect();
        drop(waiting);
        for number in numbers {
            self.refuse(number);
        }
    }

    /// Its calls reach the store again.
    pub fn mend(&self, replica: usize) {
        self.lock().cut_off.remove(&replica);
    }

    /// The replica is gone; what it had sent may still arrive.
    pub fn abandon(&self, replica: usize) {
        let mut waiting = self.lock();
        waiting.calls.retain(|call| call.replica != replica || !call.wire.is_applied());
        for call in waiting.calls.iter_mut().filter(|call| call.replica == replica) {
            call.stray = true;
        }
    }

    /// Takes the call out while something is done to it, for what it does may look at the gate. `act` says whether it
    /// goes on waiting.
    fn with(&self, number: u64, act: impl FnOnce(&mut Call) -> bool) -> String {
        let Some(position) = self.lock().calls.iter().position(|call| call.number == number) else {
            return String::new();
        };
        let mut call = self.lock().calls.remove(position);
        let name = format!("replica {}'s {:?} call `{}`", call.replica, call.seam, call.name);
        if act(&mut call) {
            self.lock().calls.insert(position, call);
        }
        name
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap()
    }
}
