//! Which path leads to which handler, in the order of Emporix' own reference.
//! Everything but the levers under `/_simulator/` passes the intake first.

use std::sync::Arc;

use axum::{
    Router,
    middleware::from_fn_with_state,
    routing::{any, get, post},
};

use crate::{account, admin, anonymous, carts, commerce, intake, login, renewal, simulator::Simulator, streams};

/// The whole simulator.
pub(crate) fn all(simulator: Arc<Simulator>) -> Router {
    let emporix = authentication()
        .merge(accounts())
        .merge(shop())
        .fallback(commerce::echo)
        .method_not_allowed_fallback(commerce::echo)
        .layer(from_fn_with_state(simulator.clone(), intake::receive));
    admin::routes().merge(emporix).with_state(simulator)
}

fn authentication() -> Router<Arc<Simulator>> {
    Router::new()
        .route("/customerlogin/auth/anonymous/login", get(anonymous::login))
        .route("/customerlogin/auth/anonymous/refresh", get(anonymous::refresh))
        .route("/oauth/token", post(anonymous::service))
        .route("/customer/{tenant}/login", post(login::password))
        .route("/customer/{tenant}/socialLogin", post(login::social))
        .route("/customer/{tenant}/exchangeauthtoken", post(login::exchange))
        .route("/customer/{tenant}/refreshauthtoken", get(renewal::refresh))
        .route("/customer/{tenant}/validateauthtoken", get(renewal::validate))
        .route("/customer/{tenant}/logout", get(renewal::logout))
}

fn accounts() -> Router<Arc<Simulator>> {
    let profile = get(account::profile).patch(account::change_profile).put(account::change_profile);
    let email_change = "/customer/{tenant}/me/accounts/internal/email/change";
    Router::new()
        .route("/customer/{tenant}/signup", post(account::sign_up))
        .route("/customer/{tenant}/signup/optin/refresh_token", post(account::resend_activation))
        .route("/customer/{tenant}/signup/optin/{token}", get(login::opt_in))
        .route("/customer/{tenant}/password/reset", post(account::request_reset))
        .route("/customer/{tenant}/password/reset/", post(account::request_reset))
        .route("/customer/{tenant}/password/reset/update", post(account::finish_reset))
        .route("/customer/{tenant}/password/change", post(account::change_password))
        .route("/customer/{tenant}/me", profile)
        .route(email_change, post(account::request_email_change))
        .route(&format!("{email_change}/confirm"), post(account::confirm_email_change))
        .route("/iam/{tenant}/users/me/scopes", get(account::scopes))
}

fn shop() -> Router<Arc<Simulator>> {
    Router::new()
        .route("/cart/{tenant}/carts", get(carts::find).post(carts::create))
        .route("/cart/{tenant}/carts/{id}", get(carts::read))
        .route("/cart/{tenant}/carts/{id}/items", post(carts::add_item))
        .route("/cart/{tenant}/carts/{id}/merge", post(carts::merge))
        .route("/checkout/{tenant}/checkouts/order", post(commerce::order))
        .route("/product/{tenant}/products", get(commerce::list))
        .route("/product/{tenant}/products/{id}", get(commerce::entry))
        .route("/category/{tenant}/categories", get(commerce::list))
        .route("/catalog/{tenant}/catalogs", get(commerce::list))
        .route("/price/{tenant}/prices", get(commerce::list))
        .route("/price/{tenant}/match-prices-by-context", post(commerce::list))
        .route("/site/{tenant}/sites", get(commerce::list))
        .route("/session-context/{tenant}/me/context", get(commerce::session_context))
        .route("/media/{tenant}/assets", post(commerce::upload))
        .route("/ai-service/{tenant}/agentic/chat-stream", any(streams::events))
        .route("/ai-service/{tenant}/agentic/socket", any(streams::socket))
}
