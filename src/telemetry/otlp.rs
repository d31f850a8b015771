//! Exports spans over OTLP/HTTP, in JSON: batch after batch, each tried once, and counted.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::trace::{Finished, hex};
use super::{Metrics, SpanOutcome};

/// Spans of one batch at most.
const MOST_AT_ONCE: usize = 512;

/// How long a batch that is not full is added to.
const GATHERS_FOR: Duration = Duration::from_secs(1);

/// Sends spans to a collector.
pub struct Exporter {
    endpoint: String,
    client: reqwest::Client,
    finished: mpsc::Receiver<Finished>,
    metrics: Arc<Metrics>,
}

impl Exporter {
    /// Sends what comes from `finished` to `endpoint`.
    #[must_use]
    pub fn new(
        endpoint: &str,
        client: reqwest::Client,
        finished: mpsc::Receiver<Finished>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { endpoint: endpoint.to_owned(), client, finished, metrics }
    }

    /// Exports what ends; runs until nothing more can.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(MOST_AT_ONCE);
        while self.finished.recv_many(&mut batch, MOST_AT_ONCE).await > 0 {
            let outcome = if self.takes(&batch).await { SpanOutcome::Exported } else { SpanOutcome::Failed };
            batch.iter().for_each(|_| self.metrics.spans.count(outcome));
            if batch.len() < MOST_AT_ONCE {
                tokio::time::sleep(GATHERS_FOR).await;
            }
            batch.clear();
        }
    }

    /// Whether the collector takes the batch.
    async fn takes(&self, batch: &[Finished]) -> bool {
        let sent = self.client.post(&self.endpoint).header(CONTENT_TYPE, "application/json").body(request(batch));
        match sent.send().await.and_then(reqwest::Response::error_for_status) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(error = %error.without_url(), "spans could not be exported");
                false
            }
        }
    }
}

/// An `ExportTraceServiceRequest`.
fn request(batch: &[Finished]) -> String {
    let resource =
        [attribute("service.name", env!("CARGO_PKG_NAME")), attribute("service.version", env!("CARGO_PKG_VERSION"))];
    let spans: Vec<Value> = batch.iter().map(span).collect();
    let scope = json!({"scope": {"name": env!("CARGO_PKG_NAME")}, "spans": spans});
    json!({"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [scope]}]}).to_string()
}

fn span(of: &Finished) -> Value {
    const ERROR: u8 = 2;
    let name = [of.name.0, of.name.1].join(" ");
    let mut span = json!({
        "traceId": hex(&of.trace),
        "spanId": hex(&of.span),
        "name": name.trim_end(),
        "kind": of.kind as u8,
        "startTimeUnixNano": of.from.as_nanos().to_string(),
        "endTimeUnixNano": of.until.as_nanos().to_string(),
        "attributes": of.attributes.iter().map(|(name, value)| attribute(name, value)).collect::<Vec<_>>(),
        "status": {"code": if of.failed { ERROR } else { 0 }},
    });
    if let Some(parent) = of.parent {
        span["parentSpanId"] = hex(&parent).into();
    }
    span
}

fn attribute(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}
