//! Puts the rooms together and runs them: configuration in, listeners out.
//! Nothing is half started: what can be known to fail is tried before the first listener opens.

mod check;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use pingora::listeners::tls::TlsSettings;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use pingora::services::listening::Service;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

pub use check::check;

pub use crate::edge::explain::{Explanation, explain};

use crate::broker::{Broker, BrokerSettings, Tenant};
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, ForeignBearerMode, SiteSection, StoreKind, TenantSection, TlsSection};
use crate::edge::Gateway;
use crate::edge::admin::Admin;
use crate::edge::forward_auth::ForwardAuth;
use crate::identity::emporix::{self, Emporix};
use crate::identity::keys::SaasVerifier;
use crate::identity::webhook::Webhook;
use crate::session::{LifeLimits, SiteContext, TenantId};
use crate::store::memory::MemoryStore;
use crate::store::redis::RedisStore;
use crate::store::seal::Keyring;
use crate::store::{LayeredStore, SessionStore};
use crate::telemetry::Metrics;

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
    gateway: Arc<Gateway>,
    admin: Admin,
    forward_auth: Option<(SocketAddr, ForwardAuth)>,
    public: SocketAddr,
    admin_address: SocketAddr,
    tls: Option<TlsSection>,
    threads: usize,
    work_stealing: bool,
    drain_timeout: Duration,
    draining: Arc<AtomicBool>,
    stop: Arc<Notify>,
    /// Last to be dropped: work that must not end with a request goes on here.
    runtime: Runtime,
}

impl App {
    /// Builds the rooms of `config`.
    ///
    /// # Errors
    /// What cannot be used or reached.
    pub fn new(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        install_cryptography();
        let now = clock.now();
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("background")
            .enable_all()
            .build()
            .map_err(|error| StartError::Unavailable(format!("no threads can be started: {error}")))?;
        if config.refresh.lease < config.identity.timeout {
            tracing::warn!(
                "refresh.lease is shorter than identity.timeout: a leader that cannot renew it may be overtaken"
            );
        }
        let metrics = Arc::new(Metrics::new().map_err(|error| StartError::Config(error.to_string()))?);
        let store = store(config, &clock, &metrics, &runtime)?;
        let broker = broker(config, store, &clock, &metrics, &runtime)?;
        let gateway = Gateway::new(config, broker.clone(), clock, metrics.clone()).map_err(StartError::Config)?;
        let gateway = Arc::new(gateway);
        if let Some(fault) = check::certificate(config, now).into_iter().find(|finding| !finding.is_warning) {
            return Err(StartError::Config(format!("{}: {}", fault.key, fault.message)));
        }
        runtime.block_on(gateway.resolve());
        let draining = Arc::new(AtomicBool::new(false));
        let admin = Admin::new(broker.clone(), metrics, draining.clone(), config.admin.token.as_ref());
        runtime.spawn(async move { broker.listen().await });
        runtime.spawn({
            let gateway = gateway.clone();
            async move { gateway.tend().await }
        });
        let section = &config.forward_auth;
        let forward_auth = section.listen.map(|listen| (listen, ForwardAuth::new(gateway.clone(), section)));
        Ok(Self {
            gateway,
            admin,
            forward_auth,
            public: config.listen.public,
            admin_address: config.admin.listen,
            tls: config.listen.tls.clone(),
            threads: config.listen.threads,
            work_stealing: config.listen.work_stealing,
            drain_timeout: config.listen.drain_timeout,
            draining,
            stop: Arc::new(Notify::new()),
            runtime,
        })
    }

    /// What stops the gateway as SIGTERM does.
    #[must_use]
    pub fn stopper(&self) -> Arc<Notify> {
        self.stop.clone()
    }

    /// Runs until told to stop, and until the requests under way have ended. Blocks: call it outside any runtime.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub fn run(self) -> Result<(), StartError> {
        let forward_auth = self.forward_auth.as_ref().map(|(listen, _)| ("forward_auth.listen", *listen));
        let addresses = [("listen.public", self.public), ("admin.listen", self.admin_address)];
        for (key, address) in addresses.into_iter().chain(forward_auth) {
            TcpListener::bind(address)
                .map_err(|error| StartError::Unavailable(format!("{key}: cannot listen on {address}: {error}")))?;
        }
        let conf = ServerConf {
            threads: self.threads,
            work_stealing: self.work_stealing,
            // The requests under way are waited for before the server is told to stop.
            grace_period_seconds: Some(0),
            graceful_shutdown_timeout_seconds: Some(1),
            ..ServerConf::default()
        };
        let mut server = Server::new_with_opt_and_conf(None, conf);
        server.bootstrap();
        let mut public = Service::new("public".to_owned(), self.gateway.listener());
        public.add_listener(match &self.tls {
            None => listener(self.public),
            Some(tls) => listener(self.public).tls(tls_settings(tls)?),
        });
        server.add_service(public);
        let mut admin = Service::new("admin".to_owned(), self.admin.clone());
        admin.threads = Some(1);
        admin.add_listener(listener(self.admin_address));
        server.add_service(admin);
        if let Some((listen, application)) = self.forward_auth {
            let mut forward_auth = Service::new("forward-auth".to_owned(), application);
            forward_auth.add_listener(listener(listen));
            server.add_service(forward_auth);
        }
        tracing::info!(public = %self.public, admin = %self.admin_address, version = env!("CARGO_PKG_VERSION"), "listening");
        let shutdown = Shutdown {
            gateway: self.gateway.clone(),
            draining: self.draining,
            stop: self.stop,
            drain_timeout: self.drain_timeout,
        };
        server.run(RunArgs { shutdown_signal: Box::new(shutdown) });
        tracing::info!("stopped");
        self.runtime.shutdown_timeout(Duration::from_secs(2));
        Ok(())
    }
}

