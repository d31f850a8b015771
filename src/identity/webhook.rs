//! A webhook delivery of Emporix: whether it is to be believed, and what it tells of a customer.
//! Pure; nothing of a body is understood before its signature is verified, and nothing of it is ever shown.

use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use humantime_serde::re::humantime::parse_rfc3339;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::canonical::canonical;
use crate::clock::Timestamp;
use crate::config::Secret;
use crate::session::TenantId;
use crate::telemetry::WebhookEvent;

/// How far the clock of Emporix may be ahead of ours.
const MOST_AHEAD: Duration = Duration::from_secs(60);

/// A tenant's webhook: what verifies its deliveries, and names what they tell.
pub struct Webhook {
    signing: hmac::Key,
    naming: hmac::Key,
    max_age: Duration,
}

/// A delivery as it came.
pub struct Delivery<'d> {
    /// `emporix-event-signature`.
    pub signature: &'d str,
    /// `emporix-event-publish-time`.
    pub published: &'d str,
    /// `emporix-event-type`, where the body does not name the type itself.
    pub event_type: Option<&'d str>,
    /// The body.
    pub body: &'d [u8],
}

/// Why a delivery is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disbelief {
    /// Its signature is missing or another.
    Signature,
    /// It was published too long ago, or is yet to be.
    Age,
    /// It tells of another tenant.
    Tenant,
    /// It is signed, and says nothing that can be understood.
    Shape(&'static str),
}

/// An event that is believed.
pub struct Event {
    /// Its type.
    pub kind: WebhookEvent,
    /// Names its delivery: the same again has the same name.
    pub delivery: [u8; 32],
    /// What it tells.
    pub tells: Tells,
}

/// What an event tells of a customer.
pub enum Tells {
    /// The customer may not go on as before: every session ends.
    Revoked {
        /// The customer number.
        customer_id: String,
    },
    /// The customer has an e-mail address.
    Address {
        /// The customer number.
        customer_id: String,
        /// The address.
        email: String,
    },
    /// A token was mailed to somebody.
    Mailed {
        /// The token.
        token: Zeroizing<String>,
        /// To whom.
        to: Addressee,
    },
    /// Nothing that matters here.
    Nothing,
}

/// To whom a token was mailed.
pub enum Addressee {
    /// To the customer with this number.
    Customer(String),
    /// To this address.
    Email(String),
}

/// Bytes of an HMAC-SHA256.
const SIGNATURE_LENGTH: usize = 32;

impl Webhook {
    /// The webhook of this secret.
    #[must_use]
    pub fn new(secret: &Secret, max_age: Duration) -> Self {
        let signing = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
        // A key of their own: clients choose what is named, and no name may pass for a signature.
        let naming = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&signing, b"names of notes").as_ref());
        Self { signing, naming, max_age }
    }

    /// How long a delivery is remembered. One that ends sessions for long: who got hold of it could send it again with
    /// another time. Any other as long as it could come again by itself, for anybody can cause them.
    #[must_use]
    pub fn remembers_for(&self, tells: &Tells) -> Duration {
        const ENDS_ONCE_WITHIN: Duration = Duration::from_secs(30 * 86_400);
        match tells {
            Tells::Revoked { .. } => ENDS_ONCE_WITHIN,
            _ => self.max_age * 2 + MOST_AHEAD,
        }
    }

    /// What of an e-mail address may be kept.
    #[must_use]
    pub fn name_of_email(&self, email: &str) -> [u8; 32] {
        self.name_of(email.trim().to_lowercase().as_bytes())
    }

    /// What of a mailed token may be kept.
    #[must_use]
    pub fn name_of_token(&self, token: &str) -> [u8; 32] {
        self.name_of(token.as_bytes())
    }

    fn name_of(&self, what: &[u8]) -> [u8; 32] {
        let mut name = [0; 32];
        name.copy_from_slice(hmac::sign(&self.naming, what).as_ref());
        name
    }

    /// The event of a delivery, once it is believed.
    ///
    /// # Errors
    /// Why it is not.
    pub fn believe(&self, tenant: &TenantId, delivery: &Delivery<'_>, now: Timestamp) -> Result<Event, Disbelief> {
        // What costs least comes first: anybody can send bodies.
        let published_at = published_at(delivery.published).ok_or(Disbelief::Shape("its publish time is malformed"))?;
        if now.since(published_at) > self.max_age || published_at.since(now) > MOST_AHEAD {
            return Err(Disbelief::Age);
        }
        let signature = self.verify(delivery)?;
        let (event_type, payload) = opened(delivery, tenant)?;
        let kind = kind_of(&event_type);
        // Not by its time: that is not under the signature.
        Ok(Event { kind, delivery: self.name_of(&signature), tells: told(kind, &payload)? })
    }

    /// Compares in constant time, with what the body's canonical form and the body as it came have to be signed with.
    fn verify(&self, delivery: &Delivery<'_>) -> Result<Vec<u8>, Disbelief> {
        let signature = STANDARD.decode(delivery.signature).map_err(|_| Disbelief::Signature)?;
        if signature.len() != SIGNATURE_LENGTH {
            return Err(Disbelief::Signature);
        }
        let fits = |text: &[u8]| hmac::verify(&self.signing, text, &signature).is_ok();
        let canonical = || std::str::from_utf8(delivery.body).ok().and_then(canonical);
        if fits(delivery.body) || canonical().is_some_and(|form| fits(form.as_bytes())) {
            Ok(signature)
        } else {
            Err(Disbelief::Signature)
        }
    }
}

