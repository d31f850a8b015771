//! The rest of the shop: checkout, a tiny catalogue, the session context, and an echo for everything else.
//! The echo tells as whom a call arrived, which is what a gateway test wants to know.

use std::{future::poll_fn, pin::Pin};

use axum::{
    Json,
    body::{Body, HttpBody},
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};

use crate::{
    caller::{Caller, Sim, json_of, text},
    carts, random,
    refusal::Refusal,
    simulator::now,
    tokens::{Grant, Kind},
};

/// The first path segments that mean something at Emporix.
const SERVICES: [&str; 46] = [
    "ai-rag-indexer",
    "ai-service",
    "approval",
    "availability",
    "brand",
    "caas-customer",
    "cart",
    "catalog",
    "category",
    "checkout",
    "configuration",
    "country",
    "coupon",
    "currency",
    "customer",
    "customer-management",
    "customer-segment",
    "fee",
    "iam",
    "importtool",
    "indexing",
    "invoice",
    "labels",
    "media",
    "order-v2",
    "payment-gateway",
    "pick-pack",
    "price",
    "product",
    "quote",
    "return",
    "reward-points",
    "schema",
    "sepa-export",
    "sequential-id",
    "session-context",
    "shipping",
    "shoppinglist",
    "site",
    "subscription",
    "tax",
    "unit-handling",
    "variants",
    "vendor",
    "webhook",
    "wishlist",
];

/// `POST /checkout/{tenant}/checkouts/order`: customers must prove themselves a second time.
pub(crate) async fn order(
    State(simulator): Sim,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let denied = |message| Refusal::service(StatusCode::UNAUTHORIZED, message);
    if let Some(customer) = &caller.grant.customer {
        let saas = headers.get("saas-token").and_then(|token| token.to_str().ok()).unwrap_or_default();
        if !simulator.saas.accepts(saas, customer, now()) {
            return Err(denied("Saas TOKEN is invalid"));
        }
    }
    let body = json_of(&body);
    let cart_id = text(&body, "cartId");
    let cart_id = cart_id.ok_or_else(|| Refusal::service(StatusCode::BAD_REQUEST, "cartId is missing."))?;
    let mut world = simulator.world();
    let cart = carts::owned(&mut world, cart_id, &caller.grant)?;
    if !cart.open {
        return Err(denied("Cart is closed"));
    }
    cart.open = false;
    let order_id = format!("B{}", random::opaque(6).to_uppercase());
    Ok((StatusCode::CREATED, Json(json!({"orderId": order_id, "paymentDetails": null, "checkoutId": ""}))))
}

/// The lists of the catalogue: products, categories, catalogs, prices and sites.
pub(crate) async fn list(_caller: Caller, uri: Uri) -> Response {
    let entries = entries(uri.path().split('/').nth(1).unwrap_or_default());
    let total = entries.len().to_string();
    ([("x-total-count", total)], Json(entries)).into_response()
}

/// One entry of a list.
pub(crate) async fn entry(
    _caller: Caller,
    uri: Uri,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    let entries = entries(uri.path().split('/').nth(1).unwrap_or_default());
    let found = entries.into_iter().find(|entry| text(entry, "id") == Some(&id));
    found.map(Json).ok_or_else(|| Refusal::service(StatusCode::NOT_FOUND, "No such entry."))
}

/// `GET /session-context/{tenant}/me/context`
pub(crate) async fn session_context(State(simulator): Sim, caller: Caller) -> Result<Json<Value>, Refusal> {
    let Grant { session_id, customer, .. } = caller.grant;
    let world = simulator.world();
    let missing = || Refusal::service(StatusCode::NOT_FOUND, "Session not found");
    let mut context = world.contexts.get(&session_id).cloned().ok_or_else(missing)?;
    context["sessionId"] = session_id.into();
    context["context"] = json!({});
    context["metadata"] = json!({"version": 1});
    if let Some(customer) = customer {
        context["customerId"] = customer.into();
    }
    Ok(Json(context))
}

/// `POST /media/{tenant}/assets`: counts an upload without keeping it.
pub(crate) async fn upload(_caller: Caller, request: Request) -> Json<Value> {
    Json(json!({"received": drain(request.into_body()).await}))
}

/// Every other call: who asked what.
pub(crate) async fn echo(caller: Caller, method: Method, uri: Uri, request: Request) -> Response {
    let service = uri.path().split('/').nth(1).unwrap_or_default();
    drain(request.into_body()).await;
    if !SERVICES.contains(&service) {
        return Refusal::service(StatusCode::NOT_FOUND, "No such service.").into_response();
    }
    let role = match caller.kind {
        Kind::Service => "service",
        _ if caller.grant.customer.is_some() => "customer",
        _ => "anonymous",
    };
    let session_id = caller.grant.session_id;
    Json(json!({"service": service, "method": method.as_str(), "as": role, "sessionId": session_id})).into_response()
}

/// Reads a body to its end and tells its length.
pub(crate) async fn drain(mut body: Body) -> u64 {
    let mut length = 0;
    while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        length += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
    }
    length
}

fn entries(service: &str) -> Vec<Value> {
    match service {
        "product" => ["Espresso Cup", "Coffee Grinder", "Moka Pot"]
            .iter()
            .zip(1..)
            .map(|(name, number)| json!({"id": format!("P{number}"), "code": format!("sku-{number}"), "name": name}))
            .collect(),
        "category" => vec![json!({"id": "kitchen", "name": "Kitchen"}), json!({"id": "coffee", "name": "Coffee"})],
        "catalog" => vec![json!({"id": "main-catalog", "name": "Main", "visibility": {"visible": true}})],
        "price" => (1..=3)
            .map(|number| json!({"id": format!("price-{number}"), "itemId": format!("P{number}"), "currency": "EUR"}))
            .collect(),
        "site" => vec![json!({"code": "main", "id": "main", "default": true, "currency": "EUR"})],
        _ => Vec::new(),
    }
}
