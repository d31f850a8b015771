//! Traces: what a request waited for, as spans that name their parent (W3C Trace Context).
//! A span names a kind of work and how it ended: never a URL, a session or a credential. A request whose trace is not
//! sampled has none, and nothing waits for an export.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;

use super::{Metrics, SpanOutcome};
use crate::clock::{Clock, Timestamp};

/// The trace that a request is part of, and its span above.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What others note beside it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest `tracestate` that token endpoints are sent, in bytes.
const MOST_STATE: usize = 512;

/// Spans that wait for their export at most.
const MOST_WAITING: usize = 4_096;

tokio::task_local! {
    /// Where in a trace the work of this task is.
    static CURRENT: Context;
}

/// Begins the traces of requests.
#[derive(Clone)]
pub struct Tracer {
    /// Of all the numbers that a trace's id may end in, those below are sampled.
    sampled_below: u64,
    queue: mpsc::Sender<Finished>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// One trace, as far as it is known here.
struct Trace {
    id: [u8; 16],
    sampled: bool,
    state: Option<HeaderValue>,
    began: (Timestamp, Instant),
    tracer: Tracer,
}

/// A place in a trace: what new spans have above them.
#[derive(Clone)]
pub struct Context {
    trace: Arc<Trace>,
    span: [u8; 8],
}

/// Work that takes its time. It ends when it is dropped.
pub struct Span {
    context: Context,
    parent: Option<[u8; 8]>,
    name: (&'static str, &'static str),
    kind: SpanKind,
    started: Instant,
    failed: bool,
    attributes: Vec<(&'static str, String)>,
}

/// On which side of a call a span is, as OTLP numbers it.
#[derive(Clone, Copy, Debug)]
pub enum SpanKind {
    /// On neither.
    Internal = 1,
    /// It answers.
    Server = 2,
    /// It asks.
    Client = 3,
}

/// A span that ended.
pub struct Finished {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
    pub(super) parent: Option<[u8; 8]>,
    pub(super) name: (&'static str, &'static str),
    pub(super) kind: SpanKind,
    /// Since 1970.
    pub(super) from: Duration,
    pub(super) until: Duration,
    pub(super) failed: bool,
    pub(super) attributes: Vec<(&'static str, String)>,
}

impl Tracer {
    /// What begins traces, of which the share `sample` is sampled, and the spans that end.
    #[must_use]
    pub fn new(sample: f64, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Finished>) {
        let (queue, finished) = mpsc::channel(MOST_WAITING);
        (Self { sampled_below: threshold(sample), queue, clock, metrics }, finished)
    }

    /// The span of a request, where its trace is sampled: by whoever began it, or here. A `traceparent` that cannot be
    /// read is replaced, sampled or not; one that is not sampled is none of ours. A `tracestate` that holds a secret, or is
    /// too long, goes no further.
    #[must_use]
    pub fn request(&self, headers: &HeaderMap, is_secret: fn(&[u8]) -> bool) -> Option<Span> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let (first, only) = (parents.next(), parents.next().is_none());
        let known = first.filter(|_| only).and_then(|parent| read_parent(parent.as_bytes()));
        let (id, parent, sampled) = match known {
            Some((id, parent, sampled)) => (id, Some(parent), sampled),
            None => {
                let id = random::<16>()?;
                let [.., a, b, c, d, e, f, g, h] = id;
                (id, None, u64::from_be_bytes([a, b, c, d, e, f, g, h]) < self.sampled_below)
            }
        };
        let unreadable = first.is_some() && known.is_none();
        if !sampled && !unreadable {
            return None;
        }
        let fits = |state: &&HeaderValue| state.len() <= MOST_STATE && !is_secret(state.as_bytes());
        let state = headers.get(TRACESTATE).filter(|_| parent.is_some()).filter(fits).cloned();
        let began = (self.clock.now(), Instant::now());
        let trace = Arc::new(Trace { id, sampled, state, began, tracer: self.clone() });
        Span::new(trace, parent, ("request", ""), SpanKind::Server)
    }
}

impl Trace {
    fn since_1970(&self, at: Instant) -> Duration {
        Duration::from_millis(self.began.0.millis()) + (at - self.began.1)
    }
}

impl Context {
    /// Does `work` at this place.
    pub async fn around<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// A span below.
    #[must_use]
    pub fn child(&self, name: (&'static str, &'static str), kind: SpanKind) -> Option<Span> {
        Span::new(self.trace.clone(), Some(self.span), name, kind)
    }

    /// What who is called is told.
    #[must_use]
    pub fn traceparent(&self) -> HeaderValue {
        let flags = u8::from(self.trace.sampled);
        let text = format!("00-{}-{}-{flags:02x}", hex(&self.trace.id), hex(&self.span));
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
    }

    /// The id of the trace, and what time it is (since 1970), where the trace is sampled.
    pub(super) fn sampled(&self) -> Option<([u8; 16], Duration)> {
        self.trace.sampled.then(|| (self.trace.id, self.trace.since_1970(Instant::now())))
    }

