//! Sessions in Redis: sealed records, every key with an end, every change one script.
//! Waits are bounded; a Redis that is away or slow is an error within the response timeout, never an absence.

mod deployment;
mod durable;
mod faults;
mod hearing;
mod keeper;
mod names;
mod near;
mod scan;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use redis::{Cmd, FromRedisValue, Script};
use tokio::sync::{Semaphore, broadcast};
use tokio::time::timeout;

use super::seal::{Keyring, REVISION_LENGTH};
use super::{
    Alias, Collision, Cursor, CustomerName, CustomerSessions, Intent, Invalidation, Lead, LeaseName, NoteName, Owner,
    Page, Saved, SessionStore, Settled, Standing, StoreError,
};
use crate::clock::{Clock, Timestamp};
use crate::config::RedisSection;
use crate::session::{LabelKeys, Session, SessionKey};
use crate::telemetry::Metrics;
use deployment::{Deployment, Timeouts};
use durable::DurableLines;
use faults::{is_of_the_line, unavailable};
use hearing::{CHANNEL, Hearing};
use keeper::Keeper;
use names::{alias_key, customer_keys, lease_keys, millis, note_key, session_key, tombstone_key};
use near::NearLines;

/// Intents outlive their leases: the next holder has to find them, however late it comes.
const INTENT_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// Commands that may wait for their answers at once; what comes on top is refused.
const MOST_WAITING: usize = 16_384;

/// The Redis store.
pub struct RedisStore {
    keeper: Keeper,
    near: NearLines,
    hearing: Arc<Hearing>,
    durable: DurableLines,
    waiting: Semaphore,
    timeouts: Timeouts,
    keyring: Keyring,
    scripts: Scripts,
    clock: Arc<dyn Clock>,
}

struct Scripts {
    save: Script,
    remove: Script,
    reseal: Script,
    acquire: Script,
    extend: Script,
    declare: Script,
    release: Script,
    link: Script,
    index: Script,
    unindex: Script,
    raise_epoch: Script,
}

impl Scripts {
    fn new() -> Self {
        Self {
            save: Script::new(include_str!("scripts/save.lua")),
            remove: Script::new(include_str!("scripts/remove.lua")),
            reseal: Script::new(include_str!("scripts/reseal.lua")),
            acquire: Script::new(include_str!("scripts/acquire.lua")),
            extend: Script::new(include_str!("scripts/extend.lua")),
            declare: Script::new(include_str!("scripts/declare.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            link: Script::new(include_str!("scripts/link.lua")),
            index: Script::new(include_str!("scripts/index.lua")),
            unindex: Script::new(include_str!("scripts/unindex.lua")),
            raise_epoch: Script::new(include_str!("scripts/raise_epoch.lua")),
        }
    }
}

impl RedisStore {
    /// A store in the Redis of `section`; connects once it is tended.
    ///
    /// # Errors
    /// When the addresses or the certificates cannot be used.
    pub fn new(
        section: &RedisSection,
        keyring: Keyring,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let deployment = Deployment::new(section).map_err(|error| unavailable(&error))?;
        let deployment = Arc::new(ArcSwap::from_pointee(deployment));
        let timeouts = Timeouts { connect: section.connect_timeout, response: section.response_timeout };
        let hearing = Arc::new(Hearing::new()?);
        Ok(Self {
            near: NearLines::new(deployment.clone(), timeouts),
            keeper: Keeper::new(deployment, section.place(), timeouts, hearing.clone(), metrics.clone()),
            hearing,
            durable: DurableLines::new(section.replica_timeout, metrics),
            waiting: Semaphore::new(MOST_WAITING),
            timeouts,
            keyring,
            scripts: Scripts::new(),
            clock,
        })
    }

    /// What of `section` only this room can judge, as keys below it and what is wrong there. Opens nothing, and quotes
    /// nothing: an address may hold a password.
    #[must_use]
    pub fn check(section: &RedisSection) -> Vec<(String, String)> {
        deployment::faults(section)
    }

    /// Speaks to Redis as `section` says by now. Where Redis serves, and refuses that, it goes on as it was.
    ///
    /// # Errors
    /// When it cannot be used, or is refused.
    pub async fn take(&self, section: &RedisSection) -> Result<(), StoreError> {
        let changed = Deployment::new(section).map_err(|error| unavailable(&error))?;
        self.keeper.turn_to(changed).await
    }

    /// Keeps the connection alive and the subscription standing; runs until dropped.
    pub async fn tend(&self) {
        tokio::join!(self.keeper.tend(), self.durable.tend(&self.keeper));
    }

    /// Runs a script and waits for its answer.
    async fn invoke<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, StoreError> {
        let _place = self.place()?;
        let mut used = self.keeper.line().await?;
        let mut invocation = script.prepare_invoke();
        keys.iter().for_each(|key| {
            invocation.key(*key);
        });
        arguments.iter().for_each(|argument| {
            invocation.arg(*argument);
        });
        let answer = timeout(self.timeouts.response, invocation.invoke_async(&mut used.line)).await;
        self.keeper.judge(&used, answer)
    }

    /// Runs a script whose effect must outlive the primary: where there is a replica, it has it too.
    async fn invoke_durably<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, StoreError> {
        match self.durable.reserve(self.timeouts).await {
            Some(line) => {
                let _place = self.place()?;
                self.durable.invoke(line, self.timeouts, script, keys, arguments).await
            }
            None => self.invoke(script, keys, arguments).await,
        }
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let _place = self.place()?;
        let mut used = self.keeper.line().await?;
        let answer = timeout(self.timeouts.response, command.query_async(&mut used.line)).await;
        self.keeper.judge(&used, answer)
    }

    /// The same for a command that only reads: over this thread's own line where it has one. One that broke before it
    /// answered is no word on the server, and the question is asked again over the keeper's.
    async fn read<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let keepers = self.keeper.line().await?;
        let Some(mut near) = self.near.beside(&keepers) else { return self.ask(command).await };
        let place = self.place()?;
        let answer = timeout(self.timeouts.response, command.query_async(&mut near.line)).await;
        match &answer {
            Ok(Err(error)) if is_of_the_line(error) && !error.is_timeout() => {
                near.give_up();
                drop(place);
                return self.ask(command).await;
            }
            Ok(Err(error)) if error.is_timeout() => near.give_up(),
            Err(_) => near.give_up(),
            Ok(_) => {}
        }
        self.keeper.judge(&keepers, answer)
    }

    /// A place among those that wait for an answer.
    fn place(&self) -> Result<tokio::sync::SemaphorePermit<'_>, StoreError> {
        self.waiting.try_acquire().map_err(|_| StoreError::Unavailable("too many are waiting".to_owned()))
    }

