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

    /// Changes when it begins, or has changed already: whoever comes later is told as well.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        let mut told = self.told.subscribe();
        if self.has_begun() {
            told.mark_changed();
        }
        told
    }

    /// Whether anybody watches still.
    pub(super) fn is_watched(&self) -> bool {
        self.told.receiver_count() > 0
    }
}
