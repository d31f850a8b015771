//! Sessions in Redis: sealed records, every key with an end, every change one script.
//! Waits are bounded; a Redis that is away or slow is an error within the response timeout, never an absence.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, ErrorKind, FromRedisValue, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError, Script,
    TlsCertificates, Value,
};
use tokio::sync::broadcast;

use super::seal::{Keyring, REVISION_LENGTH};
use super::{
    Alias, Collision, CustomerName, CustomerSessions, Intent, Invalidation, Lead, LeaseName, Owner, Saved,
    SessionStore, Settled, StoreError,
};
use crate::clock::{Clock, Timestamp};
use crate::config::RedisSection;
use crate::session::{Scope, Session, SessionKey};

/// Where replicas tell each other what changed.
const CHANNEL: &str = "eg:invalidations";

/// Intents outlive their leases: the next holder has to find them, however late it comes.
const INTENT_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// The Redis store.
pub struct RedisStore {
    client: Client,
    connection: ArcSwapOption<ConnectionManager>,
    keyring: Keyring,
    scripts: Scripts,
    timeouts: (Duration, Duration),
    replica: [u8; 16],
    hearing: Arc<AtomicBool>,
    invalidations: broadcast::Sender<Invalidation>,
    clock: Arc<dyn Clock>,
}

struct Scripts {
    save: Script,
    remove: Script,
    acquire: Script,
    declare: Script,
    release: Script,
    link: Script,
    index: Script,
    raise_epoch: Script,
}

impl Scripts {
    fn new() -> Self {
        Self {
            save: Script::new(include_str!("scripts/save.lua")),
            remove: Script::new(include_str!("scripts/remove.lua")),
            acquire: Script::new(include_str!("scripts/acquire.lua")),
            declare: Script::new(include_str!("scripts/declare.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            link: Script::new(include_str!("scripts/link.lua")),
            index: Script::new(include_str!("scripts/index.lua")),
            raise_epoch: Script::new(include_str!("scripts/raise_epoch.lua")),
        }
    }
}

impl RedisStore {
    /// A store at the address of `section`; connects when first asked.
    ///
    /// # Errors
    /// When the address or the certificates cannot be used.
    pub fn new(section: &RedisSection, keyring: Keyring, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let (invalidations, _) = broadcast::channel(4096);
        let mut replica = [0; 16];
        getrandom::fill(&mut replica).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self {
            client: client(section)?,
            connection: ArcSwapOption::empty(),
            keyring,
            scripts: Scripts::new(),
            timeouts: (section.connect_timeout, section.response_timeout),
            replica,
            hearing: Arc::new(AtomicBool::new(false)),
            invalidations,
            clock,
        })
    }

    /// Keeps the connection alive and the subscription standing; runs until dropped.
    pub async fn tend(&self) {
        loop {
            let subscribed = self.hearing.load(Ordering::Acquire);
            let result = if subscribed { self.ping().await } else { self.subscribe().await };
            if let Err(error) = result {
                self.hearing.store(false, Ordering::Release);
                tracing::warn!(%error, "the session store does not answer");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn subscribe(&self) -> Result<(), StoreError> {
        let mut connection = self.connection()?;
        let subscribed = tokio::time::timeout(self.timeouts.0, connection.subscribe(CHANNEL)).await;
        self.judge(subscribed)
    }

    fn connection(&self) -> Result<ConnectionManager, StoreError> {
        if let Some(connection) = &*self.connection.load() {
            return Ok(ConnectionManager::clone(connection));
        }
        let (connect, response) = self.timeouts;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(50))
            .set_max_delay(Duration::from_millis(500))
            .set_connection_timeout(Some(connect))
            .set_response_timeout(Some(response))
            .set_push_sender(Listener {
                replica: self.replica,
                hearing: self.hearing.clone(),
                invalidations: self.invalidations.clone(),
            })
            .set_automatic_resubscription();
        let manager =
            ConnectionManager::new_lazy_with_config(self.client.clone(), config).map_err(|e| unavailable(&e))?;
        self.connection.store(Some(Arc::new(manager.clone())));
        Ok(manager)
    }

    async fn invoke<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, StoreError> {
        let mut connection = self.connection()?;
        let mut invocation = script.prepare_invoke();
        for key in keys {
            invocation.key(*key);
        }
        for argument in arguments {
            invocation.arg(*argument);
        }
        self.judge(tokio::time::timeout(self.timeouts.1, invocation.invoke_async(&mut connection)).await)
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let mut connection = self.connection()?;
        let get = redis::Cmd::get(key);
        self.judge(tokio::time::timeout(self.timeouts.1, get.query_async(&mut connection)).await)
    }

    /// Errors that a connection manager keeps for ever, or that only a new connection can end, drop the connection.
    fn judge<T>(&self, result: Result<Result<T, RedisError>, tokio::time::error::Elapsed>) -> Result<T, StoreError> {
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let ours = matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse);
                if !error.is_io_error() && !ours {
                    self.connection.store(None);
                    self.hearing.store(false, Ordering::Release);
                }
                Err(unavailable(&error))
            }
            Err(_) => Err(StoreError::Unavailable("no answer in time".to_owned())),
        }
    }

