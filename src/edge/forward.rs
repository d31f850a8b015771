//! One way of moving bytes between client and API, for every API request.
//! It reads the API's head, and of a 401 the body too, before the client sees anything: so an expired token can be
//! renewed and the request repeated; and it lets go of a stream as soon as its session ends.

use std::future::pending;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::{Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType, RetryType};
use tokio::sync::broadcast;
use tokio::time::Interval;

use super::headers::{self, Framing, Outgoing};
use super::route::ApiRoute;
use super::upstream::Line;
use super::{Ended, Gateway};
use crate::broker::{Demand, Permit, is_expiry_fault};
use crate::config::routes::OnSuccess;
use crate::error::GatewayError;
use crate::session::{SessionKey, TenantId};

/// What of a 401 is read to learn whether it means an expired token, in bytes.
const MOST_REFUSAL_BYTES: usize = 8 * 1024;

/// Attempts at finding a pooled connection that is still open.
const MOST_STALE: usize = 3;

/// A request that may pass, and how.
pub(super) struct Passage<'p> {
    pub(super) route: &'p ApiRoute,
    pub(super) tenant: Option<TenantId>,
    pub(super) permit: Permit,
    /// The ids of visits that the request names.
    pub(super) visits: Vec<String>,
    pub(super) client: Option<HeaderValue>,
    /// Headers that the answer carries beside the API's own.
    pub(super) answer_headers: Vec<(HeaderName, HeaderValue)>,
}

impl Passage<'_> {
    fn demand<'d>(&'d self, visits: &'d [&'d str]) -> Demand<'d> {
        Demand {
            tenant: self.tenant.as_ref(),
            access: self.route.access,
            inject: self.route.inject,
            saas_token: self.route.saas_token,
            visits,
            safe: true,
        }
    }
}

/// The request's body on its way up.
pub(super) enum Upload {
    /// There is none.
    None,
    /// It is here as a whole, and can be sent again.
    Held(Bytes),
    /// It comes piece by piece, and goes once.
    Streamed { framing: Framing, done: bool, bytes: u64, most: u64 },
}

impl Upload {
    const fn framing(&self) -> Framing {
        match self {
            Self::None => Framing::None,
            Self::Held(body) => Framing::Length(body.len() as u64),
            Self::Streamed { framing, .. } => *framing,
        }
    }

    const fn is_replayable(&self) -> bool {
        !matches!(self, Self::Streamed { .. })
    }

    const fn is_done(&self) -> bool {
        !matches!(self, Self::Streamed { done: false, .. })
    }
}

/// Why an exchange with the API did not bring a head.
enum Failure {
    /// The pooled connection was closed before the API read the request.
    Stale,
    /// The client has gone.
    ClientGone,
    Other(GatewayError),
}

