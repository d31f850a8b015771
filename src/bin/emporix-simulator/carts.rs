//! Carts: a guest's hangs on the session id, a customer's on the customer number.
//! Reading by `sessionId` is as trusting as Emporix' own default, so a gateway can be caught forwarding a stranger's.

use axum::{
    Json,
    extract::{Path, Query, State},
};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    caller::{Caller, CustomerCaller, Params, Sim, json_of, text},
    random,
    refusal::Refusal,
    simulator::World,
    tokens::Grant,
};

/// The site of carts and requests that name none.
const DEFAULT_SITE: &str = "main";

/// A shopping cart.
pub(crate) struct Cart {
    id: String,
    tenant: String,
    site: String,
    owner: Owner,
    items: Vec<Value>,
    /// False once merged or ordered.
    pub(crate) open: bool,
}

#[derive(Clone, PartialEq, Eq)]
enum Owner {
    Session(String),
    Customer { number: String, legal_entity: Option<String> },
}

/// `POST /cart/{tenant}/carts`
pub(crate) async fn create(
    State(simulator): Sim,
    caller: Caller,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let body = json_of(&body);
    let site = text(&body, "siteCode").unwrap_or(DEFAULT_SITE);
    let mut world = simulator.world();
    let owner = Owner::of(&caller.grant);
    if world.open_cart(&caller.grant.tenant, site, &owner).is_some() {
        return Err(Refusal::service(StatusCode::CONFLICT, "An open cart already exists."));
    }
    let id = world.add_cart(&caller.grant.tenant, site, owner);
    Ok((StatusCode::CREATED, Json(json!({"cartId": id}))))
}

/// `GET /cart/{tenant}/carts`: the caller's open cart, or that of the session named in the query.
pub(crate) async fn find(State(simulator): Sim, caller: Caller, Query(params): Params) -> Result<Json<Value>, Refusal> {
    let site = params.get("siteCode").map_or(DEFAULT_SITE, String::as_str);
    let owner = params.get("sessionId").cloned().map_or_else(|| Owner::of(&caller.grant), Owner::Session);
    let mut world = simulator.world();
    if let Some(cart) = world.open_cart(&caller.grant.tenant, site, &owner) {
        return Ok(Json(cart.shown()));
    }
    if params.get("create").is_none_or(|create| create != "true") {
        return Err(not_found());
    }
    let id = world.add_cart(&caller.grant.tenant, site, owner);
    Ok(Json(world.carts.get(&id).ok_or_else(not_found)?.shown()))
}

/// `GET /cart/{tenant}/carts/{id}`
pub(crate) async fn read(
    State(simulator): Sim,
    caller: Caller,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(owned(&mut simulator.world(), &id, &caller.grant)?.shown()))
}

/// `POST /cart/{tenant}/carts/{id}/items`
pub(crate) async fn add_item(
    State(simulator): Sim,
    caller: Caller,
    Path((_, id)): Path<(String, String)>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let item_id = random::document_id();
    let mut item = json_of(&body);
    if !item.is_object() {
        return Err(Refusal::service(StatusCode::BAD_REQUEST, "The item must be a JSON object."));
    }
    item["id"] = item_id.as_str().into();
    owned(&mut simulator.world(), &id, &caller.grant)?.items.push(item);
    Ok((StatusCode::CREATED, Json(json!({"itemId": item_id}))))
}

/// `POST /cart/{tenant}/carts/{id}/merge`: moves the items of the session's guest carts into the customer's cart.
pub(crate) async fn merge(
    State(simulator): Sim,
    CustomerCaller { caller, .. }: CustomerCaller,
    Path((_, id)): Path<(String, String)>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let body = json_of(&body);
    let guest_ids = body.get("carts").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut world = simulator.world();
    if matches!(owned(&mut world, &id, &caller.grant)?.owner, Owner::Session(_)) {
        return Err(forbidden());
    }
    let mut moved = Vec::new();
    for guest_id in guest_ids.iter().filter_map(Value::as_str) {
        let guest_cart = owned(&mut world, guest_id, &caller.grant)?;
        if !matches!(guest_cart.owner, Owner::Session(_)) {
            return Err(forbidden());
        }
        guest_cart.open = false;
        moved.append(&mut guest_cart.items);
    }
    owned(&mut world, &id, &caller.grant)?.items.append(&mut moved);
    Ok(StatusCode::NO_CONTENT)
}

/// The cart with this id, if `grant` may touch it: a customer may touch the guest carts of the own session.
pub(crate) fn owned<'world>(world: &'world mut World, id: &str, grant: &Grant) -> Result<&'world mut Cart, Refusal> {
    let cart = world.carts.get_mut(id).filter(|cart| cart.tenant == grant.tenant).ok_or_else(not_found)?;
    let allowed = match &cart.owner {
        Owner::Session(session) => *session == grant.session_id,
        Owner::Customer { number, .. } => Some(number) == grant.customer.as_ref(),
    };
    if allowed { Ok(cart) } else { Err(forbidden()) }
}

impl World {
    fn open_cart(&self, tenant: &str, site: &str, owner: &Owner) -> Option<&Cart> {
        let wanted = |cart: &&Cart| cart.open && cart.tenant == tenant && cart.site == site && cart.owner == *owner;
        self.carts.values().find(wanted)
    }

    fn add_cart(&mut self, tenant: &str, site: &str, owner: Owner) -> String {
        let id = random::document_id();
        let (tenant, site) = (tenant.to_owned(), site.to_owned());
        let cart = Cart { id: id.clone(), tenant, site, owner, items: Vec::new(), open: true };
        self.carts.insert(id.clone(), cart);
        id
    }
}

impl Owner {
    fn of(grant: &Grant) -> Self {
        match grant.customer.clone() {
            Some(number) => Self::Customer { number, legal_entity: grant.legal_entity.clone() },
            None => Self::Session(grant.session_id.clone()),
        }
    }
}

impl Cart {
    fn shown(&self) -> Value {
        let mut shown = json!({
            "id": self.id, "siteCode": self.site, "currency": "EUR", "type": "shopping", "items": self.items,
            "status": if self.open { "OPEN" } else { "CLOSED" }, "totalUnitsCount": self.items.len(),
        });
        match &self.owner {
            Owner::Session(session) => shown["sessionId"] = session.as_str().into(),
            Owner::Customer { number, .. } => shown["customerId"] = number.as_str().into(),
        }
        shown
    }
}

fn not_found() -> Refusal {
    Refusal::service(StatusCode::NOT_FOUND, "Cart not found.")
}

fn forbidden() -> Refusal {
    Refusal::service(StatusCode::FORBIDDEN, "The cart belongs to someone else.")
}
