//! The four ways a guest becomes a customer: password, social login, token exchange and opt-in link.
//! Each keeps the guest's session id and each answers in its own documented shape.

use axum::{
    Json,
    extract::{Path, Query, State},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::{
    caller::{AnonymousCaller, Params, Sim, json_of, text},
    issue::{self, Ttl},
    refusal::Refusal,
    saas,
    simulator::{JANE, JOHN, World, now},
    tokens::Grant,
};

/// The only identity provider configuration that exists.
const PROVIDER_CONFIG: &str = "site_PL";
/// The shortest password login looks at.
const SHORTEST_PASSWORD: usize = 6;

/// `POST /customer/{tenant}/login`
pub(crate) async fn password(
    State(simulator): Sim,
    AnonymousCaller(guest): AnonymousCaller,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    let body = json_of(&body);
    let (email, password) = credentials(&body)?;
    let mut world = simulator.world();
    let customer = world
        .customer_by_email(&guest.tenant, email)
        .filter(|customer| customer.password == password)
        .map(|customer| customer.number.clone())
        .ok_or_else(|| unauthorized("Email or password is incorrect."))?;
    let grant = become_customer(guest, &customer);
    let ttl = login_ttl(&world);
    let mut answer = issue::login(&simulator, &mut world, &grant, ttl, now());
    answer["session_id"] = grant.session_id.into();
    answer["initialPassword"] = false.into();
    Ok(Json(issue::doubled(&world, answer)))
}

/// `POST /customer/{tenant}/socialLogin`: numbers are text here, and the session id is missing.
pub(crate) async fn social(
    State(simulator): Sim,
    AnonymousCaller(guest): AnonymousCaller,
    headers: HeaderMap,
    Query(params): Params,
) -> Result<Json<Value>, Refusal> {
    if !params.get("code").is_some_and(|code| code.starts_with("valid-code")) {
        return Err(Refusal::bad_request("The authorization code is not valid."));
    }
    if headers.get("session-id").is_some_and(|session| session.as_bytes() != guest.session_id.as_bytes()) {
        return Err(Refusal::bad_request("The session-id does not belong to the token."));
    }
    let now = now();
    let mut world = simulator.world();
    let grant = become_customer(guest, JOHN);
    let ttl = login_ttl(&world);
    let mut answer = issue::login(&simulator, &mut world, &grant, ttl, now);
    for field in ["social_access_token", "social_id_token"] {
        let token = saas::provider_token(JOHN, now);
        world.tokens.remember_secret(&token);
        answer[field] = token.into();
    }
    if world.settings.raw_expires_in.is_none() {
        answer["expires_in"] = ttl.access.to_string().into();
    }
    answer["refresh_token_expires_in"] = ttl.refresh.to_string().into();
    answer["session_idle_time"] = 3600.into();
    answer["scope"] = issue::scope(&grant.tenant).into();
    Ok(Json(answer))
}

/// `POST /customer/{tenant}/exchangeauthtoken`: the subject's token comes back in the answer.
pub(crate) async fn exchange(
    State(simulator): Sim,
    AnonymousCaller(guest): AnonymousCaller,
    Query(params): Params,
) -> Result<Json<Value>, Refusal> {
    let subject = params.get("subjectAccessToken").map(String::as_str).unwrap_or_default();
    if subject.is_empty() || params.get("config").is_some_and(|config| config != PROVIDER_CONFIG) {
        return Err(Refusal::bad_request("The subject token or its configuration is not valid."));
    }
    if subject.starts_with("unknown") {
        return Err(Refusal::customer(StatusCode::NOT_FOUND, "resource_not_found", "Customer not found."));
    }
    if subject.starts_with("bad") {
        return Err(unauthorized("The subject token is not valid."));
    }
    let mut world = simulator.world();
    let grant = become_customer(guest, JANE);
    let ttl = Ttl { access: world.settings.exchange_access_ttl, refresh: world.settings.exchange_refresh_ttl };
    let mut answer = issue::login(&simulator, &mut world, &grant, ttl, now());
    answer["subject_access_token"] = subject.into();
    answer["session_idle_time"] = 120.into();
    answer["scope"] = issue::scope(&grant.tenant).into();
    answer["session_id"] = grant.session_id.into();
    Ok(Json(answer))
}

/// `GET /customer/{tenant}/signup/optin/{token}`: logs in whoever follows the link first.
pub(crate) async fn opt_in(
    State(simulator): Sim,
    AnonymousCaller(guest): AnonymousCaller,
    Path((tenant, token)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let mut world = simulator.world();
    if !token.starts_with("optin-") || !world.spent_optins.insert((tenant, token)) {
        return Err(Refusal::bad_request("The activation token is not valid."));
    }
    let grant = become_customer(guest, JOHN);
    let ttl = login_ttl(&world);
    let answer = issue::login(&simulator, &mut world, &grant, ttl, now());
    Ok(Json(issue::doubled(&world, answer)))
}

/// The customer service's own 401, which says nothing about the bearer.
pub(crate) fn unauthorized(message: &str) -> Refusal {
    Refusal::customer(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

fn credentials(body: &Value) -> Result<(&str, &str), Refusal> {
    let email = text(body, "email");
    let password = text(body, "password").filter(|password| password.len() >= SHORTEST_PASSWORD);
    match (email, password) {
        (Some(email), Some(password)) => Ok((email, password)),
        (Some(_), None) => Err(Refusal::fields(&["password"])),
        (None, Some(_)) => Err(Refusal::fields(&["email"])),
        (None, None) => Err(Refusal::fields(&["email", "password"])),
    }
}

fn become_customer(guest: Grant, number: &str) -> Grant {
    Grant { customer: Some(number.to_owned()), ..guest }
}

fn login_ttl(world: &World) -> Ttl {
    Ttl { access: world.settings.customer_access_ttl, refresh: world.settings.customer_refresh_ttl }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_short_password_is_refused_before_it_is_compared() {
        assert!(credentials(&json!({"email": "a@example.com", "password": "12345"})).is_err());
        assert!(credentials(&json!({"email": "a@example.com", "password": "123456"})).is_ok());
    }
}