impl Gateway {
    /// Takes the body of a request: holds a small one, lets a larger one stream.
    pub(super) async fn take_upload(&self, http: &mut ServerSession, route: &ApiRoute) -> Result<Upload, GatewayError> {
        let most = route.max_body_bytes.unwrap_or(self.limits_section.api_body_bytes);
        let length =
            http.req_header().headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > most) {
            return Err(GatewayError::BodyTooLarge);
        }
        if http.is_body_empty() || headers::asks_for_websocket(http.req_header()) {
            return Ok(Upload::None);
        }
        if http
            .req_header()
            .headers
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
        {
            http.write_continue_response().await.map_err(|_| GatewayError::BadRequest("the client has gone"))?;
        }
        let held_at_most = self.limits_section.replay_body_bytes as u64;
        match length {
            Some(length) if length <= held_at_most => {
                let body = self.read_body(http, self.limits_section.replay_body_bytes).await?;
                Ok(Upload::Held(body))
            }
            Some(length) => Ok(Upload::Streamed { framing: Framing::Length(length), done: false, bytes: 0, most }),
            None if route.limit != crate::config::routes::RouteLimit::None => {
                Ok(Upload::Held(self.read_body(http, usize::try_from(most).unwrap_or(usize::MAX)).await?))
            }
            None => Ok(Upload::Streamed { framing: Framing::Chunked, done: false, bytes: 0, most }),
        }
    }

    /// Reads a body of no more than `most` bytes, within the body timeout as a whole.
    pub(super) async fn read_body(&self, http: &mut ServerSession, most: usize) -> Result<Bytes, GatewayError> {
        let read = async {
            let mut body = BytesMut::new();
            loop {
                match http.read_request_body().await {
                    Ok(None) => return Ok(body.freeze()),
                    Ok(Some(piece)) if body.len() + piece.len() <= most => body.extend_from_slice(&piece),
                    Ok(Some(_)) => return Err(GatewayError::BodyTooLarge),
                    Err(_) => return Err(GatewayError::BadRequest("the body broke off")),
                }
            }
        };
        tokio::time::timeout(self.limits_section.body_timeout, read).await.unwrap_or(Err(GatewayError::BodyTimeout))
    }

    /// Forwards the request and relays what the API answers.
    pub(super) async fn forward(
        &self,
        http: &mut ServerSession,
        passage: Passage<'_>,
        mut upload: Upload,
    ) -> Result<Ended, GatewayError> {
        let mut permit = passage.permit.clone();
        let mut renewed = false;
        loop {
            let mut line = match self.first_head(http, &passage, &permit, &mut upload).await {
                Ok(line) => line,
                Err(Failure::ClientGone) => return Ok(Ended::Aborted),
                Err(Failure::Stale) => return Err(GatewayError::UpstreamFailed("the connection was closed")),
                Err(Failure::Other(error)) => return Err(error),
            };
            let refused = line.session.get_status() == Some(StatusCode::UNAUTHORIZED);
            if !refused || renewed || !upload.is_replayable() {
                return self.relay(http, line, &passage, &permit, upload, Vec::new()).await;
            }
            let (body, complete) = read_refusal(&mut line).await?;
            if complete && is_expiry_fault(&body.concat()) {
                let visits: Vec<&str> = passage.visits.iter().map(String::as_str).collect();
                if let Some(fresh) = self.broker.renew_refused(&permit, &passage.demand(&visits)).await {
                    self.upstream.release(line).await;
                    (permit, renewed) = (fresh, true);
                    continue;
                }
            }
            return self.relay(http, line, &passage, &permit, upload, body).await;
        }
    }

    /// Sends the request and waits for the API's final head.
    async fn first_head(
        &self,
        http: &mut ServerSession,
        passage: &Passage<'_>,
        permit: &Permit,
        upload: &mut Upload,
    ) -> Result<Line, Failure> {
        let started = Instant::now();
        let repeatable = upload.is_replayable() && is_idempotent(&http.req_header().method);
        for _ in 0..MOST_STALE {
            let mut line = self.upstream.connect(passage.route.read_timeout).await.map_err(Failure::Other)?;
            let head = headers::outgoing(
                http.req_header(),
                &Outgoing {
                    permit,
                    cookie_name: self.cookies.name(),
                    host: self.upstream.host(),
                    client: passage.client.as_ref(),
                    secure: is_secure(http),
                    upgrade: headers::asks_for_websocket(http.req_header()),
                    body: upload.framing(),
                },
            )
            .map_err(Failure::Other)?;
            match converse(http, &mut line, head, upload).await {
                Ok(()) => {
                    self.metrics.upstream_seconds.record(passage.route.class(), started.elapsed());
                    return Ok(line);
                }
                Err(Failure::Stale) if repeatable => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::Stale)
    }

    /// Relays the API's answer: its head, what of its body was read already, and the rest as it comes.
    async fn relay(
        &self,
        http: &mut ServerSession,
        mut line: Line,
        passage: &Passage<'_>,
        permit: &Permit,
        mut upload: Upload,
        read_already: Vec<Bytes>,
    ) -> Result<Ended, GatewayError> {
        let upstream = line.session.resp_header().ok_or(GatewayError::Internal("a response without a head"))?;
        let status = upstream.status;
        let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
        if upgraded != (upgraded && headers::asks_for_websocket(http.req_header())) {
            return Err(GatewayError::UpstreamFailed("it switched protocols unasked"));
        }
        let streams = upgraded || is_event_stream(upstream);
        let head = self.downstream_head(http, upstream, passage, permit, upgraded)?;
        if status == StatusCode::NO_CONTENT && passage.route.on_success == OnSuccess::EndOtherSessions {
            self.broker.end_others_behind(permit);
        }
        if http.write_response_header(Box::new(head)).await.is_err() {
            return Ok(Ended::Aborted);
        }
        let mut leash = (streams && !permit.is_shared()).then(|| Leash::new(self, *permit.key()));
        if streams {
            line.session.read_timeout = Some(self.upstream.stream_idle_timeout());
            self.metrics.open_streams.inc();
        }
        let ended = if upgraded {
            tunnel(http, &mut line, leash.as_mut()).await
        } else {
            pump(http, &mut line, &mut upload, read_already, leash.as_mut()).await
        };
        if streams {
            self.metrics.open_streams.dec();
        }
        if matches!(ended, Ended::Complete) && !upgraded && upload.is_done() {
            self.upstream.release(line).await;
        }
        Ok(if upgraded { Ended::Aborted } else { ended })
    }

    fn downstream_head(
        &self,
        http: &ServerSession,
        upstream: &ResponseHeader,
        passage: &Passage<'_>,
        permit: &Permit,
        upgraded: bool,
    ) -> Result<ResponseHeader, GatewayError> {
        let fits = |_| GatewayError::UpstreamFailed("its response head cannot be forwarded");
        let mut head = headers::incoming(upstream, self.cookies.name(), !permit.is_shared(), upgraded)?;
        for (name, value) in &passage.answer_headers {
            head.append_header(name.clone(), value.clone()).map_err(fits)?;
        }
        let request = http.req_header();
        let bodiless = request.method == Method::HEAD || matches!(upstream.status.as_u16(), 101 | 204 | 304);
        let unframed = !bodiless && !head.headers.contains_key(CONTENT_LENGTH);
        if unframed && request.version == Version::HTTP_11 {
            head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked")).map_err(fits)?;
        }
        Ok(head)
    }
}