fn published_at(text: &str) -> Option<Timestamp> {
    let since_epoch = parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp::default().after(since_epoch))
}

/// The type and the payload: in an envelope, or the payload bare and its type in a header.
fn opened(delivery: &Delivery<'_>, tenant: &TenantId) -> Result<(String, Map<String, Value>), Disbelief> {
    let mut body: Map<String, Value> =
        serde_json::from_slice(delivery.body).map_err(|_| Disbelief::Shape("expected a JSON object"))?;
    is_of(tenant, &body)?;
    let Some(payload) = body.remove("payload") else {
        let event_type = delivery.event_type.ok_or(Disbelief::Shape("its type is missing"))?;
        return Ok((event_type.to_owned(), body));
    };
    let Value::Object(payload) = payload else { return Err(Disbelief::Shape("its payload is no object")) };
    is_of(tenant, &payload)?;
    let mut types = [text(&body, "type"), text(&body, "eventType"), delivery.event_type].into_iter().flatten();
    let event_type = types.next().ok_or(Disbelief::Shape("its type is missing"))?.to_owned();
    if types.any(|other| other != event_type) {
        return Err(Disbelief::Shape("its type is named in two ways"));
    }
    Ok((event_type, payload))
}

fn is_of(tenant: &TenantId, members: &Map<String, Value>) -> Result<(), Disbelief> {
    match members.get("tenant") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(named)) if named == tenant.as_str() => Ok(()),
        Some(_) => Err(Disbelief::Tenant),
    }
}

fn kind_of(event_type: &str) -> WebhookEvent {
    match event_type {
        "customer.created" => WebhookEvent::Created,
        "customer.updated" => WebhookEvent::Updated,
        "customer.deleted" => WebhookEvent::Deleted,
        "customer.password-reset" => WebhookEvent::PasswordReset,
        "customer.email-change" => WebhookEvent::EmailChange,
        "customer.email-change-request" => WebhookEvent::EmailChangeRequest,
        _ => WebhookEvent::Other,
    }
}

fn told(kind: WebhookEvent, payload: &Map<String, Value>) -> Result<Tells, Disbelief> {
    let needed = |name, missing| text(payload, name).map(str::to_owned).ok_or(Disbelief::Shape(missing));
    let customer_number = || needed("customerNumber", "customerNumber is missing");
    let customer_id = || needed("customerId", "customerId is missing");
    let token = || needed("token", "token is missing").map(Zeroizing::new);
    Ok(match kind {
        WebhookEvent::Deleted => Tells::Revoked { customer_id: customer_number()? },
        WebhookEvent::Updated if is_shut_out(payload) => Tells::Revoked { customer_id: customer_number()? },
        WebhookEvent::EmailChange => Tells::Revoked { customer_id: customer_id()? },
        // At sign-up the address is the account's; later it is what its owner put into the profile, perhaps another's.
        WebhookEvent::Created => match address(payload) {
            Some(email) => Tells::Address { customer_id: customer_number()?, email: email.to_owned() },
            None => Tells::Nothing,
        },
        WebhookEvent::PasswordReset => {
            let email = needed("email", "email is missing")?;
            Tells::Mailed { token: token()?, to: Addressee::Email(email) }
        }
        WebhookEvent::EmailChangeRequest => Tells::Mailed { token: token()?, to: Addressee::Customer(customer_id()?) },
        WebhookEvent::Updated | WebhookEvent::Other => Tells::Nothing,
    })
}

