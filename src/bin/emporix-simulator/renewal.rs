//! The later life of a customer's tokens: refresh, validation and logout.
//! A refresh never returns a SaaS token, leaves the old bearer alive, and forgets a legal entity that is not named again.

use axum::{
    Json,
    extract::{Query, State},
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    caller::{Caller, CustomerCaller, Params, Sim},
    issue::{self, Ttl},
    login::unauthorized,
    refusal::Refusal,
    settings::RefreshAuthorizer,
    simulator::{World, now},
    tokens::{Grant, Kind},
};

/// The window of a refresh token does not slide: in Emporix' sample this much is gone after a refresh.
const REFRESH_WINDOW_LOSS: u64 = 9;

/// `GET /customer/{tenant}/refreshauthtoken`
pub(crate) async fn refresh(
    State(simulator): Sim,
    caller: Caller,
    Query(params): Params,
) -> Result<Json<Value>, Refusal> {
    let now = now();
    let mut world = simulator.world();
    if !may_refresh(world.settings.refresh_authorizer, caller.kind) {
        return Err(Refusal::invalid_bearer());
    }
    let secret = params.get("refreshToken").ok_or_else(|| Refusal::bad_request("refreshToken is missing."))?;
    let grant = redeem(&mut world, secret, &caller.grant.tenant, now)?;
    let grant = Grant { legal_entity: params.get("legalEntityId").cloned(), ..grant };
    let ttl = Ttl {
        access: world.settings.customer_access_ttl,
        refresh: world.settings.customer_refresh_ttl.saturating_sub(REFRESH_WINDOW_LOSS).max(1),
    };
    let mut answer = issue::access(&mut world, &grant, ttl, now);
    answer["session_id"] = grant.session_id.into();
    Ok(Json(issue::doubled(&world, answer)))
}

/// `GET /customer/{tenant}/validateauthtoken`
pub(crate) async fn validate(State(simulator): Sim, CustomerCaller { number, caller }: CustomerCaller) -> Json<Value> {
    let Caller { grant, expires_at, .. } = caller;
    let mut world = simulator.world();
    let email = world.customer(&grant.tenant, &number).map(|customer| customer.email.clone());
    let mut answer = json!({
        "token_type": "Bearer", "expires_in": expires_at.saturating_sub(now()) / 1000,
        "scope": issue::scope(&grant.tenant), "sessionId": grant.session_id, "email": email,
    });
    if let Some(legal_entity) = grant.legal_entity {
        answer["legalEntityId"] = legal_entity.into();
    }
    Json(answer)
}

/// `GET /customer/{tenant}/logout`: kills the bearer and nothing else.
pub(crate) async fn logout(
    State(simulator): Sim,
    CustomerCaller { caller, .. }: CustomerCaller,
    Query(params): Params,
) -> Result<StatusCode, Refusal> {
    if params.get("accessToken") != Some(&caller.bearer) {
        return Err(Refusal::bad_request("accessToken must be the token itself."));
    }
    simulator.world().tokens.remove(&caller.bearer);
    Ok(StatusCode::NO_CONTENT)
}

fn may_refresh(authorizer: RefreshAuthorizer, kind: Kind) -> bool {
    match authorizer {
        RefreshAuthorizer::Anonymous => kind == Kind::AnonymousAccess,
        RefreshAuthorizer::Customer => kind == Kind::CustomerAccess,
        RefreshAuthorizer::Any => kind != Kind::Service,
    }
}

fn redeem(world: &mut World, secret: &str, tenant: &str, now: u64) -> Result<Grant, Refusal> {
    *world.redeems.entry(secret.to_owned()).or_default() += 1;
    let grant = world
        .tokens
        .find(secret, Kind::CustomerRefresh, now)
        .ok()
        .map(|token| token.grant.clone())
        .filter(|grant| grant.tenant == tenant)
        .ok_or_else(|| unauthorized("Refresh token is invalid"))?;
    if world.settings.refresh_single_use {
        world.tokens.remove(secret);
    }
    Ok(grant)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn customer() -> Grant {
        Grant { tenant: "acme".into(), session_id: "s".into(), customer: Some("C1".into()), legal_entity: None }
    }

    #[test]
    fn a_single_use_refresh_token_is_redeemed_once() {
        let mut world = World::default();
        let secret = world.tokens.mint(Kind::CustomerRefresh, &customer(), 60, 0);

        assert_eq!(redeem(&mut world, &secret, "acme", 1).ok(), Some(customer()));
        assert!(redeem(&mut world, &secret, "acme", 1).is_err());
        assert_eq!(world.redeems[&secret], 2, "what is refused is counted too");
    }

    #[test]
    fn a_refresh_token_of_another_tenant_is_not_spent() {
        let mut world = World::default();
        let secret = world.tokens.mint(Kind::CustomerRefresh, &customer(), 60, 0);

        assert!(redeem(&mut world, &secret, "globex", 1).is_err());
        assert!(redeem(&mut world, &secret, "acme", 1).is_ok());
    }
}
