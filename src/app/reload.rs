//! Configuration that changes while the gateway runs: on SIGHUP, and when one of its files changes.
//! All of it takes effect or none: a configuration with a fault leaves the old one in place, and says where the fault is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;

use super::certificate::Certificates;
use super::{App, TenantMaker};
use crate::broker::Broker;
use crate::clock::Timestamp;
use crate::config::{Config, LogLevel, TlsSection};
use crate::edge::CurrentGateway;
use crate::edge::admin::Admin;
use crate::store::redis::RedisStore;
use crate::telemetry::{Metrics, Reloaded};

/// Looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where the configuration comes from, and where its log level goes.
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// From when on a change of its files can have been missed by who read it for the start.
    pub read_at: Timestamp,
    /// Reads the configuration, or says all that is wrong with it.
    pub load: Box<dyn Fn() -> Result<Config, String> + Send + Sync>,
    /// Logs at another level from now on.
    pub log_at: Box<dyn Fn(LogLevel) + Send + Sync>,
}

/// What a change reaches.
pub(super) struct Reload {
    source: Source,
    gateway: CurrentGateway,
    broker: Arc<Broker>,
    admin: Admin,
    certificates: Certificates,
    tenants: TenantMaker,
    redis: Option<Arc<RedisStore>>,
    metrics: Arc<Metrics>,
    /// What was read at the start, for what only a restart changes.
    started_with: Config,
    /// What is in effect.
    holds: Config,
}

impl Reload {
    pub(super) fn new(app: &App, source: Source) -> Self {
        Self {
            source,
            gateway: app.gateway.clone(),
            broker: app.broker.clone(),
            admin: app.admin.clone(),
            certificates: app.certificates.clone(),
            tenants: app.tenants.clone(),
            redis: app.redis.clone(),
            metrics: app.metrics.clone(),
            started_with: app.config.clone(),
            holds: app.config.clone(),
        }
    }

    /// Follows the source; runs until dropped.
    pub(super) async fn tend(self, mut hangups: Signal) {
        let mut reload = self;
        let mut files = files_of(&reload.source.file, &reload.holds);
        let mut last = state_of(&files).await;
        let read_at = UNIX_EPOCH + Duration::from_millis(reload.source.read_at.millis());
        let before = |state: &FileState| state.filter(|(changed_at, ..)| *changed_at < read_at);
        let mut applied: Vec<FileState> = last.iter().map(before).collect();
        loop {
            let told = tokio::select! {
                _ = hangups.recv() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let now = state_of(&files).await;
            // Files that belong together are not written at once: they have to have come to rest.
            let changed = now != applied && now == last;
            last.clone_from(&now);
            if told || changed {
                applied = now;
                // Files are read: nothing that has to go on may wait for them.
                let Ok(read) = spawn_blocking(move || reload.reload()).await else { return };
                reload = read;
                let named = files_of(&reload.source.file, &reload.holds);
                if named != files {
                    files = named;
                    applied = state_of(&files).await;
                    last.clone_from(&applied);
                }
            }
        }
    }

    fn reload(mut self) -> Self {
        match self.apply() {
            Ok(restart) => {
                self.metrics.reloads.count(Reloaded::Applied);
                self.metrics.configuration_refused.set(0);
                tracing::info!("the configuration was read again");
                if !restart.is_empty() {
                    tracing::warn!(keys = restart.join(" "), "parts of it take effect at the next start only");
                }
            }
            Err(error) => {
                self.metrics.reloads.count(Reloaded::Refused);
                self.metrics.configuration_refused.set(1);
                tracing::error!(error, "the configuration cannot be used; the old one stays");
            }
        }
        self
    }

    /// Makes everything new before anything old is replaced. Returns what only a start takes up.
    fn apply(&mut self) -> Result<Vec<&'static str>, String> {
        let read = (self.source.load)()?;
        let mut restart = needs_restart(&self.started_with, &read);
        let config = self.with_known_tenants(read);
        let gateway = self.gateway.load().changed(&config)?;
        let certificates = Certificates::read(&config)?;
        if self.certificates.have_other_roots(&certificates) {
            restart.push("client_ca_file");
        }
        self.take_credentials(&config)?;
        let tenants = self.tenants.changed(&self.holds, &config);
        self.certificates.take(&certificates);
        self.certificates.tell(&self.metrics);
        self.broker.take_tenants(tenants);
        self.admin.take_token(config.admin.token.as_ref());
        self.gateway.store(Arc::new(gateway));
        (self.source.log_at)(config.log.level);
        self.holds = config;
        Ok(restart)
    }

