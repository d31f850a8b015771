//! A request's body on its way up: held back when it is small, passed on piece by piece when it is not.
//! Bounded in size and, where the gateway reads it itself, in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::{HeaderMap, Version};
use pingora::protocols::http::ServerSession;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::Gateway;
use super::headers::{self, Framing};
use super::line::{Line, LineFault};
use super::route::ApiRoute;
use crate::error::GatewayError;

/// The request's body on its way up.
pub(super) enum Upload {
    /// There is none.
    None,
    /// It is here as a whole, and can be sent again.
    Held(Bytes),
    /// It comes piece by piece, and goes once.
    Streamed(Streamed),
}

/// How far a body is that comes piece by piece.
pub(super) struct Streamed {
    framing: Framing,
    /// Bytes that came.
    bytes: u64,
    most: u64,
    done: bool,
    /// The API takes no more of it. It may have answered already.
    refused: bool,
}

impl Upload {
    pub(super) const fn framing(&self) -> Framing {
        match self {
            Self::None => Framing::None,
            Self::Held(body) => Framing::Length(body.len() as u64),
            Self::Streamed(streamed) => streamed.framing,
        }
    }

    pub(super) const fn is_replayable(&self) -> bool {
        !matches!(self, Self::Streamed(_))
    }

    pub(super) const fn is_done(&self) -> bool {
        !matches!(self, Self::Streamed(Streamed { done: false, .. }))
    }

    /// Whether the API takes no more of it: then nothing is left but to wait for what it says.
    pub(super) const fn is_refused(&self) -> bool {
        matches!(self, Self::Streamed(Streamed { refused: true, .. }))
    }

    /// The text member `name` of a JSON object that is held.
    pub(super) fn member(&self, name: &str) -> Option<Zeroizing<String>> {
        let Self::Held(body) = self else { return None };
        match serde_json::from_slice::<Map<String, Value>>(body).ok()?.remove(name)? {
            Value::String(text) => Some(Zeroizing::new(text)),
            _ => None,
        }
    }
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
        Box::pin(welcome_body(http)).await?;
        let held_at_most = self.limits_section.replay_body_bytes;
        match length {
            // What names the account is read first, whatever its length.
            _ if route.reads_body() => {
                let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.limits_section.token_body_bytes);
                Ok(Upload::Held(Box::pin(self.read_body(http, most)).await?))
            }
            Some(length) if length <= held_at_most as u64 => {
                Ok(Upload::Held(Box::pin(self.read_body(http, held_at_most)).await?))
            }
            length => {
                let framing = length.map_or(Framing::Chunked, Framing::Length);
                Ok(Upload::Streamed(Streamed { framing, bytes: 0, most, done: false, refused: false }))
            }
        }
    }

    /// Reads a JSON body of a route that the gateway answers itself.
    pub(super) async fn read_json(&self, http: &mut ServerSession) -> Result<Bytes, GatewayError> {
        read_json(http, self.limits_section.token_body_bytes, self.limits_section.body_timeout).await
    }

    /// Reads a body of no more than `most` bytes, within the body timeout as a whole.
    pub(super) async fn read_body(&self, http: &mut ServerSession, most: usize) -> Result<Bytes, GatewayError> {
        read_bounded(http, most, self.limits_section.body_timeout).await
    }
}

/// Reads a JSON body: of no more than `most` bytes, no longer than `within`, and complete.
pub(super) async fn read_json(http: &mut ServerSession, most: usize, within: Duration) -> Result<Bytes, GatewayError> {
    let headers = &http.req_header().headers;
    if !is_json(headers) {
        return Err(GatewayError::UnsupportedMediaType);
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > most) {
        return Err(GatewayError::BodyTooLarge);
    }
    welcome_body(http).await?;
    read_bounded(http, most, within).await
}

/// Reads a body of no more than `most` bytes, and no longer than `within`.
async fn read_bounded(http: &mut ServerSession, most: usize, within: Duration) -> Result<Bytes, GatewayError> {
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
    tokio::time::timeout(within, read).await.unwrap_or(Err(GatewayError::BodyTimeout))
}

/// Tells a client that waits for it to send its body (RFC 9110, section 10.1.1).
async fn welcome_body(http: &mut ServerSession) -> Result<(), GatewayError> {
    let head = http.req_header();
    let waits = head.version != Version::HTTP_10
        && head.headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if waits {
        http.write_continue_response().await.map_err(|_| GatewayError::BadRequest("the client has gone"))?;
    }
    Ok(())
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
    })
}

/// Passes a piece of a streamed body on, and its end: with the `last` piece, or without one.
///
/// # Errors
/// When the body is too long, or not as long as it says.
pub(super) async fn send_piece(
    line: &mut Line,
    piece: Option<Bytes>,
    last: bool,
    upload: &mut Upload,
) -> Result<(), GatewayError> {
    let Upload::Streamed(streamed) = upload else { return Ok(()) };
    let ends = last || piece.is_none();
    let piece = piece.unwrap_or_default();
    streamed.take(piece.len() as u64, ends)?;
    let sent = match streamed.framing {
        Framing::Chunked => send_chunk(line, &piece, ends).await,
        Framing::Length(_) | Framing::None => line.send(&[&piece]).await,
    };
    (streamed.refused, streamed.done) = (sent.is_err(), ends && sent.is_ok());
    Ok(())
}

impl Streamed {
    /// Takes note of so many bytes more.
    const fn take(&mut self, bytes: u64, ends: bool) -> Result<(), GatewayError> {
        self.bytes += bytes;
        if self.bytes > self.most {
            return Err(GatewayError::BodyTooLarge);
        }
        match self.framing {
            // Another length than was told of would be read as the beginning of another request.
            Framing::Length(length) if self.bytes > length || (ends && self.bytes < length) => {
                Err(GatewayError::BadRequest("its body is not as long as it says"))
            }
            _ => Ok(()),
        }
    }
}

async fn send_chunk(line: &mut Line, piece: &[u8], last: bool) -> Result<(), LineFault> {
    let size = format!("{:x}\r\n", piece.len());
    let end: &[u8] = if last { b"0\r\n\r\n" } else { b"" };
    if piece.is_empty() { line.send(&[end]).await } else { line.send(&[size.as_bytes(), piece, b"\r\n", end]).await }
}
