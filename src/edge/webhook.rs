//! Where Emporix delivers its events: a service calls here, so no cookie, handle or origin means anything.
//! Reads a bounded JSON body and three headers; the broker decides what is believed.

use http::{HeaderMap, HeaderValue};
use pingora::protocols::http::ServerSession;

use super::respond::Answer;
use super::{Gateway, Visit};
use crate::broker::Delivery;
use crate::error::GatewayError;

impl Gateway {
    /// Takes a delivery.
    pub(super) async fn webhook(
        &self,
        http: &mut ServerSession,
        visit: &mut Visit<'_>,
    ) -> Result<Answer, GatewayError> {
        visit.cors.clear();
        let tenant = visit.tenant_id().ok_or(GatewayError::UnknownTenant)?;
        self.broker.takes_webhooks(tenant)?;
        let headers = &http.req_header().headers;
        let [signature, published, event_type] =
            ["emporix-event-signature", "emporix-event-publish-time", "emporix-event-type"]
                .map(|name| sole(headers, name));
        let signature = signature.ok_or_else(|| self.broker.disbelieve(GatewayError::SignatureInvalid))?;
        let body = self.read_json(http).await?;
        let delivery = Delivery {
            signature: text(&signature),
            published: published.as_ref().map_or("", text),
            event_type: event_type.as_ref().map(text),
            body: &body,
        };
        self.broker.deliver(tenant, &delivery).await?;
        Ok(Answer::empty(204))
    }
}

/// The value of a header that stands once.
fn sole(headers: &HeaderMap, name: &str) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none()).cloned()
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}
