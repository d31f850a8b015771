//! Connections to the API: resolved in the background, pooled, bounded in every wait.
//! No name is resolved on the way of a request, and certificates are always checked against the API's own name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::uri::Authority;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::protocols::Stream;
use pingora::upstreams::peer::HttpPeer;

use super::idle::Idle;
use super::line::Line;
use crate::config::UpstreamSection;
use crate::error::GatewayError;

/// The API, as the edge reaches it.
pub(super) struct Upstream {
    connector: TransportConnector,
    idle: Idle,
    section: UpstreamSection,
    authority: Authority,
    secure: bool,
    host: HeaderValue,
    peers: ArcSwap<Vec<(SocketAddr, HttpPeer)>>,
    turn: AtomicUsize,
}

impl Upstream {
    /// The API of `section`, for `threads` that forward requests; none when its address is no URL.
    pub(super) fn new(section: &UpstreamSection, threads: usize) -> Option<Self> {
        let (secure, rest) = match section.base_url.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, section.base_url.strip_prefix("http://")?),
        };
        let authority: Authority = rest.parse().ok()?;
        Some(Self {
            // It only connects: its own pool stays empty.
            connector: TransportConnector::new(Some(ConnectorOptions::new(1))),
            idle: Idle::new(section.keepalive_connections.div_ceil(threads.max(1)), section.keepalive_timeout),
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
                let peers: Vec<_> = addresses.map(|address| (address, self.peer(address))).collect();
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

    /// A connection: a pooled one unless it has to be new; another address is tried where one cannot be reached.
    pub(super) async fn connect(&self, anew: bool, read_timeout: Option<Duration>) -> Result<Line, GatewayError> {
        let pooled_to = if anew { None } else { self.address() };
        let idle = pooled_to.and_then(|address| Some((self.idle.take(address)?, address)));
        let reused = idle.is_some();
        let (stream, address) = match idle {
            Some(idle) => idle,
            None => Box::pin(self.reach()).await?,
        };
        let read_timeout = read_timeout.unwrap_or(self.section.read_timeout);
        Ok(Line::new(stream, reused, address, read_timeout, self.section.write_timeout))
    }

    /// The address whose turn it is.
    fn address(&self) -> Option<SocketAddr> {
        let peers = self.peers.load();
        let turn = self.turn.load(Ordering::Relaxed);
        peers.get(turn % peers.len().max(1)).map(|(address, _)| *address)
    }

    /// Connects to the first address that can be reached.
    async fn reach(&self) -> Result<(Stream, SocketAddr), GatewayError> {
        let peers = self.peers.load_full();
        let mut failure = GatewayError::UpstreamFailed("its name is not resolved");
        for _ in 0..peers.len().min(3) {
            let turn = self.turn.load(Ordering::Relaxed);
            let (address, peer) = &peers[turn % peers.len()];
            match self.connector.new_stream(peer).await {
                Ok(stream) => return Ok((stream, *address)),
                Err(_) => {
                    failure = GatewayError::UpstreamFailed("no connection");
                    self.turn.store(turn.wrapping_add(1), Ordering::Relaxed);
                }
            }
        }
        Err(failure)
    }

    /// Gives a connection back after a complete exchange.
    pub(super) fn release(&self, line: Line) {
        if let Some((stream, address)) = line.into_idle() {
            self.idle.keep(stream, address);
        }
    }

    /// Drops idle connections in their time; runs until dropped.
    pub(super) async fn keep_swept(&self) {
        const EVERY: Duration = Duration::from_secs(5);
        loop {
            tokio::time::sleep(EVERY).await;
            self.idle.sweep();
        }
    }
}
