//! One way of moving bytes between client and API, for every API request.
//! It reads the API's head, and of a 401 the body too, before the client sees anything: so an expired token can be
//! renewed and the request repeated; and it lets go of a stream as soon as its session ends.

use std::io::Read;
use std::time::Instant;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType};

use super::headers::{self, Outgoing};
use super::line::{ApiHead, Line, LineFault};
use super::relay::{Leash, pump, tunnel};
use super::repeats::Repeat;
use super::route::ApiRoute;
use super::upload::{Upload, send_piece};
use super::{Ended, Gateway, Visit};
use crate::broker::{Demand, Permit, is_expiry_fault};
use crate::config::routes::OnSuccess;
use crate::error::GatewayError;
use crate::telemetry::trace::Span;

/// What of a 401 is read to learn whether it means an expired token, in bytes.
const MOST_REFUSAL_BYTES: usize = 8 * 1024;

/// A request that may pass, and how.
pub(super) struct Passage<'p, 'g> {
    pub(super) route: &'p ApiRoute,
    pub(super) visit: &'p mut Visit<'g>,
    /// The ids of visits that the request names.
    pub(super) visits: Vec<String>,
    pub(super) client: Option<HeaderValue>,
    /// Headers that the answer carries beside the API's own.
    pub(super) answer_headers: Vec<(HeaderName, HeaderValue)>,
}

impl Passage<'_, '_> {
    pub(super) fn demand<'d>(&'d self, visits: &'d [&'d str]) -> Demand<'d> {
        Demand {
            tenant: self.visit.tenant_id(),
            access: &self.route.access,
            inject: self.route.inject,
            saas_token: self.route.saas_token,
            visits,
            safe: true,
        }
    }
}

