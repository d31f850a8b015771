//! The listeners that forward, public and internal: one request after the other on each connection, from its head to its end.
//! A connection is used again only when what was said on it is complete; errors that quote a request are not logged.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::Cache;
use async_trait::async_trait;
use http::Method;
use pingora::ErrorType;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::server::ShutdownWatch;

use super::headers::carries_handle;
use super::respond::Answer;
use super::visit::Visit;
use super::{CurrentGateway, Ended, Gateway, is_registered};
use crate::error::GatewayError;
use crate::telemetry::{Census, Outcome, RouteClass, Seldom};

/// How long an idle connection is kept, in seconds.
pub(super) const KEEPALIVE_SECONDS: u64 = 60;

/// Requests over one connection.
const MOST_REQUESTS: u32 = 10_000;

/// Bound on a head that comes piece by piece, from its second piece on: a client that trickles it is cut off. Before that,
/// each wait is bounded by [`KEEPALIVE_SECONDS`].
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// HTTP/2's word for what was not begun, and may be asked again (RFC 9113, section 8.7).
const REFUSED_STREAM: u32 = 7;

/// Counts a request as under way while it lives.
pub(super) struct UnderWay<'g>(&'g Census);

impl<'g> UnderWay<'g> {
    pub(super) fn new(census: &'g Census) -> Self {
        census.enter();
        Self(census)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Who is on the other side of a listener.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// Storefronts.
    Public,
    /// Back-office callers.
    Internal,
}

/// A forwarding listener's application.
pub struct Listener {
    current: CurrentGateway,
    side: Side,
    http2: Arc<Http2>,
}

impl Listener {
    /// Serves each request of a storefront by the gateway that is current when it comes.
    #[must_use]
    pub fn public(current: CurrentGateway) -> Self {
        Self::new(current, Side::Public)
    }

    /// Serves back-office callers, over HTTP/1.1: nobody is offered HTTP/2 there.
    #[must_use]
    pub fn internal(current: CurrentGateway) -> Self {
        Self::new(current, Side::Internal)
    }

    fn new(current: CurrentGateway, side: Side) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(Duration::from_secs(2 * KEEPALIVE_SECONDS));
        Self { http2: Arc::new(Http2 { current: current.clone(), side, options }), current, side }
    }
}

static STRANGERS: Seldom =
    Seldom::new("a client took up a TLS session of before, of an authority that is gone: it has to forget it");

/// Marks a connection whose client is not to be served, whatever its handshake came to.
pub struct Stranger;

fn is_strange(stream: &Stream) -> bool {
    stream.get_ssl_digest().is_some_and(|tls| tls.extension.get::<Stranger>().is_some())
}

#[async_trait]
impl ServerApp for Listener {
    /// HTTP/1.1 goes on in a task of its own: Pingora's holds the room for a TLS handshake as long as it lives.
    async fn process_new(self: &Arc<Self>, stream: Stream, _shutdown: &ShutdownWatch) -> Option<Stream> {
        if is_strange(&stream) {
            STRANGERS.warn();
            return None;
        }
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            let told_to_go = self.current.load().drain.watch();
            return self.http2.process_new(stream, &told_to_go).await;
        }
        tokio::spawn(serve(self.current.clone(), self.side, stream));
        None
    }
}

/// What Pingora's way of HTTP/2 calls for each stream.
struct Http2 {
    current: CurrentGateway,
    side: Side,
    options: HttpServerOptions,
}

