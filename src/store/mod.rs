//! Where sessions live: the seam to the store, and what every implementation promises.
//! One contract suite (`tests/gateway/store_contract.rs`) holds the implementations to it.

pub mod hot_cache;
pub mod layered;
mod loads;
pub mod memory;
pub mod redis;
pub mod seal;
mod timed;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use tokio::sync::broadcast;

pub use layered::LayeredStore;

use crate::clock::Timestamp;
use crate::session::{LabelKeys, Scope, SecretHash, Session, SessionKey, TenantId};

/// Why the store could not tell. Never means that a session does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached or did not answer in time.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// It holds something that cannot be read.
    #[error("a record is unreadable: {0}")]
    Unreadable(&'static str),
    /// It takes no further session.
    #[error("full")]
    Full,
}

/// What became of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// It is stored, as this revision.
    Stored(u64),
    /// Somebody wrote the record since it was read.
    Conflict,
    /// The session has ended.
    Ended,
}

/// What other replicas have to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// The record was written.
    Replaced(SessionKey),
    /// The session ended, at this instant by the clock of the replica that ended it.
    Ended(SessionKey, Timestamp),
    /// Messages may have been missed: anything may have changed.
    Everything,
}

/// The right to renew one half of one session, across replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseName {
    /// The session.
    pub key: SessionKey,
    /// The half.
    pub scope: Scope,
}

/// Names the holder of a lease; only it can extend or release it.
pub type Owner = [u8; 16];

/// Written before a refresh token is sent: whoever finds it knows that the token may be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The generation whose refresh token was sent.
    pub generation: u64,
    /// When.
    pub started_at: Timestamp,
    /// How often an attempt at this generation was found orphaned and tried again.
    pub recoveries: u8,
}

/// Who holds a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// The caller does, and this is what the last holder left behind.
    Ours(Option<Intent>),
    /// Somebody else does.
    Elsewhere,
}

/// How a lease's work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The refresh token's fate is known: the intent goes.
    Known,
    /// It is not: the intent stays.
    Unknown,
}

/// A secret that clients may present in a handle's place, by tenant and hash.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Alias {
    /// The tenant.
    pub tenant: TenantId,
    /// The secret's SHA-256.
    pub hash: [u8; 32],
}

impl Alias {
    /// The alias of `secret`.
    #[must_use]
    pub fn of(tenant: TenantId, secret: &[u8]) -> Self {
        Self { tenant, hash: *SecretHash::of(secret).as_bytes() }
    }
}

impl fmt::Debug for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Alias({}, …)", self.tenant)
    }
}

/// What to do when an alias already names another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collision {
    /// It names none from then on.
    Disable,
    /// It goes on naming the first.
    KeepFirst,
}

/// A customer of a tenant; the store sees a hash of the number only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CustomerName {
    /// The tenant.
    pub tenant: TenantId,
    hash: [u8; 16],
}

impl CustomerName {
    /// The customer with this number.
    #[must_use]
    pub fn of(tenant: TenantId, customer_id: &str) -> Self {
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest(&SHA256, customer_id.as_bytes()).as_ref()[..16]);
        Self { tenant, hash }
    }

    /// The customer who is signed in, where one is.
    #[must_use]
    pub fn of_session(session: &Session) -> Option<Self> {
        session.customer.as_ref().map(|half| Self::of(session.tenant, &half.customer_id))
    }

    /// Whether `session` is signed in as this customer.
    #[must_use]
    pub fn owns(&self, session: &Session) -> bool {
        Self::of_session(session).as_ref() == Some(self)
    }

    /// The customer of whom [`CustomerName::hash`] was noted.
    #[must_use]
    pub const fn of_hash(tenant: TenantId, hash: [u8; 16]) -> Self {
        Self { tenant, hash }
    }

    /// What of the number the store sees.
    #[must_use]
    pub const fn hash(&self) -> &[u8; 16] {
        &self.hash
    }

    fn hash_text(&self) -> String {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(self.hash)
    }
}

/// Shows no hash: without a key, a number is guessed from it.
impl fmt::Debug for CustomerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CustomerName({}, …)", self.tenant)
    }
}

/// Sessions that one customer may have; the newest ones. `scripts/index.lua` knows the number too.
pub const MOST_PER_CUSTOMER: usize = 1_000;

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoteKind {
    /// The customer who has an e-mail address.
    Email,
    /// The customer to whom a token was mailed.
    MailToken,
    /// When a mailed token was used of which no event had told.
    UsedToken,
    /// A webhook delivery whose work is done.
    Delivery,
}

impl NoteKind {
    const fn text(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::MailToken => "mail-token",
            Self::UsedToken => "used-token",
            Self::Delivery => "delivery",
        }
    }
}

/// Names a note by a keyed hash of what it is about: the store cannot tell the one from the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NoteName {
    /// The tenant.
    pub tenant: TenantId,
    /// What it is about.
    pub kind: NoteKind,
    /// The keyed hash.
    pub hash: [u8; 32],
}

