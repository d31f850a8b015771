//! Puts the rooms together and runs them: configuration in, listeners out.
//! Nothing is half started: what can be known to fail is tried before the first listener opens.

mod certificate;
mod check;
mod clients;
mod doors;
mod reload;
mod stop;

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwap;
use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{RunArgs, Server};
use pingora::services::listening::Service;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

pub use check::check;
use check::key_set_fault;

pub use crate::edge::explain::{Explanation, explain};

use crate::broker::{Broker, BrokerSettings, GuestToken, ServiceClient, Services, Tenant};
use crate::clock::{Clock, Timestamp};
use crate::config::{
    Config, ForeignBearerMode, ListenSection, ServiceName, ServiceSection, SiteSection, StoreKind, TenantSection,
};
use crate::edge::admin::Admin;
use crate::edge::forward_auth::ForwardAuth;
use crate::edge::listener::Listener;
use crate::edge::{CurrentGateway, Gateway};
use crate::identity::emporix::{self, Emporix};
use crate::identity::keys::SaasVerifier;
use crate::identity::webhook::Webhook;
use crate::session::{LifeLimits, SiteContext, TenantId};
use crate::store::memory::MemoryStore;
use crate::store::redis::RedisStore;
use crate::store::seal::Keyring;
use crate::store::{LayeredStore, SessionStore};
use crate::telemetry::trace::Tracer;
use crate::telemetry::{Exporter, Metrics};
use certificate::Certificates;
use doors::{Door, Doors};
use reload::Reload;
pub use reload::Source;
use stop::Stop;

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration asks for something that cannot be.
    #[error("{0}")]
    Config(String),
    /// Something outside the gateway is in the way.
    #[error("{0}")]
    Unavailable(String),
}

/// The gateway, ready to run.
pub struct App {
    config: Config,
    gateway: CurrentGateway,
    broker: Arc<Broker>,
    admin: Admin,
    certificates: Certificates,
    /// Where the listeners are handed to it, if it does not open its own.
    arrival: Option<PathBuf>,
    draining: Arc<AtomicBool>,
    stop: Arc<Notify>,
    tenants: TenantMaker,
    /// The store, where it is Redis.
    redis: Option<Arc<RedisStore>>,
    hangups: Option<Signal>,
    metrics: Arc<Metrics>,
    /// Last to be dropped: work that must not end with a request goes on here.
    runtime: Runtime,
}

impl App {
    /// Builds the rooms of `config`, for listeners of its own.
    ///
    /// # Errors
    /// What cannot be used or reached.
    pub fn new(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        try_addresses(config)?;
        Self::built(config, clock, None)
    }

    /// The same for the listeners of the gateway that runs already, once it is told to hand them over by SIGQUIT.
    ///
    /// # Errors
    /// What cannot be used or reached.
    pub fn taking_over(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let arrival = doors::arrival(&config.listen)?;
        Self::built(config, clock, Some(arrival))
    }

