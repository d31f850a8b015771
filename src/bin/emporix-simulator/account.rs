//! The customer's account: sign-up, profile, passwords, e-mail address and scopes.
//! None of these calls touches a token, as far as Emporix documents.

use axum::{Json, extract::State};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    caller::{AnonymousCaller, Caller, CustomerCaller, Sim, json_of, require, text},
    issue,
    refusal::Refusal,
    simulator::{Customer, overlay},
};

/// The number of the first customer who signs up.
const FIRST_NUMBER: usize = 13_730_481;

/// `POST /customer/{tenant}/signup`: creates a customer and logs nobody in.
pub(crate) async fn sign_up(
    State(simulator): Sim,
    AnonymousCaller(guest): AnonymousCaller,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let body = json_of(&body);
    require(&body, &["email", "password"])?;
    let (email, password) = (text(&body, "email").unwrap_or_default(), text(&body, "password").unwrap_or_default());
    let mut world = simulator.world();
    if world.customer_by_email(&guest.tenant, email).is_some() {
        let message = format!("Duplicate account '{email}' for tenant '{}'.", guest.tenant);
        return Err(Refusal::customer(StatusCode::CONFLICT, "conflict_resource", &message));
    }
    let number = (FIRST_NUMBER + world.customers.len()).to_string();
    let details = body.get("customerDetails").cloned().unwrap_or_default();
    world.customers.push(Customer::new(&guest.tenant, &number, email, password, &details));
    Ok((StatusCode::CREATED, Json(json!({"id": number}))))
}

/// `GET /customer/{tenant}/me`: guests have a profile of their own.
pub(crate) async fn profile(State(simulator): Sim, caller: Caller) -> Json<Value> {
    let number = caller.grant.customer.unwrap_or_default();
    let mut world = simulator.world();
    let known = world.customer(&caller.grant.tenant, &number).map(|customer| customer.profile.clone());
    Json(known.unwrap_or_else(|| {
        json!({
            "firstName": "Anonymous", "lastName": "Anonymous", "preferredSite": "default",
            "customerNumber": "00000000", "id": "00000000", "accounts": [],
        })
    }))
}

/// `PATCH` or `PUT /customer/{tenant}/me`
pub(crate) async fn change_profile(
    State(simulator): Sim,
    CustomerCaller { number, caller }: CustomerCaller,
    body: Bytes,
) -> Json<Value> {
    let mut world = simulator.world();
    let changed = world.customer(&caller.grant.tenant, &number).map(|customer| {
        overlay(&mut customer.profile, &json_of(&body));
        customer.profile.clone()
    });
    Json(changed.unwrap_or_default())
}

/// `POST /customer/{tenant}/password/change`
pub(crate) async fn change_password(
    State(simulator): Sim,
    CustomerCaller { number, caller }: CustomerCaller,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let body = json_of(&body);
    require(&body, &["currentPassword", "newPassword"])?;
    let mut world = simulator.world();
    let customer = world
        .customer(&caller.grant.tenant, &number)
        .filter(|customer| text(&body, "currentPassword") == Some(customer.password.as_str()))
        .ok_or_else(|| Refusal::bad_request("The current password is not correct."))?;
    customer.password = text(&body, "newPassword").unwrap_or_default().to_owned();
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /customer/{tenant}/password/reset`: silent about whether the address is known.
pub(crate) async fn request_reset(_guest: AnonymousCaller, body: Bytes) -> Result<StatusCode, Refusal> {
    require(&json_of(&body), &["email"])?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /customer/{tenant}/password/reset/update`: every token is believed, no password is changed.
pub(crate) async fn finish_reset(_guest: AnonymousCaller, body: Bytes) -> Result<StatusCode, Refusal> {
    require(&json_of(&body), &["token", "password"])?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /customer/{tenant}/me/accounts/internal/email/change`
pub(crate) async fn request_email_change(_customer: CustomerCaller, body: Bytes) -> Result<StatusCode, Refusal> {
    require(&json_of(&body), &["email", "password", "newEmail"])?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /customer/{tenant}/me/accounts/internal/email/change/confirm`: every token is believed.
pub(crate) async fn confirm_email_change(_guest: AnonymousCaller, body: Bytes) -> Result<StatusCode, Refusal> {
    require(&json_of(&body), &["token"])?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /customer/{tenant}/signup/optin/refresh_token`: sends the activation mail again.
pub(crate) async fn resend_activation(_guest: AnonymousCaller, body: Bytes) -> Result<StatusCode, Refusal> {
    require(&json_of(&body), &["email"])?;
    Ok(StatusCode::ACCEPTED)
}

/// `GET /iam/{tenant}/users/me/scopes`
pub(crate) async fn scopes(_customer: CustomerCaller) -> Json<Value> {
    Json(json!({"scopes": issue::SCOPES}))
}
