//! The peers, each as its own documentation would set it up for this work: upstream connections kept, no logs, one
//! worker. What a peer does of the gateway's work stands beside its name.

use std::fs;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::mint::{Minted, PASSPHRASE};
use crate::program::{Program, free_port};

/// A peer that can be measured.
pub(crate) struct Peer {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// What of the work it does.
    pub(crate) does: &'static str,
    /// Whether the client brings both tokens itself.
    pub(crate) is_brought_tokens: bool,
    command: fn(&Site<'_>) -> Result<Command>,
}

/// What a peer is configured with.
struct Site<'s> {
    folder: &'s Path,
    port: u16,
    api: SocketAddr,
    session: &'s Minted,
    tls: Option<&'s Certificate>,
}

/// A certificate and its key, as files.
pub(crate) struct Certificate {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    /// Both in one file.
    pub(crate) both: PathBuf,
}

/// The peers that Debian and PyPI give.
pub(crate) const PEERS: [Peer; 7] = [
    Peer { name: "nginx", does: "proxies", is_brought_tokens: true, command: nginx },
    Peer { name: "nginx + Lua", does: "cookie, HS256, inject", is_brought_tokens: false, command: nginx_lua },
    Peer { name: "HAProxy", does: "proxies", is_brought_tokens: true, command: haproxy },
    Peer { name: "HAProxy map + jwt", does: "cookie, HS256, inject", is_brought_tokens: false, command: haproxy_map },
    Peer { name: "Envoy", does: "proxies", is_brought_tokens: true, command: envoy },
    Peer { name: "Caddy", does: "proxies", is_brought_tokens: true, command: caddy },
    Peer { name: "Traefik", does: "proxies", is_brought_tokens: true, command: traefik },
];

impl Peer {
    /// Starts it between a free port and `api`; it knows `session` and no other.
    pub(crate) fn start(&self, api: SocketAddr, session: &Minted, tls: Option<&Certificate>) -> Result<Program> {
        let (folder, port) = (TempDir::new()?, free_port()?);
        let command = (self.command)(&Site { folder: folder.path(), port, api, session, tls })?;
        Program::start(command, port, folder)
    }
}

