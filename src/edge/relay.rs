//! Relays what the API answers: a body as it comes, an upgraded connection both ways.
//! A stream is on a leash: it ends with what its permit was given for, idle or not.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use pingora::protocols::http::ServerSession;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio::time::Interval;

use super::line::Line;
use super::upload::{Upload, send_piece};
use super::{Ended, Gateway};
use crate::broker::Permit;
use crate::session::SessionKey;

/// How a stream over HTTP/2 is reset whose session ended: nothing went wrong (RFC 9113, section 7).
const CANCEL: u32 = 8;

/// Relays the body as it comes, sends up what is left of the request's, and lets go when the session ends.
pub(super) async fn pump(
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
            () = pull(&mut leash) => {
                http.shutdown_with_reason(CANCEL.into());
                return Ended::Aborted;
            }
            read = line.read_body() => {
                let Ok(piece) = read else { return Ended::Aborted };
                let last = piece.is_none() || line.is_body_done();
                if http.write_response_body(piece.unwrap_or_default(), last).await.is_err() {
                    return Ended::Aborted;
                }
                if last {
                    return Ended::Complete;
                }
            },
            piece = http.read_body_or_idle(upload_done), if !upload.is_refused() => match piece {
                Ok(piece) => {
                    if send_piece(line, piece, http.is_body_done(), upload).await.is_err() {
                        return Ended::Aborted;
                    }
                }
                Err(_) => return Ended::Aborted,
            },
        }
    }
}

/// Relays an upgraded connection both ways until either side, or the session, ends.
pub(super) async fn tunnel(http: &mut ServerSession, line: &mut Line, mut leash: Option<&mut Leash<'_>>) -> Ended {
    const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
    http.set_read_timeout(None);
    loop {
        let moved = tokio::select! {
            read = line.read_body() => match read {
                Ok(Some(piece)) => {
                    matches!(tokio::time::timeout(WRITE_TIMEOUT, http.write_response_body(piece, false)).await, Ok(Ok(())))
                }
                Ok(None) | Err(_) => false,
            },
            read = http.read_request_body() => match read {
                Ok(Some(piece)) if piece.is_empty() => true,
                Ok(Some(piece)) => {
                    matches!(tokio::time::timeout(WRITE_TIMEOUT, line.send(&[&piece])).await, Ok(Ok(())))
                }
                Ok(None) | Err(_) => false,
            },
            () = pull(&mut leash) => false,
        };
        if !moved {
            line.shut().await;
            return Ended::Aborted;
        }
    }
}

/// What holds a stream to its session: it is pulled when the session ends here, and looks now and then whether it
/// ended elsewhere or by its time.
pub(super) struct Leash<'l> {
    gateway: &'l Gateway,
    permit: &'l Permit,
    ended: broadcast::Receiver<SessionKey>,
    look: Interval,
    /// A look at the store that is under way; it outlives the wait that began it.
    doubt: Option<JoinHandle<bool>>,
}

impl<'l> Leash<'l> {
    pub(super) fn new(gateway: &'l Gateway, permit: &'l Permit) -> Self {
        const LOOK_EVERY: Duration = Duration::from_secs(5);
        let look = tokio::time::interval_at(tokio::time::Instant::now() + LOOK_EVERY, LOOK_EVERY);
        Self { gateway, permit, ended: gateway.broker.ended(), look, doubt: None }
    }

    /// Waits for the end of the session.
    async fn pulled(&mut self) {
        loop {
            tokio::select! {
                heard = self.ended.recv() => match heard {
                    Ok(key) if key == *self.permit.key() => return,
                    Ok(_) => {}
                    Err(_) => self.look(),
                },
                _ = self.look.tick() => self.look(),
                holds = settled(&mut self.doubt) => {
                    self.doubt = None;
                    if !holds {
                        return;
                    }
                }
            }
        }
    }

    fn look(&mut self) {
        if self.doubt.is_none() {
            let (broker, permit) = (self.gateway.broker.clone(), self.permit.clone());
            self.doubt = Some(tokio::spawn(async move { broker.holds(&permit).await }));
        }
    }
}

/// What a look found; what broke off found nothing against the stream.
async fn settled(doubt: &mut Option<JoinHandle<bool>>) -> bool {
    match doubt {
        Some(doubt) => doubt.await.unwrap_or(true),
        None => pending().await,
    }
}

async fn pull(leash: &mut Option<&mut Leash<'_>>) {
    match leash {
        Some(leash) => leash.pulled().await,
        None => pending().await,
    }
}