    fn message(&self, kind: u8, key: &SessionKey) -> Vec<u8> {
        [&self.replica[..], &[kind], key.as_bytes()].concat()
    }
}

fn client(section: &RedisSection) -> Result<Client, StoreError> {
    let url = section.url.as_ref().map(|url| url.expose().to_owned()).unwrap_or_default();
    let info = url.into_connection_info().map_err(|error| unavailable(&error))?;
    let mut settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    if let Some(username) = &section.username {
        settings = settings.set_username(username.as_str());
    }
    if let Some(password) = &section.password {
        settings = settings.set_password(password.expose());
    }
    let info = info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let opened = match &section.ca_file {
        None => Client::open(info),
        Some(file) => {
            let root_cert = std::fs::read(file).map_err(|error| StoreError::Unavailable(error.to_string()))?;
            Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(root_cert) })
        }
    };
    opened.map_err(|error| unavailable(&error))
}

/// Says the kind and code of an error, not its detail: that may quote what was sent.
fn unavailable(error: &RedisError) -> StoreError {
    let code = error.code().map(|code| format!(" ({code})")).unwrap_or_default();
    let timeout = if error.is_timeout() { ", no answer in time" } else { "" };
    StoreError::Unavailable(format!("{:?}{code}{timeout}", error.kind()))
}

/// Turns what Redis pushes into invalidations. Our own messages say nothing new.
struct Listener {
    replica: [u8; 16],
    hearing: Arc<AtomicBool>,
    invalidations: broadcast::Sender<Invalidation>,
}

impl redis::aio::AsyncPushSender for Listener {
    fn send(&self, push: PushInfo) -> Result<(), redis::aio::SendError> {
        let heard = match push.kind {
            PushKind::Subscribe => {
                self.hearing.store(true, Ordering::Release);
                Some(Invalidation::Everything)
            }
            PushKind::Disconnection => {
                self.hearing.store(false, Ordering::Release);
                None
            }
            PushKind::Message => match push.data.get(1) {
                Some(Value::BulkString(message)) => self.read(message),
                _ => None,
            },
            _ => None,
        };
        if let Some(invalidation) = heard {
            // Nobody listening is fine: the hot cache is then bounded by its staleness.
            let _ = self.invalidations.send(invalidation);
        }
        Ok(())
    }
}

impl Listener {
    fn read(&self, message: &[u8]) -> Option<Invalidation> {
        let (replica, rest) = message.split_first_chunk::<16>()?;
        let (kind, key) = rest.split_first()?;
        let key = SessionKey::from_bytes(key.try_into().ok()?);
        match kind {
            _ if *replica == self.replica => None,
            b'R' => Some(Invalidation::Replaced(key)),
            _ => Some(Invalidation::Ended(key)),
        }
    }
}

fn session_key(key: &SessionKey) -> String {
    format!("eg:{{{}}}:session", key.to_text())
}

fn tombstone_key(key: &SessionKey) -> String {
    format!("eg:{{{}}}:tombstone", key.to_text())
}

fn lease_keys(lease: &LeaseName) -> [String; 2] {
    let half = match lease.scope {
        Scope::Anonymous => "a",
        Scope::Customer => "c",
    };
    let key = lease.key.to_text();
    [format!("eg:{{{key}}}:lease:{half}"), format!("eg:{{{key}}}:intent:{half}")]
}

fn alias_key(alias: &Alias) -> String {
    use base64::Engine;
    let hash = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(alias.hash);
    format!("eg:saas:{{{}:{hash}}}", alias.tenant)
}

fn customer_keys(customer: &CustomerName) -> [String; 2] {
    let name = format!("eg:customer:{{{}:{}}}", customer.tenant, customer.hash_text());
    [format!("{name}:epoch"), name]
}

fn millis(duration: Duration) -> String {
    duration.as_millis().clamp(1, i64::MAX as u128).to_string()
}

impl Intent {
    fn to_wire(self) -> String {
        format!("{}:{}:{}", self.generation, self.started_at.millis(), self.recoveries)
    }

    fn from_wire(text: &str) -> Option<Self> {
        let mut numbers = text.splitn(3, ':').map(str::parse::<u64>);
        Some(Self {
            generation: numbers.next()?.ok()?,
            started_at: Timestamp::from_millis(numbers.next()?.ok()?),
            recoveries: u8::try_from(numbers.next()?.ok()?).ok()?,
        })
    }
}