    /// Seals a record anew that was sealed under a key that is no longer active. It opens as it is, so failing is fine.
    async fn reseal(&self, session: &Session) {
        let Ok(record) = self.keyring.seal(session, session.revision) else { return };
        let key = session_key(&session.key);
        if let Err(error) = self.invoke::<()>(&self.scripts.reseal, &[&key], &[&record]).await {
            tracing::debug!(%error, "a record keeps its old seal for now");
        }
    }
}

#[async_trait]
impl SessionStore for RedisStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Session>, StoreError> {
        let Some(record) = self.read::<Option<Vec<u8>>>(&Cmd::get(session_key(key))).await? else { return Ok(None) };
        let session = self.keyring.open(key, &record)?;
        if !self.keyring.is_active(&record) {
            self.reseal(&session).await;
        }
        Ok(Some(session))
    }

    async fn save(&self, session: &Session, life: Duration) -> Result<Saved, StoreError> {
        let key = &session.key;
        let revision = session.revision + 1;
        let record = self.keyring.seal(session, revision)?;
        let read = session.revision.to_be_bytes();
        let read = if session.revision == 0 { &[][..] } else { &read[..REVISION_LENGTH] };
        let message = self.hearing.replaced(key);
        let (life, channel) = (millis(life), CHANNEL.as_bytes());
        let arguments = [read, &record, life.as_bytes(), channel, &message];
        let saved: String =
            self.invoke_durably(&self.scripts.save, &[&session_key(key), &tombstone_key(key)], &arguments).await?;
        match saved.as_str() {
            "stored" => Ok(Saved::Stored(revision)),
            "conflict" => Ok(Saved::Conflict),
            "ended" => Ok(Saved::Ended),
            _ => Err(StoreError::Unreadable("no answer to a save")),
        }
    }

    async fn was_ended(&self, key: &SessionKey) -> Result<bool, StoreError> {
        self.read(redis::cmd("EXISTS").arg(tombstone_key(key))).await
    }

    async fn remove(&self, key: &SessionKey, tombstone: Duration) -> Result<(), StoreError> {
        let message = self.hearing.ended(key, self.clock.now());
        let life = millis(tombstone);
        let arguments = [life.as_bytes(), CHANNEL.as_bytes(), &message];
        self.invoke_durably(&self.scripts.remove, &[&session_key(key), &tombstone_key(key)], &arguments).await
    }

    async fn acquire(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<Lead, StoreError> {
        let [lease, intent] = lease_keys(lease);
        let arguments = [&owner[..], millis(life).as_bytes()].map(<[u8]>::to_vec);
        let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        let left: Option<String> = self.invoke(&self.scripts.acquire, &[&lease, &intent], &arguments).await?;
        Ok(left.map_or(Lead::Elsewhere, |left| Lead::Ours(Intent::from_wire(&left))))
    }

    async fn extend(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<bool, StoreError> {
        let ([lease, _], life) = (lease_keys(lease), millis(life));
        let held: i64 = self.invoke(&self.scripts.extend, &[&lease], &[&owner[..], life.as_bytes()]).await?;
        Ok(held == 1)
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
        let held: i64 = self.invoke_durably(&self.scripts.declare, &[&keys[0], &keys[1]], &arguments).await?;
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
        named_by(named.as_bytes())
    }

    async fn resolve(&self, alias: &Alias) -> Result<Option<SessionKey>, StoreError> {
        let named: Vec<u8> = self.read::<Option<_>>(&Cmd::get(alias_key(alias))).await?.unwrap_or_default();
        named_by(&named)
    }

    async fn index(
        &self,
        customer: &CustomerName,
        key: &SessionKey,
        life: Duration,
    ) -> Result<Option<SessionKey>, StoreError> {
        let now = self.clock.now();
        let [_, index] = customer_keys(customer);
        let (key, end, now, life) =
            (key.to_text(), now.after(life).millis().to_string(), now.millis().to_string(), millis(life));
        let arguments = [key.as_bytes(), end.as_bytes(), now.as_bytes(), life.as_bytes()];
        let surplus: Option<String> = self.invoke_durably(&self.scripts.index, &[&index], &arguments).await?;
        Ok(surplus.and_then(|key| SessionKey::parse(&key)))
    }

    async fn unindex(&self, customer: &CustomerName, key: &SessionKey) -> Result<(), StoreError> {
        let [_, index] = customer_keys(customer);
        self.invoke(&self.scripts.unindex, &[&index], &[key.to_text().as_bytes()]).await
    }

    async fn customer(&self, customer: &CustomerName) -> Result<CustomerSessions, StoreError> {
        let [epoch, index] = customer_keys(customer);
        let _place = self.place()?;
        let mut used = self.keeper.line().await?;
        let mut pipe = redis::pipe();
        pipe.cmd("GET").arg(epoch).cmd("ZRANGE").arg(index).arg(0).arg(-1);
        let answer = timeout(self.timeouts.response, pipe.query_async(&mut used.line)).await;
        let (epoch, keys): (Option<u64>, Vec<String>) = self.keeper.judge(&used, answer)?;
        Ok(CustomerSessions {
            epoch: Timestamp::from_millis(epoch.unwrap_or_default()),
            keys: keys.iter().filter_map(|key| SessionKey::parse(key)).collect(),
        })
    }

    async fn raise_epoch(&self, customer: &CustomerName, epoch: Timestamp, life: Duration) -> Result<(), StoreError> {
        let keys = customer_keys(customer);
        let (epoch, life) = (epoch.millis().to_string(), millis(life));
        self.invoke_durably(&self.scripts.raise_epoch, &[&keys[0]], &[epoch.as_bytes(), life.as_bytes()]).await
    }

    fn invalidations(&self) -> broadcast::Receiver<Invalidation> {
        self.hearing.subscribe()
    }

    fn hears_invalidations(&self) -> bool {
        self.hearing.hears()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.ask(&redis::cmd("PING")).await
    }

    async fn walk(&self, from: Cursor) -> Result<Page, StoreError> {
        let mut used = self.keeper.line().await?;
        // A step is up to three commands.
        let step = timeout(3 * self.timeouts.response, scan::step(&mut used, from)).await;
        self.keeper.judge(&used, step)
    }

    fn labels(&self) -> &LabelKeys {
        self.keyring.labels()
    }

    async fn note(&self, name: &NoteName, value: &[u8], life: Duration, standing: Standing) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(note_key(name)).arg(value).arg("PX").arg(millis(life));
        if standing == Standing::Keep {
            set.arg("NX");
        }
        self.ask(&set).await
    }

    async fn noted(&self, name: &NoteName) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(&Cmd::get(note_key(name))).await
    }
}

/// The session that an alias names; an empty one names none.
fn named_by(alias: &[u8]) -> Result<Option<SessionKey>, StoreError> {
    if alias.is_empty() {
        return Ok(None);
    }
    let key = std::str::from_utf8(alias).ok().and_then(SessionKey::parse);
    key.map(Some).ok_or(StoreError::Unreadable("an alias names no session"))
}
