//! Where Redis is: one server, the primary that Sentinel names, or a cluster; and how a line to it is opened.
//! A line speaks to primaries only, and is the same to its users whatever stands behind it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, ProtocolVersion,
    RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Mutex;

use super::hearing::Listener;
use crate::config::{RedisSection, RedisTopology};

/// Redis, as the configuration describes it.
pub(super) enum Deployment {
    /// One server.
    Standalone(Box<Client>),
    /// The primary of a service; Sentinel is asked anew for each line, for it may be another one by now.
    Sentinel(Box<Mutex<SentinelClient>>),
    /// A cluster, by some of its nodes.
    Cluster(Box<(RedisSection, Option<TlsCertificates>)>),
}

/// Redis as it is to be spoken to by now: its credentials change.
pub(super) type CurrentDeployment = Arc<ArcSwap<Deployment>>;

/// A connection that many may use at once.
#[derive(Clone)]
pub(super) enum Line {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// The bounds on opening a connection and on one answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    pub(super) response: Duration,
}

impl Timeouts {
    /// The bound on opening a line as a whole: asking a Sentinel that does not answer, then another, then the primary.
    pub(super) fn opening(&self) -> Duration {
        const AT_LEAST: Duration = Duration::from_secs(5);
        (4 * self.connect).max(AT_LEAST)
    }
}

impl Deployment {
    /// What `section` describes. Opens nothing.
    pub(super) fn new(section: &RedisSection) -> RedisResult<Self> {
        let certificates = certificates(section)?;
        Ok(match section.topology {
            RedisTopology::Standalone => Self::Standalone(Box::new(standalone(section, certificates)?)),
            RedisTopology::Sentinel => Self::Sentinel(Box::new(Mutex::new(sentinel(section, certificates)?))),
            RedisTopology::Cluster => {
                // Faults of the addresses are better known now than when the first line is opened.
                cluster(section, certificates.clone(), None)?;
                Self::Cluster(Box::new((section.clone(), certificates)))
            }
        })
    }

    /// A new line; what the server pushes goes to `listener`.
    pub(super) async fn open(&self, timeouts: Timeouts, listener: Option<Listener>) -> RedisResult<Line> {
        let client = match self {
            Self::Standalone(client) => Client::clone(client),
            Self::Sentinel(sentinel) => sentinel.lock().await.async_get_client().await?,
            Self::Cluster(cluster_at) => {
                let (section, certificates) = &**cluster_at;
                let client = cluster(section, certificates.clone(), listener)?;
                return Ok(Line::Cluster(client.get_async_connection().await?));
            }
        };
        // Whoever asks bounds the wait for the answer; a second timer would be a system call more for each command.
        let mut config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(timeouts.connect)).set_response_timeout(None);
        if let Some(listener) = listener {
            config = config.set_push_sender(listener);
        }
        Ok(Line::Node(client.get_multiplexed_async_connection_with_config(&config).await?))
    }
}

impl Line {
    /// Asks for the messages of `channel`.
    pub(super) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Node(connection) => connection.subscribe(channel).await,
            Self::Cluster(connection) => connection.subscribe(channel).await,
        }
    }

    /// Says `message` on `channel` to every primary. Returns how many took it.
    pub(super) async fn say(&mut self, channel: &str, message: &[u8]) -> RedisResult<usize> {
        let say = redis::cmd("PUBLISH").arg(channel).arg(message).to_owned();
        match self {
            Self::Node(connection) => say.exec_async(connection).await.map(|()| 1),
            Self::Cluster(connection) => {
                let everywhere = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                Ok(match connection.route_command(say, everywhere).await? {
                    Value::Map(answers) => answers.len(),
                    Value::Array(answers) => answers.len(),
                    _ => 1,
                })
            }
        }
    }

    /// Whether some primary of a cluster answers. One server serves as a whole or not at all.
    pub(super) async fn serves_in_part(&mut self) -> bool {
        let Self::Cluster(connection) = self else { return false };
        let anywhere = (MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::OneSucceeded));
        connection.route_command(redis::cmd("PING"), RoutingInfo::MultiNode(anywhere)).await.is_ok()
    }
}