#[async_trait]
impl SessionStore for RedisStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Session>, StoreError> {
        let record = self.get(&session_key(key)).await?;
        record.map(|record| self.keyring.open(key, &record)).transpose()
    }

    async fn save(&self, session: &Session, life: Duration) -> Result<Saved, StoreError> {
        let key = &session.key;
        let revision = session.revision + 1;
        let record = self.keyring.seal(session, revision)?;
        let read = session.revision.to_be_bytes();
        let read = if session.revision == 0 { &[][..] } else { &read[..REVISION_LENGTH] };
        let message = self.message(b'R', key);
        let (life, channel) = (millis(life), CHANNEL.as_bytes());
        let arguments = [read, &record, life.as_bytes(), channel, &message];
        let saved: String =
            self.invoke(&self.scripts.save, &[&session_key(key), &tombstone_key(key)], &arguments).await?;
        match saved.as_str() {
            "stored" => Ok(Saved::Stored(revision)),
            "conflict" => Ok(Saved::Conflict),
            _ => Ok(Saved::Ended),
        }
    }

    async fn remove(&self, key: &SessionKey, tombstone: Duration) -> Result<(), StoreError> {
        let message = self.message(b'E', key);
        let life = millis(tombstone);
        let arguments = [life.as_bytes(), CHANNEL.as_bytes(), &message];
        self.invoke(&self.scripts.remove, &[&session_key(key), &tombstone_key(key)], &arguments).await
    }

    async fn acquire(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<Lead, StoreError> {
        let [lease, intent] = lease_keys(lease);
        let arguments = [&owner[..], millis(life).as_bytes()].map(<[u8]>::to_vec);
        let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        let left: Option<String> = self.invoke(&self.scripts.acquire, &[&lease, &intent], &arguments).await?;
        Ok(left.map_or(Lead::Elsewhere, |left| Lead::Ours(Intent::from_wire(&left))))
    }

    async fn declare(
        &self,
        lease: &LeaseName,
        owner: &Owner,
        intent: &Intent,
        life: Duration,
    ) -> Result<bool, StoreError> {
        let keys = lease_keys(lease);
        let (life, intent, intent_life) = (millis(life), intent.to_wire(), millis(INTENT_LIFE));
        let arguments = [&owner[..], life.as_bytes(), intent.as_bytes(), intent_life.as_bytes()];
        let held: i64 = self.invoke(&self.scripts.declare, &[&keys[0], &keys[1]], &arguments).await?;
        Ok(held == 1)
    }

    async fn release(&self, lease: &LeaseName, owner: &Owner, settled: Settled) -> Result<(), StoreError> {
        let keys = lease_keys(lease);
        let settled: &[u8] = if settled == Settled::Known { b"known" } else { b"unknown" };
        self.invoke(&self.scripts.release, &[&keys[0], &keys[1]], &[&owner[..], settled]).await
    }

    async fn link(
        &self,
        alias: &Alias,
        key: &SessionKey,
        collision: Collision,
        life: Duration,
    ) -> Result<Option<SessionKey>, StoreError> {
        let (key, life) = (key.to_text(), millis(life));
        let collision: &[u8] = if collision == Collision::Disable { b"disable" } else { b"keep" };
        let arguments = [key.as_bytes(), life.as_bytes(), collision];
        let named: String = self.invoke(&self.scripts.link, &[&alias_key(alias)], &arguments).await?;
        Ok(SessionKey::parse(&named))
    }

    async fn resolve(&self, alias: &Alias) -> Result<Option<SessionKey>, StoreError> {
        let named = self.get(&alias_key(alias)).await?.unwrap_or_default();
        Ok(std::str::from_utf8(&named).ok().and_then(SessionKey::parse))
    }

    async fn index(&self, customer: &CustomerName, key: &SessionKey, life: Duration) -> Result<(), StoreError> {
        let now = self.clock.now();
        let [_, index] = customer_keys(customer);
        let (key, end, now, life) =
            (key.to_text(), now.after(life).millis().to_string(), now.millis().to_string(), millis(life));
        let arguments = [key.as_bytes(), end.as_bytes(), now.as_bytes(), life.as_bytes()];
        self.invoke(&self.scripts.index, &[&index], &arguments).await
    }

    async fn customer(&self, customer: &CustomerName) -> Result<CustomerSessions, StoreError> {
        let [epoch, index] = customer_keys(customer);
        let mut connection = self.connection()?;
        let mut pipe = redis::pipe();
        pipe.cmd("GET").arg(epoch).cmd("ZRANGE").arg(index).arg(0).arg(-1);
        let answer = tokio::time::timeout(self.timeouts.1, pipe.query_async(&mut connection)).await;
        let (epoch, keys): (Option<u64>, Vec<String>) = self.judge(answer)?;
        Ok(CustomerSessions {
            epoch: Timestamp::from_millis(epoch.unwrap_or_default()),
            keys: keys.iter().filter_map(|key| SessionKey::parse(key)).collect(),
        })
    }

    async fn raise_epoch(&self, customer: &CustomerName, epoch: Timestamp, life: Duration) -> Result<(), StoreError> {
        let keys = customer_keys(customer);
        let (epoch, life) = (epoch.millis().to_string(), millis(life));
        self.invoke(&self.scripts.raise_epoch, &[&keys[0]], &[epoch.as_bytes(), life.as_bytes()]).await
    }

    fn invalidations(&self) -> broadcast::Receiver<Invalidation> {
        self.invalidations.subscribe()
    }

    fn hears_invalidations(&self) -> bool {
        self.hearing.load(Ordering::Acquire)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let mut connection = self.connection()?;
        let ping = redis::cmd("PING");
        self.judge(tokio::time::timeout(self.timeouts.1, ping.exec_async(&mut connection)).await)
    }
}
