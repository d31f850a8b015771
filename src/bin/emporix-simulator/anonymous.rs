//! Guests: anonymous login and refresh, and the client-credentials token.
//! A refresh keeps the session id, because the guest's cart hangs on it.

use std::collections::HashMap;

use axum::{
    Json,
    extract::{Query, State},
};
use bytes::Bytes;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::{
    caller::{Params, Sim},
    random,
    refusal::Refusal,
    simulator::{Simulator, World, now},
    tokens::{Grant, Kind},
};

/// `GET /customerlogin/auth/anonymous/login`
pub(crate) async fn login(State(simulator): Sim, Query(params): Params) -> Result<Json<Value>, Refusal> {
    let tenant = checked_tenant(&simulator, &params)?;
    let grant = Grant { tenant, session_id: random::uuid(), customer: None, legal_entity: None };
    let mut world = simulator.world();
    let mut context = json!({"siteCode": "main", "currency": "EUR", "targetLocation": "DE", "language": "en"});
    for field in ["siteCode", "currency", "targetLocation", "language"] {
        if let Some(value) = params.get(field) {
            context[field] = value.as_str().into();
        }
    }
    world.contexts.insert(grant.session_id.clone(), context);
    let refresh = mint_refresh(&mut world, &grant);
    Ok(Json(answer(&mut world, &grant, Some(refresh))))
}

/// `GET /customerlogin/auth/anonymous/refresh`; the deprecated `anonymous_token` earns no refresh token.
pub(crate) async fn refresh(State(simulator): Sim, Query(params): Params) -> Result<Json<Value>, Refusal> {
    let tenant = checked_tenant(&simulator, &params)?;
    let (secret, kind) = match (params.get("refresh_token"), params.get("anonymous_token")) {
        (Some(refresh), _) => (refresh, Kind::AnonymousRefresh),
        (None, Some(access)) => (access, Kind::AnonymousAccess),
        (None, None) => return Err(Refusal::bad_request("refresh_token is missing.")),
    };
    let mut world = simulator.world();
    let grant = world.tokens.find(secret, kind, now())?.grant.clone();
    if grant.tenant != tenant {
        return Err(Refusal::invalid_bearer());
    }
    let refresh = (kind == Kind::AnonymousRefresh).then(|| mint_refresh(&mut world, &grant));
    Ok(Json(answer(&mut world, &grant, refresh)))
}

/// `POST /oauth/token`, for any client that knows the secret: the token works in every tenant.
pub(crate) async fn service(State(simulator): Sim, form: Bytes) -> Result<Json<Value>, Refusal> {
    let form: HashMap<_, _> = form_urlencoded::parse(&form).into_owned().collect();
    let said = |field: &str| form.get(field).map(String::as_str).unwrap_or_default();
    if said("grant_type") != "client_credentials" {
        return Err(Refusal::bad_request("grant_type is missing."));
    }
    if said("client_id").is_empty() || said("client_secret") != simulator.client_secret {
        return Err(Refusal::fault("Client credentials are invalid", "oauth.v2.InvalidClientIdentifier"));
    }
    let tenant = simulator.tenants.first().cloned().unwrap_or_default();
    let scope = if said("scope").is_empty() { format!("tenant={tenant}") } else { said("scope").to_owned() };
    let grant = Grant { tenant, session_id: random::uuid(), customer: None, legal_entity: None };
    let mut world = simulator.world();
    world.tokens.remember_secret(&simulator.client_secret);
    let ttl = world.settings.service_ttl;
    let token = world.tokens.mint(Kind::Service, &grant, ttl, now());
    Ok(Json(json!({
        "access_token": token, "token_type": "Bearer", "expires_in": ttl, "session_idle_time": 120,
        "refresh_token": "", "refresh_token_expires_in": 0, "scope": scope,
    })))
}

fn checked_tenant(simulator: &Simulator, params: &HashMap<String, String>) -> Result<String, Refusal> {
    let client_id = params.get("client_id").ok_or_else(invalid_key)?;
    if !simulator.client_ids.contains(client_id) {
        return Err(invalid_key());
    }
    let tenant = params.get("tenant").or_else(|| params.get("hybris-tenant"));
    tenant.filter(|tenant| simulator.has_tenant(tenant)).cloned().ok_or_else(invalid_key)
}

fn invalid_key() -> Refusal {
    Refusal::fault("Invalid ApiKey", "oauth.v2.InvalidApiKey")
}

fn mint_refresh(world: &mut World, grant: &Grant) -> String {
    let ttl = world.settings.anonymous_refresh_ttl;
    world.tokens.mint(Kind::AnonymousRefresh, grant, ttl, now())
}

fn answer(world: &mut World, grant: &Grant, refresh: Option<String>) -> Value {
    let ttl = world.settings.anonymous_access_ttl;
    let access = world.tokens.mint(Kind::AnonymousAccess, grant, ttl, now());
    let mut answer = json!({
        "token_type": "Bearer", "access_token": access, "expires_in": ttl,
        "sessionId": grant.session_id, "scope": format!("tenant={}", grant.tenant),
    });
    if let Some(refresh) = refresh {
        answer["refresh_token"] = refresh.into();
        answer["refresh_token_expires_in"] = world.settings.anonymous_refresh_ttl.into();
    }
    answer
}
