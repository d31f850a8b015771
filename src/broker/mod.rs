//! What happens: exchanges a client's opaque credential for the token that upstream wants.
//! Names no I/O crate; it asks the store and the identity provider through their seams.

mod adopt;
mod authenticate;
mod authorizer;
mod detached;
mod flights;
mod granted;
mod guest;
mod lease;
mod login;
mod logout;
mod operator;
mod permit;
mod redeem;
mod refresh;
mod rejections;
mod revocations;
mod service;
mod shared;
mod visitor;
mod webhooks;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::runtime::Handle as Runtime;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast};

pub use authenticate::{Demand, SessionView};
pub use granted::Granted;
pub use guest::GuestToken;
pub use login::LoginOptions;
pub use operator::{CustomerListing, Revocation, Revoked, SessionSummary};
pub use permit::Permit;
pub use service::Services;

pub use crate::identity::answer::is_expiry_fault;
pub use crate::identity::webhook::Delivery;
pub use crate::identity::{Fields, Grant, NumberForm, ServiceClient};

use crate::clock::{Clock, Timestamp};
use crate::config::{RefreshAuthorizer, RefreshReuse};
use crate::error::GatewayError;
use crate::identity::IdentityProvider;
use crate::identity::keys::SaasVerifier;
use crate::identity::webhook::Webhook;
use crate::session::{Handle, Scope, SessionKey, SessionLabel, SiteContext, TenantId, Token};
use crate::store::{Invalidation, LayeredStore, StoreError};
use crate::telemetry::Metrics;
use adopt::Adoptions;
use detached::Detached;
use flights::Flights;
use rejections::Rejections;
use revocations::Revocations;

/// What a client presents.
#[derive(Debug)]
pub enum Credential {
    /// A handle, and the others of the same session that came with it.
    Handle(Handle, Vec<Handle>),
    /// The cookie, and the scope that a placeholder names.
    Cookie(Handle, Option<Scope>),
    /// The very JWT that a login answered.
    Jwt(Token),
    /// A Bearer that this gateway did not issue.
    Foreign(Token),
}

/// A tenant as the broker knows it.
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// The site of shared guest tokens and of visitors minted on demand.
    pub site: SiteContext,
    /// Checks its `saas_token`s.
    pub saas: SaasVerifier,
    /// Whether clients may present the JWT as their credential.
    pub accept_jwt: bool,
    /// Whether a login in handle transport may be answered with the real JWT.
    pub expose_jwt: bool,
    /// Until when foreign Bearers are taken into sessions; those taken live on beyond it. None: there never were any.
    pub adopt_until: Option<Timestamp>,
    /// What believes Emporix' events; none are taken without.
    pub webhook: Option<Arc<Webhook>>,
    /// What back-office callers act as.
    pub services: Services,
    /// What reads its catalogue without a session.
    pub guest: GuestToken,
}

impl Tenant {
    /// Takes over the shared tokens of `earlier` that are right for this one too.
    fn inherit(&mut self, earlier: &Self) {
        self.services.inherit(&earlier.services);
        if self.site == earlier.site {
            self.guest = earlier.guest.clone();
        }
    }
}

/// How the broker renews and revokes.
#[derive(Clone, Copy, Debug)]
pub struct BrokerSettings {
    /// Which of the session's tokens authorises a customer's refresh.
    pub refresh_authorizer: RefreshAuthorizer,
    /// What reuse of a replaced refresh handle does.
    pub refresh_reuse: RefreshReuse,
    /// Bound on one token call.
    pub identity_timeout: Duration,
    /// How long a lease lasts unless its holder renews it.
    pub lease_term: Duration,
    /// Attempts at telling Emporix of a logout.
    pub revoke_attempts: u32,
    /// Renewed tokens that may wait for the store; while so many do, no further refresh token is sent.
    pub most_unsaved: usize,
}

/// Exchanges credentials.
pub struct Broker {
    store: LayeredStore,
    identity: Arc<dyn IdentityProvider>,
    /// Who they are is fixed; what is known of each can change.
    tenants: HashMap<TenantId, ArcSwap<Tenant>>,
    flights: Flights,
    rejections: Rejections,
    adoptions: Adoptions,
    revocations: Revocations,
    /// The sessions whose removal waits for the store.
    removals: Mutex<HashSet<SessionKey>>,
    /// Places for renewed tokens that the store did not take yet.
    unsaved: Semaphore,
    /// Turns of operators' revocations.
    operators: Arc<Semaphore>,
    settings: BrokerSettings,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    detached: Detached,
    ended: broadcast::Sender<SessionKey>,
}