    /// Whether what others noted goes along: it does not belong to a trace that began here.
    #[must_use]
    pub fn keeps_state(&self) -> bool {
        self.trace.state.is_some()
    }
}

impl Span {
    fn new(
        trace: Arc<Trace>,
        parent: Option<[u8; 8]>,
        name: (&'static str, &'static str),
        kind: SpanKind,
    ) -> Option<Self> {
        let context = Context { trace, span: random()? };
        Some(Self { context, parent, name, kind, started: Instant::now(), failed: false, attributes: Vec::new() })
    }

    /// Its place.
    #[must_use]
    pub const fn context(&self) -> &Context {
        &self.context
    }

    /// Says more of it.
    pub fn note(&mut self, name: &'static str, value: impl Into<String>) {
        self.attributes.push((name, value.into()));
    }

    /// Says whether it failed.
    pub const fn settle(&mut self, failed: bool) {
        self.failed = failed;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let trace = &self.context.trace;
        if !trace.sampled {
            return;
        }
        let finished = Finished {
            trace: trace.id,
            span: self.context.span,
            parent: self.parent,
            name: self.name,
            kind: self.kind,
            from: trace.since_1970(self.started),
            until: trace.since_1970(Instant::now()),
            failed: self.failed,
            attributes: std::mem::take(&mut self.attributes),
        };
        if trace.tracer.queue.try_send(finished).is_err() {
            trace.tracer.metrics.spans.count(SpanOutcome::Dropped);
        }
    }
}

/// Where in a trace the work at hand is, if it is in one.
#[must_use]
pub fn current() -> Option<Context> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Does `work` as a span of the trace at hand, if there is one.
pub async fn spanned<T, E>(
    name: (&'static str, &'static str),
    kind: SpanKind,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Some(mut span) = current().and_then(|context| context.child(name, kind)) else { return work.await };
    let done = span.context().clone().around(work).await;
    span.settle(done.is_err());
    done
}

/// `work` for another task, in the trace at hand.
pub fn carried<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let context = current();
    async move {
        match context {
            Some(context) => context.around(work).await,
            None => work.await,
        }
    }
}

/// The headers that carry the trace at hand to whom is called.
pub fn headers() -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let context = current();
    let parent = context.as_ref().map(|context| (TRACEPARENT, context.traceparent()));
    let state = context.and_then(|context| Some((TRACESTATE, context.trace.state.clone()?)));
    parent.into_iter().chain(state)
}

/// Reads a `traceparent`: trace, span, and whether it is sampled. Of a version to come, what this one has is read.
fn read_parent(text: &[u8]) -> Option<([u8; 16], [u8; 8], bool)> {
    let (version, id, span, flags) = (text.get(..2)?, text.get(3..35)?, text.get(36..52)?, text.get(53..55)?);
    let [version] = unhex(version)?;
    let dashes = [2, 35, 52].iter().all(|at| text[*at] == b'-');
    let ends = text.len() == 55 || (version > 0 && text[55] == b'-' && text.len() <= MOST_STATE);
    let (id, span, [flags]) = (unhex(id)?, unhex(span)?, unhex(flags)?);
    (version != 0xff && dashes && ends && id != [0; 16] && span != [0; 8]).then_some((id, span, flags & 1 == 1))
}

/// The bytes that lower-case hexadecimal digits stand for.
fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it saturates"
)]
fn threshold(share: f64) -> u64 {
    (share * u64::MAX as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_strictly() {
        let (id, span, sampled) = read_parent(PARENT.as_bytes()).unwrap();
        assert_eq!((hex(&id).as_str(), hex(&span).as_str(), sampled), (&PARENT[3..35], &PARENT[36..52], true));
        assert!(!read_parent(format!("{}02", &PARENT[..53]).as_bytes()).unwrap().2);
        assert!(read_parent(format!("cc{}-and-more", &PARENT[2..]).as_bytes()).is_some(), "a version to come");
        let zeros = |places: std::ops::Range<usize>| {
            let mut text = PARENT.as_bytes().to_vec();
            text[places].fill(b'0');
            text
        };
        for bad in [
            b"".to_vec(),
            PARENT[..54].into(),
            format!("{PARENT}-and-more").into(),
            format!("cc{}more", &PARENT[2..]).into(),
            format!("cc{}-{}", &PARENT[2..], "x".repeat(600)).into(),
            format!("ff{}", &PARENT[2..]).into(),
            PARENT.to_uppercase().into(),
            PARENT.replace('-', "_").into(),
            zeros(3..35),
            zeros(36..52),
        ] {
            assert_eq!(read_parent(&bad), None, "{}", String::from_utf8_lossy(&bad));
        }
    }

    #[test]
    fn spans_that_nobody_fetches_are_dropped_and_counted_and_nobody_waits() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (tracer, mut finished) = Tracer::new(1.0, Arc::new(SystemClock), metrics.clone());
        for _ in 0..MOST_WAITING + 7 {
            drop(tracer.request(&HeaderMap::new(), |_| false).unwrap());
        }
        let text = String::from_utf8(metrics.render()).unwrap();
        assert!(text.contains(r#"gateway_spans_total{outcome="dropped"} 7"#), "{text}");
        let waiting = std::iter::from_fn(|| finished.try_recv().ok()).count();
        assert_eq!(waiting, MOST_WAITING);
    }

    #[test]
    fn a_share_of_one_samples_everything_and_of_none_nothing() {
        assert_eq!((threshold(0.0), threshold(1.0)), (0, u64::MAX));
    }
}
