//! The error bodies of Emporix, which differ by service: gateway fault, customer service, everything else.
//! Clients must tell them apart by shape, so nothing here is unified.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::tokens::Dead;

/// A request Emporix would not fulfil.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    body: Value,
}

impl Refusal {
    /// The API gateway's 401: the only shape that speaks about the bearer.
    pub(crate) fn fault(message: &str, code: &str) -> Self {
        let body = json!({"fault": {"faultstring": message, "detail": {"errorcode": code}}});
        Self { status: StatusCode::UNAUTHORIZED, body }
    }

    /// The 401 of a bearer that is missing, unknown or of the wrong kind.
    pub(crate) fn invalid_bearer() -> Self {
        Self::fault("Invalid access token", "oauth.v2.InvalidAccessToken")
    }

    /// The customer service's shape.
    pub(crate) fn customer(status: StatusCode, kind: &str, message: &str) -> Self {
        Self { status, body: json!({"status": status.as_u16(), "type": kind, "message": message}) }
    }

    /// The customer service's 400.
    pub(crate) fn bad_request(message: &str) -> Self {
        Self::customer(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// The customer service's 400 that names each missing or malformed field.
    pub(crate) fn fields(fields: &[&str]) -> Self {
        let mut refusal = Self::bad_request("There are validation errors in the request.");
        let detail = |field| json!({"field": field, "type": "invalid_field", "message": "Missing or too short."});
        refusal.body["details"] = fields.iter().map(detail).collect();
        refusal
    }

    /// The shape of cart, checkout and most other services; `status` is text there.
    pub(crate) fn service(status: StatusCode, message: &str) -> Self {
        let name = status.canonical_reason().unwrap_or("Error");
        Self { status, body: json!({"code": status.as_u16(), "status": name, "message": message}) }
    }
}

impl From<Dead> for Refusal {
    fn from(dead: Dead) -> Self {
        match dead {
            Dead::Unknown => Self::invalid_bearer(),
            Dead::Expired => Self::fault("Access Token expired", "keymanagement.service.access_token_expired"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