/// What to do when a note stands already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The new one takes its place.
    Replace,
    /// It stays, and so does its end.
    Keep,
}

/// What the store knows of a customer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomerSessions {
    /// Sessions signed in at or before this instant are over.
    pub epoch: Timestamp,
    /// The customer's sessions; some may be over.
    pub keys: Vec<SessionKey>,
}

/// Where a walk over all sessions stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The servers over which the walk began, as a hash; 0 at the beginning.
    over: u64,
    /// Which of them.
    server: u16,
    /// Where on it.
    position: u64,
}

/// A session that a walk came by: its record is there, or was a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// The session.
    pub key: SessionKey,
    /// Its tenant.
    pub tenant: TenantId,
}

/// One step of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The sessions it came by; a walk may come by one more than once.
    pub sessions: Vec<Walked>,
    /// Where to go on; none at the end.
    pub next: Option<Cursor>,
}

/// Keeps sessions. Everything it keeps has an end.
#[async_trait]
pub trait SessionStore: Send + Sync + 'static {
    /// The session, unless it ended or never was.
    async fn load(&self, key: &SessionKey) -> Result<Option<Session>, StoreError>;

    /// Stores `session` for `life` if its revision is the stored one (0: none is stored) and it has not ended.
    async fn save(&self, session: &Session, life: Duration) -> Result<Saved, StoreError>;

    /// Whether the session was ended, and is not merely absent; told for as long as its tombstone stands.
    async fn was_ended(&self, key: &SessionKey) -> Result<bool, StoreError>;

    /// Ends the session; for `tombstone` no save brings it back.
    async fn remove(&self, key: &SessionKey, tombstone: Duration) -> Result<(), StoreError>;

    /// Takes the lease for `life` unless somebody holds it.
    async fn acquire(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<Lead, StoreError>;

    /// If the lease is still `owner`'s: extends it to `life`. Otherwise false.
    async fn extend(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<bool, StoreError>;

    /// If the lease is still `owner`'s: extends it to `life` and writes the intent. Otherwise false.
    async fn declare(
        &self,
        lease: &LeaseName,
        owner: &Owner,
        intent: &Intent,
        life: Duration,
    ) -> Result<bool, StoreError>;

    /// Gives the lease up if it is `owner`'s.
    async fn release(&self, lease: &LeaseName, owner: &Owner, settled: Settled) -> Result<(), StoreError>;

    /// Lets `alias` name `key` for `life`, or does as `collision` says when it names another session. Returns what it
    /// then names.
    async fn link(
        &self,
        alias: &Alias,
        key: &SessionKey,
        collision: Collision,
        life: Duration,
    ) -> Result<Option<SessionKey>, StoreError>;

    /// The session that `alias` names.
    async fn resolve(&self, alias: &Alias) -> Result<Option<SessionKey>, StoreError>;

    /// Notes that `key` is `customer`'s, for `life`. Returns the session that is one too many beside the newest
    /// [`MOST_PER_CUSTOMER`]: it stands in the index, to be ended with the others, until it is taken out with
    /// [`Self::unindex`]. What was too many before was returned before.
    async fn index(
        &self,
        customer: &CustomerName,
        key: &SessionKey,
        life: Duration,
    ) -> Result<Option<SessionKey>, StoreError>;

    /// Forgets that `key` is `customer`'s: it takes no room among those that are remembered.
    async fn unindex(&self, customer: &CustomerName, key: &SessionKey) -> Result<(), StoreError>;

    /// The customer's sessions and epoch.
    async fn customer(&self, customer: &CustomerName) -> Result<CustomerSessions, StoreError>;

    /// Ends, by the epoch, what `customer` signed in at or before `epoch`; remembered for `life`.
    async fn raise_epoch(&self, customer: &CustomerName, epoch: Timestamp, life: Duration) -> Result<(), StoreError>;

    /// One step of a walk over all sessions, for operators and never for a client's request. A walk from its beginning
    /// to its end comes by every session that was there all the while.
    async fn walk(&self, from: Cursor) -> Result<Page, StoreError>;

    /// What labels are made with: the same for every replica over one store.
    fn labels(&self) -> &LabelKeys;
    /// Notes `value` for `life`, or does as `standing` says when a note of this name stands.
    async fn note(&self, name: &NoteName, value: &[u8], life: Duration, standing: Standing) -> Result<(), StoreError>;

    /// What was noted.
    async fn noted(&self, name: &NoteName) -> Result<Option<Vec<u8>>, StoreError>;

    /// What changes from now on, as other replicas cause it.
    fn invalidations(&self) -> broadcast::Receiver<Invalidation>;

    /// Whether other replicas' invalidations are being heard.
    fn hears_invalidations(&self) -> bool;

    /// Whether it answers, and takes a further session.
    async fn ping(&self) -> Result<(), StoreError>;
}
