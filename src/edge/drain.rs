//! Going out of service: answers close their connections, and HTTP/2 clients are told to open no more streams.
//! Said once, and heard by all who serve a connection.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Whether it has begun.
#[derive(Default)]
pub(super) struct Drain {
    /// What requests look at: nothing that is written while they do.
    begun: AtomicBool,
    told: watch::Sender<bool>,
}

impl Drain {
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.told.send_replace(true);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Turns true when it begins.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.told.subscribe()
    }
}