/// Sends the head and the body, and reads the API's final head, while watching for the client to leave.
async fn converse(
    http: &mut ServerSession,
    line: &mut Line,
    head: pingora::http::RequestHeader,
    upload: &mut Upload,
) -> Result<(), Failure> {
    let reused = line.reused;
    let session = &mut line.session;
    session.write_request_header(Box::new(head)).await.map_err(|error| judge(&error, reused))?;
    match upload {
        Upload::Held(body) if !body.is_empty() => {
            session.write_body(body).await.map_err(|error| judge(&error, reused))?;
        }
        _ => {}
    }
    if upload.is_done() {
        session.finish_body().await.map_err(|error| judge(&error, reused))?;
    }
    let mut interim = false;
    loop {
        let body_done = upload.is_done();
        tokio::select! {
            biased;
            read = session.read_response() => {
                read.map_err(|error| judge(&error, reused && !interim))?;
                match session.get_status() {
                    Some(status) if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS => interim = true,
                    _ => return Ok(()),
                }
            }
            piece = http.read_body_or_idle(body_done) => {
                let piece = piece.map_err(|_| Failure::ClientGone)?;
                send_piece(session, piece, upload).await?;
            }
        }
    }
}

async fn send_piece(
    session: &mut pingora::protocols::http::v1::client::HttpSession,
    piece: Option<Bytes>,
    upload: &mut Upload,
) -> Result<(), Failure> {
    let Upload::Streamed { done, bytes, most, .. } = upload else { return Ok(()) };
    let broken = |_| Failure::Other(GatewayError::UpstreamFailed("it does not take the body"));
    match piece {
        Some(piece) => {
            *bytes += piece.len() as u64;
            if *bytes > *most {
                return Err(Failure::Other(GatewayError::BodyTooLarge));
            }
            if !piece.is_empty() {
                session.write_body(&piece).await.map_err(broken)?;
            }
        }
        None => {
            session.finish_body().await.map_err(broken)?;
            *done = true;
        }
    }
    Ok(())
}

/// What an error of the upstream connection means. One on a reused connection before any byte of an answer means
/// that the API had closed it.
fn judge(error: &Error, reused: bool) -> Failure {
    let nothing_read = error.context.as_ref().is_none_or(|context| context.as_str().ends_with("bytes already read: 0"));
    let closed = matches!(error.retry, RetryType::ReusedOnly) || *error.etype() == ErrorType::WriteError;
    match error.etype() {
        _ if reused && closed && nothing_read => Failure::Stale,
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Other(GatewayError::UpstreamTimeout),
        _ => Failure::Other(GatewayError::UpstreamFailed("the connection broke")),
    }
}

/// Reads what of a 401 is needed to understand it: the pieces, and whether they are all of it.
async fn read_refusal(line: &mut Line) -> Result<(Vec<Bytes>, bool), GatewayError> {
    let compressed = line.session.resp_header().is_some_and(|head| head.headers.contains_key(CONTENT_ENCODING));
    if compressed {
        return Ok((Vec::new(), false));
    }
    let (mut pieces, mut length) = (Vec::new(), 0);
    while length <= MOST_REFUSAL_BYTES {
        match line.session.read_body_bytes().await {
            Ok(Some(piece)) => {
                length += piece.len();
                pieces.push(piece);
            }
            Ok(None) => return Ok((pieces, true)),
            Err(_) => return Err(GatewayError::UpstreamFailed("its answer broke off")),
        }
    }
    Ok((pieces, false))
}

