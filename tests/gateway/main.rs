//! The gateway against the simulator and real stores: one file per promise, one sentence per test.

#![expect(unreachable_pub, reason = "nothing reaches into a test binary")]

mod bad_input;
mod login;
mod logout;
mod readme;
mod refresh;
mod saas_token;
mod steps;
mod story;
mod token_routes;
mod world;