    /// Nothing outside is spoken to before all is built.
    fn built(config: &Config, clock: Arc<dyn Clock>, arrival: Option<PathBuf>) -> Result<Self, StartError> {
        install_cryptography();
        let certificates = Certificates::read(config).map_err(StartError::Config)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("background")
            .enable_all()
            .build()
            .map_err(|error| StartError::Unavailable(format!("no threads can be started: {error}")))?;
        // Heard from the start: unheard, it would end the process.
        let hangups = runtime.block_on(async { signal(SignalKind::hangup()) });
        let hangups = hangups.map_err(|error| StartError::Unavailable(format!("SIGHUP cannot be heard: {error}")))?;
        let metrics = Arc::new(Metrics::new().map_err(|error| StartError::Config(error.to_string()))?);
        let mut errands = Errands::default();
        let redis = redis_store(config, &clock, &metrics, &mut errands)?;
        let store = match &redis {
            Some(redis) => redis.clone(),
            None => memory_store(config, &clock)?,
        };
        let tenants = TenantMaker { client: identity_client(config)?, clock: clock.clone() };
        let broker = broker(config, store, &tenants, &metrics, &runtime)?;
        let tracer = tracer(config, &clock, &metrics, &mut errands)?;
        let gateway =
            Gateway::new(config, broker.clone(), clock, metrics.clone(), tracer).map_err(StartError::Config)?;
        let gateway = Arc::new(ArcSwap::from_pointee(gateway));
        certificates.tell(&metrics);
        let draining = Arc::new(AtomicBool::new(false));
        let admin = Admin::new(broker.clone(), metrics.clone(), draining.clone(), config.admin.token.as_ref());
        errands.push(Box::pin({
            let broker = broker.clone();
            async move { broker.listen().await }
        }));
        errands.push(Box::pin({
            let gateway = gateway.load_full();
            async move { gateway.tend().await }
        }));
        for errand in errands {
            runtime.spawn(errand);
        }
        runtime.block_on(gateway.load().resolve());
        Ok(Self {
            config: config.clone(),
            gateway,
            broker,
            admin,
            certificates,
            arrival,
            draining,
            stop: Arc::new(Notify::new()),
            tenants,
            redis,
            hangups: Some(hangups),
            metrics,
            runtime,
        })
    }

    /// Follows `source`: a changed configuration takes effect on SIGHUP, and when one of its files changes.
    #[must_use]
    pub fn following(mut self, source: Source) -> Self {
        let reload = Reload::new(&self, source);
        if let Some(hangups) = self.hangups.take() {
            self.runtime.spawn(reload.tend(hangups));
        }
        self
    }

    /// What stops the gateway as SIGTERM does.
    #[must_use]
    pub fn stopper(&self) -> Arc<Notify> {
        self.stop.clone()
    }

    /// Runs until told to stop, and until the requests under way have ended. Blocks: call it outside any runtime.
    ///
    /// # Errors
    /// When an address cannot be listened on, or no listeners are handed over.
    pub fn run(self) -> Result<(), StartError> {
        let listen = &self.config.listen;
        let (public, admin) = (listen.public, self.config.admin.listen);
        let (verdicts, internal) = (self.config.forward_auth.listen, self.config.internal.listen);
        let shown = self.certificates.public.as_ref();
        let tls = shown.map(|shown| shown.settings_for_browsers()).transpose().map_err(StartError::Config)?;
        let shown = self.certificates.internal.as_ref();
        let internal_tls = shown.map(|shown| shown.settings()).transpose().map_err(StartError::Config)?;
        let doors = Doors::default();
        if let Some(socket) = &self.arrival {
            // Pingora would end the process where nobody comes.
            doors.take_over(socket, &self.config.listeners().map(|(_, address)| address.to_string()).collect())?;
        }
        let mut server = Server::new_with_opt_and_conf(Opt::default(), server_conf(listen));
        server.bootstrap();
        let mut service = Service::new("public".to_owned(), Listener::public(self.gateway.clone()));
        service.add_listener(match tls {
            None => doors::listener(public),
            Some(tls) => doors::listener(public).tls(tls),
        });
        server.add_service(Door::new(service, &doors));
        let mut service = Service::new("admin".to_owned(), self.admin.clone());
        service.threads = Some(1);
        service.add_listener(doors::listener(admin));
        server.add_service(Door::new(service, &doors));
        if let Some(verdicts) = verdicts {
            let mut service = Service::new("forward-auth".to_owned(), ForwardAuth::new(self.gateway.clone()));
            service.add_listener(doors::listener(verdicts));
            server.add_service(Door::new(service, &doors));
        }
        if let Some(internal) = internal {
            let mut service = Service::new("internal".to_owned(), Listener::internal(self.gateway.clone()));
            service.threads = Some(1);
            service.add_listener(match internal_tls {
                None => doors::listener(internal),
                Some(tls) => doors::listener(internal).tls(tls),
            });
            server.add_service(Door::new(service, &doors));
        }
        tracing::info!(%public, %admin, version = env!("CARGO_PKG_VERSION"), "listening");
        let stop = Stop {
            gateway: self.gateway.clone(),
            draining: self.draining,
            told: self.stop,
            drain_timeout: listen.drain_timeout,
            upgrade_socket: listen.upgrade_socket.clone(),
            doors,
        };
        let blocked = stop.doors.clone();
        server.run(RunArgs { shutdown_signal: Box::new(stop) });
        self.runtime.shutdown_timeout(Duration::from_secs(2));
        if let Some(address) = blocked.blocked() {
            return Err(StartError::Unavailable(format!("cannot listen on {address}")));
        }
        tracing::info!("stopped");
        Ok(())
    }
}

