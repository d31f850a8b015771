//! What Emporix' events do here: they end the sessions of customers who may not go on, and name those to whom a token
//! was mailed.
//! A delivery can only end sessions; it is remembered after its work is done, so what failed is done when it comes again.

use std::sync::Arc;
use std::time::Duration;

use super::logout::until_taken;
use super::{Broker, Tenant};
use crate::clock::Timestamp;
use crate::error::GatewayError;
use crate::identity::webhook::{Addressee, Delivery, Event, Tells, Webhook};
use crate::session::TenantId;
use crate::store::{CustomerName, NoteKind, NoteName, Standing};
use crate::telemetry::{Label, WebhookEvent, WebhookOutcome};

/// How long a mailed token names its customer: longer than Emporix honours it.
const MAIL_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

impl Broker {
    /// Whether the tenant takes webhook deliveries.
    ///
    /// # Errors
    /// When it does not.
    pub fn takes_webhooks(&self, tenant: &TenantId) -> Result<(), GatewayError> {
        self.webhook_of(tenant).map(drop)
    }

    /// Takes a delivery: believes it, does its work once, and remembers it.
    ///
    /// # Errors
    /// When it is not believed, or the store does not take its work: then it has to come again.
    pub async fn deliver(self: &Arc<Self>, tenant: &TenantId, delivery: &Delivery<'_>) -> Result<(), GatewayError> {
        let webhook = &*self.webhook_of(tenant)?;
        let event = webhook.believe(tenant, delivery, self.clock.now());
        let event = event.map_err(|disbelief| self.disbelieve(disbelief.into()))?;
        let outcome = self.take(tenant, webhook, &event).await;
        let label = *outcome.as_ref().unwrap_or(&WebhookOutcome::Failed);
        self.metrics.webhooks.count(event.kind, label);
        tracing::info!(%tenant, event = event.kind.text(), outcome = label.text(), "a webhook event came");
        outcome.map(drop)
    }

    /// Counts a delivery that is not believed, and says why it is not.
    pub fn disbelieve(&self, why: GatewayError) -> GatewayError {
        self.metrics.webhooks.count(WebhookEvent::Other, WebhookOutcome::Refused);
        why
    }

    async fn take(
        self: &Arc<Self>,
        tenant: &TenantId,
        webhook: &Webhook,
        event: &Event,
    ) -> Result<WebhookOutcome, GatewayError> {
        if matches!(event.tells, Tells::Nothing) {
            return Ok(WebhookOutcome::Ignored);
        }
        let delivery = NoteName { tenant: *tenant, kind: NoteKind::Delivery, hash: event.delivery };
        if self.store.noted(&delivery).await?.is_some() {
            return Ok(WebhookOutcome::Repeated);
        }
        let outcome = self.follow(tenant, webhook, &event.tells).await?;
        self.store.note(&delivery, &[], webhook.remembers_for(&event.tells), Standing::Replace).await?;
        Ok(outcome)
    }

    /// Does what an event asks for. Every part of it may be done twice.
    async fn follow(
        self: &Arc<Self>,
        tenant: &TenantId,
        webhook: &Webhook,
        tells: &Tells,
    ) -> Result<WebhookOutcome, GatewayError> {
        match tells {
            Tells::Nothing => Ok(WebhookOutcome::Ignored),
            Tells::Revoked { customer_id } => {
                let customer = CustomerName::of(*tenant, customer_id);
                self.revoke_all_elsewhere(&customer, None, self.clock.now()).await?;
                Ok(WebhookOutcome::Revoked)
            }
            Tells::Address { customer_id, email } => {
                let customer = CustomerName::of(*tenant, customer_id);
                // A profile may name any address: what a sign-in has proven stands.
                self.note_address(webhook, email, &customer, Standing::Keep).await?;
                Ok(WebhookOutcome::Noted)
            }
            Tells::Mailed { token, to } => {
                let customer = match to {
                    Addressee::Customer(customer_id) => Some(CustomerName::of(*tenant, customer_id)),
                    Addressee::Email(email) => self.customer_noted(&address_note(tenant, webhook, email)).await?,
                };
                let Some(customer) = customer else { return Ok(WebhookOutcome::Ignored) };
                let token = MailToken::of(tenant, webhook, token);
                // Noted first, then looked for; who uses it does it the other way round. So one of both sees the other.
                self.store.note(&token.mailed, customer.hash(), MAIL_TOKEN_LIFE, Standing::Replace).await?;
                let Some(used_at) = self.used_at(&token).await? else { return Ok(WebhookOutcome::Noted) };
                self.revoke_all_elsewhere(&customer, None, used_at).await?;
                Ok(WebhookOutcome::Revoked)
            }
        }
    }

