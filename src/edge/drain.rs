//! Going out of service: answers close their connections, and HTTP/2 clients are told to open no more streams.
//! Said once, and heard by all who serve a connection.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::watch;

/// What becomes of requests that come.
#[repr(u8)]
enum Stage {
    /// They are answered, and the connection is closed behind the answer.
    Draining = 1,
    /// They are not begun: a client that sees its connection close without a word may ask elsewhere.
    Over = 2,
}

/// Whether it has begun.
#[derive(Default)]
pub(super) struct Drain {
    /// What requests look at: nothing that is written while they do.
    stage: AtomicU8,
    told: watch::Sender<bool>,
}

impl Drain {
    pub(super) fn begin(&self) {
        self.stage.store(Stage::Draining as u8, Ordering::Release);
        self.told.send_replace(true);
    }

    /// No further request is begun from now on.
    pub(super) fn end(&self) {
        self.stage.store(Stage::Over as u8, Ordering::Release);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.stage.load(Ordering::Acquire) >= Stage::Draining as u8
    }

    pub(super) fn is_over(&self) -> bool {
        self.stage.load(Ordering::Acquire) == Stage::Over as u8
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
