//! A lease while work is done under it: renewed at every third of its term, until it is given up or lost.
//! Nothing is sent that was not declared under it a moment ago, by a clock that goes on while this process is stopped.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::Broker;
use crate::session::{Scope, SessionKey};
use crate::store::{Intent, Lead, LeaseName, Owner, Settled, StoreError};

/// A lease that was ours when last heard of.
pub(super) struct HeldLease {
    name: LeaseName,
    owner: Owner,
    /// The uptime, in milliseconds, until which nobody else can have it.
    ours_until: AtomicU64,
    lost: AtomicBool,
}

/// Somebody else may have the lease by now, and nothing was sent.
#[derive(Debug)]
pub(super) struct LeaseLost;

/// Why a token may not be sent.
pub(super) enum Undeclared {
    Lost(LeaseLost),
    Unknown(StoreError),
}

impl HeldLease {
    pub(super) const fn key(&self) -> &SessionKey {
        &self.name.key
    }

    pub(super) const fn scope(&self) -> Scope {
        self.name.scope
    }

    /// The store said, to a question asked at `asked_at`, that the lease is ours for `term`, or that it is not.
    fn heard(&self, ours: bool, asked_at: Duration, term: Duration) {
        if ours {
            // A quarter is kept back: clocks differ, and what is sent takes a while to leave.
            self.ours_until.fetch_max(millis(asked_at + term * 3 / 4), Ordering::AcqRel);
        } else {
            self.lost.store(true, Ordering::Release);
        }
    }

    fn is_surely_ours(&self, uptime: Duration) -> bool {
        !self.lost.load(Ordering::Acquire) && millis(uptime) < self.ours_until.load(Ordering::Acquire)
    }
}

impl Broker {
    /// Takes the lease, with what its last holder left behind, unless somebody holds it.
    pub(super) async fn take_lease(
        &self,
        name: LeaseName,
        owner: Owner,
    ) -> Result<Option<(HeldLease, Option<Intent>)>, StoreError> {
        let (asked_at, term) = (self.clock.uptime(), self.settings.lease_term);
        let Lead::Ours(orphan) = self.store.acquire(&name, &owner, term).await? else { return Ok(None) };
        let held = HeldLease { name, owner, ours_until: AtomicU64::default(), lost: AtomicBool::default() };
        held.heard(true, asked_at, term);
        Ok(Some((held, orphan)))
    }

    /// Gives up a lease that may have been taken: the answer did not come.
    pub(super) fn drop_lease_behind(self: &Arc<Self>, name: LeaseName, owner: Owner) {
        let broker = self.clone();
        self.go_on(async move {
            // Not heard, it ends by itself.
            let _ = broker.store.release(&name, &owner, Settled::Unknown).await;
        });
    }

    /// Renews the lease for as long as this is polled. That it is lost is noted, and stops nothing under way.
    pub(super) async fn keep_lease(&self, held: &HeldLease) -> Infallible {
        let term = self.settings.lease_term;
        while !held.lost.load(Ordering::Acquire) {
            tokio::time::sleep(term / 3).await;
            let asked_at = self.clock.uptime();
            match self.store.extend(&held.name, &held.owner, term).await {
                Ok(ours) => held.heard(ours, asked_at, term),
                Err(error) => {
                    tracing::debug!(session = %self.label(held.key()), %error, "a lease could not be renewed");
                }
            }
        }
        pending().await
    }

    /// Writes ahead that a token is about to be sent. When this returns well, the lease was ours until a moment ago:
    /// a store's "yes" that lay unread while this process was stopped counts for nothing, and is asked for again.
    pub(super) async fn declare(&self, held: &HeldLease, intent: &Intent) -> Result<(), Undeclared> {
        const ATTEMPTS: usize = 3;
        let term = self.settings.lease_term;
        for _ in 0..ATTEMPTS {
            let asked_at = self.clock.uptime();
            let ours = self.store.declare(&held.name, &held.owner, intent, term).await.map_err(Undeclared::Unknown)?;
            held.heard(ours, asked_at, term);
            if !ours {
                break;
            }
            if held.is_surely_ours(self.clock.uptime()) {
                return Ok(());
            }
        }
        Err(Undeclared::Lost(LeaseLost))
    }

    /// Gives the lease up.
    pub(super) async fn give_up(&self, held: &HeldLease, settled: Settled) {
        if let Err(error) = self.store.release(&held.name, &held.owner, settled).await {
            tracing::warn!(session = %self.label(held.key()), %error, "a lease could not be released; it ends by itself");
        }
    }
}

fn millis(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
}
