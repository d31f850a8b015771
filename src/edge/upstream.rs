//! Connections to the API: resolved in the background, pooled, bounded in every wait.
//! No name is resolved on the way of a request, and certificates are always checked against the API's own name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::uri::Authority;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::v1::Connector;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;

use crate::config::UpstreamSection;
use crate::error::GatewayError;

/// The API, as the edge reaches it.
pub(super) struct Upstream {
    connector: Connector,
    section: UpstreamSection,
    authority: Authority,
    secure: bool,
    host: HeaderValue,
    peers: ArcSwap<Vec<Arc<HttpPeer>>>,
    turn: AtomicUsize,
}

/// A connection to the API, and where it goes back to.
pub(super) struct Line {
    pub(super) session: HttpSession,
    /// Whether it was used before, and so may turn out to be closed.
    pub(super) reused: bool,
    peer: Arc<HttpPeer>,
}

impl Upstream {
    /// The API of `section`; none when its address is no URL.
    pub(super) fn new(section: &UpstreamSection) -> Option<Self> {
        let (secure, rest) = match section.base_url.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, section.base_url.strip_prefix("http://")?),
        };
        let authority: Authority = rest.parse().ok()?;
        Some(Self {
            connector: Connector::new(Some(ConnectorOptions::new(section.keepalive_connections))),
            host: HeaderValue::from_str(authority.as_str()).ok()?,
            section: section.clone(),
            authority,
            secure,
            peers: ArcSwap::default(),
            turn: AtomicUsize::new(0),
        })
    }

    /// The API's own name, for `Host`.
    pub(super) const fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// How long to wait for a stream that says nothing.
    pub(super) const fn stream_idle_timeout(&self) -> Duration {
        self.section.stream_idle_timeout
    }

    /// Resolves the API's name now and then; runs until dropped.
    pub(super) async fn keep_resolved(&self) {
        loop {
            self.resolve().await;
            let pause = if self.peers.load().is_empty() { Duration::from_secs(1) } else { self.section.resolve_every };
            tokio::time::sleep(pause).await;
        }
    }

    /// Resolves the API's name once. What cannot be resolved keeps the addresses that are known.
    pub(super) async fn resolve(&self) {
        let port = self.authority.port_u16().unwrap_or(if self.secure { 443 } else { 80 });
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        match tokio::net::lookup_host((host, port)).await {
            Ok(addresses) => {
                let peers: Vec<Arc<HttpPeer>> = addresses.map(|address| Arc::new(self.peer(address))).collect();
                if !peers.is_empty() {
                    self.peers.store(Arc::new(peers));
                }
            }
            Err(error) => tracing::warn!(%error, "the API's name cannot be resolved"),
        }
    }

    fn peer(&self, address: SocketAddr) -> HttpPeer {
        let mut peer = HttpPeer::new(address, self.secure, self.authority.host().to_owned());
        peer.options.connection_timeout = Some(self.section.connect_timeout);
        peer.options.total_connection_timeout = Some(self.section.connect_timeout);
        peer.options.read_timeout = Some(self.section.read_timeout);
        peer.options.write_timeout = Some(self.section.write_timeout);
        peer.options.idle_timeout = Some(self.section.keepalive_timeout);
        peer
    }

    /// A connection: a pooled one, or a new one; another address is tried where one cannot be reached.
    pub(super) async fn connect(&self, read_timeout: Option<Duration>) -> Result<Line, GatewayError> {
        let peers = self.peers.load_full();
        let mut failure = GatewayError::UpstreamFailed("its name is not resolved");
        for _ in 0..peers.len().min(3) {
            let turn = self.turn.load(Ordering::Relaxed);
            let peer = peers[turn % peers.len()].clone();
            match self.connector.get_http_session(&*peer).await {
                Ok((mut session, reused)) => {
                    session.read_timeout = Some(read_timeout.unwrap_or(self.section.read_timeout));
                    session.write_timeout = Some(self.section.write_timeout);
                    return Ok(Line { session, reused, peer });
                }
                Err(_) => {
                    failure = GatewayError::UpstreamFailed("no connection");
                    self.turn.store(turn.wrapping_add(1), Ordering::Relaxed);
                }
            }
        }
        Err(failure)
    }

    /// Gives a connection back after a complete exchange.
    pub(super) async fn release(&self, line: Line) {
        let Line { session, peer, .. } = line;
        self.connector.release_http_session(session, &*peer, Some(self.section.keepalive_timeout)).await;
    }
}