fn server_conf(listen: &ListenSection) -> ServerConf {
    ServerConf {
        threads: listen.threads,
        work_stealing: listen.work_stealing,
        // The requests under way are waited for before the server is told to stop.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// What goes on beside the requests, from when all is built.
type Errands = Vec<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// Whether every address can be listened on, before anything begins.
fn try_addresses(config: &Config) -> Result<(), StartError> {
    for (key, address) in config.listeners() {
        TcpListener::bind(address)
            .map_err(|error| StartError::Unavailable(format!("{key}: cannot listen on {address}: {error}")))?;
    }
    Ok(())
}

/// Sessions in Redis, where that is wanted.
fn redis_store(
    config: &Config,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
    errands: &mut Errands,
) -> Result<Option<Arc<RedisStore>>, StartError> {
    if config.store.kind != StoreKind::Redis {
        return Ok(None);
    }
    let keyring = Keyring::new(&config.store.seal)
        .ok_or_else(|| StartError::Config("store.seal: the keys cannot be used".to_owned()))?;
    let store = RedisStore::new(&config.store.redis, keyring, clock.clone(), metrics.clone())
        .map_err(|error| StartError::Config(format!("store.redis: {error}")))?;
    let store = Arc::new(store);
    let tended = store.clone();
    errands.push(Box::pin(async move { tended.tend().await }));
    Ok(Some(store))
}

fn memory_store(config: &Config, clock: &Arc<dyn Clock>) -> Result<Arc<dyn SessionStore>, StartError> {
    let store = MemoryStore::new(clock.clone(), config.store.memory.max_sessions)
        .map_err(|error| StartError::Unavailable(format!("store.memory: {error}")))?;
    Ok(Arc::new(store))
}

/// Makes tenants of their sections.
#[derive(Clone)]
struct TenantMaker {
    client: reqwest::Client,
    clock: Arc<dyn Clock>,
}

impl TenantMaker {
    fn all_of(&self, config: &Config) -> HashMap<TenantId, Tenant> {
        config.tenants.iter().map(|(id, section)| (*id, self.tenant(*id, section))).collect()
    }

    /// Those that are not as they were. The others keep what they know, such as the keys that they fetched.
    ///
    /// # Errors
    /// When a key set's file is another by now, and none: the keys that are known are not given up for that.
    fn changed(&self, old: &Config, new: &Config) -> Result<HashMap<TenantId, Tenant>, String> {
        let changed = new.tenants.iter().filter(|(id, section)| old.tenants.get(*id) != Some(*section));
        let checked = changed.map(|(id, section)| {
            let known = old.tenants.get(id).and_then(|tenant| tenant.saas_token.jwks_file.as_ref());
            let is_new = section.saas_token.jwks_file.as_ref() != known;
            match key_set_fault(&section.saas_token).filter(|_| is_new) {
                Some(why) => Err(format!("tenants.{id}.saas_token.jwks_file: {why}")),
                None => Ok((*id, self.tenant(*id, section))),
            }
        });
        checked.collect()
    }

    fn tenant(&self, id: TenantId, section: &TenantSection) -> Tenant {
        let SiteSection { currency, site_code, language, target_location } = section.site.clone();
        let until = section.foreign_bearer.until.and_then(|until| until.duration_since(UNIX_EPOCH).ok());
        let adopts = section.foreign_bearer.mode == ForeignBearerMode::Adopt;
        Tenant {
            id,
            site: SiteContext { currency, site_code, language, target_location },
            saas: SaasVerifier::new(&section.saas_token, self.client.clone(), self.clock.clone()),
            accept_jwt: section.saas_token.accept,
            expose_jwt: section.saas_token.expose,
            webhook: section
                .webhook
                .secret
                .as_ref()
                .map(|secret| Arc::new(Webhook::new(secret, section.webhook.max_age))),
            services: services(&section.services),
            guest: GuestToken::default(),
            adopt_until: until.map(|until| Timestamp::default().after(if adopts { until } else { Duration::ZERO })),
        }
    }
}

fn identity_client(config: &Config) -> Result<reqwest::Client, StartError> {
    emporix::client(config.identity.timeout)
        .map_err(|error| StartError::Unavailable(format!("token calls cannot be made: {error}")))
}

fn broker(
    config: &Config,
    store: Arc<dyn SessionStore>,
    tenants: &TenantMaker,
    metrics: &Arc<Metrics>,
    runtime: &Runtime,
) -> Result<Arc<Broker>, StartError> {
    let TenantMaker { client, clock } = tenants;
    let client_ids = config.tenants.iter().map(|(id, tenant)| (*id, tenant.client_id.clone())).collect();
    let (timeout, base_url) = (config.identity.timeout, &config.upstream.base_url);
    let identity = Emporix::new(client.clone(), timeout, base_url, client_ids, clock.clone(), metrics.clone())
        .map_err(|error| StartError::Config(format!("upstream.base_url: {error}")))?;
    let limits = LifeLimits {
        visitor_idle: config.session.visitor_idle,
        customer_idle: config.session.customer_idle,
        absolute: config.session.absolute,
        refresh_margin: config.refresh.margin,
    };
    let layered = LayeredStore::new(store, config.hot_cache.clone(), limits, clock.clone(), metrics.clone());
    let settings = BrokerSettings {
        refresh_authorizer: config.identity.refresh_authorizer,
        refresh_reuse: config.refresh.reuse,
        lease_term: config.refresh.lease,
        identity_timeout: config.identity.timeout,
        revoke_attempts: config.identity.revoke_attempts,
        most_unsaved: 4_096,
    };
    let handle = runtime.handle().clone();
    Ok(Broker::new(
        layered,
        Arc::new(identity),
        tenants.all_of(config),
        settings,
        clock.clone(),
        metrics.clone(),
        handle,
    ))
}

/// What begins traces, its exporter running, where traces are wanted.
fn tracer(
    config: &Config,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
    errands: &mut Errands,
) -> Result<Option<Tracer>, StartError> {
    const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
    let Some(endpoint) = &config.traces.otlp_endpoint else { return Ok(None) };
    let client = emporix::client(EXPORT_TIMEOUT)
        .map_err(|error| StartError::Unavailable(format!("spans cannot be exported: {error}")))?;
    let (tracer, finished) = Tracer::new(config.traces.sample, clock.clone(), metrics.clone());
    errands.push(Box::pin(Exporter::new(endpoint.expose(), client, finished, metrics.clone()).run()));
    Ok(Some(tracer))
}

/// Those whose secret is known; the configuration's check lets no other through.
fn services(sections: &BTreeMap<ServiceName, ServiceSection>) -> Services {
    Services::new(sections.iter().filter_map(|(name, section)| {
        let ServiceSection { client_id, client_secret, scope } = section.clone();
        Some((name.clone(), ServiceClient { client_id, client_secret: client_secret?, scope }))
    }))
}

/// Without, rustls panics where it is first used.
fn install_cryptography() {
    // A provider that is installed already is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
