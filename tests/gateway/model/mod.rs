//! Interleavings of refresh, login, logout, crash, pause and partition, explored over the real broker.
//! Every run is judged by the promises of a session, and for each promise a planted fault shows that the judge can see.
//!
//! Two or three replicas, each the real `Broker` over the real `LayeredStore` on a runtime of its own, share one store
//! and one Emporix. Every call at one of the two seams waits at a gate until the schedule decides what becomes of it; the
//! clock and tokio's time move by schedule alone. So a schedule is a run, and proptest draws schedules and shrinks them.
//!
//! Why not a model checker or a scheduler for threads: stateright checks an abstraction, and what is proved of that is
//! not proved of this code. loom and shuttle put their own primitives in place of tokio's and moka's, and look at the
//! order of memory accesses within one process. What can break these promises is the order of calls at the seams, across
//! processes that die and stand still; there the real code can be held as it is.
//!
//! `MODEL_CASES=20000 MODEL_SEED=7 cargo test --test gateway -- model::no_interleaving` looks longer, and elsewhere.

mod bug;
mod client;
mod emporix;
mod gate;
mod journal;
mod regressions;
mod replica;
mod schedule;
mod simulation;
mod store;
mod visitors;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::Write;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use bug::Bug;
use journal::{Promise, Sight, Violation};
use schedule::{Schedule, schedules};
use simulation::{Log, run};

/// Schedules that are tried.
const CASES: u32 = 800;

/// Steps that a schedule has at most.
const STEPS: usize = 80;

/// A broken promise, and the shortest schedule found that breaks it.
#[derive(Debug)]
struct Found {
    violation: Violation,
    schedule: Schedule,
    story: Vec<String>,
}

/// Tries schedules until one breaks a promise. Returns also what was met on the way.
fn explore(bug: Bug) -> (Option<Found>, HashSet<Sight>) {
    let config = Config {
        cases: number("MODEL_CASES").unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..Config::default()
    };
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&number("MODEL_SEED").unwrap_or(1).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let log = Log::default();
    let broken = Cell::new(None);
    let met = RefCell::new(HashSet::new());
    let found = tracing::subscriber::with_default(subscriber(&log), || {
        let tried = runner.run(&schedules(STEPS), |schedule| {
            let ended = run(&schedule, bug, &log);
            met.borrow_mut().extend(ended.met);
            let Some(violation) = ended.violation else { return Ok(()) };
            // A shorter schedule that breaks another promise is not the same fault.
            if broken.get().is_some_and(|promise| promise != violation.promise) {
                return Ok(());
            }
            broken.set(Some(violation.promise));
            Err(TestCaseError::fail(violation.to_string()))
        });
        match tried {
            Ok(()) => None,
            Err(TestError::Fail(_, schedule)) => Some(schedule),
            Err(TestError::Abort(reason)) => panic!("{reason}"),
        }
        .map(|schedule| (run(&schedule, bug, &log), schedule))
    });
    let found = found.map(|(ended, schedule)| Found {
        violation: ended.violation.expect("the same schedule is the same run"),
        schedule,
        story: ended.story,
    });
    (found, met.into_inner())
}

fn number(variable: &str) -> Option<u32> {
    std::env::var_os(variable)?.to_str()?.parse().ok()
}

/// Writes what this thread logs, at every level, to `log`.
fn subscriber(log: &Log) -> impl tracing::Subscriber + Send + Sync + use<> {
    struct Writer(Log);
    impl Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = log.clone();
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || Writer(log.clone())).finish()
}

/// The story of a broken promise.
fn told(found: &Found) -> String {
    format!("{}\n  {}\n{:?}", found.violation, found.story.join("\n  "), found.schedule)
}

fn the_model_finds(bug: Bug, promise: Promise) {
    let found = explore(bug).0.unwrap_or_else(|| panic!("{bug:?} went unseen"));
    assert_eq!(found.violation.promise, promise, "{}", told(&found));
}

#[test]
fn no_interleaving_breaks_a_promise() {
    let (found, met) = explore(Bug::None);
    if let Some(found) = found {
        panic!("{}", told(&found));
    }
    let unseen: Vec<Sight> = Sight::ALL.into_iter().filter(|sight| !met.contains(sight)).collect();
    assert!(unseen.is_empty(), "the schedules never came across {unseen:?}");
}

#[test]
fn the_model_finds_a_lease_that_everybody_gets() {
    the_model_finds(Bug::EveryLeaseGranted, Promise::OneRedeem);
}

#[test]
fn the_model_finds_a_token_call_that_is_repeated() {
    the_model_finds(Bug::RepeatedCall, Promise::OneRedeem);
}

#[test]
fn the_model_finds_a_save_that_ignores_the_revision() {
    the_model_finds(Bug::BlindSave, Promise::SavesFollowGenerations);
}

#[test]
fn the_model_finds_a_removal_without_a_tombstone() {
    the_model_finds(Bug::NoTombstone, Promise::LogoutAbsorbs);
}

#[test]
fn the_model_finds_a_fault_taken_for_an_absence() {
    the_model_finds(Bug::FaultIsAbsence, Promise::FaultsEndNothing);
}

#[test]
fn the_model_finds_a_store_that_logs_a_token() {
    the_model_finds(Bug::Talkative, Promise::SecretsStaySecret);
}

#[test]
fn the_model_finds_a_load_that_answers_anothers_record() {
    the_model_finds(Bug::MixedUp, Promise::SessionsStayApart);
}
