//! Runs a schedule: replicas of the real broker over one store and one Emporix, a step at a time, and heals it all at
//! the end. The same schedule is the same run: one thread, one clock, and nothing moves but by a step.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use emporix_gateway::clock::{Clock, Timestamp};
use emporix_gateway::session::{AnonymousHalf, CustomerHalf, SaasToken, Scope, Session, SiteContext, Transport};
use emporix_gateway::store::Invalidation;

use super::bug::Bug;
use super::client::{Asked, Outcome};
use super::emporix::{Emporix, MARK, Origin, Whim};
use super::gate::{Gate, Seam};
use super::journal::{Journal, Promise, Sight, Violation};
use super::replica::{LIMITS, Replica};
use super::schedule::{Action, Event, Fate, Schedule, Step};
use super::store::SharedStore;
use super::visitors::{CUSTOMER, Keeps, VISIT, VISITORS, key_of, tenant_of};

/// For how long a leader holds its lease before it sends a token again.
pub const HELD_FOR: Duration = Duration::from_secs(3);

/// A clock that stands still until it is moved.
#[derive(Default)]
pub struct ModelClock(AtomicU64);

impl Clock for ModelClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn uptime(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// What all replicas share, and who watches.
pub struct Surroundings {
    pub clock: Arc<ModelClock>,
    pub gate: Arc<Gate>,
    pub journal: Arc<Journal>,
    pub emporix: Arc<Emporix>,
    pub store: Arc<SharedStore>,
    pub bug: Bug,
}

impl Surroundings {
    fn new(bug: Bug, replicas: usize) -> Self {
        let clock = Arc::new(ModelClock(AtomicU64::new(1_000_000_000_000)));
        let gate = Arc::new(Gate::default());
        let journal = Arc::new(Journal::new(clock.clone()));
        let emporix = Arc::new(Emporix::new(clock.clone(), journal.clone()));
        let store = Arc::new(SharedStore::new(clock.clone(), journal.clone(), emporix.clone(), bug, replicas));
        Self { clock, gate, journal, emporix, store, bug }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// What the run's thread logs.
pub type Log = Arc<Mutex<Vec<u8>>>;

/// A run.
pub struct Simulation {
    around: Surroundings,
    replicas: Vec<Option<Replica>>,
    lives: Vec<u32>,
    keeps: Vec<Keeps>,
    asked: HashMap<u64, Asked>,
    questions: u64,
    answers: Arc<Mutex<Vec<(u64, Outcome)>>>,
    log: Log,
}

/// A run that has ended.
pub struct Ended {
    /// The first promise that it broke.
    pub violation: Option<Violation>,
    pub story: Vec<String>,
    pub met: HashSet<Sight>,
}

/// Runs `schedule`.
pub fn run(schedule: &Schedule, bug: Bug, log: &Log) -> Ended {
    log.lock().unwrap().clear();
    let mut simulation = Simulation::new(schedule, bug, log.clone());
    for step in &schedule.steps {
        if !simulation.is_over() {
            simulation.take(*step);
        }
    }
    simulation.end()
}

impl Simulation {
    pub fn new(schedule: &Schedule, bug: Bug, log: Log) -> Self {
        let around = Surroundings::new(bug, schedule.replicas);
        let keeps: Vec<Keeps> = (0..VISITORS.len()).map(Keeps::random).collect();
        for (visitor, keeps) in keeps.iter().enumerate() {
            around.store.put(&signed_in(visitor, keeps, schedule.age, &around));
        }
        around.journal.tell(format!("All are signed in; their tokens are {} s old.", schedule.age.as_secs()));
        let replicas = (0..schedule.replicas).map(|number| Some(Replica::start((number, 0), &around))).collect();
        Self {
            around,
            replicas,
            lives: vec![0; schedule.replicas],
            keeps,
            asked: HashMap::new(),
            questions: 0,
            answers: Arc::default(),
            log,
        }
    }

    /// Heals, if nothing is broken yet, and judges what is left.
    pub fn end(mut self) -> Ended {
        if !self.is_over() {
            self.heal();
        }
        let journal = &self.around.journal;
        Ended { violation: journal.violation(), story: journal.story(), met: journal.met() }
    }

    fn is_over(&self) -> bool {
        self.around.journal.violation().is_some()
    }

    fn tell(&self, line: String) {
        self.around.journal.tell(line);
    }

    /// Takes one step.
    pub fn take(&mut self, step: Step) {
        let replicas = self.replicas.len();
        match step {
            Step::Start { action, visitor, replica } => self.start(action, visitor, replica % replicas),
            Step::Decide { fate, call } => self.decide(fate, call),
            Step::Flow { replica, calls } => self.flow(replica % replicas, calls),
            Step::Reach { replica, fate } => self.reach(replica % replicas, fate),
            Step::Arrive { call } => self.arrive(call),
            Step::Befall { event, replica } => self.befall(event, replica % replicas),
            Step::Wait(time) => self.wait(time),
        }
        self.watch();
        self.hear_answers();
        self.read_log();
    }

    /// A client asks; a replica that crashed was started again by then.
    fn start(&mut self, action: Action, visitor: usize, number: usize) {
        self.restart(number);
        let Some(replica) = &self.replicas[number] else { return };
        self.questions += 1;
        let asked = Asked::new(self.questions, action, visitor, replica.life, &self.keeps[visitor], &self.around);
        self.asked.insert(asked.number, asked.clone());
        self.tell(format!("{} asks replica {number}: {action:?} (question {})", VISITORS[visitor].0, asked.number));
        let (broker, answers) = (replica.broker.clone(), self.answers.clone());
        replica.spawn(async move {
            let outcome = asked.ask(&broker).await;
            answers.lock().unwrap().push((asked.number, outcome));
        });
    }

    fn decide(&mut self, fate: Fate, call: usize) {
        let awake = self.replicas.iter().flatten().filter(|replica| !replica.is_suspended());
        let waiting: Vec<(usize, u64)> = awake
            .flat_map(|replica| {
                self.around.gate.waiting(replica.life.0).into_iter().map(|number| (replica.life.0, number))
            })
            .collect();
        if let Some((replica, number)) = waiting.get(call % waiting.len().max(1)) {
            self.decide_one(fate, *replica, *number);
        }
    }

    fn decide_one(&mut self, fate: Fate, replica: usize, number: u64) {
        let gate = &self.around.gate;
        let (call, what) = match fate {
            Fate::Pass => (gate.answer(number), "passes"),
            Fate::Apply => (gate.apply(number), "is applied; its answer is under way"),
            Fate::Lose => (gate.lose(number), "is applied; its answer is lost"),
            Fate::Refuse => (gate.refuse(number), "fails"),
            Fate::Desert => (gate.desert(number), "is given up, and may arrive later"),
        };
        self.tell(format!("{call} {what}"));
        self.drive(replica);
    }

    /// Lets the calls of `replica` pass until one named `name` waits, and then that one meets its fate.
    pub fn until(&mut self, replica: usize, name: &str, fate: Fate) {
        loop {
            if let Some(number) = self.around.gate.waiting_named(replica, name) {
                self.decide_one(fate, replica, number);
                return self.take(Step::Flow { replica, calls: 0 });
            }
            assert!(!self.around.gate.waiting(replica).is_empty(), "replica {replica} never calls `{name}`");
            self.take(Step::Flow { replica, calls: 1 });
        }
    }

    /// Lets the calls of `replica` pass until none waits; those named `name` fail.
    pub fn all_but(&mut self, replica: usize, name: &str) {
        while !self.around.gate.waiting(replica).is_empty() {
            let fails = self.around.gate.waiting_named(replica, name);
            fails.into_iter().for_each(|number| self.decide_one(Fate::Refuse, replica, number));
            self.take(Step::Flow { replica, calls: usize::from(fails.is_none()) });
        }
    }

    /// How many calls named `name` have met what `what` says.
    pub fn told_of(&self, name: &str, what: &str) -> usize {
        let story = self.around.journal.story();
        story.iter().filter(|line| line.contains(&format!("`{name}")) && line.ends_with(what)).count()
    }

    /// From now on no record can be read.
    pub fn records_turn_unreadable(&self) {
        self.around.store.turn_unreadable();
    }

    /// From now on Emporix answers as `whim` says.
    pub fn emporix_turns(&self, whim: Whim) {
        self.around.emporix.turn(whim);
    }

    /// Whether a question is still open.
    pub fn awaits_answers(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Whether nothing is under way in `replica`.
    pub fn is_idle(&self, replica: usize) -> bool {
        self.replicas[replica].as_ref().is_none_or(Replica::is_idle)
    }

    /// How many refresh tokens were sent so far.
    pub fn sent(&self) -> usize {
        self.around.journal.sent()
    }

    /// The customer's access token as it stands in the record of `visitor`.
    pub fn customer_token(&self, visitor: usize) -> Option<String> {
        let record = self.around.store.peek(visitor)?;
        Some(record.tokens(Scope::Customer)?.access.expose().to_owned())
    }

    fn flow(&mut self, replica: usize, calls: usize) {
        for _ in 0..calls {
            let Some(number) = self.next_of(replica) else { return };
            self.decide_one(Fate::Pass, replica, number);
        }
    }

    fn reach(&mut self, replica: usize, fate: Fate) {
        // More than the longest way to Emporix.
        const CALLS: usize = 20;
        let mut held = false;
        for _ in 0..CALLS {
            let Some(number) = self.next_of(replica) else {
                if std::mem::replace(&mut held, true) {
                    return;
                }
                self.wait(HELD_FOR);
                continue;
            };
            if self.around.gate.seam_of(number) == Some(Seam::Identity) {
                return self.decide_one(fate, replica, number);
            }
            self.decide_one(Fate::Pass, replica, number);
        }
    }

    /// The oldest call of `replica`, unless it stands still.
    fn next_of(&self, replica: usize) -> Option<u64> {
        let awake = self.replicas[replica].as_ref().is_some_and(|replica| !replica.is_suspended());
        self.around.gate.waiting(replica).first().copied().filter(|_| awake)
    }

    fn arrive(&self, call: usize) {
        let strays = self.around.gate.strays();
        if let Some(number) = strays.get(call % strays.len().max(1)) {
            let call = self.around.gate.answer(*number);
            self.tell(format!("{call} arrives late"));
        }
    }

    fn befall(&mut self, event: Event, number: usize) {
        match event {
            Event::Restart => return self.restart(number),
            Event::Mend => self.around.gate.mend(number),
            _ => {}
        }
        let Some(replica) = &mut self.replicas[number] else { return };
        let life = replica.life;
        match event {
            Event::Crash => {
                self.replicas[number] = None;
                self.around.gate.abandon(number);
                self.around.journal.dies(life);
                // A client whose replica is gone knows nothing.
                self.asked.retain(|_, asked| asked.life != life);
            }
            Event::Suspend => replica.suspend(),
            Event::Resume => replica.resume(),
            Event::Cut => {
                self.around.gate.cut(number);
                replica.drive();
            }
            Event::Hear if !replica.is_suspended() => {
                let Some(heard) = self.around.store.next_unheard(number) else { return };
                if let Invalidation::Ended(key, _) = &heard {
                    self.around.journal.hears_end(life, key);
                }
                replica.hear(heard);
            }
            Event::Miss => drop(self.around.store.next_unheard(number)),
            Event::Hear | Event::Restart | Event::Mend => {}
        }
        self.tell(format!("replica {number}: {event:?}"));
    }

    fn restart(&mut self, number: usize) {
        if self.replicas[number].is_none() {
            self.lives[number] += 1;
            self.around.store.forget_unheard(number);
            self.replicas[number] = Some(Replica::start((number, self.lives[number]), &self.around));
            self.tell(format!("replica {number} starts again"));
        }
    }

    fn wait(&mut self, time: Duration) {
        self.tell(format!("{} ms go by", time.as_millis()));
        self.around.clock.0.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
        for replica in self.replicas.iter_mut().flatten() {
            replica.age(time);
        }
    }

    fn drive(&mut self, replica: usize) {
        self.watch();
        if let Some(replica) = &self.replicas[replica] {
            replica.drive();
        }
    }

    fn watch(&mut self) {
        self.asked.values_mut().for_each(|asked| asked.watch(&self.around));
    }

    fn hear_answers(&mut self) {
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        for (number, outcome) in answers {
            let Some(asked) = self.asked.remove(&number) else { continue };
            self.tell(format!("question {number} is answered: {}", summary(&outcome)));
            asked.judge(&outcome, &self.around);
            let keeps = &mut self.keeps[asked.visitor];
            match outcome {
                Outcome::Granted(Ok(granted)) => keeps.take(&granted),
                Outcome::Passed(Ok(permit)) => keeps.permit = Some(permit),
                _ => {}
            }
        }
    }

    fn read_log(&self) {
        let mut log = self.log.lock().unwrap();
        if log.windows(MARK.len()).any(|window| window == MARK.as_bytes()) {
            self.around.journal.breaks(Promise::SecretsStaySecret, "a log line shows a secret");
        }
        log.clear();
    }

    /// Everything that was broken works again; whatever was left hanging comes to its end.
    fn heal(&mut self) {
        self.tell("Everything heals.".to_owned());
        for number in 0..self.replicas.len() {
            self.take(Step::Befall { event: Event::Mend, replica: number });
            self.take(Step::Befall { event: Event::Resume, replica: number });
            self.take(Step::Befall { event: Event::Restart, replica: number });
        }
        while !self.around.gate.strays().is_empty() {
            self.take(Step::Arrive { call: 0 });
        }
        self.settle();
        // Long enough for every word of a hot cache to be too old.
        self.take(Step::Wait(Duration::from_secs(61)));
        for number in 0..self.replicas.len() {
            for visitor in 0..VISITORS.len() {
                for action in [Action::CustomerRequest, Action::VisitorRequest] {
                    self.take(Step::Start { action, visitor, replica: number });
                }
            }
        }
        self.settle();
        for visitor in self.around.journal.finally_out() {
            if !self.around.store.is_over(visitor) {
                let what = format!("{}'s session can still be brought back after its logout", VISITORS[visitor].0);
                self.around.journal.breaks(Promise::LogoutAbsorbs, what);
            }
        }
    }

    /// Lets everything pass, and time with it, until nothing is under way.
    fn settle(&mut self) {
        // Longer than a lease, a run of attempts at saving, or the retries of a logout.
        const SECONDS: usize = 200;
        for _ in 0..SECONDS {
            for number in 0..self.replicas.len() {
                while !self.around.gate.waiting(number).is_empty() && !self.is_over() {
                    self.take(Step::Flow { replica: number, calls: 1 });
                }
            }
            let idle = self.replicas.iter().flatten().all(Replica::is_idle);
            if self.is_over() || (idle && self.asked.is_empty()) {
                return;
            }
            self.take(Step::Wait(Duration::from_secs(1)));
        }
        let what = format!("{} questions are open, or work goes on for ever", self.asked.len());
        self.around.journal.breaks(Promise::RequestsAreAnswered, what);
    }
}

fn summary(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed(Ok(permit)) => format!("passes as {:?}, generation {}", permit.scope(), permit.generation()),
        Outcome::Retried(permit) => format!("retried: {}", permit.is_some()),
        Outcome::Granted(Ok(_)) => "granted".to_owned(),
        Outcome::LoggedOut(Ok(())) => "logged out".to_owned(),
        Outcome::Passed(Err(error)) | Outcome::Granted(Err(error)) | Outcome::LoggedOut(Err(error)) => {
            format!("{} {error}", error.status())
        }
    }
}

/// The record of a customer who signed in `age` ago.
fn signed_in(visitor: usize, keeps: &Keeps, age: Duration, around: &Surroundings) -> Session {
    let (name, _, transport) = VISITORS[visitor];
    let now = around.now();
    let then = Timestamp::from_millis(now.millis() - u64::try_from(age.as_millis()).unwrap());
    let mut session = Session::new(key_of(visitor), tenant_of(visitor), transport, now, &LIMITS);
    let context = SiteContext { site_code: Some(name.to_owned()), ..SiteContext::default() };
    let tokens = around.emporix.issue((visitor, Scope::Anonymous), &Origin::Fresh, age).tokens;
    session.set_anonymous(AnonymousHalf { tokens, session_id: VISIT.to_owned(), context });
    let issued = around.emporix.issue((visitor, Scope::Customer), &Origin::Fresh, age);
    let mut tokens = issued.tokens;
    let saas_ends_at = now.after(Duration::from_secs(86_400));
    tokens.saas = issued.unverified_saas.map(|token| SaasToken { token, expires_at: saas_ends_at });
    let half = CustomerHalf {
        tokens,
        session_id: Some(VISIT.to_owned()),
        customer_id: CUSTOMER.to_owned(),
        legal_entity_id: None,
        signed_in_at: then,
    };
    session.upgrade(half, now, &LIMITS);
    session.credentials.issue(&keeps.customer, Scope::Customer);
    // A cookie is all three.
    if transport == Transport::Handle {
        session.credentials.issue(&keeps.anonymous, Scope::Anonymous);
        session.credentials.issue(&keeps.refresh, Scope::Customer);
    }
    session
}