/// A program of Debian's packages, or of those that `make bench` takes from PyPI.
fn program(name: &str) -> Command {
    let installed = Path::new("target/peers/bin").join(name);
    let mut command = if installed.exists() { Command::new(installed) } else { Command::new(name) };
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn nginx(site: &Site<'_>) -> Result<Command> {
    nginx_with(site, "", "", "proxy_pass http://api;")
}

fn nginx_with(site: &Site<'_>, modules: &str, http: &str, location: &str) -> Result<Command> {
    let Site { folder, port, api, tls, .. } = site;
    let folder = folder.display();
    let (ssl, certificate) = match tls {
        Some(tls) => (
            " ssl",
            format!(
                "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3;",
                tls.chain.display(),
                tls.key.display()
            ),
        ),
        None => ("", String::new()),
    };
    let text = format!(
        "{modules} worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log crit;\n\
         events {{ worker_connections 12000; }}\n\
         http {{\n access_log off; keepalive_requests 1000000000; tcp_nodelay on;\n\
         client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         upstream api {{ server {api}; keepalive 512; keepalive_requests 1000000000; }}\n{http}\n\
         server {{ listen 127.0.0.1:{port}{ssl}; {certificate}\n location / {{ {location} }} }}\n}}\n"
    );
    let file = site.folder.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = program("nginx");
    command.arg("-c").arg(file);
    Ok(command)
}

fn nginx_lua(site: &Site<'_>) -> Result<Command> {
    let session = site.session;
    let script = include_str!("../peers/session.lua");
    let script = script.replace("@passphrase@", PASSPHRASE).replace("@cookie@", session.cookie());
    let script = script.replace("@access@", &session.access).replace("@jwt@", &session.jwt);
    fs::write(site.folder.join("session.lua"), script)?;
    let modules = "load_module /usr/lib/nginx/modules/ndk_http_module.so;\n\
                   load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;\n";
    let http = format!(
        "lua_shared_dict sessions 16m;\n\
         lua_package_path '{}/?.lua;/usr/share/lua/5.1/?.lua;;'; lua_package_cpath '/usr/lib/x86_64-linux-gnu/lua/5.1/?.so;;';\n\
         init_by_lua_block {{ session = require 'session' }}",
        site.folder.display()
    );
    let location = "set $access ''; set $jwt ''; access_by_lua_block { session() }\n\
                    proxy_set_header Authorization $access; proxy_set_header saas-token $jwt;\n\
                    proxy_set_header Connection ''; proxy_set_header Cookie ''; proxy_pass http://api;";
    nginx_with(site, modules, &http, location)
}

fn haproxy(site: &Site<'_>) -> Result<Command> {
    haproxy_with(site, "")
}

fn haproxy_map(site: &Site<'_>) -> Result<Command> {
    let session = site.session;
    let (tokens, jwts) = (site.folder.join("tokens.map"), site.folder.join("jwts.map"));
    fs::write(&tokens, format!("{} {}\n", session.cookie(), session.access))?;
    fs::write(&jwts, format!("{} {}\n", session.cookie(), session.jwt))?;
    let rules = format!(
        "  http-request set-var(txn.token) req.cook(emporix-session),map_str({})\n\
         \x20 http-request set-var(txn.jwt) req.cook(emporix-session),map_str({})\n\
         \x20 http-request deny deny_status 401 unless {{ var(txn.token) -m found }}\n\
         \x20 http-request deny deny_status 401 unless {{ var(txn.jwt),jwt_verify(\"HS256\",\"{PASSPHRASE}\") -m int 1 }}\n\
         \x20 http-request set-var(txn.exp) var(txn.jwt),jwt_payload_query('$.exp','int')\n\
         \x20 http-request set-var(txn.now) date()\n\
         \x20 http-request deny deny_status 401 if {{ var(txn.exp),sub(txn.now) -m int lt 0 }}\n\
         \x20 http-request set-header Authorization \"Bearer %[var(txn.token)]\"\n\
         \x20 http-request set-header saas-token %[var(txn.jwt)]\n\
         \x20 http-request del-header Cookie\n",
        tokens.display(),
        jwts.display()
    );
    haproxy_with(site, &rules)
}

fn haproxy_with(site: &Site<'_>, rules: &str) -> Result<Command> {
    let Site { port, api, tls, .. } = site;
    let tls = tls.map_or(String::new(), |tls| format!(" ssl crt {} alpn h2,http/1.1", tls.both.display()));
    let text = format!(
        "global\n  nbthread 1\n  maxconn 9900\n  ssl-default-bind-options ssl-min-ver TLSv1.3\n\
         defaults\n  mode http\n  timeout client 1h\n  timeout server 1h\n  timeout connect 5s\n  http-reuse always\n\
         backend api\n  server api {api} pool-max-conn -1\n\
         frontend public\n  bind 127.0.0.1:{port}{tls}\n{rules}  default_backend api\n"
    );
    let file = site.folder.join("haproxy.cfg");
    fs::write(&file, text)?;
    let mut command = program("haproxy");
    command.args(["-db", "-f"]).arg(file);
    Ok(command)
}

fn envoy(site: &Site<'_>) -> Result<Command> {
    let Site { port, api, tls, .. } = site;
    let socket = tls.map_or(String::new(), |tls| {
        format!(
            "\x20     transport_socket:\n        name: tls\n        typed_config:\n          \
             '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n          \
             common_tls_context:\n            alpn_protocols: [h2, http/1.1]\n            \
             tls_certificates: [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}]\n",
            tls.chain.display(),
            tls.key.display()
        )
    });
    let text = include_str!("../peers/envoy.yaml");
    let text = text.replace("@port@", &port.to_string()).replace("@api@", &api.port().to_string());
    let file = site.folder.join("envoy.yaml");
    fs::write(&file, text.replace("@transport_socket@\n", &socket))?;
    let mut command = program("envoy");
    command.arg("-c").arg(file).args(["--concurrency", "1", "--disable-hot-restart", "-l", "error"]);
    Ok(command)
}

fn caddy(site: &Site<'_>) -> Result<Command> {
    let Site { port, api, folder, .. } = site;
    let text = format!(
        "{{\n admin off\n auto_https off\n persist_config off\n log {{\n  level ERROR\n }}\n}}\n\
         http://:{port} {{\n bind 127.0.0.1\n reverse_proxy {api} {{\n  transport http {{\n   \
         keepalive_idle_conns_per_host 512\n  }}\n }}\n}}\n"
    );
    let file = site.folder.join("Caddyfile");
    fs::write(&file, text)?;
    let mut command = program("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
    command.env("HOME", folder).env("GOMAXPROCS", "1");
    Ok(command)
}

fn traefik(site: &Site<'_>) -> Result<Command> {
    let Site { port, api, folder, .. } = site;
    let routes = folder.join("routes.yml");
    fs::write(
        &routes,
        format!(
            "http:\n  routers: {{all: {{rule: 'PathPrefix(`/`)', service: api, entryPoints: [web]}}}}\n  \
             services: {{api: {{loadBalancer: {{servers: [{{url: 'http://{api}'}}]}}}}}}\n"
        ),
    )?;
    let file = folder.join("traefik.yml");
    fs::write(
        &file,
        format!(
            "global: {{checkNewVersion: false, sendAnonymousUsage: false}}\nlog: {{level: ERROR}}\n\
             entryPoints: {{web: {{address: '127.0.0.1:{port}'}}}}\nproviders: {{file: {{filename: {}}}}}\n",
            routes.display()
        ),
    )?;
    let mut command = program("traefik");
    command.arg(format!("--configFile={}", file.display())).env("HOME", folder).env("GOMAXPROCS", "1");
    Ok(command)
}

/// A certificate of localhost, made for this run.
pub(crate) fn certificate(folder: &Path) -> Result<Certificate> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(Error::other)?;
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let files =
        Certificate { chain: folder.join("chain.pem"), key: folder.join("key.pem"), both: folder.join("both.pem") };
    fs::write(&files.chain, &chain)?;
    fs::write(&files.key, &key)?;
    fs::write(&files.both, chain + &key)?;
    Ok(files)
}