/// Deactivated, or put on hold.
fn is_shut_out(payload: &Map<String, Value>) -> bool {
    truth(payload, "active") == Some(false) || truth(payload, "onHold") == Some(true)
}

fn address(payload: &Map<String, Value>) -> Option<&str> {
    text(payload, "contactEmail").or_else(|| text(payload, "email"))
}

fn text<'m>(members: &'m Map<String, Value>, name: &str) -> Option<&'m str> {
    members.get(name)?.as_str().filter(|text| !text.trim().is_empty())
}

/// A boolean, which may be spelled as a text.
fn truth(members: &Map<String, Value>, name: &str) -> Option<bool> {
    match members.get(name)? {
        Value::Bool(truth) => Some(*truth),
        Value::String(text) => text.trim().to_ascii_lowercase().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISHED: &str = "2026-11-22T12:00:00Z";

    fn acme() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    fn webhook() -> Webhook {
        Webhook::new(&Secret::new("key"), Duration::from_secs(300))
    }

    fn believed(body: &str, event_type: Option<&str>) -> Result<Event, Disbelief> {
        let signature = STANDARD.encode(hmac::sign(&webhook().signing, body.as_bytes()));
        let delivery = Delivery { signature: &signature, published: PUBLISHED, event_type, body: body.as_bytes() };
        webhook().believe(&acme(), &delivery, published_at(PUBLISHED).unwrap())
    }

    fn shown(body: &str, event_type: Option<&str>) -> String {
        match believed(body, event_type) {
            Err(disbelief) => format!("{disbelief:?}"),
            Ok(event) => match event.tells {
                Tells::Revoked { customer_id } => format!("revoked {customer_id}"),
                Tells::Address { customer_id, email } => format!("{customer_id} has {email}"),
                Tells::Mailed { token, to: Addressee::Customer(id) } => format!("{} to {id}", *token),
                Tells::Mailed { token, to: Addressee::Email(email) } => format!("{} to {email}", *token),
                Tells::Nothing => "nothing".to_owned(),
            },
        }
    }

    #[test]
    fn a_signature_known_from_elsewhere_verifies() {
        // printf '{"a":1,"b":[true,"x"]}' | openssl dgst -sha256 -hmac key -binary | base64
        let signature = "eJyc01KpcaEN5L9B1qRUJO/wM49z0xoE/lbsj3pkaf0=";
        let delivery = |body| Delivery { signature, published: PUBLISHED, event_type: None, body };
        for body in [r#"{"a":1,"b":[true,"x"]}"#, "{ \"b\": [true, \"x\"],\n \"a\": 1 }"] {
            assert!(webhook().verify(&delivery(body.as_bytes())).is_ok(), "{body}");
        }
        for body in [r#"{"a":2,"b":[true,"x"]}"#, r#"{"a":1,"b":["x",true]}"#, ""] {
            assert!(webhook().verify(&delivery(body.as_bytes())).is_err(), "{body}");
        }
    }

    #[test]
    fn an_event_tells_what_its_type_means() {
        let number = r#"{"customerNumber":"1","contactEmail":"a@b"}"#;
        for (event_type, payload, expected) in [
            ("customer.deleted", number, "revoked 1"),
            ("customer.updated", r#"{"customerNumber":"1","active":false}"#, "revoked 1"),
            ("customer.updated", r#"{"customerNumber":"1","active":"False"}"#, "revoked 1"),
            ("customer.updated", r#"{"customerNumber":"1","onHold":"true"}"#, "revoked 1"),
            ("customer.updated", r#"{"customerNumber":"1","active":true,"onHold":false,"email":"a@b"}"#, "nothing"),
            ("customer.updated", r#"{"customerNumber":"1","active":"maybe"}"#, "nothing"),
            ("customer.created", number, "1 has a@b"),
            ("customer.email-change", r#"{"customerId":"1","token":"t"}"#, "revoked 1"),
            ("customer.email-change-request", r#"{"customerId":"1","token":"t"}"#, "t to 1"),
            ("customer.password-reset", r#"{"email":"a@b","token":"t"}"#, "t to a@b"),
            ("customer.logged.in", r#"{"customerId":"1"}"#, "nothing"),
            ("product.updated", r#"{"active":false}"#, "nothing"),
            ("customer.deleted", r#"{"customerId":"1"}"#, "Shape(\"customerNumber is missing\")"),
            ("customer.deleted", r#"{"customerNumber":1}"#, "Shape(\"customerNumber is missing\")"),
            ("customer.password-reset", r#"{"email":"a@b"}"#, "Shape(\"token is missing\")"),
            ("customer.email-change", r#"{"customerId":" "}"#, "Shape(\"customerId is missing\")"),
        ] {
            assert_eq!(shown(payload, Some(event_type)), expected, "{event_type} {payload}");
            for member in ["type", "eventType"] {
                let envelope = format!(r#"{{"{member}":"{event_type}","payload":{payload}}}"#);
                assert_eq!(shown(&envelope, None), expected, "{envelope}");
                assert_eq!(shown(&envelope, Some(event_type)), expected, "{envelope}");
            }
        }
    }

    #[test]
    fn a_type_that_is_missing_or_named_in_two_ways_is_refused() {
        let payload = r#""payload":{"customerNumber":"1"}"#;
        let two_ways = "Shape(\"its type is named in two ways\")";
        assert_eq!(shown(&format!("{{{payload}}}"), None), "Shape(\"its type is missing\")");
        assert_eq!(
            shown(r#"{"customerNumber":"1","type":"customer.deleted"}"#, None),
            "Shape(\"its type is missing\")"
        );
        let envelope = format!(r#"{{"type":"customer.updated",{payload}}}"#);
        assert_eq!(shown(&envelope, Some("customer.deleted")), two_ways);
        let envelope = format!(r#"{{"type":"customer.updated","eventType":"customer.deleted",{payload}}}"#);
        assert_eq!(shown(&envelope, None), two_ways);
    }

    #[test]
    fn an_event_of_another_tenant_is_refused() {
        for body in [
            r#"{"customerNumber":"1","tenant":"globex"}"#,
            r#"{"tenant":"globex","payload":{"customerNumber":"1"}}"#,
            r#"{"payload":{"customerNumber":"1","tenant":"globex"}}"#,
            r#"{"payload":{"customerNumber":"1","tenant":7}}"#,
        ] {
            assert_eq!(shown(body, Some("customer.deleted")), "Tenant", "{body}");
        }
        assert_eq!(shown(r#"{"customerNumber":"1","tenant":"acme"}"#, Some("customer.deleted")), "revoked 1");
    }

    #[test]
    fn the_publish_time_is_an_rfc_3339_time_in_utc() {
        assert_eq!(published_at("1970-01-01T00:00:01.5Z"), Some(Timestamp::from_millis(1_500)));
        for text in ["", "now", "1700000000", "2026-11-22", "2026-11-22T12:00:00", "2026-11-22T12:00:00+01:00", "é"] {
            assert_eq!(published_at(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_is_neither_a_signature_nor_the_same_under_another_secret() {
        let body = r#"{"customerNumber":"1"}"#;
        let (mine, other) = (webhook(), Webhook::new(&Secret::new("other"), Duration::from_secs(1)));
        assert_ne!(&mine.name_of_token(body)[..], hmac::sign(&mine.signing, body.as_bytes()).as_ref());
        assert_ne!(mine.name_of_token("t"), other.name_of_token("t"));
        assert_eq!(mine.name_of_email(" John@Example.com"), mine.name_of_email("john@example.com"));
    }
}
