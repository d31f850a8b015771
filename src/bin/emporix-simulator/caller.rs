//! Who is calling, proved by the bearer in front of every handler.
//! A handler that takes an `AnonymousCaller` or `CustomerCaller` cannot be reached by anyone else.

use std::{collections::HashMap, sync::Arc};

use axum::extract::{FromRequestParts, Query, State};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::AUTHORIZATION, request::Parts};
use serde_json::Value;

use crate::{
    refusal::Refusal,
    simulator::{Simulator, now},
    tokens::{Grant, Kind},
};

/// The simulator as handlers receive it.
pub(crate) type Sim = State<Arc<Simulator>>;
/// A query string as handlers receive it.
pub(crate) type Params = Query<HashMap<String, String>>;

/// The services whose paths name no tenant; it is taken from the bearer.
const TENANTLESS: [&str; 4] = ["brand", "labels", "reward-points", "sequential-id"];

/// Anyone with a live bearer.
pub(crate) struct Caller {
    /// The bearer itself.
    pub(crate) bearer: String,
    /// Guest, customer or service.
    pub(crate) kind: Kind,
    /// Whom the bearer stands for.
    pub(crate) grant: Grant,
    /// When the bearer dies, in milliseconds.
    pub(crate) expires_at: u64,
}

/// A guest with a live bearer.
pub(crate) struct AnonymousCaller(pub(crate) Grant);

/// A customer with a live bearer.
pub(crate) struct CustomerCaller {
    /// The customer number.
    pub(crate) number: String,
    /// What else is known.
    pub(crate) caller: Caller,
}

impl FromRequestParts<Arc<Simulator>> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, simulator: &Arc<Simulator>) -> Result<Self, Refusal> {
        let bearer = bearer(&parts.headers).ok_or_else(Refusal::invalid_bearer)?;
        let caller = Self::behind(bearer, simulator)?;
        caller.check_tenant(parts.uri.path(), simulator)?;
        Ok(caller)
    }
}

impl Caller {
    fn behind(bearer: &str, simulator: &Simulator) -> Result<Self, Refusal> {
        const BEARERS: [Kind; 3] = [Kind::AnonymousAccess, Kind::CustomerAccess, Kind::Service];
        let world = simulator.world();
        let token = world.tokens.find_any(bearer, &BEARERS, now())?;
        Ok(Self {
            bearer: bearer.to_owned(),
            kind: token.kind,
            grant: token.grant.clone(),
            expires_at: token.expires_at,
        })
    }

    fn check_tenant(&self, path: &str, simulator: &Simulator) -> Result<(), Refusal> {
        let mut segments = path.split('/').skip(1);
        let (service, tenant) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
        match simulator.has_tenant(tenant) {
            true if self.kind == Kind::Service || tenant == self.grant.tenant => Ok(()),
            true => Err(Refusal::invalid_bearer()),
            false if TENANTLESS.contains(&service) => Ok(()),
            false => Err(Refusal::bad_request("The tenant information provided with the request is not valid.")),
        }
    }
}

impl FromRequestParts<Arc<Simulator>> for AnonymousCaller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, simulator: &Arc<Simulator>) -> Result<Self, Refusal> {
        let caller = Caller::from_request_parts(parts, simulator).await?;
        match caller.kind {
            Kind::AnonymousAccess => Ok(Self(caller.grant)),
            _ => Err(Refusal::invalid_bearer()),
        }
    }
}

impl FromRequestParts<Arc<Simulator>> for CustomerCaller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, simulator: &Arc<Simulator>) -> Result<Self, Refusal> {
        let caller = Caller::from_request_parts(parts, simulator).await?;
        match caller.grant.customer.clone() {
            Some(number) => Ok(Self { number, caller }),
            None => Err(Refusal::customer(StatusCode::FORBIDDEN, "Forbidden", "User not authorized.")),
        }
    }
}

/// The JSON of a request body; anything else counts as an empty answer sheet.
pub(crate) fn json_of(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

/// A text field, or nothing if it is absent or empty.
pub(crate) fn text<'body>(body: &'body Value, field: &str) -> Option<&'body str> {
    body.get(field).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The fields of `required` that are absent or empty in `body`.
pub(crate) fn require(body: &Value, required: &[&str]) -> Result<(), Refusal> {
    let missing: Vec<_> = required.iter().copied().filter(|field| text(body, field).is_none()).collect();
    if missing.is_empty() { Ok(()) } else { Err(Refusal::fields(&missing)) }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
