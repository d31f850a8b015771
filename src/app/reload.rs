//! Configuration that changes while the gateway runs: on SIGHUP, and when one of its files changes.
//! All of it takes effect or none: a configuration with a fault leaves the old one in place, and says where the fault is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::certificate::Certificates;
use super::{App, TenantMaker};
use crate::broker::Broker;
use crate::config::{Config, LogLevel};
use crate::edge::CurrentGateway;
use crate::edge::admin::Admin;
use crate::telemetry::{Metrics, Reloaded};

/// Looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where the configuration comes from, and where its log level goes.
pub struct Source {
    /// The file.
    pub file: PathBuf,
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
    metrics: Arc<Metrics>,
    /// What was read at the start, for what only a restart changes.
    started_with: Config,
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
            metrics: app.metrics.clone(),
            started_with: app.config.clone(),
        }
    }

    /// Follows the source; runs until dropped.
    pub(super) async fn tend(self) {
        let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
        let mut files = files_of(&self.source.file, &self.started_with);
        let (mut applied, mut last) = (state_of(&files), state_of(&files));
        loop {
            let told = tokio::select! {
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let now = state_of(&files);
            // Files that belong together are not written at once: they have to have come to rest.
            let changed = now != applied && now == last;
            last = now;
            if told || changed {
                if let Some(config) = self.reload() {
                    files = files_of(&self.source.file, &config);
                }
                (applied, last) = (state_of(&files), state_of(&files));
            }
        }
    }

    fn reload(&self) -> Option<Config> {
        match self.apply() {
            Ok(config) => {
                self.metrics.reloads.count(Reloaded::Applied);
                self.metrics.configuration_refused.set(0);
                tracing::info!("the configuration was read again");
                let restart: Vec<_> = needs_restart(&self.started_with, &config);
                if !restart.is_empty() {
                    tracing::warn!(sections = restart.join(" "), "parts of it take effect at the next start only");
                }
                Some(config)
            }
            Err(error) => {
                self.metrics.reloads.count(Reloaded::Refused);
                self.metrics.configuration_refused.set(1);
                tracing::error!(error, "the configuration cannot be used; the old one stays");
                None
            }
        }
    }

    /// Makes everything new before anything old is replaced.
    fn apply(&self) -> Result<Config, String> {
        let config = (self.source.load)()?;
        let gateway = self.gateway.load().changed(&config)?;
        let certificates = Certificates::read(&config)?;
        let tenants = self.tenants.all_of(&config);
        self.certificates.take(&certificates);
        self.broker.take_tenants(tenants);
        self.admin.take_token(config.admin.token.as_ref());
        self.gateway.store(Arc::new(gateway));
        (self.source.log_at)(config.log.level);
        Ok(config)
    }
}

/// The files that a configuration is made of.
fn files_of(file: &Path, config: &Config) -> Vec<PathBuf> {
    let tls = [&config.listen.tls, &config.internal.tls].into_iter().flatten();
    let tls = tls.flat_map(|tls| [&tls.certificate_file, &tls.key_file]);
    let keys = config.tenants.values().filter_map(|tenant| tenant.saas_token.jwks_file.as_ref());
    let files = tls.chain(keys).chain(&config.secret_files).map(PathBuf::as_path);
    [file].into_iter().chain(files).map(Path::to_path_buf).collect()
}

/// What is told of a file without reading it.
type FileState = Option<(SystemTime, u64, u64)>;

fn state_of(files: &[PathBuf]) -> Vec<FileState> {
    use std::os::unix::fs::MetadataExt;
    let state = |file: &PathBuf| {
        let known = std::fs::metadata(file).ok()?;
        Some((known.modified().ok()?, known.len(), known.ino()))
    };
    files.iter().map(state).collect()
}

/// The keys of what was changed and only a start takes up.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    const ONLY_AT_START: [&str; 14] = [
        "/listen/public",
        "/listen/threads",
        "/listen/work_stealing",
        "/listen/drain_timeout",
        "/upstream",
        "/identity",
        "/session",
        "/refresh",
        "/store",
        "/hot_cache",
        "/admin/listen",
        "/forward_auth/listen",
        "/internal/listen",
        "/internal/tls/client_ca_file",
    ];
    let [old_tree, new_tree] = [old, new].map(|config| serde_json::to_value(config).unwrap_or(Value::Null));
    let mut changed: Vec<_> =
        ONLY_AT_START.into_iter().filter(|key| old_tree.pointer(key) != new_tree.pointer(key)).collect();
    let client_ids = |config: &Config| -> Vec<_> {
        config.tenants.iter().map(|(id, tenant)| (*id, tenant.client_id.clone())).collect()
    };
    if client_ids(old) != client_ids(new) {
        changed.push("/tenants");
    }
    for (key, old, new) in
        [("/listen/tls", &old.listen.tls, &new.listen.tls), ("/internal/tls", &old.internal.tls, &new.internal.tls)]
    {
        if old.is_some() != new.is_some() {
            changed.push(key);
        }
    }
    changed
}
