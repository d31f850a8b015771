//! A schedule: what clients do, what becomes of each call at a seam, and what befalls replicas, one step after another.
//! Every number in it is taken modulo what there is, so that a schedule stays one when steps are left out of it.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An API request with the customer's rights.
    CustomerRequest,
    /// An API request with the visitor's rights.
    VisitorRequest,
    /// The retry of a request whose token upstream no longer honours.
    Retry,
    /// The token route `refreshauthtoken`.
    Refresh,
    Login,
    Logout,
    LogoutAll,
}

/// What becomes of a call that waits at a seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is applied and answered.
    Pass,
    /// It is applied; its answer is still under way.
    Apply,
    /// It is applied; its answer is lost.
    Lose,
    /// It fails before it arrives.
    Refuse,
    /// Its caller gives it up; it may arrive later.
    Desert,
}

/// What befalls a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Crash,
    /// It starts again, with an empty hot cache.
    Restart,
    /// It stands still, as under SIGSTOP.
    Suspend,
    Resume,
    /// The store cannot be reached from it.
    Cut,
    Mend,
    /// It hears the next thing that other replicas said.
    Hear,
    /// The same is lost on its way.
    Miss,
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Start {
        action: Action,
        visitor: usize,
        replica: usize,
    },
    Decide {
        fate: Fate,
        call: usize,
    },
    /// The next calls of one replica pass, one after another.
    Flow {
        replica: usize,
        calls: usize,
    },
    /// The calls of one replica pass, and the time that it holds a lease, until it calls Emporix; that call meets its fate.
    Reach {
        replica: usize,
        fate: Fate,
    },
    /// A call that its caller gave up arrives.
    Arrive {
        call: usize,
    },
    Befall {
        event: Event,
        replica: usize,
    },
    Wait(Duration),
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub replicas: usize,
    /// How long ago every token was issued.
    pub age: Duration,
    pub steps: Vec<Step>,
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Tokens live for ten minutes and are renewable for an hour: a step too short to notice, one poll, past a replaced
/// credential's grace, past a lease, into the margin, past access, past renewal.
fn wait() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => Just(Duration::from_millis(50)),
        4 => Just(seconds(1)),
        2 => Just(seconds(31)),
        2 => Just(seconds(45)),
        2 => Just(seconds(480)),
        2 => Just(seconds(610)),
        1 => Just(seconds(3_700)),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => Just(Action::CustomerRequest),
        3 => Just(Action::VisitorRequest),
        1 => Just(Action::Retry),
        3 => Just(Action::Refresh),
        2 => Just(Action::Login),
        2 => Just(Action::Logout),
        1 => Just(Action::LogoutAll),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => Just(Fate::Pass),
        2 => Just(Fate::Apply),
        2 => Just(Fate::Lose),
        2 => Just(Fate::Refuse),
        1 => Just(Fate::Desert),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Crash),
        1 => Just(Event::Restart),
        1 => Just(Event::Suspend),
        2 => Just(Event::Resume),
        1 => Just(Event::Cut),
        2 => Just(Event::Mend),
        4 => Just(Event::Hear),
        1 => Just(Event::Miss),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // The first visitor is met most often: interleavings need company.
    let visitor = prop_oneof![4 => Just(0_usize), 1 => Just(1), 1 => Just(2)];
    prop_oneof![
        5 => (action(), visitor, 0..3_usize).prop_map(|(action, visitor, replica)| Step::Start { action, visitor, replica }),
        6 => (fate(), 0..8_usize).prop_map(|(fate, call)| Step::Decide { fate, call }),
        6 => (0..3_usize, 1..9_usize).prop_map(|(replica, calls)| Step::Flow { replica, calls }),
        2 => (0..3_usize, fate()).prop_map(|(replica, fate)| Step::Reach { replica, fate }),
        1 => (0..4_usize).prop_map(|call| Step::Arrive { call }),
        3 => (event(), 0..3_usize).prop_map(|(event, replica)| Step::Befall { event, replica }),
        3 => wait().prop_map(Step::Wait),
    ]
}

/// Schedules of up to `most` steps.
pub fn schedules(most: usize) -> impl Strategy<Value = Schedule> {
    let age = prop_oneof![1 => Just(seconds(0)), 2 => Just(seconds(480)), 4 => Just(seconds(610))];
    (2..=3_usize, age, vec(step(), 1..=most)).prop_map(|(replicas, age, steps)| Schedule { replicas, age, steps })
}
