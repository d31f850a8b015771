//! Files beside the configuration that are written anew under a running gateway: authorities, key sets, mounted folders.
//! What they hold by now holds, and what cannot be used leaves what held.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{HandshakeKind, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::process::ProcessReplica;
use crate::steps::JOHN;
use crate::world::{Certificate, Redis, World, eventually, plain_get};

const REFUSED: &str = "gateway_config_refused";
const APPLIED: &str = r#"gateway_config_reloads_total{outcome="applied"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_of_redis_is_tried_and_taken_and_while_redis_is_away_it_is_taken_untried() {
    let (world, redis) = (World::builder().redis().start().await, Redis::start_with_tls("gateway", "hush-hush").await);
    let [folder, next] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let trusted = folder.path().join("redis-ca.pem");
    std::fs::copy(redis.certificate(), &trusted).unwrap();
    let url = redis.tls_url();
    let way = [
        ("STORE__REDIS__URL", &*url),
        ("STORE__REDIS__USERNAME", "gateway"),
        ("STORE__REDIS__PASSWORD", "hush-hush"),
        ("STORE__REDIS__CA_FILE", trusted.to_str().unwrap()),
    ];
    let gateway = ProcessReplica::start(&world, &way).await;
    let ready = async || plain_get(gateway.admin, "/readyz").starts_with("HTTP/1.1 200");
    let signs_in = async || world.ask_at(gateway.public, crate::steps::ANONYMOUS_LOGIN).send().await.status;

    let [certificate, key] = Certificate::new().write(next.path());
    std::fs::copy(&certificate, &trusted).unwrap();
    eventually("an authority that Redis does not stand on is refused", async || gateway.metric(REFUSED) == 1.0).await;
    let said = "store.redis: its credentials cannot be used: unavailable: no encrypted connection: ";
    assert!(gateway.logged().contains(said), "{}", gateway.logged());
    assert_eq!((ready().await, signs_in().await), (true, 200), "the old one holds");

    redis.command(&format!("CONFIG SET tls-cert-file {certificate} tls-key-file {key}"));
    redis.command("CLIENT KILL USER gateway");
    gateway.hang_up();
    eventually("it is taken", async || gateway.metric(REFUSED) == 0.0).await;
    eventually("it holds", ready).await;
    assert_eq!(signs_in().await, 200);

    Certificate::new().write(folder.path());
    std::fs::copy(folder.path().join("certificate.pem"), &trusted).unwrap();
    eventually("a wrong one is refused", async || gateway.metric(REFUSED) == 1.0).await;
    let before = gateway.metric(APPLIED);
    redis.kill();
    eventually("Redis is away", async || !ready().await).await;
    gateway.hang_up();
    eventually("it is taken untried", async || gateway.metric(APPLIED) > before).await;
    assert!(!gateway.logged().contains("take effect at the next start"), "{}", gateway.logged());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_of_clients_holds_for_the_connections_to_come() {
    let [folder, clients] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [known, other] = ["known", "other"].map(|name| {
        let folder = clients.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        Certificate::new().write(&folder)
    });
    let [certificate, key] = Certificate::new().write(folder.path());
    let authority = folder.path().join("clients.pem");
    std::fs::copy(&known[0], &authority).unwrap();
    let files = [
        ("LISTEN__TLS__CERTIFICATE_FILE", &*certificate),
        ("LISTEN__TLS__KEY_FILE", &*key),
        ("LISTEN__TLS__CLIENT_CA_FILE", authority.to_str().unwrap()),
    ];
    let world = World::new().await;
    let gateway = ProcessReplica::start(&world, &files).await;
    let port = gateway.public.port();
    let asks = async |pair: &[String; 2]| served(&client(&certificate, pair), port).await.is_some();
    let earlier = client(&certificate, &known);
    assert_eq!(served(&earlier, port).await, Some(HandshakeKind::Full));
    assert_eq!(served(&earlier, port).await, Some(HandshakeKind::Resumed));
    assert!(asks(&known).await && !asks(&other).await);

    std::fs::copy(&other[0], &authority).unwrap();
    eventually("the other one's client is let in", async || asks(&other).await).await;
    assert!(!asks(&known).await, "the known one's is not any more");
    assert_eq!(served(&earlier, port).await, None, "nor one that takes up a session of before");
    let names = [&known[0], &other[0]].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(&authority, names).unwrap();
    eventually("both are", async || asks(&known).await && asks(&other).await).await;
    assert!(!gateway.logged().contains("take effect at the next start"), "{}", gateway.logged());
}

/// A client that trusts `authority` and shows what `pair` names. It keeps sessions for its next connection.
fn client(authority: &str, pair: &[String; 2]) -> TlsConnector {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let certificate = |file: &str| CertificateDer::from_pem_file(file).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate(authority)).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let key = PrivateKeyDer::from_pem_file(&pair[1]).unwrap();
    Arc::new(config.with_client_auth_cert(vec![certificate(&pair[0])], key).unwrap()).into()
}

