//! The levers under `/_simulator/`: what tests read about the calls they caused, and how they change the rules.
//! Nothing here is Emporix, needs a bearer, or is counted.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    caller::Sim,
    events,
    faults::Fault,
    intake::Received,
    operation::Operation,
    settings::Settings,
    simulator::{Simulator, now},
    tokens::Kind,
};

/// All levers.
pub(crate) fn routes() -> Router<Arc<Simulator>> {
    Router::new()
        .route("/_simulator/calls", get(calls).delete(forget_calls))
        .route("/_simulator/requests", get(requests))
        .route("/_simulator/tokens", get(secrets))
        .route("/_simulator/redeems", get(redeems))
        .route("/_simulator/expire", post(expire))
        .route("/_simulator/faults", post(add_fault).delete(clear_faults))
        .route("/_simulator/events", post(events::deliver))
        .route("/_simulator/settings", get(settings).patch(change_settings))
}

async fn calls(State(simulator): Sim) -> Json<BTreeMap<Operation, u64>> {
    let world = simulator.world();
    let count = |operation| (operation, world.calls.get(&operation).copied().unwrap_or_default());
    Json(Operation::ALL.map(count).into())
}

async fn forget_calls(State(simulator): Sim) -> StatusCode {
    let mut world = simulator.world();
    world.calls.clear();
    world.requests.clear();
    StatusCode::NO_CONTENT
}

async fn requests(State(simulator): Sim) -> Json<Vec<Received>> {
    Json(simulator.world().requests.iter().cloned().collect())
}

async fn secrets(State(simulator): Sim) -> Json<Vec<String>> {
    Json(simulator.world().tokens.secrets().to_vec())
}

/// How often each refresh token of a customer was presented, without saying which.
async fn redeems(State(simulator): Sim) -> Json<Vec<u64>> {
    Json(simulator.world().redeems.values().copied().collect())
}

#[derive(Deserialize)]
struct Expiry {
    kind: String,
}

async fn expire(State(simulator): Sim, Json(Expiry { kind }): Json<Expiry>) -> Response {
    let kind = match kind.as_str() {
        "all" => None,
        name => match serde_json::from_value::<Kind>(name.into()) {
            Ok(kind) => Some(kind),
            Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        },
    };
    simulator.world().tokens.expire(kind, now());
    StatusCode::NO_CONTENT.into_response()
}

async fn add_fault(State(simulator): Sim, Json(fault): Json<Fault>) -> StatusCode {
    simulator.world().faults.push(fault);
    StatusCode::NO_CONTENT
}

async fn clear_faults(State(simulator): Sim) -> StatusCode {
    simulator.world().faults.clear();
    StatusCode::NO_CONTENT
}

async fn settings(State(simulator): Sim) -> Json<Settings> {
    Json(simulator.world().settings.clone())
}

async fn change_settings(State(simulator): Sim, Json(change): Json<Value>) -> Response {
    let mut world = simulator.world();
    match world.settings.merged(&change) {
        Ok(merged) => {
            world.settings = merged.clone();
            Json(merged).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}
