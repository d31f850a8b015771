//! Configuration that changes while the gateway runs: on SIGHUP, and when one of its files changes.
//! All of it takes effect or none: a configuration with a fault leaves the old one in place, and says where the fault is.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;

use super::certificate::Certificates;
use super::{App, TenantMaker};
use crate::broker::Broker;
use crate::clock::Timestamp;
use crate::config::{Config, LogLevel, NamedFile, RedisSection, TlsSection};
use crate::edge::CurrentGateway;
use crate::edge::admin::Admin;
use crate::store::redis::RedisStore;
use crate::telemetry::{Metrics, Reloaded};

/// Looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks after which what was refused is tried again.
const LOOKS_BETWEEN_TRIES: u32 = 5;

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
    /// As what Redis is spoken to.
    redis_as: RedisSection,
    /// Why what was read last is not in effect.
    refused: Option<String>,
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
            redis_as: app.config.store.redis.clone(),
            refused: None,
        }
    }

    /// Follows the source; runs until dropped.
    pub(super) async fn tend(self, mut hangups: Signal) {
        let mut reload = self;
        let mut files = files_of(&reload.source.file, &reload.holds);
        let last = state_of(&files).await;
        let read_at = SystemTime::from(reload.source.read_at);
        let mut read = last.clone();
        read.retain(|_, state| state.is_none_or(|(changed_at, ..)| changed_at < read_at));
        let mut looks = Looks { read, last, since_read: 0 };
        loop {
            let told = tokio::select! {
                _ = hangups.recv() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let Some(due) = looks.due(state_of(&files).await, told, reload.refused.is_some()) else { continue };
            // Files are read: nothing that has to go on may wait for them. What is waited for fails with the process alone.
            let Ok(read) = spawn_blocking(move || reload.reload(due)).await else { return };
            reload = read;
            // One that is named for the first time was read, and not looked at before: it is read once more.
            files = files_of(&reload.source.file, &reload.holds);
        }
    }

    fn reload(mut self, due: Due) -> Self {
        let applied = catch_unwind(AssertUnwindSafe(|| self.apply()));
        match applied.unwrap_or_else(|_| Err("the gateway failed at it, which is a fault of its own".to_owned())) {
            Ok(restart) => {
                self.refused = None;
                self.metrics.reloads.count(Reloaded::Applied);
                self.metrics.configuration_refused.set(0);
                tracing::info!("the configuration was read again");
                if !restart.is_empty() {
                    tracing::warn!(keys = restart.join(" "), "parts of it take effect at the next start only");
                }
            }
            Err(error) if due == Due::Again && self.refused.as_ref() == Some(&error) => {}
            Err(error) => {
                self.metrics.reloads.count(Reloaded::Refused);
                self.metrics.configuration_refused.set(1);
                tracing::error!(error, "the configuration cannot be used; the old one stays");
                self.refused = Some(error);
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
        let tenants = self.tenants.changed(&self.holds, &config)?;
        if !self.take_credentials(&config.store.redis)? {
            restart.push("/store/redis/credentials");
        }
        self.certificates.take(&certificates);
        self.certificates.tell(&self.metrics);
        self.broker.take_tenants(tenants);
        self.admin.take_token(config.admin.token.as_ref());
        self.gateway.store(Arc::new(gateway));
        (self.source.log_at)(config.log.level);
        self.holds = config;
        Ok(restart)
    }

    /// Speaks to Redis with the credentials of `read`, unless they are for another place: returns whether it does. What
    /// Redis refuses is a fault.
    fn take_credentials(&mut self, read: &RedisSection) -> Result<bool, String> {
        let Some(redis) = &self.redis else { return Ok(true) };
        if self.redis_as.shows_the_same_as(read) {
            return Ok(true);
        }
        if self.redis_as.without_credentials() != read.without_credentials() {
            return Ok(false);
        }
        let taken = Handle::current().block_on(redis.take(read));
        taken.map_err(|error| format!("store.redis: its credentials cannot be used: {error}"))?;
        self.redis_as = read.clone();
        Ok(true)
    }

    /// The configuration with the tenants that were there from the start: none comes or goes by halves.
    fn with_known_tenants(&self, mut config: Config) -> Config {
        let known = self.holds.tenants.iter();
        config.tenants =
            known.map(|(id, section)| (*id, config.tenants.remove(id).unwrap_or_else(|| section.clone()))).collect();
        config
    }
}

/// Why the configuration is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// It was told to be, or has changed.
    News,
    /// It was refused, and what it speaks of may have changed: Redis learns a password after its file did.
    Again,
}

/// What was seen of the files.
struct Looks {
    /// As they were when they were read.
    read: FileStates,
    last: FileStates,
    since_read: u32,
}

impl Looks {
    /// Whether the files are to be read, as they are `now`.
    fn due(&mut self, now: FileStates, told: bool, refused: bool) -> Option<Due> {
        self.since_read = self.since_read.saturating_add(1);
        // Files that belong together are not written at once: they have to have come to rest.
        let at_rest = now == self.last;
        let is_read = now.iter().all(|(file, state)| self.read.get(file) == Some(state));
        let due = if told || (at_rest && !is_read) {
            Some(Due::News)
        } else {
            (at_rest && refused && self.since_read >= LOOKS_BETWEEN_TRIES).then_some(Due::Again)
        };
        self.last.clone_from(&now);
        if due.is_some() {
            (self.read, self.since_read) = (now, 0);
        }
        due
    }
}

/// The files that a configuration is made of.
fn files_of(file: &Path, config: &Config) -> Vec<PathBuf> {
    let tls = [&config.listen.tls, &config.internal.tls].into_iter().flatten();
    let tls = tls.flat_map(|tls| [Some(&tls.certificate_file), Some(&tls.key_file), tls.client_ca_file.as_ref()]);
    let files = tls.flatten().chain(&config.secret_files).map(PathBuf::as_path);
    let key_sets = config.tenants.values().filter_map(|tenant| tenant.saas_token.jwks_file.as_ref());
    let named = config.store.redis.ca_file.iter().chain(key_sets).map(NamedFile::path);
    [file].into_iter().chain(files).chain(named).map(Path::to_path_buf).collect()
}

/// What is told of a file without reading it.
type FileState = Option<(SystemTime, u64, u64)>;

type FileStates = BTreeMap<PathBuf, FileState>;

async fn state_of(files: &[PathBuf]) -> FileStates {
    let mut states = FileStates::new();
    for file in files {
        let known = tokio::fs::metadata(file).await.ok();
        states.insert(file.clone(), known.and_then(|known| Some((known.modified().ok()?, known.len(), known.ino()))));
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
    // Whether clients are asked for certificates at all; whose is followed.
    let asked = |old: &Option<TlsSection>, new: &Option<TlsSection>| {
        let both = old.as_ref().zip(new.as_ref());
        both.is_some_and(|(old, new)| old.client_ca_file.is_some() != new.client_ca_file.is_some())
    };
    let redis = |config: &Config| config.store.redis.without_credentials();
    let others = [
        (redis(old) != redis(new)).then_some("/store/redis"),
        (client_ids(old) != client_ids(new)).then_some("/tenants"),
        come_or_go(&old.listen.tls, &new.listen.tls).then_some("/listen/tls"),
        come_or_go(&old.internal.tls, &new.internal.tls).then_some("/internal/tls"),
        asked(&old.listen.tls, &new.listen.tls).then_some("/listen/tls/client_ca_file"),
        asked(&old.internal.tls, &new.internal.tls).then_some("/internal/tls/client_ca_file"),
    ];
    sections.into_iter().chain(others).flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn files(length: u64) -> FileStates {
        [("file".into(), Some((UNIX_EPOCH, length, 1)))].into()
    }

    fn seen(length: u64) -> Looks {
        Looks { read: files(length), last: files(length), since_read: 0 }
    }

    #[test]
    fn files_are_read_once_they_have_changed_and_come_to_rest() {
        let mut looks = seen(1);
        assert_eq!(
            [1, 2, 3, 3, 3].map(|length| looks.due(files(length), false, false)),
            [None, None, None, Some(Due::News), None]
        );
        assert_eq!(looks.due(files(3), true, false), Some(Due::News));
    }

    #[test]
    fn a_file_that_was_not_looked_at_before_it_was_read_is_read_once_more() {
        let (mut looks, mut named) = (seen(1), files(1));
        named.insert("named for the first time".into(), Some((UNIX_EPOCH, 1, 2)));
        let mut due = |files: &FileStates| looks.due(files.clone(), false, false);
        assert_eq!([(); 4].map(|()| due(&named)), [None, Some(Due::News), None, None]);
        assert_eq!([(); 2].map(|()| due(&files(1))), [None; 2], "one that is named no more is no news");
    }

    #[test]
    fn a_refusal_is_told_once_however_often_it_is_tried_again() {
        let mut config = Config::default();
        for listen in [&mut config.listen.public, &mut config.admin.listen] {
            *listen = ([127, 0, 0, 1], 0).into();
        }
        let app = App::new(&config, Arc::new(crate::clock::SystemClock)).unwrap();
        let faults = std::sync::Mutex::new(vec!["b", "b", "", "a", "a", "a"]);
        let source = Source {
            file: PathBuf::new(),
            read_at: Timestamp::from_seconds(0),
            load: Box::new(move || {
                let fault = faults.lock().unwrap().pop().unwrap();
                if fault.is_empty() { panic!("a fault of the gateway's own") } else { Err(fault.to_owned()) }
            }),
            log_at: Box::new(|_| {}),
        };
        let mut reload = Reload::new(&app, source);
        let mut told = Vec::new();
        for due in [Due::News, Due::Again, Due::News, Due::News, Due::Again, Due::Again] {
            reload = reload.reload(due);
            let text = String::from_utf8(reload.metrics.render()).unwrap();
            let line =
                text.lines().find_map(|line| line.strip_prefix(r#"gateway_config_reloads_total{outcome="refused"} "#));
            told.push(line.unwrap().to_owned());
        }
        assert_eq!(told, ["1", "1", "2", "3", "4", "4"]);
    }

    #[test]
    fn what_was_refused_is_tried_again_now_and_then_and_nothing_else_is() {
        let (mut refused, mut taken) = (seen(1), seen(1));
        for look in 1..=5 * LOOKS_BETWEEN_TRIES {
            let again = look % LOOKS_BETWEEN_TRIES == 0;
            assert_eq!(refused.due(files(1), false, true), again.then_some(Due::Again));
            assert_eq!(taken.due(files(1), false, false), None);
        }
        let between = LOOK_EVERY * LOOKS_BETWEEN_TRIES;
        assert!((10..=30).contains(&between.as_secs()));
    }
}
