//! The gateway against the simulator and real stores: one file per promise, one sentence per test.

#![expect(unreachable_pub, reason = "nothing reaches into a test binary")]

mod readme;
mod story;
mod world;