/// Relays the body as it comes, sends up what is left of the request's, and lets go when the session ends.
async fn pump(
    http: &mut ServerSession,
    line: &mut Line,
    upload: &mut Upload,
    read_already: Vec<Bytes>,
    mut leash: Option<&mut Leash<'_>>,
) -> Ended {
    for piece in read_already {
        if !piece.is_empty() && http.write_response_body(piece, false).await.is_err() {
            return Ended::Aborted;
        }
    }
    loop {
        let upload_done = upload.is_done();
        tokio::select! {
            biased;
            () = pull(&mut leash) => return Ended::Aborted,
            read = line.session.read_body_bytes() => match read {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => {
                    if http.write_response_body(piece, false).await.is_err() {
                        return Ended::Aborted;
                    }
                }
                Ok(None) => {
                    let finished = http.write_response_body(Bytes::new(), true).await;
                    return if finished.is_ok() { Ended::Complete } else { Ended::Aborted };
                }
                Err(_) => return Ended::Aborted,
            },
            piece = http.read_body_or_idle(upload_done) => match piece {
                Ok(piece) => {
                    if send_piece(&mut line.session, piece, upload).await.is_err() {
                        return Ended::Aborted;
                    }
                }
                Err(_) => return Ended::Aborted,
            },
        }
    }
}

/// Relays an upgraded connection both ways until either side, or the session, ends.
async fn tunnel(http: &mut ServerSession, line: &mut Line, mut leash: Option<&mut Leash<'_>>) -> Ended {
    const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
    http.set_read_timeout(None);
    line.session.maybe_upgrade_body_writer();
    loop {
        let moved = tokio::select! {
            read = line.session.read_body_bytes() => match read {
                Ok(Some(piece)) if piece.is_empty() => true,
                Ok(Some(piece)) => {
                    matches!(tokio::time::timeout(WRITE_TIMEOUT, http.write_response_body(piece, false)).await, Ok(Ok(())))
                }
                Ok(None) | Err(_) => false,
            },
            read = http.read_request_body() => match read {
                Ok(Some(piece)) if piece.is_empty() => true,
                Ok(Some(piece)) => {
                    matches!(tokio::time::timeout(WRITE_TIMEOUT, line.session.write_body(&piece)).await, Ok(Ok(_)))
                }
                Ok(None) | Err(_) => false,
            },
            () = pull(&mut leash) => false,
        };
        if !moved {
            line.session.shutdown().await;
            return Ended::Aborted;
        }
    }
}

/// What holds a stream to its session: it is pulled when the session ends here, and looks now and then whether it
/// ended elsewhere or by its time.
struct Leash<'l> {
    gateway: &'l Gateway,
    key: SessionKey,
    ended: broadcast::Receiver<SessionKey>,
    look: Interval,
}

impl<'l> Leash<'l> {
    fn new(gateway: &'l Gateway, key: SessionKey) -> Self {
        const LOOK_EVERY: Duration = Duration::from_secs(5);
        let look = tokio::time::interval_at(tokio::time::Instant::now() + LOOK_EVERY, LOOK_EVERY);
        Self { gateway, key, ended: gateway.broker.ended(), look }
    }

    async fn pulled(&mut self) {
        loop {
            tokio::select! {
                heard = self.ended.recv() => match heard {
                    Ok(key) if key == self.key => return,
                    Ok(_) => continue,
                    Err(_) => {}
                },
                _ = self.look.tick() => {}
            }
            if !self.gateway.broker.lives(&self.key).await {
                return;
            }
        }
    }
}

async fn pull(leash: &mut Option<&mut Leash<'_>>) {
    match leash {
        Some(leash) => leash.pulled().await,
        None => pending().await,
    }
}

fn is_event_stream(head: &ResponseHeader) -> bool {
    head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

fn is_idempotent(method: &Method) -> bool {
    method.is_safe() || *method == Method::PUT || *method == Method::DELETE
}

/// Whether the client's connection is encrypted.
pub(super) fn is_secure(http: &ServerSession) -> bool {
    http.digest().is_some_and(|digest| digest.ssl_digest.is_some())
}