/// What a 401 of the API turned out to be.
enum Refusal<'g> {
    /// The client's business: the answer, and what of its body was read.
    Stands(Line, ApiHead, Vec<Bytes>),
    /// A token that is over. There is another, and leave to repeat the request with it.
    Mended(Permit, Repeat<'g>),
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
    /// Forwards the request and relays what the API answers.
    pub(super) async fn forward(
        &self,
        http: &mut ServerSession,
        mut passage: Passage<'_, '_>,
        mut permit: Permit,
        mut upload: Upload,
    ) -> Result<Ended, GatewayError> {
        let (mut renewed, mut repeat) = (false, None);
        let (line, head, body) = loop {
            let (line, head) = match self.first_head(http, &passage, &permit, &mut upload).await {
                Ok(answered) => answered,
                Err(Failure::ClientGone) => return Ok(Ended::Aborted),
                Err(Failure::Stale) => return Err(GatewayError::UpstreamFailed("the connection was closed")),
                Err(Failure::Other(error)) => return Err(error),
            };
            // Its head is there: what may now stream for hours is no repeat any more.
            drop(repeat.take());
            if head.status != StatusCode::UNAUTHORIZED || !upload.is_replayable() {
                break (line, head, Vec::new());
            }
            match Box::pin(self.understand(line, head, &passage, &permit, renewed)).await? {
                Refusal::Stands(line, head, body) => break (line, head, body),
                Refusal::Mended(fresh, leave) => (permit, renewed, repeat) = (fresh, true, Some(leave)),
            }
        };
        self.relay(http, (line, head), &mut passage, &permit, upload, body).await
    }

    /// Finds out what a 401 means, and renews the token where that mends it.
    async fn understand(
        &self,
        mut line: Line,
        head: ApiHead,
        passage: &Passage<'_, '_>,
        permit: &Permit,
        renewed: bool,
    ) -> Result<Refusal<'_>, GatewayError> {
        let (body, complete) = read_refusal(&mut line).await?;
        if complete && means_expired(&head, &body.concat()) {
            if renewed {
                return Err(self.broker.note_unwanted(permit));
            }
            let leave = self.repeats.turn(|| self.under_way()).await;
            let leave = leave.ok_or(GatewayError::IdentityUnavailable("too many requests are being repeated"))?;
            let visits: Vec<&str> = passage.visits.iter().map(String::as_str).collect();
            if let Some(fresh) = self.broker.renew_refused(permit, &passage.demand(&visits)).await? {
                self.upstream.release(line);
                return Ok(Refusal::Mended(fresh, leave));
            }
        }
        Ok(Refusal::Stands(line, head, body))
    }

    /// Sends the request and waits for the API's final head.
    async fn first_head(
        &self,
        http: &mut ServerSession,
        passage: &Passage<'_, '_>,
        permit: &Permit,
        upload: &mut Upload,
    ) -> Result<(Line, ApiHead), Failure> {
        let started = Instant::now();
        let mut span = passage.visit.child_span("upstream");
        let repeatable = upload.is_replayable() && is_idempotent(&http.req_header().method);
        // Where one pooled connection was closed, others may be too.
        for anew in [false, true] {
            let mut line = self.upstream.connect(anew, passage.route.read_timeout).await.map_err(Failure::Other)?;
            let head = headers::outgoing(
                http.req_header(),
                &Outgoing {
                    permit,
                    cookie_name: self.cookies.name(),
                    host: self.upstream.host(),
                    client: passage.client.as_ref(),
                    secure: is_secure(http),
                    trace: span.as_ref().map(Span::context),
                    upgrade: headers::asks_for_websocket(http.req_header()),
                    body: upload.framing(),
                },
            )
            .map_err(Failure::Other)?;
            match converse(http, &mut line, &head, upload).await {
                Ok(head) => {
                    if let Some(span) = &mut span {
                        span.note("status", head.status.as_str());
                        span.settle(head.status.is_server_error());
                    }
                    self.metrics.upstream_seconds.record(passage.route.class(), started.elapsed());
                    return Ok((line, head));
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
        (mut line, upstream): (Line, ApiHead),
        passage: &mut Passage<'_, '_>,
        permit: &Permit,
        mut upload: Upload,
        read_already: Vec<Bytes>,
    ) -> Result<Ended, GatewayError> {
        let status = upstream.status;
        let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
        if upgraded && !headers::asks_for_websocket(http.req_header()) {
            return Err(GatewayError::UpstreamFailed("it switched protocols unasked"));
        }
        let streams = upgraded || is_event_stream(&upstream);
        let head = self.downstream_head(http, &upstream, passage, permit, upgraded)?;
        if status == StatusCode::NO_CONTENT {
            self.end_sessions(passage.route.on_success, permit, &upload);
        }
        if http.write_response_header(Box::new(head)).await.is_err() {
            return Ok(Ended::Aborted);
        }
        let ended = if streams {
            let mut leash = permit.is_of_session().then(|| Leash::new(self, permit));
            line.read_timeout = self.upstream.stream_idle_timeout();
            passage.visit.streams_since = Some(Instant::now());
            self.metrics.open_streams.inc();
            let ended = if upgraded {
                Box::pin(tunnel(http, &mut line, leash.as_mut())).await
            } else {
                Box::pin(pump(http, &mut line, &mut upload, read_already, leash.as_mut())).await
            };
            self.metrics.open_streams.dec();
            ended
        } else {
            pump(http, &mut line, &mut upload, read_already, None).await
        };
        if matches!(ended, Ended::Complete) && !upgraded && upload.is_done() {
            self.upstream.release(line);
        }
        Ok(if upgraded { Ended::Aborted } else { ended })
    }

    /// Ends what the success of a request ends.
    fn end_sessions(&self, on_success: OnSuccess, permit: &Permit, upload: &Upload) {
        match on_success {
            OnSuccess::Nothing => {}
            OnSuccess::EndOtherSessions => self.broker.end_others_behind(permit),
            OnSuccess::EndNamedSessions => match upload.member("token") {
                Some(token) => self.broker.end_named_behind(permit.tenant(), &token),
                None => tracing::warn!(tenant = %permit.tenant(), "a body without a readable token names nobody"),
            },
        }
    }

    fn downstream_head(
        &self,
        http: &ServerSession,
        upstream: &ApiHead,
        passage: &Passage<'_, '_>,
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
    head: &[u8],
    upload: &mut Upload,
) -> Result<ApiHead, Failure> {
    let reused = line.reused;
    let held: &[u8] = if let Upload::Held(body) = upload { body } else { &[] };
    let method = http.req_header().method.clone();
    if let Err(fault) = line.send(&[head, held]).await {
        return early_head(line, &method, fault).await.ok_or_else(|| judge(fault, reused));
    }
    loop {
        let body_done = upload.is_done();
        tokio::select! {
            biased;
            read = line.read_head(&method) => {
                let head = read.map_err(|fault| judge(fault, reused))?;
                if is_final(&head) {
                    return Ok(head);
                }
            }
            piece = http.read_body_or_idle(body_done), if !upload.is_refused() => {
                let piece = piece.map_err(|error| judge_client(&error))?;
                send_piece(line, piece, http.is_body_done(), upload).await.map_err(Failure::Other)?;
            }
        }
    }
}

/// The final head of an API that answered before it had read everything, and closed.
async fn early_head(line: &mut Line, method: &Method, fault: LineFault) -> Option<ApiHead> {
    if fault == LineFault::TimedOut {
        return None;
    }
    loop {
        let head = line.read_head(method).await.ok()?;
        if is_final(&head) {
            return Some(head);
        }
    }
}

fn is_final(head: &ApiHead) -> bool {
    !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
}

/// What a fault of the upstream connection means. One that was used before may have been closed by the API meanwhile.
fn judge(fault: LineFault, reused: bool) -> Failure {
    match fault {
        LineFault::Closed if reused => Failure::Stale,
        LineFault::Closed | LineFault::Broken => Failure::Other(GatewayError::UpstreamFailed("the connection broke")),
        LineFault::TimedOut => Failure::Other(GatewayError::UpstreamTimeout),
        LineFault::Nonsense(why) => Failure::Other(GatewayError::UpstreamFailed(why)),
    }
}

/// Reads what of a 401 is needed to understand it: the pieces, and whether they are all of it.
async fn read_refusal(line: &mut Line) -> Result<(Vec<Bytes>, bool), GatewayError> {
    let patience = line.read_timeout;
    let read = async {
        let (mut pieces, mut length) = (Vec::new(), 0);
        while length <= MOST_REFUSAL_BYTES {
            match line.read_body().await {
                Ok(Some(piece)) => {
                    length += piece.len();
                    pieces.push(piece);
                }
                Ok(None) => return Ok((pieces, true)),
                Err(_) => return Err(GatewayError::UpstreamFailed("its answer broke off")),
            }
        }
        Ok((pieces, false))
    };
    tokio::time::timeout(patience, read).await.unwrap_or(Err(GatewayError::UpstreamTimeout))
}

/// What an error of the client's connection means: mostly that it has gone, else that its body makes no sense.
fn judge_client(error: &Error) -> Failure {
    match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::H2Error => Failure::ClientGone,
        ErrorType::ReadTimedout => Failure::Other(GatewayError::BodyTimeout),
        _ => Failure::Other(GatewayError::BadRequest("its body cannot be read")),
    }
}

/// Whether a 401 means that its token is over. Clients that take gzip may be answered so.
fn means_expired(head: &ApiHead, body: &[u8]) -> bool {
    match head.values("content-encoding").next() {
        None | Some(b"identity") => is_expiry_fault(body),
        Some(b"gzip" | b"x-gzip") => {
            let mut inflated = Vec::new();
            let most = MOST_REFUSAL_BYTES as u64;
            let read = GzDecoder::new(body).take(most).read_to_end(&mut inflated);
            read.is_ok() && is_expiry_fault(&inflated)
        }
        Some(_) => false,
    }
}

fn is_event_stream(head: &ApiHead) -> bool {
    head.values("content-type").next().is_some_and(|value| value.starts_with(b"text/event-stream"))
}

fn is_idempotent(method: &Method) -> bool {
    method.is_safe() || *method == Method::PUT || *method == Method::DELETE
}

/// Whether the client's connection is encrypted.
pub(super) fn is_secure(http: &ServerSession) -> bool {
    http.digest().is_some_and(|digest| digest.ssl_digest.is_some())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const FAULT: &[u8] =
        br#"{"fault":{"faultstring":"x","detail":{"errorcode":"keymanagement.service.access_token_expired"}}}"#;

    fn encoded(coding: Option<&str>) -> ApiHead {
        let field = coding.map_or_else(String::new, |coding| format!("Content-Encoding: {coding}\r\n"));
        ApiHead::of(&format!("HTTP/1.1 401 Unauthorized\r\n{field}\r\n"))
    }

    #[test]
    fn a_compressed_fault_is_understood_too() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(FAULT).unwrap();
        let compressed = encoder.finish().unwrap();
        assert!(means_expired(&encoded(Some("gzip")), &compressed));
        assert!(means_expired(&encoded(Some("identity")), FAULT));
        assert!(means_expired(&encoded(None), FAULT));
        assert!(!means_expired(&encoded(Some("gzip")), FAULT));
        assert!(!means_expired(&encoded(Some("br")), FAULT));
    }

    #[test]
    fn a_small_answer_that_inflates_without_end_is_not_inflated_to_its_end() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![b' '; 4 * 1024 * 1024]).unwrap();
        assert!(!means_expired(&encoded(Some("gzip")), &encoder.finish().unwrap()));
    }
}
