//! How the gateway ends: told to stop, or to hand its listeners over to the next one.
//! Either way it waits for what is under way, not for a fixed time, and never longer than the drain timeout.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::doors::Doors;
use crate::edge::CurrentGateway;

/// Waits for the word to end, then for the requests under way.
pub(super) struct Stop {
    pub(super) gateway: CurrentGateway,
    pub(super) draining: Arc<AtomicBool>,
    pub(super) told: Arc<Notify>,
    pub(super) drain_timeout: Duration,
    pub(super) upgrade_socket: Option<PathBuf>,
    pub(super) doors: Doors,
}

/// What it was told.
enum Word {
    /// SIGTERM: balancers have yet to learn that no more requests should come.
    Drain,
    /// SIGQUIT: another process waits for the listeners.
    HandOver,
    /// SIGINT: at once.
    Leave,
}

#[async_trait]
impl ShutdownSignalWatch for Stop {
    async fn recv(&self) -> ShutdownSignal {
        let mut words = Words::of(&self.told);
        while let Some(word) = words.next(&self.doors).await {
            // A later word counts while an earlier one is followed: leave at once, or stop after all.
            let follows = async {
                match word {
                    Word::Leave => true,
                    Word::Drain => {
                        self.draining.store(true, Ordering::Release);
                        self.drain(LOOKS_WHEN_STOPPED).await;
                        true
                    }
                    Word::HandOver => match self.hand_over().await {
                        Ok(()) => {
                            self.doors.close();
                            self.drain(LOOKS_WHEN_FOLLOWED).await;
                            true
                        }
                        Err(error) => {
                            tracing::error!(error, "the listeners could not be handed over; serving on");
                            false
                        }
                    },
                }
            };
            let ended = tokio::select! {
                ended = follows => ended,
                () = words.hears_leave() => true,
            };
            if ended {
                break;
            }
        }
        // A listener whose runtime is gone before its own would try to accept for ever.
        self.doors.close();
        ShutdownSignal::GracefulTerminate
    }
}

/// The words as they come; one that comes while nobody listens waits.
struct Words<'s> {
    signals: Option<[Signal; 3]>,
    told: &'s Notify,
}

impl<'s> Words<'s> {
    fn of(told: &'s Notify) -> Self {
        let streams = [SignalKind::terminate(), SignalKind::quit(), SignalKind::interrupt()].map(signal);
        let [Ok(terminate), Ok(quit), Ok(interrupt)] = streams else { return Self { signals: None, told } };
        Self { signals: Some([terminate, quit, interrupt]), told }
    }

    async fn next(&mut self, doors: &Doors) -> Option<Word> {
        let Some([terminate, quit, interrupt]) = &mut self.signals else {
            self.told.notified().await;
            return Some(Word::Drain);
        };
        tokio::select! {
            _ = terminate.recv() => Some(Word::Drain),
            () = self.told.notified() => Some(Word::Drain),
            _ = quit.recv() => Some(Word::HandOver),
            _ = interrupt.recv() => Some(Word::Leave),
            () = doors.are_blocked() => None,
        }
    }

    /// Waits for SIGINT.
    async fn hears_leave(&mut self) {
        match &mut self.signals {
            Some([_, _, interrupt]) => drop(interrupt.recv().await),
            None => std::future::pending().await,
        }
    }
}

/// Between two looks at whether anything is under way.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Looks in a row that have to find nothing: who uses his connection all the time comes once more, and is told to close it.
const LOOKS_WHEN_STOPPED: u32 = 5;
/// The same where all clients still hold connections that they use: each is to come once more, and to be told to close it.
const LOOKS_WHEN_FOLLOWED: u32 = 50;
/// The same while HTTP/2 connections are open. A client that sleeps never closes its own: it is not waited for longer.
const LOOKS_WHEN_CONNECTED: u32 = 100;

/// What remains of the bound when no further request is begun, at most.
const LONGEST_REST: Duration = Duration::from_secs(5);

impl Stop {
    async fn hand_over(&self) -> Result<(), String> {
        let socket = self.upgrade_socket.clone().ok_or("listen.upgrade_socket is not set")?;
        let doors = self.doors.clone();
        let handed_over = spawn_blocking(move || doors.hand_over(&socket)).await;
        handed_over.map_err(|error| error.to_string())??;
        tracing::info!("the listeners were handed over");
        Ok(())
    }

    async fn drain(&self, looks: u32) {
        let bound = Instant::now() + self.drain_timeout;
        let gateway = self.gateway.load_full();
        gateway.drain();
        tracing::info!(under_way = gateway.under_way(), "draining");
        let idle = async {
            let mut found = 0;
            while found < looks || found < LOOKS_WHEN_CONNECTED && gateway.has_http2_connections() {
                found = if gateway.is_idle() { found + 1 } else { 0 };
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // Where new requests never cease to come, the last that are begun have the rest of the time to end.
        let rest = (self.drain_timeout / 3).min(LONGEST_REST);
        let _ = timeout_at(bound - rest, idle).await;
        self.doors.close();
        gateway.close();
        let ended = async {
            // What began in the meantime is counted by the next look.
            while {
                tokio::time::sleep(LOOK_EVERY).await;
                !gateway.is_idle()
            } {}
        };
        // What is still under way after the bound is cut off.
        let _ = timeout_at(bound, ended).await;
    }
}
