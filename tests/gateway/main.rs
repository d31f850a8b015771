//! The gateway against the simulator and real stores: one file per promise, one sentence per test.

#![expect(unreachable_pub, reason = "nothing reaches into a test binary")]

mod architecture;
mod bad_input;
mod login;
mod logout;
mod operations;
mod outages;
mod readme;
mod refresh;
mod refresh_outages;
mod saas_token;
mod secrets_stay_secret;
mod steps;
mod store_contract;
mod story;
mod token_routes;
mod world;