/// How the handshake went of a connection over which products were answered.
async fn served(client: &TlsConnector, port: u16) -> Option<HandshakeKind> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut stream = client.connect(ServerName::try_from("localhost").unwrap(), stream).await.ok()?;
    let request = "GET /product/acme/products HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = Vec::new();
    stream.write_all(request.as_bytes()).await.ok()?;
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).contains("Espresso").then(|| stream.get_ref().1.handshake_kind().unwrap())
}

/// The Ed25519 example of RFC 8037, appendix A, as PKCS#8.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
const PUBLIC_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_taken_out_of_a_key_set_is_trusted_no_more() {
    let (world, folder) = (World::new().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("jwks.json");
    let set =
        |key_id: &str| json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": key_id, "x": PUBLIC_X}]}).to_string();
    let token = |key_id: &str| {
        let header = Header { kid: Some(key_id.into()), ..Header::new(Algorithm::EdDSA) };
        let key = EncodingKey::from_ed_pem(PRIVATE.as_bytes()).unwrap();
        jsonwebtoken::encode(&header, &json!({"sub": JOHN, "exp": 4_000_000_000_u64}), &key).unwrap()
    };
    std::fs::write(&file, set("old")).unwrap();
    let section = [
        ("TENANTS__ACME__SAAS_TOKEN__MODE", "jwks"),
        ("TENANTS__ACME__SAAS_TOKEN__JWKS_FILE", file.to_str().unwrap()),
        ("TENANTS__ACME__SAAS_TOKEN__ACCEPT", "true"),
    ];
    let gateway = ProcessReplica::start(&world, &section).await;
    let login = async |key_id: &str| {
        world.simulator.set(json!({"saas_token_override": token(key_id)})).await;
        let login = world.ask_at(gateway.public, "POST /customer/acme/login").json(&crate::steps::john());
        login.send().await.status
    };
    let rights = async |credential: &str| {
        crate::steps::who(&world.ask_at(gateway.public, "GET /customer/acme/me").bearer(credential).send().await)
    };
    assert_eq!(login("old").await, 200);
    assert_eq!(rights(&token("old")).await, JOHN);
    gateway.hang_up();
    eventually("it is read again", async || gateway.metric(APPLIED) == 1.0).await;

    std::fs::write(&file, "{").unwrap();
    eventually("what is no set is refused", async || gateway.metric(REFUSED) == 1.0).await;
    let said = format!("tenants.acme.saas_token.jwks_file: {}: no key in it", file.display());
    assert!(gateway.logged().contains(&said), "{}", gateway.logged());
    assert_eq!(rights(&token("old")).await, JOHN, "what was known stays known");

    std::fs::write(&file, set("new")).unwrap();
    eventually("the set is another", async || gateway.metric(REFUSED) == 0.0).await;
    assert_eq!(rights(&token("old")).await, "session_ended");
    assert_eq!([login("old").await, login("new").await], [502, 200]);
    assert_eq!(rights(&token("new")).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_whose_link_is_swapped_and_a_pipe_in_the_place_of_a_secret_keep_nobody_from_following() {
    let (world, folder) = (World::new().await, tempfile::tempdir().unwrap());
    let mounted = |name: &str, token: &str| {
        let version = folder.path().join(name);
        std::fs::create_dir(&version).unwrap();
        std::fs::write(version.join("token"), token).unwrap();
        swap(folder.path(), name);
    };
    let file = folder.path().join("token");
    std::os::unix::fs::symlink("..data/token", &file).unwrap();
    mounted("..first", "the-first-admin-token");
    let gateway = ProcessReplica::start(&world, &[("ADMIN__TOKEN_FILE", file.to_str().unwrap())]).await;
    let opens = async |token: &str| {
        let ask = world.ask_at(gateway.admin, "GET /admin/sessions?tenant=acme&customer=x").bearer(token);
        ask.send().await.status == 200
    };
    assert!(opens("the-first-admin-token").await);
    mounted("..second", "the-other-admin-token");
    eventually("what the link leads to holds", async || opens("the-other-admin-token").await).await;

    std::fs::create_dir(folder.path().join("..third")).unwrap();
    assert!(Command::new("mkfifo").arg(folder.path().join("..third/token")).status().unwrap().success());
    swap(folder.path(), "..third");
    gateway.hang_up();
    eventually("a pipe is refused", async || gateway.metric(REFUSED) == 1.0).await;
    let said = format!("cannot read {}: it is no regular file", file.display());
    assert!(gateway.logged().contains(&said), "{}", gateway.logged());
    assert!(opens("the-other-admin-token").await, "what held holds");
    mounted("..fourth", "the-third-admin-token");
    eventually("what follows is taken", async || opens("the-third-admin-token").await).await;
}

/// Has `..data` in `folder` lead to `version`, at once, as a Kubernetes volume does.
fn swap(folder: &Path, version: &str) {
    std::os::unix::fs::symlink(version, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}
