//! Tells Emporix that tokens are over, behind whatever ended them.
//! Bounded in attempts, in calls at a time, and in tokens that wait: one beyond the bound is left to expire.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Broker;
use crate::clock::{jittered, jittered_past};
use crate::identity::IdentityError;
use crate::session::{TenantId, Token};

/// Calls at a time: the end of a whole tenant must not keep Emporix from its work.
const AT_ONCE: usize = 16;

/// Tokens that wait for their call.
const MOST_WAITING: usize = 10_000;

/// How long a revocation is held back, all in all, while Emporix is away or asks for a pause.
const LONGEST_HELD_BACK: Duration = Duration::from_secs(600);

/// The longest pause between two attempts, whatever Emporix asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The revocations that are to be made.
pub(super) struct Revocations {
    waiting: Arc<Semaphore>,
    calls: Semaphore,
}

impl Default for Revocations {
    fn default() -> Self {
        Self { waiting: Arc::new(Semaphore::new(MOST_WAITING)), calls: Semaphore::new(AT_ONCE) }
    }
}

impl Broker {
    /// Tells Emporix that a token is over; of no consequence for the client. False when too many wait already.
    pub(super) fn revoke_behind(self: &Arc<Self>, tenant: TenantId, access: Token) -> bool {
        let Ok(place) = self.revocations.waiting.clone().try_acquire_owned() else {
            tracing::debug!(%tenant, "too many tokens wait to be revoked: one is left to expire");
            return false;
        };
        let broker = self.clone();
        self.go_on(async move {
            broker.revoke_upstream(&tenant, &access).await;
            drop(place);
        });
        true
    }

    async fn revoke_upstream(&self, tenant: &TenantId, access: &Token) {
        let (mut attempt, mut held_back) = (0, Duration::ZERO);
        while attempt < self.settings.revoke_attempts && held_back < LONGEST_HELD_BACK {
            // Never closed, so a turn always comes; it is given back before the wait for the next attempt.
            let turn = self.revocations.calls.acquire().await;
            let answer = self.identity.revoke(tenant, access).await;
            drop(turn);
            let pause = match answer {
                Ok(()) => return,
                Err(IdentityError::Refused(refusal)) => {
                    tracing::debug!(%tenant, status = refusal.status, "Emporix does not know the token any more");
                    return;
                }
                // Not called at all, or asked to wait: no attempt.
                Err(IdentityError::HeldBack) => jittered(Duration::from_secs(1)),
                Err(IdentityError::RateLimited { retry_after }) => {
                    jittered_past(Duration::from_secs(retry_after.unwrap_or(1)).min(LONGEST_PAUSE))
                }
                Err(_) => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(125 << attempt.min(7))).await;
                    continue;
                }
            };
            held_back += pause;
            if held_back < LONGEST_HELD_BACK {
                tokio::time::sleep(pause).await;
            }
        }
        tracing::warn!(%tenant, "Emporix could not be told of a logout");
    }
}