    /// Speaks to Redis with other credentials, where those alone have changed. What Redis refuses is a fault.
    fn take_credentials(&self, config: &Config) -> Result<(), String> {
        let (known, read) = (&self.holds.store.redis, &config.store.redis);
        let place = self.started_with.store.redis.without_credentials();
        match &self.redis {
            Some(redis) if known != read && read.without_credentials() == place => {
                let taken = Handle::current().block_on(redis.take(read));
                taken.map_err(|error| format!("store.redis: its credentials cannot be used: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// The configuration with the tenants that were there from the start: none comes or goes by halves.
    fn with_known_tenants(&self, mut config: Config) -> Config {
        let known = self.holds.tenants.iter();
        config.tenants =
            known.map(|(id, section)| (*id, config.tenants.remove(id).unwrap_or_else(|| section.clone()))).collect();
        config
    }
}

/// The files that a configuration is made of.
fn files_of(file: &Path, config: &Config) -> Vec<PathBuf> {
    let tls = [&config.listen.tls, &config.internal.tls].into_iter().flatten();
    let tls = tls.flat_map(|tls| [Some(&tls.certificate_file), Some(&tls.key_file), tls.client_ca_file.as_ref()]);
    let files = tls.flatten().chain(&config.secret_files).map(PathBuf::as_path);
    [file].into_iter().chain(files).map(Path::to_path_buf).collect()
}

/// What is told of a file without reading it.
type FileState = Option<(SystemTime, u64, u64)>;

async fn state_of(files: &[PathBuf]) -> Vec<FileState> {
    let mut states = Vec::new();
    for file in files {
        let known = tokio::fs::metadata(file).await.ok();
        states.push(known.and_then(|known| Some((known.modified().ok()?, known.len(), known.ino()))));
    }
    states
}

/// The keys of those that differ. Compared is what is meant, not how it prints: secrets all print alike.
macro_rules! differing {
    ($old:ident, $new:ident: $($section:ident $(.$key:ident)*,)+) => {
        [$(($old.$section$(.$key)* != $new.$section$(.$key)*)
            .then_some(concat!("/", stringify!($section) $(, "/", stringify!($key))*))),+]
    };
}

/// The keys of what was changed and only a start takes up.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let sections = differing![old, new:
        listen.public,
        listen.threads,
        listen.work_stealing,
        listen.drain_timeout,
        listen.upgrade_socket,
        upstream,
        identity,
        session,
        refresh,
        store.kind,
        store.memory,
        store.seal,
        hot_cache,
        limits.tracked,
        admin.listen,
        traces,
        forward_auth.listen,
        log.format,
        internal.listen,
    ];
    let client_ids = |config: &Config| -> Vec<_> {
        config.tenants.iter().map(|(id, tenant)| (*id, tenant.client_id.clone())).collect()
    };
    let come_or_go = |old: &Option<TlsSection>, new: &Option<TlsSection>| old.is_some() != new.is_some();
    let redis = |config: &Config| config.store.redis.without_credentials();
    let others = [
        (redis(old) != redis(new)).then_some("/store/redis"),
        (client_ids(old) != client_ids(new)).then_some("/tenants"),
        come_or_go(&old.listen.tls, &new.listen.tls).then_some("/listen/tls"),
        come_or_go(&old.internal.tls, &new.internal.tls).then_some("/internal/tls"),
    ];
    sections.into_iter().chain(others).flatten().collect()
}
