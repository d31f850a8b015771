//! What the model once found, told by the calls that matter: these schedules stay when the exploration draws others.
//! Each names the fault that broke a promise before it was mended. And what only a clock that stands still can show.

use std::time::Duration;

use super::bug::Bug;
use super::emporix::Whim;
use super::schedule::{Action, Event, Fate, Schedule, Step};
use super::simulation::{HELD_FOR, Log, Simulation};

/// The phone's place among the visitors, and the stranger's.
const PHONE: usize = 0;
const STRANGER: usize = 2;

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

/// `replica` finds an intent, and holds its lease for as long as whoever left that may take to save.
fn held(simulation: &mut Simulation, replica: usize) {
    simulation.take(all_pass(replica));
    simulation.take(Step::Wait(HELD_FOR));
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
    held(&mut simulation, 1);
    simulation.until(1, "anonymous refresh", Fate::Pass);
    simulation.until(1, "load", Fate::Refuse);
    simulation.take(all_pass(1));
    simulation.take(asks(Action::VisitorRequest, 2));
    held(&mut simulation, 2);
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
    held(&mut simulation, 1);
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
    held(&mut simulation, 1);
    simulation.take(all_pass(1));
    no_promise_is_broken(simulation);
}

/// A redeem of the phone's, answered to replica 0 and not saved.
fn redeemed() -> Simulation {
    let mut simulation = tokens_aged(610);
    simulation.take(asks(Action::CustomerRequest, 0));
    simulation.until(0, "refresh", Fate::Pass);
    simulation
}

/// The only valid token was let go after half a minute, and the session with it.
#[test]
fn what_a_redeem_brought_is_kept_until_the_store_is_back() {
    let mut simulation = redeemed();
    let spent = simulation.customer_token(PHONE);
    simulation.take(Step::Befall { event: Event::Cut, replica: 0 });
    for _ in 0..60 {
        simulation.take(Step::Wait(Duration::from_secs(3)));
    }
    assert!(!simulation.awaits_answers(), "nobody waits as long");
    assert_eq!(simulation.customer_token(PHONE), spent);
    simulation.take(Step::Befall { event: Event::Mend, replica: 0 });
    simulation.take(Step::Wait(Duration::from_secs(1)));
    simulation.take(all_pass(0));
    let renewed = simulation.customer_token(PHONE);
    assert!(renewed.is_some() && renewed != spent, "it was saved");
    let sent = simulation.sent();
    for replica in 0..2 {
        simulation.take(asks(Action::CustomerRequest, replica));
        simulation.take(all_pass(replica));
    }
    assert_eq!((simulation.customer_token(PHONE), simulation.sent()), (renewed, sent), "and needed no other");
    no_promise_is_broken(simulation);
}

#[test]
fn who_asks_while_renewed_tokens_wait_for_the_store_is_answered_at_once() {
    let mut simulation = redeemed();
    simulation.until(0, "save", Fate::Refuse);
    simulation.take(Step::Befall { event: Event::Cut, replica: 0 });
    simulation.take(Step::Wait(Duration::from_secs(21)));
    assert!(!simulation.awaits_answers());
    simulation.take(asks(Action::CustomerRequest, 0));
    assert!(!simulation.awaits_answers(), "no time has to go by");
    no_promise_is_broken(simulation);
}

#[test]
fn renewed_tokens_that_are_over_wait_no_longer() {
    let mut simulation = redeemed();
    simulation.take(Step::Befall { event: Event::Cut, replica: 0 });
    simulation.take(Step::Wait(Duration::from_secs(3_500)));
    assert!(!simulation.is_idle(0), "they can still be renewed");
    simulation.take(Step::Wait(Duration::from_secs(101)));
    simulation.take(Step::Wait(Duration::from_secs(101)));
    assert!(simulation.is_idle(0));
    no_promise_is_broken(simulation);
}

/// In the model one answer may wait.
#[test]
fn while_too_many_renewed_tokens_wait_no_further_token_is_sent() {
    let mut simulation = redeemed();
    simulation.until(0, "save", Fate::Refuse);
    let sent = simulation.sent();
    simulation.take(Step::Start { action: Action::CustomerRequest, visitor: STRANGER, replica: 0 });
    simulation.take(all_pass(0));
    assert_eq!(simulation.sent(), sent);
    simulation.take(Step::Wait(Duration::from_secs(6)));
    simulation.take(all_pass(0));
    simulation.take(Step::Start { action: Action::CustomerRequest, visitor: STRANGER, replica: 0 });
    simulation.take(all_pass(0));
    assert!(simulation.sent() > sent, "once it is saved, others follow");
    no_promise_is_broken(simulation);
}

