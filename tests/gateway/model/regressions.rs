//! What the model once found, told by the calls that matter: these schedules stay when the exploration draws others.
//! Each names the fault that broke a promise before it was mended.

use std::time::Duration;

use super::bug::Bug;
use super::schedule::{Action, Event, Fate, Schedule, Step};
use super::simulation::{Log, Simulation};

/// The phone's place among the visitors.
const PHONE: usize = 0;

/// Three replicas, and tokens of this age.
fn tokens_aged(seconds: u64) -> Simulation {
    let schedule = Schedule { replicas: 3, age: Duration::from_secs(seconds), steps: Vec::new() };
    Simulation::new(&schedule, Bug::None, Log::default())
}

fn asks(action: Action, replica: usize) -> Step {
    Step::Start { action, visitor: PHONE, replica }
}

fn all_pass(replica: usize) -> Step {
    Step::Flow { replica, calls: 100 }
}

fn no_promise_is_broken(simulation: Simulation) {
    let ended = simulation.end();
    assert!(ended.violation.is_none(), "{}", ended.story.join("\n"));
}

/// The recovery was refused, the store did not hear that the half is over, and the intent was taken away all the same:
/// the next leader knew of nothing and sent the token a third time.
#[test]
fn a_refusal_that_the_store_does_not_hear_leaves_the_intent() {
    let mut simulation = tokens_aged(610);
    simulation.take(asks(Action::VisitorRequest, 0));
    simulation.until(0, "anonymous refresh", Fate::Lose);
    simulation.take(all_pass(0));
    simulation.take(asks(Action::VisitorRequest, 1));
    simulation.until(1, "anonymous refresh", Fate::Pass);
    simulation.until(1, "load", Fate::Refuse);
    simulation.take(all_pass(1));
    simulation.take(asks(Action::VisitorRequest, 2));
    simulation.take(all_pass(2));
    no_promise_is_broken(simulation);
}

/// The hot cache held a half that was over, another replica had given it new tokens, and the word of it was still on its
/// way: the client was told that its session is over.
#[test]
fn a_dead_half_in_the_hot_cache_is_asked_for_in_the_store() {
    let mut simulation = tokens_aged(3_700);
    simulation.take(asks(Action::VisitorRequest, 1));
    simulation.take(all_pass(1));
    simulation.take(asks(Action::Login, 0));
    simulation.take(all_pass(0));
    simulation.take(Step::Befall { event: Event::Miss, replica: 1 });
    simulation.take(asks(Action::VisitorRequest, 1));
    simulation.take(all_pass(1));
    no_promise_is_broken(simulation);
}

/// The save of a leader that died came through after its token was sent again: the refusal of that one found the next
/// generation, took it for its own ending of the half, and told the client that its session is over.
#[test]
fn a_refusal_after_anothers_renewal_serves_what_was_renewed() {
    let mut simulation = tokens_aged(610);
    simulation.take(asks(Action::VisitorRequest, 0));
    simulation.until(0, "save", Fate::Desert);
    simulation.take(Step::Befall { event: Event::Crash, replica: 0 });
    simulation.take(Step::Wait(Duration::from_secs(45)));
    simulation.take(asks(Action::VisitorRequest, 1));
    simulation.until(1, "declare", Fate::Pass);
    simulation.take(Step::Arrive { call: 0 });
    simulation.take(all_pass(1));
    no_promise_is_broken(simulation);
}

/// A logout had begun and the store did not know yet: what a redeem brought was not kept, its intent was taken away, and
/// another replica sent the spent token as if for the first time.
#[test]
fn a_redeem_that_a_logout_overtook_leaves_its_intent() {
    let mut simulation = tokens_aged(610);
    simulation.take(asks(Action::VisitorRequest, 0));
    simulation.until(0, "anonymous refresh", Fate::Apply);
    simulation.take(asks(Action::Logout, 0));
    simulation.until(0, "load", Fate::Pass);
    simulation.until(0, "anonymous refresh", Fate::Pass);
    simulation.until(0, "release", Fate::Pass);
    simulation.take(asks(Action::VisitorRequest, 1));
    simulation.take(all_pass(1));
    no_promise_is_broken(simulation);
}