    /// Notes whose address was signed in with: a reset of its password has to end that customer's sessions.
    pub(super) async fn note_sign_in(
        &self,
        tenant: &Tenant,
        email: &str,
        customer_id: &str,
    ) -> Result<(), GatewayError> {
        let Some(webhook) = &tenant.webhook else { return Ok(()) };
        let customer = CustomerName::of(tenant.id, customer_id);
        self.note_address(webhook, email, &customer, Standing::Replace).await
    }

    async fn note_address(
        &self,
        webhook: &Webhook,
        email: &str,
        customer: &CustomerName,
        standing: Standing,
    ) -> Result<(), GatewayError> {
        // No session that this sign-in begins lives longer.
        let life = self.store.limits().absolute;
        let note = address_note(&customer.tenant, webhook, email);
        Ok(self.store.note(&note, customer.hash(), life, standing).await?)
    }

    /// Ends what the customer to whom `mail_token` was mailed has signed in, now that it is used; until the store takes
    /// it. Where no event told to whom, the event does it when it comes.
    pub fn end_named_behind(self: &Arc<Self>, tenant: &TenantId, mail_token: &str) {
        let Ok(webhook) = self.webhook_of(tenant) else { return };
        let (token, used_at, broker) = (MailToken::of(tenant, &webhook, mail_token), self.clock.now(), self.clone());
        self.go_on(async move {
            until_taken(&token.used.tenant, || broker.end_named(&token, used_at)).await;
        });
    }

    async fn end_named(self: &Arc<Self>, token: &MailToken, used_at: Timestamp) -> Result<(), GatewayError> {
        let mut customer = self.customer_noted(&token.mailed).await?;
        if customer.is_none() {
            let at = used_at.millis().to_be_bytes();
            self.store.note(&token.used, &at, MAIL_TOKEN_LIFE, Standing::Keep).await?;
            customer = self.customer_noted(&token.mailed).await?;
        }
        let Some(customer) = customer else {
            tracing::info!(tenant = %token.used.tenant, "no event told yet to whom a token was mailed: no session ends");
            return Ok(());
        };
        Ok(self.revoke_all_elsewhere(&customer, None, used_at).await?)
    }

    async fn used_at(&self, token: &MailToken) -> Result<Option<Timestamp>, GatewayError> {
        let noted = self.store.noted(&token.used).await?;
        let millis: Option<[u8; 8]> = noted.and_then(|at| at.try_into().ok());
        Ok(millis.map(|millis| Timestamp::from_millis(u64::from_be_bytes(millis))))
    }

    async fn customer_noted(&self, note: &NoteName) -> Result<Option<CustomerName>, GatewayError> {
        let noted = self.store.noted(note).await?;
        let hash: Option<[u8; 16]> = noted.and_then(|hash| hash.try_into().ok());
        Ok(hash.map(|hash| CustomerName::of_hash(note.tenant, hash)))
    }

    fn webhook_of(&self, tenant: &TenantId) -> Result<Arc<Webhook>, GatewayError> {
        self.known_tenant(tenant)?.webhook.clone().ok_or(GatewayError::UnknownRoute)
    }
}

fn address_note(tenant: &TenantId, webhook: &Webhook, email: &str) -> NoteName {
    NoteName { tenant: *tenant, kind: NoteKind::Email, hash: webhook.name_of_email(email) }
}

/// What is noted of a mailed token.
struct MailToken {
    /// To whom it was mailed.
    mailed: NoteName,
    /// When it was used.
    used: NoteName,
}

impl MailToken {
    fn of(tenant: &TenantId, webhook: &Webhook, token: &str) -> Self {
        let mailed = NoteName { tenant: *tenant, kind: NoteKind::MailToken, hash: webhook.name_of_token(token) };
        Self { used: NoteName { kind: NoteKind::UsedToken, ..mailed.clone() }, mailed }
    }
}
