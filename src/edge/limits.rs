//! Rates per client address and per account, for what attackers repeat: signing in, signing up, minting visitors.
//! A bounded memory of addresses and accounts; what falls out of it begins anew.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use moka::sync::Cache;

use crate::clock::{Clock, Timestamp};
use crate::config::{LimitsSection, RateSection};
use crate::error::GatewayError;
use crate::session::TenantId;
use crate::telemetry::{Limited, Metrics};

/// The rates, and who has used how much of them.
pub(super) struct Limits {
    sign_in_per_address: RateSection,
    sign_in_per_account: RateSection,
    visitors_per_address: RateSection,
    /// When each one's burst is whole again: the generic cell rate algorithm's single number.
    whole_at: Cache<[u8; 16], Timestamp>,
    /// Accounts are remembered by a keyed hash only.
    key: hmac::Key,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl Limits {
    pub(super) fn new(
        section: &LimitsSection,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self {
            sign_in_per_address: section.sign_in_per_address,
            sign_in_per_account: section.sign_in_per_account,
            visitors_per_address: section.visitors_per_address,
            whole_at: Cache::builder().max_capacity(section.tracked).build(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            clock,
            metrics,
        })
    }

    /// Other rates; what was used of the old ones counts on.
    pub(super) fn changed(&self, section: &LimitsSection) -> Self {
        Self {
            sign_in_per_address: section.sign_in_per_address,
            sign_in_per_account: section.sign_in_per_account,
            visitors_per_address: section.visitors_per_address,
            whole_at: self.whole_at.clone(),
            key: self.key.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// Counts a sign-in, sign-up or reset from `address`, for a tenant's account where one is named by its e-mail.
    pub(super) fn sign_in(
        &self,
        address: Option<IpAddr>,
        account: Option<(&TenantId, &str)>,
    ) -> Result<(), GatewayError> {
        self.take(&address_name("sign-in", address), self.sign_in_per_address, Limited::Address)?;
        match account {
            Some((tenant, email)) => {
                self.take(&account_name(tenant, email), self.sign_in_per_account, Limited::Account)
            }
            None => Ok(()),
        }
    }

    /// Counts a visitor minted for `address`.
    pub(super) fn visitor(&self, address: Option<IpAddr>) -> Result<(), GatewayError> {
        self.take(&address_name("visitor", address), self.visitors_per_address, Limited::Visitors)
    }

    fn take(&self, name: &str, rate: RateSection, limited: Limited) -> Result<(), GatewayError> {
        if rate.per_minute == 0 {
            return Ok(());
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hmac::sign(&self.key, name.as_bytes()).as_ref()[..16]);
        let (now, interval) = (self.clock.now(), Duration::from_secs(60) / rate.per_minute);
        let tolerance = interval * rate.burst.max(1);
        let mut wait = Duration::ZERO;
        self.whole_at.entry(id).and_upsert_with(|known| {
            let whole_at = known.map_or(now, |entry| entry.into_value().max(now));
            let next = whole_at.after(interval);
            wait = next.since(now.after(tolerance));
            if wait.is_zero() { next } else { whole_at }
        });
        if wait.is_zero() {
            return Ok(());
        }
        self.metrics.rate_limited.count(limited);
        Err(GatewayError::RateLimited { retry_after: wait.as_secs().max(1) })
    }
}

/// An IPv6 client owns a /64: its addresses count as one.
fn address_name(purpose: &str, address: Option<IpAddr>) -> String {
    match address {
        Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none() => format!("{purpose} {:x?}", &v6.octets()[..8]),
        Some(address) => format!("{purpose} {}", address.to_canonical()),
        None => purpose.to_owned(),
    }
}

/// Spellings that reach one mailbox count as one account.
fn account_name(tenant: &TenantId, email: &str) -> String {
    format!("account {tenant} {}", email.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ShiftedClock;

    fn limits(clock: Arc<ShiftedClock>) -> Limits {
        let section = LimitsSection {
            sign_in_per_address: RateSection { burst: 100, per_minute: 100 },
            sign_in_per_account: RateSection { burst: 3, per_minute: 1 },
            ..LimitsSection::default()
        };
        Limits::new(&section, clock, Arc::new(Metrics::new().unwrap())).unwrap()
    }

    #[test]
    fn an_account_may_burst_and_then_goes_at_its_rate() {
        let clock = Arc::new(ShiftedClock::default());
        let limits = limits(clock.clone());
        let acme = TenantId::parse("acme").unwrap();
        let email = |n: u8| if n.is_multiple_of(2) { " John.Doe@Example.com" } else { "john.doe@example.com" };
        for attempt in 0..3 {
            assert!(limits.sign_in(None, Some((&acme, email(attempt)))).is_ok(), "{attempt}");
        }
        let Err(GatewayError::RateLimited { retry_after }) = limits.sign_in(None, Some((&acme, email(3)))) else {
            panic!("the fourth attempt passed");
        };
        assert!((58..=60).contains(&retry_after), "{retry_after}");
        assert!(limits.sign_in(None, Some((&acme, "jane.roe@example.com"))).is_ok());
        clock.advance(Duration::from_secs(60));
        assert!(limits.sign_in(None, Some((&acme, email(4)))).is_ok());
        assert!(limits.sign_in(None, Some((&acme, email(5)))).is_err());
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let [one, same, other] =
            ["2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:2::1"].map(|text| address_name("x", text.parse().ok()));
        assert!(one == same && one != other);
    }
}