#[async_trait]
impl HttpServerApp for Http2 {
    async fn process_new_http(
        self: &Arc<Self>,
        mut http: ServerSession,
        _shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if takes_head(&self.current, &mut http).await {
            Box::pin(self.current.load().attend(self.side, Box::new(http))).await;
        }
        None
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// Serves a connection: one request after the other. Idle connections are what there is most of: what only a request
/// needs is boxed, so that they do not hold the room for it.
async fn serve(current: CurrentGateway, side: Side, stream: Stream) {
    let mut http = Box::new(ServerSession::new_http1(stream));
    http.set_keepalive(Some(KEEPALIVE_SECONDS));
    http.set_keepalive_reuses_remaining(Some(MOST_REQUESTS));
    // Of the connection's own: a reference that requests count would be written by all of them.
    let mut gateway = Cache::new(current.clone());
    while takes_head(&current, &mut http).await {
        match Box::pin(gateway.load().attend(side, http)).await {
            Some(next) => http = next,
            None => return,
        }
    }
}

/// Waits for a request's head. False when none comes that can be attended to.
async fn takes_head(current: &CurrentGateway, http: &mut ServerSession) -> bool {
    match within_bounds(http.read_request()).await {
        Some(Ok(came)) => came,
        // The error's text may quote the request: it is not logged.
        Some(Err(error)) if *error.etype() == ErrorType::InvalidHTTPHeader => {
            Box::pin(current.load().refuse_unread(http)).await;
            false
        }
        _ => false,
    }
}

impl Gateway {
    /// Answers a head that cannot be parsed, and counts it.
    async fn refuse_unread(&self, http: &mut ServerSession) {
        self.metrics.requests.count(RouteClass::None, Outcome::ClientError);
        close_unread(http).await;
    }

    /// Sends a request its way and ends it. Returns the connection if it can be used again.
    async fn attend(&self, side: Side, mut http: Box<ServerSession>) -> Option<Box<ServerSession>> {
        let under_way = UnderWay::new(&self.under_way);
        // Asked once it is counted: what is begun is waited for.
        if self.drain.is_over() {
            http.shutdown_with_reason(REFUSED_STREAM.into());
            http.shutdown().await;
            return None;
        }
        let started = Instant::now();
        http.set_pipelining_enabled(true);
        http.set_total_drain_timeout(Some(Duration::from_secs(2)));
        http.set_write_timeout(Some(Duration::from_secs(60)));
        // What the request itself rules out stays out: HTTP/1.0, `close`, two ways of framing the body.
        let may_stay = http.get_keepalive().is_some() && !self.drain.has_begun();
        http.set_keepalive(may_stay.then_some(KEEPALIVE_SECONDS));

        let mut visit = Visit::new();
        visit.span = self.tracer.as_ref().and_then(|tracer| tracer.request(&http.req_header().headers, carries_handle));
        let ended = match &http.req_header().method {
            &Method::CONNECT | &Method::TRACE => Err(GatewayError::MethodNotAllowed),
            method if !is_registered(method) => Err(GatewayError::MethodNotAllowed),
            _ => match visit.span.as_ref().map(|span| span.context().clone()) {
                None => self.way_of(side, &mut http, &mut visit).await,
                Some(place) => Box::pin(place.around(self.way_of(side, &mut http, &mut visit))).await,
            },
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) if final_head(&http).is_none() => Box::pin(self.problem(&mut http, &mut visit, &error)).await,
            Err(_) => Ended::Aborted,
        };
        self.finished(&http, &mut visit, &ended, started);
        drop(under_way);
        if matches!(ended, Ended::Aborted) {
            http.shutdown().await;
            return None;
        }
        renewed(http).await
    }
}

impl Gateway {
    async fn way_of<'g>(
        &'g self,
        side: Side,
        http: &mut ServerSession,
        visit: &mut Visit<'g>,
    ) -> Result<Ended, GatewayError> {
        match side {
            Side::Public => self.request_filter(http, visit).await,
            Side::Internal => Box::pin(self.internal_request(http, visit)).await,
        }
    }
}

/// Waits for a head on a listener for operators or proxies. False when none comes that can be attended to: one that cannot
/// be parsed is answered, for proxies ask again where a connection closes without a word.
pub(super) async fn takes_own_head(http: &mut ServerSession) -> bool {
    const OWN_HEAD_TIMEOUT: Duration = Duration::from_secs(75);
    http.set_total_drain_timeout(Some(Duration::from_secs(2)));
    match tokio::time::timeout(OWN_HEAD_TIMEOUT, http.read_request()).await {
        Ok(Ok(came)) => came,
        Ok(Err(error)) if *error.etype() == ErrorType::InvalidHTTPHeader => {
            close_unread(http).await;
            false
        }
        _ => false,
    }
}

/// Answers a head that cannot be parsed, and closes the connection.
async fn close_unread(http: &mut ServerSession) {
    let problem = Answer::problem(&GatewayError::BadRequest("its head cannot be parsed"));
    // The connection closes either way.
    let _ = problem.write_unread(http).await;
    http.shutdown().await;
}

/// The connection of such a listener, if it can be used again.
pub(super) async fn kept(http: ServerSession) -> Option<ReusedHttpStream> {
    let settings = HttpPersistentSettings::for_session(&http);
    let stream = http.finish().await.ok().flatten()?;
    Some(ReusedHttpStream::from_reusable_stream(stream, settings))
}

/// The connection with nothing left of its request, if it can be used again.
async fn renewed(mut http: Box<ServerSession>) -> Option<Box<ServerSession>> {
    if http.is_http2() && !http.is_body_done() {
        // Clients take a stream that is reset under their upload for broken, and the answer with it.
        let _ = http.drain_request_body().await;
    }
    let settings = HttpPersistentSettings::for_session(&http);
    let stream = http.finish().await.ok().flatten()?;
    let (stream, settings) = ReusedHttpStream::from_reusable_stream(stream, settings).consume();
    let mut http = Box::new(ServerSession::new_http1(stream));
    if let Some(settings) = settings {
        settings.apply_to_session(&mut http);
    }
    Some(http)
}

/// Waits for a head: as long as the connection may idle, and once it was woken without a whole head, for [`HEAD_TIMEOUT`].
/// No timer is set for a head that comes in one piece.
async fn within_bounds<T>(read: impl Future<Output = T>) -> Option<T> {
    let mut read = pin!(read);
    let mut woken = false;
    let in_one_piece = poll_fn(|context| match read.as_mut().poll(context) {
        Poll::Ready(read) => Poll::Ready(Some(read)),
        Poll::Pending if woken => Poll::Ready(None),
        Poll::Pending => {
            woken = true;
            Poll::Pending
        }
    });
    match in_one_piece.await {
        Some(read) => Some(read),
        None => tokio::time::timeout(HEAD_TIMEOUT, read).await.ok(),
    }
}

/// The head of the answer, once it is written; `100 Continue` is none.
pub(super) fn final_head(http: &ServerSession) -> Option<&ResponseHeader> {
    http.response_written().filter(|head| !head.status.is_informational() || head.status.as_u16() == 101)
}
