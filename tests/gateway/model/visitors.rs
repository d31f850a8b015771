//! The visitors of the model: one customer on two devices, and a stranger in another tenant whose ids are all the same.
//! Each keeps its credentials as its client would.

use std::sync::Arc;

use emporix_gateway::broker::{Credential, Granted, Permit};
use emporix_gateway::session::{Handle, HandleKind, Scope, SessionKey, TenantId, Transport};
use emporix_gateway::store::CustomerName;

/// The number of every customer, in every tenant.
pub const CUSTOMER: &str = "13869000";

/// Emporix' id of every visit.
pub const VISIT: &str = "visit-1";

/// Who they are: name, tenant, transport.
pub const VISITORS: [(&str, &str, Transport); 3] = [
    ("the phone", "acme", Transport::Handle),
    ("the laptop", "acme", Transport::Cookie),
    ("the stranger", "globex", Transport::Handle),
];

/// The session of `visitor`.
pub const fn key_of(visitor: usize) -> SessionKey {
    let mut bytes = [0; SessionKey::LENGTH];
    bytes[SessionKey::LENGTH - 1] = visitor as u8 + 1;
    SessionKey::from_bytes(bytes)
}

/// Whose session `key` is.
pub fn visitor_of(key: &SessionKey) -> usize {
    (0..VISITORS.len()).find(|visitor| key_of(*visitor) == *key).expect("the model mints no session")
}

pub fn tenant_of(visitor: usize) -> TenantId {
    TenantId::parse(VISITORS[visitor].1).unwrap()
}

pub fn customer_of(visitor: usize) -> CustomerName {
    CustomerName::of(tenant_of(visitor), CUSTOMER)
}

/// What a visitor's client keeps.
#[derive(Clone)]
pub struct Keeps {
    /// Stands for the anonymous access token.
    pub anonymous: Arc<Handle>,
    /// Stands for the customer's access token.
    pub customer: Arc<Handle>,
    /// Stands for the customer's refresh token.
    pub refresh: Arc<Handle>,
    /// What its last request passed with.
    pub permit: Option<Permit>,
}

impl Keeps {
    /// New credentials, none of which is issued yet. In cookie transport they are one.
    pub fn random(visitor: usize) -> Self {
        let random = |kind| Arc::new(Handle::random(kind, key_of(visitor)).unwrap());
        if VISITORS[visitor].2 == Transport::Cookie {
            let cookie = random(HandleKind::Cookie);
            return Self { anonymous: cookie.clone(), customer: cookie.clone(), refresh: cookie, permit: None };
        }
        Self {
            anonymous: random(HandleKind::AnonymousAccess),
            customer: random(HandleKind::CustomerAccess),
            refresh: random(HandleKind::CustomerRefresh),
            permit: None,
        }
    }

    /// Takes over what an answer granted.
    pub fn take(&mut self, granted: &Granted) {
        if let Some(cookie) = granted.cookie.clone().map(Arc::new) {
            *self = Self { anonymous: cookie.clone(), customer: cookie.clone(), refresh: cookie, permit: None };
        }
        if let Some(access) = granted.access.clone() {
            self.customer = Arc::new(access);
        }
        if let Some(refresh) = granted.refresh.clone() {
            self.refresh = Arc::new(refresh);
        }
    }
}

/// `handle` as a request presents it; a cookie with the placeholder of `scope` beside it.
pub fn present(handle: &Handle, scope: Scope) -> Credential {
    match handle.kind {
        HandleKind::Cookie => Credential::Cookie(handle.clone(), Some(scope)),
        _ => Credential::Handle(handle.clone(), Vec::new()),
    }
}
