//! Mints the tokens of a customer, the common end of every way to log in.
//! The answers differ by way of login; what they share is built here.

use serde_json::{Value, json};

use crate::{
    simulator::{Simulator, World},
    tokens::{Grant, Kind},
};

/// The scopes every customer token carries.
pub(crate) const SCOPES: &str = "customer.customerprofile_edit approval.approval_manage_own \
    returns.returns_manage_own iam.scope_read_own customersegment.segment_read_own quote.quote_read_own \
    customermanagement.legalentity_read_own order.order_readascustomer coupon.coupon_redeem \
    order.history_view customer.customerprofile_view";

/// The deprecated double of each token field.
const CAMEL_CASE: [(&str, &str); 5] = [
    ("access_token", "accessToken"),
    ("saas_token", "saasToken"),
    ("refresh_token", "refreshToken"),
    ("expires_in", "expiresIn"),
    ("refresh_token_expires_in", "refreshTokenExpiresIn"),
];

/// The lives of a customer's tokens, in seconds.
#[derive(Clone, Copy)]
pub(crate) struct Ttl {
    /// Of the bearer.
    pub(crate) access: u64,
    /// Of the refresh token.
    pub(crate) refresh: u64,
}

/// The part all customer answers share: a bearer and a refresh token for `grant`.
pub(crate) fn access(world: &mut World, grant: &Grant, ttl: Ttl, now: u64) -> Value {
    let access = world.tokens.mint(Kind::CustomerAccess, grant, ttl.access, now);
    let refresh = world.tokens.mint(Kind::CustomerRefresh, grant, ttl.refresh, now);
    let expires_in = world.settings.raw_expires_in.clone().unwrap_or_else(|| ttl.access.into());
    json!({
        "access_token": access, "expires_in": expires_in, "token_type": "Bearer",
        "refresh_token": refresh, "refresh_token_expires_in": ttl.refresh,
    })
}

/// Like [`access`], with the SaaS token only a login returns.
pub(crate) fn login(simulator: &Simulator, world: &mut World, grant: &Grant, ttl: Ttl, now: u64) -> Value {
    let mut answer = access(world, grant, ttl, now);
    let customer = grant.customer.as_deref().unwrap_or_default();
    let saas = match world.settings.saas_token_override.clone() {
        Some(text) => text,
        None => {
            let signed = simulator.saas.sign(customer, world.settings.saas_ttl, now);
            world.tokens.remember_secret(&signed);
            signed
        }
    };
    answer["saas_token"] = saas.into();
    answer
}

/// The answer with its deprecated doubles, if the settings ask for them.
pub(crate) fn doubled(world: &World, mut answer: Value) -> Value {
    if world.settings.camel_case {
        for (snake, camel) in CAMEL_CASE {
            if let Some(value) = answer.get(snake).cloned() {
                answer[camel] = value;
            }
        }
    }
    answer
}

/// The scope text of a customer in `tenant`.
pub(crate) fn scope(tenant: &str) -> String {
    format!("{SCOPES} tenant={tenant}")
}