impl Broker {
    /// A broker for `tenants`.
    #[must_use]
    pub fn new(
        store: LayeredStore,
        identity: Arc<dyn IdentityProvider>,
        tenants: HashMap<TenantId, Tenant>,
        settings: BrokerSettings,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        runtime: Runtime,
    ) -> Arc<Self> {
        let (ended, _) = broadcast::channel(1024);
        let (flights, rejections) = (Flights::new(clock.clone()), Rejections::default());
        let adoptions = Adoptions::default();
        Arc::new(Self {
            store,
            identity,
            tenants: tenants.into_iter().map(|(id, tenant)| (id, ArcSwap::from_pointee(tenant))).collect(),
            flights,
            rejections,
            adoptions,
            revocations: Revocations::default(),
            removals: Mutex::default(),
            unsaved: Semaphore::new(settings.most_unsaved),
            operators: Arc::new(Semaphore::new(operator::MOST_REVOCATIONS)),
            settings,
            clock,
            metrics,
            detached: Detached::new(runtime),
            ended,
        })
    }

    /// The sessions that end from now on, in this process' knowledge.
    #[must_use]
    pub fn ended(&self) -> broadcast::Receiver<SessionKey> {
        self.ended.subscribe()
    }

    /// Whether what `permit` was given for still holds, as far as can be known: what cannot be known ends no stream.
    pub async fn holds(&self, permit: &Permit) -> bool {
        match self.store.load(permit.key()).await {
            Ok(Some(ready)) => {
                let theirs = permit.scope() == Scope::Anonymous || ready.signed_in_at == permit.signed_in_at();
                theirs && ready.half(permit.scope()).is_some()
            }
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Whether the store answers. One that is full does: it only takes no further session.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ready(&self) -> Result<(), GatewayError> {
        match self.store.ping().await {
            Ok(()) | Err(StoreError::Full) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Follows what other replicas say; runs until dropped.
    pub async fn listen(self: Arc<Self>) {
        let mut invalidations = self.store.invalidations();
        loop {
            let heard = match invalidations.recv().await {
                Ok(invalidation) => invalidation,
                Err(RecvError::Lagged(_)) => Invalidation::Everything,
                Err(RecvError::Closed) => return,
            };
            self.store.hear(heard);
            match heard {
                Invalidation::Ended(key, _) => self.announce_end(key),
                // The store was away, and may be another one now.
                Invalidation::Everything => self.reassert_ends_behind(),
                Invalidation::Replaced(_) => {}
            }
        }
    }

    /// Tells the metrics what can only be known when somebody asks. Waits less long than who asks does: in an outage of the
    /// store the metrics are wanted most.
    pub async fn report(&self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        self.identity.report();
        let reachable = tokio::time::timeout(PATIENCE, self.ready()).await.is_ok_and(|ready| ready.is_ok());
        self.metrics.store_reachable.set(reachable.into());
        self.store.report();
    }

    fn reassert_ends_behind(self: &Arc<Self>) {
        let broker = self.clone();
        self.go_on(async move { broker.store.reassert_ends().await });
    }

    /// The label of a session: what log lines show of it.
    fn label(&self, key: &SessionKey) -> SessionLabel {
        self.store.labels().session(key)
    }

    fn announce_end(&self, key: SessionKey) {
        // No stream is open where nobody listens.
        let _ = self.ended.send(key);
    }

    /// Takes what has become of the tenants. Those that were not there from the start stay unknown.
    pub fn take_tenants(&self, changed: HashMap<TenantId, Tenant>) {
        for (id, mut tenant) in changed {
            if let Some(known) = self.tenants.get(&id) {
                tenant.inherit(&known.load());
                known.store(Arc::new(tenant));
                self.store.forget_verdicts();
            }
        }
    }

    fn known_tenant(&self, tenant: &TenantId) -> Result<Guard<Arc<Tenant>>, GatewayError> {
        Ok(self.tenants.get(tenant).ok_or(GatewayError::UnknownTenant)?.load())
    }
}