impl ConnectionLike for Line {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Node(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Node(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}

fn standalone(section: &RedisSection, certificates: Option<TlsCertificates>) -> RedisResult<Client> {
    let url = section.url.as_ref().map_or("", |url| url.expose());
    let info = url.into_connection_info()?;
    let mut settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    if let Some(username) = &section.username {
        settings = settings.set_username(username.as_str());
    }
    if let Some(password) = &section.password {
        settings = settings.set_password(password.expose());
    }
    let info = info.set_redis_settings(settings).set_tcp_settings(without_delay());
    match certificates {
        None => Client::open(info),
        Some(certificates) => Client::build_with_tls(info, certificates),
    }
}

fn sentinel(section: &RedisSection, certificates: Option<TlsCertificates>) -> RedisResult<SentinelClient> {
    let (nodes, encrypted) = nodes(section)?;
    let addresses = nodes.iter().map(|node| node.addr().clone());
    let mut builder = SentinelClientBuilder::new(addresses, &section.sentinel.service, SentinelServerType::Master)?
        .set_client_to_redis_protocol(ProtocolVersion::RESP3)
        .set_client_to_redis_tcp_settings(without_delay());
    if let Some(username) = &section.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &section.password {
        builder = builder.set_client_to_redis_password(password.expose());
    }
    if let Some(username) = &section.sentinel.username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = &section.sentinel.password {
        builder = builder.set_client_to_sentinel_password(password.expose());
    }
    if encrypted {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        if let Some(certificates) = certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
    }
    builder.build()
}

fn cluster(
    section: &RedisSection,
    certificates: Option<TlsCertificates>,
    listener: Option<Listener>,
) -> RedisResult<ClusterClient> {
    let (nodes, encrypted) = nodes(section)?;
    let mut builder = ClusterClientBuilder::new(nodes)
        .use_protocol(ProtocolVersion::RESP3)
        .tcp_settings(without_delay())
        .connection_timeout(section.connect_timeout)
        .response_timeout(section.response_timeout)
        // For as long as the caller's patience lasts, and no longer: what was given up is not tried again. A slot on the
        // move refuses what touches keys of which only some have moved, and a session's tombstone is seldom there.
        .retries(12)
        .min_retry_wait(10)
        .max_retry_wait(50);
    if let Some(username) = &section.username {
        builder = builder.username(username);
    }
    if let Some(password) = &section.password {
        builder = builder.password(password.expose());
    }
    if let Some(certificates) = certificates.filter(|_| encrypted) {
        builder = builder.certs(certificates);
    }
    if let Some(listener) = listener {
        builder = builder.push_sender(listener);
    }
    builder.build()
}

/// The nodes of `section`, and whether they speak TLS.
fn nodes(section: &RedisSection) -> RedisResult<(Vec<ConnectionInfo>, bool)> {
    let parsed: RedisResult<Vec<_>> = section.nodes.iter().map(|node| node.as_str().into_connection_info()).collect();
    Ok((parsed?, section.nodes.iter().any(|node| node.starts_with("rediss://"))))
}

/// What is wrong with the addresses and certificates of `section`, by key.
pub(super) fn faults(section: &RedisSection) -> Vec<(String, String)> {
    const EXPECTED: &str = "expected redis://[user:password@]host[:port][/database], or the same with rediss://";
    let is_no_address = |address: &str| address.into_connection_info().is_err();
    let url = section.url.as_ref().filter(|_| section.topology == RedisTopology::Standalone);
    let url = url.filter(|url| is_no_address(url.expose())).map(|_| "url".to_owned());
    let nodes = section.nodes.iter().enumerate().filter(|(_, node)| is_no_address(node));
    let wrong = url.into_iter().chain(nodes.map(|(index, _)| format!("nodes.{index}")));
    let unusable = section.ca_file.as_ref().and_then(|file| {
        let why = match file.held() {
            Err(why) => why.to_owned(),
            Ok(text) => match CertificateDer::pem_slice_iter(text).next() {
                Some(Ok(_)) => return None,
                _ => "no certificate in it".to_owned(),
            },
        };
        Some(("ca_file".to_owned(), format!("{}: {why}", file.path().display())))
    });
    wrong.map(|key| (key, EXPECTED.to_owned())).chain(unusable).collect()
}

fn certificates(section: &RedisSection) -> RedisResult<Option<TlsCertificates>> {
    let Some(file) = &section.ca_file else { return Ok(None) };
    let root_cert = file.held().map_err(|_| (ErrorKind::InvalidClientConfig, "ca_file cannot be read"))?;
    Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(root_cert.to_vec()) }))
}

fn without_delay() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}
