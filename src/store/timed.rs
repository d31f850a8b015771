//! What the layered store passes on as it is: leases, aliases, indexes, notes, walks.
//! The layer adds the stopwatch and nothing else; what each promises is said at the seam.

use std::time::Duration;

use super::layered::LayeredStore;
use super::{
    Alias, Collision, Cursor, CustomerName, CustomerSessions, Intent, Lead, LeaseName, NoteName, Owner, Page, Settled,
    Standing, StoreError,
};
use crate::clock::Timestamp;
use crate::session::{LabelKeys, SessionKey};
use crate::telemetry::StoreOperation;

impl LayeredStore {
    /// See [`super::SessionStore::acquire`].
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn acquire(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<Lead, StoreError> {
        self.timed(StoreOperation::Lease, self.store.acquire(lease, owner, life)).await
    }

    /// See [`super::SessionStore::extend`].
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn extend(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<bool, StoreError> {
        self.timed(StoreOperation::Lease, self.store.extend(lease, owner, life)).await
    }

    /// See [`super::SessionStore::declare`].
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn declare(
        &self,
        lease: &LeaseName,
        owner: &Owner,
        intent: &Intent,
        life: Duration,
    ) -> Result<bool, StoreError> {
        self.timed(StoreOperation::Lease, self.store.declare(lease, owner, intent, life)).await
    }

    /// See [`super::SessionStore::release`].
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn release(&self, lease: &LeaseName, owner: &Owner, settled: Settled) -> Result<(), StoreError> {
        self.timed(StoreOperation::Lease, self.store.release(lease, owner, settled)).await
    }

    /// See [`super::SessionStore::link`].
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn link(
        &self,
        alias: &Alias,
        key: &SessionKey,
        collision: Collision,
        life: Duration,
    ) -> Result<Option<SessionKey>, StoreError> {
        self.timed(StoreOperation::Index, self.store.link(alias, key, collision, life)).await
    }

    /// See [`super::SessionStore::resolve`].
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn resolve(&self, alias: &Alias) -> Result<Option<SessionKey>, StoreError> {
        self.timed(StoreOperation::Index, self.store.resolve(alias)).await
    }

    /// See [`super::SessionStore::index`].
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn index(
        &self,
        customer: &CustomerName,
        key: &SessionKey,
        life: Duration,
    ) -> Result<Option<SessionKey>, StoreError> {
        self.timed(StoreOperation::Index, self.store.index(customer, key, life)).await
    }

    /// See [`super::SessionStore::unindex`].
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn unindex(&self, customer: &CustomerName, key: &SessionKey) -> Result<(), StoreError> {
        self.timed(StoreOperation::Index, self.store.unindex(customer, key)).await
    }

    /// See [`super::SessionStore::customer`].
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn customer(&self, customer: &CustomerName) -> Result<CustomerSessions, StoreError> {
        self.timed(StoreOperation::Index, self.store.customer(customer)).await
    }

    /// See [`super::SessionStore::raise_epoch`].
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn raise_epoch(
        &self,
        customer: &CustomerName,
        epoch: Timestamp,
        life: Duration,
    ) -> Result<(), StoreError> {
        self.timed(StoreOperation::Index, self.store.raise_epoch(customer, epoch, life)).await
    }

    /// See [`super::SessionStore::walk`].
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn walk(&self, from: Cursor) -> Result<Page, StoreError> {
        self.timed(StoreOperation::Walk, self.store.walk(from)).await
    }

    /// See [`super::SessionStore::labels`].
    #[must_use]
    pub fn labels(&self) -> &LabelKeys {
        self.store.labels()
    }

    /// See [`super::SessionStore::note`].
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn note(
        &self,
        name: &NoteName,
        value: &[u8],
        life: Duration,
        standing: Standing,
    ) -> Result<(), StoreError> {
        self.timed(StoreOperation::Note, self.store.note(name, value, life, standing)).await
    }

    /// See [`super::SessionStore::noted`].
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn noted(&self, name: &NoteName) -> Result<Option<Vec<u8>>, StoreError> {
        self.timed(StoreOperation::Note, self.store.noted(name)).await
    }

    /// Whether the store answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.store.ping().await
    }
}