/// The store was away for longer than a lease: another replica was faster to send the token again than its leader to save
/// what it had got. The refusal ended the half, and the only valid token was let go.
#[test]
fn a_leader_that_lives_saves_its_answer_before_its_token_is_sent_again() {
    let mut simulation = redeemed();
    let (spent, sent) = (simulation.customer_token(PHONE), simulation.sent());
    simulation.take(Step::Befall { event: Event::Cut, replica: 0 });
    simulation.take(Step::Wait(Duration::from_secs(16)));
    simulation.take(Step::Befall { event: Event::Mend, replica: 0 });
    simulation.take(asks(Action::CustomerRequest, 1));
    simulation.take(all_pass(1));
    simulation.take(Step::Wait(Duration::from_secs(1)));
    simulation.take(all_pass(0));
    let renewed = simulation.customer_token(PHONE);
    simulation.take(Step::Wait(Duration::from_secs(2)));
    simulation.take(all_pass(1));
    assert!(!simulation.awaits_answers());
    assert_eq!((simulation.customer_token(PHONE), simulation.sent()), (renewed.clone(), sent), "one redeem");
    assert!(renewed.is_some() && renewed != spent);
    no_promise_is_broken(simulation);
}

#[test]
fn renewed_tokens_of_a_record_that_cannot_be_read_any_more_are_given_up_in_a_minute() {
    let mut simulation = redeemed();
    simulation.records_turn_unreadable();
    for second in 0..62 {
        assert!(second > 55 || !simulation.is_idle(0), "after {second} s");
        simulation.take(all_pass(0));
        simulation.take(Step::Wait(Duration::from_secs(1)));
    }
    simulation.take(all_pass(0));
    assert!(simulation.is_idle(0));
}

#[test]
fn renewed_tokens_that_never_end_wait_no_longer_than_their_session_lives() {
    let mut simulation = tokens_aged(610);
    simulation.take(asks(Action::CustomerRequest, 0));
    simulation.until(0, "anonymous refresh", Fate::Pass);
    simulation.emporix_turns(Whim::EndlessTokens);
    simulation.until(0, "refresh", Fate::Pass);
    simulation.take(Step::Befall { event: Event::Cut, replica: 0 });
    simulation.take(Step::Wait(Duration::from_secs(89 * 86_400)));
    assert!(!simulation.is_idle(0));
    for _ in 0..2 {
        simulation.take(Step::Wait(Duration::from_secs(86_400)));
    }
    assert!(simulation.is_idle(0));
}

/// Each attempt began another removal of every session, and another revocation of its token.
#[test]
fn a_store_that_takes_no_removal_is_told_by_one_for_each_session_and_emporix_once() {
    const ROUNDS: usize = 20;
    let mut simulation = tokens_aged(0);
    simulation.take(asks(Action::LogoutAll, 0));
    for _ in 0..ROUNDS {
        simulation.all_but(0, "remove");
        simulation.take(Step::Wait(Duration::from_secs(1)));
    }
    let (refused, revoked) = (simulation.told_of("remove", "fails"), simulation.told_of("revoke", "passes"));
    // The attempt's own and the one behind it, for both devices.
    assert!(refused <= 4 * ROUNDS + 2, "{refused} removals");
    assert_eq!(revoked, 2, "the tokens of both devices");
    no_promise_is_broken(simulation);
}

#[test]
fn a_revocation_waits_a_minute_for_emporix_whatever_pause_it_asks_for_and_gives_up_in_the_end() {
    for heals in [true, false] {
        let mut simulation = tokens_aged(0);
        simulation.emporix_turns(Whim::PausedRevocations);
        simulation.take(asks(Action::Logout, 0));
        simulation.take(all_pass(0));
        if heals {
            simulation.emporix_turns(Whim::None);
        }
        for _ in 0..10 {
            simulation.take(Step::Wait(Duration::from_secs(75)));
            simulation.take(all_pass(0));
        }
        let calls = simulation.told_of("revoke", "passes");
        assert!(if heals { calls == 2 } else { (7..=10).contains(&calls) }, "{calls} calls");
        assert!(simulation.is_idle(0));
    }
}

#[test]
fn a_follower_on_another_replica_is_woken_by_the_leaders_word_and_not_by_time() {
    let mut simulation = tokens_aged(610);
    simulation.take(asks(Action::CustomerRequest, 0));
    simulation.until(0, "refresh", Fate::Apply);
    simulation.take(asks(Action::CustomerRequest, 1));
    simulation.take(all_pass(1));
    simulation.take(all_pass(0));
    assert!(simulation.awaits_answers(), "the follower has heard nothing");
    // Also of the visitor's half, which was renewed to authorise this.
    for _ in 0..3 {
        simulation.take(Step::Befall { event: Event::Hear, replica: 1 });
        simulation.take(all_pass(1));
    }
    assert!(!simulation.awaits_answers(), "it has heard, and no time went by");
    no_promise_is_broken(simulation);
}