fn store(
    config: &Config,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
    runtime: &Runtime,
) -> Result<Arc<dyn SessionStore>, StartError> {
    match config.store.kind {
        StoreKind::Memory => {
            let store = MemoryStore::new(clock.clone(), config.store.memory.max_sessions)
                .map_err(|error| StartError::Unavailable(format!("store.memory: {error}")))?;
            Ok(Arc::new(store))
        }
        StoreKind::Redis => {
            let keyring = Keyring::new(&config.store.seal)
                .ok_or_else(|| StartError::Config("store.seal: the keys cannot be used".to_owned()))?;
            let store = RedisStore::new(&config.store.redis, keyring, clock.clone(), metrics.clone())
                .map_err(|error| StartError::Config(format!("store.redis: {error}")))?;
            let store = Arc::new(store);
            let tended = store.clone();
            runtime.spawn(async move { tended.tend().await });
            Ok(store)
        }
    }
}

fn broker(
    config: &Config,
    store: Arc<dyn SessionStore>,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
    runtime: &Runtime,
) -> Result<Arc<Broker>, StartError> {
    let client = emporix::client(config.identity.timeout)
        .map_err(|error| StartError::Unavailable(format!("token calls cannot be made: {error}")))?;
    let client_ids = config.tenants.iter().map(|(id, tenant)| (*id, tenant.client_id.clone())).collect();
    let (timeout, base_url) = (config.identity.timeout, &config.upstream.base_url);
    let identity = Emporix::new(client.clone(), timeout, base_url, client_ids, clock.clone(), metrics.clone())
        .map_err(|error| StartError::Config(format!("upstream.base_url: {error}")))?;
    let tenants: HashMap<TenantId, Tenant> =
        config.tenants.iter().map(|(id, section)| (*id, tenant(*id, section, client.clone(), clock.clone()))).collect();
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
    };
    let handle = runtime.handle().clone();
    Ok(Broker::new(layered, Arc::new(identity), tenants, settings, clock.clone(), metrics.clone(), handle))
}

fn tenant(id: TenantId, section: &TenantSection, client: reqwest::Client, clock: Arc<dyn Clock>) -> Tenant {
    let SiteSection { currency, site_code, language, target_location } = section.site.clone();
    let until = section.foreign_bearer.until.and_then(|until| until.duration_since(UNIX_EPOCH).ok());
    let adopts = section.foreign_bearer.mode == ForeignBearerMode::Adopt;
    Tenant {
        id,
        site: SiteContext { currency, site_code, language, target_location },
        saas: SaasVerifier::new(&section.saas_token, client, clock),
        accept_jwt: section.saas_token.accept,
        expose_jwt: section.saas_token.expose,
        webhook: section.webhook.secret.as_ref().map(|secret| Webhook::new(secret, section.webhook.max_age)),
        adopt_until: until.filter(|_| adopts).map(|until| Timestamp::default().after(until)),
    }
}

/// Without, rustls panics where it is first used.
fn install_cryptography() {
    // A provider that is installed already is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// A listener whose idle connections are cheap: Pingora keeps 64 KiB for reading on each unless told otherwise, and reads
/// larger pieces past the buffer anyway.
fn listener(address: SocketAddr) -> ListenerConfig {
    const READ_BYTES: usize = 1024;
    ListenerConfig::tcp(address.to_string()).l4_buffer(L4BufferSettings::default().read(READ_BYTES))
}

/// HTTP/2 and HTTP/1.1 by ALPN: browsers open WebSockets over the latter.
fn tls_settings(tls: &TlsSection) -> Result<TlsSettings, StartError> {
    let (certificate, key) = (tls.certificate_file.to_string_lossy(), tls.key_file.to_string_lossy());
    let mut settings =
        TlsSettings::intermediate(&certificate, &key).map_err(|error| StartError::Config(error.to_string()))?;
    settings.enable_h2();
    Ok(settings)
}

/// Waits for the word to stop, then for the requests under way.
struct Shutdown {
    gateway: Arc<Gateway>,
    draining: Arc<AtomicBool>,
    stop: Arc<Notify>,
    drain_timeout: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Shutdown {
    async fn recv(&self) -> ShutdownSignal {
        if self.told_to_drain().await {
            self.draining.store(true, Ordering::Release);
            self.gateway.drain();
            tracing::info!(under_way = self.gateway.under_way(), "draining");
            // What is still under way after the bound is cut off.
            let _ = tokio::time::timeout(self.drain_timeout, self.idle()).await;
        }
        // Tells the listeners to stop. Without, one whose runtime is gone before its own would try to accept for ever.
        ShutdownSignal::GracefulTerminate
    }
}

impl Shutdown {
    /// Waits for SIGTERM or SIGINT; the latter does not wait for anything.
    async fn told_to_drain(&self) -> bool {
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            self.stop.notified().await;
            return true;
        };
        tokio::select! {
            _ = terminate.recv() => true,
            () = self.stop.notified() => true,
            _ = interrupt.recv() => false,
        }
    }

    async fn idle(&self) {
        while !self.gateway.is_idle() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
