//! One replica: the real broker over the real hot cache, on a runtime of its own that can stand still or vanish.
//! Runs only when it is driven, until everything in it waits.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use emporix_gateway::broker::{Broker, BrokerSettings, GuestToken, Services, Tenant};
use emporix_gateway::clock::Clock;
use emporix_gateway::config::{HotCacheSection, RefreshAuthorizer, RefreshReuse, SaasTokenSection};
use emporix_gateway::identity::emporix::client;
use emporix_gateway::identity::keys::SaasVerifier;
use emporix_gateway::session::{LifeLimits, SiteContext, TenantId};
use emporix_gateway::store::{Invalidation, LayeredStore};
use emporix_gateway::telemetry::Metrics;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::broadcast;

use super::emporix::GatedIdentity;
use super::journal::Life;
use super::simulation::Surroundings;
use super::store::GatedStore;

const DAY: Duration = Duration::from_secs(86_400);

pub const LIMITS: LifeLimits = LifeLimits {
    visitor_idle: Duration::from_secs(7 * 86_400),
    customer_idle: Duration::from_secs(30 * 86_400),
    absolute: Duration::from_secs(90 * 86_400),
    refresh_margin: 0.25,
};

/// A running gateway, from the broker inwards.
pub struct Replica {
    pub life: Life,
    pub broker: Arc<Broker>,
    runtime: Runtime,
    hears: broadcast::Sender<Invalidation>,
    suspended: bool,
    /// Time that went by while it was suspended.
    missed: Duration,
}

impl Replica {
    /// Starts one.
    pub fn start(life: Life, around: &Surroundings) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (hears, _) = broadcast::channel(256);
        let broker = broker(life, around, &hears, &runtime);
        let listening = broker.clone();
        runtime.spawn(async move { listening.listen().await });
        around.journal.is_born(life);
        let replica = Self { life, broker, runtime, hears, suspended: false, missed: Duration::ZERO };
        replica.drive();
        replica
    }

    /// Begins a task in it.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
        self.drive();
    }

    /// Lets it run until everything in it waits.
    pub fn drive(&self) {
        // A wake passes through three tasks at most: the flight's, its guard's, the request's.
        const TURNS: usize = 8;
        if !self.suspended {
            self.runtime.block_on(async {
                for _ in 0..TURNS {
                    tokio::task::yield_now().await;
                }
            });
        }
    }

    /// Lets time go by.
    pub fn age(&mut self, time: Duration) {
        if self.suspended {
            self.missed += time;
        } else {
            self.runtime.block_on(tokio::time::advance(time));
            self.drive();
        }
    }

    pub const fn is_suspended(&self) -> bool {
        self.suspended
    }

    pub const fn suspend(&mut self) {
        self.suspended = true;
    }

    pub fn resume(&mut self) {
        if std::mem::take(&mut self.suspended) {
            let missed = std::mem::take(&mut self.missed);
            self.age(missed);
        }
    }

    /// Tells it what another replica said.
    pub fn hear(&self, invalidation: Invalidation) {
        let _ = self.hears.send(invalidation);
        self.drive();
    }

    /// Whether nothing is under way in it, but for listening.
    pub fn is_idle(&self) -> bool {
        self.runtime.metrics().num_alive_tasks() <= 1
    }
}

/// The one place where the model builds a broker.
fn broker(
    life: Life,
    around: &Surroundings,
    hears: &broadcast::Sender<Invalidation>,
    runtime: &Runtime,
) -> Arc<Broker> {
    let clock: Arc<dyn Clock> = around.clock.clone();
    let store = GatedStore { shared: around.store.clone(), gate: around.gate.clone(), life, hears: hears.clone() };
    let identity = GatedIdentity {
        emporix: around.emporix.clone(),
        gate: around.gate.clone(),
        journal: around.journal.clone(),
        life,
        bug: around.bug,
    };
    let hot_cache = HotCacheSection { max_bytes: 1 << 20, ..HotCacheSection::default() };
    let settings = BrokerSettings {
        refresh_authorizer: RefreshAuthorizer::Anonymous,
        refresh_reuse: RefreshReuse::Refuse,
        identity_timeout: Duration::from_secs(10),
        lease_term: Duration::from_secs(15),
        revoke_attempts: 2,
        most_unsaved: 1,
    };
    let layered = LayeredStore::new(Arc::new(store), hot_cache, LIMITS, clock.clone(), metrics());
    let tenants = ["acme", "globex"].map(|name| tenant(name, &clock));
    Broker::new(
        layered,
        Arc::new(identity),
        HashMap::from(tenants),
        settings,
        clock,
        metrics(),
        runtime.handle().clone(),
    )
}

fn tenant(name: &str, clock: &Arc<dyn Clock>) -> (TenantId, Tenant) {
    // Making a client reads the system's certificates; nothing is fetched with it.
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    let client = CLIENT.get_or_init(|| client(DAY).unwrap()).clone();
    let id = TenantId::parse(name).unwrap();
    let tenant = Tenant {
        id,
        site: SiteContext::default(),
        saas: SaasVerifier::new(&SaasTokenSection::default(), client, clock.clone()),
        accept_jwt: true,
        expose_jwt: false,
        adopt_until: None,
        webhook: None,
        services: Services::default(),
        guest: GuestToken::default(),
    };
    (id, tenant)
}

/// Registering metrics takes longer than a run.
fn metrics() -> Arc<Metrics> {
    static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| Arc::new(Metrics::new().unwrap())).clone()
}
