//! The gateway is started with something in its way: one clear line, a documented exit code, and nothing half begun.
//! A Redis that is not there, or refuses, is nothing to end for: it says so, is not ready, and waits.

use std::net::TcpListener;

use crate::errands::{program, said};
use crate::process::ProcessReplica;
use crate::world::{Certificate, Redis, World, eventually, free_port, plain_get};

const LISTENERS: [&str; 4] = ["listen.public", "admin.listen", "forward_auth.listen", "internal.listen"];

/// A configuration with every listener, Redis at `redis`, and `key` listening on `taken`.
fn configuration(redis: u16, key: &str, taken: u16) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let port = |own: &str| if own == key { taken } else { free_port() };
    std::fs::write(file.path(), listening(redis, port)).unwrap();
    file
}

/// The same with the port of each listener as `port` names it.
fn listening(redis: u16, port: impl Fn(&str) -> u16) -> String {
    format!(
        "listen: {{public: '127.0.0.1:{}'}}\n\
         admin: {{listen: '127.0.0.1:{}'}}\n\
         forward_auth: {{listen: '127.0.0.1:{}', trusted_peers: ['127.0.0.0/8']}}\n\
         internal: {{listen: '127.0.0.1:{}', token: 0123456789abcdef0123456789abcdef}}\n\
         upstream: {{base_url: 'http://127.0.0.1:9'}}\n\
         tenants: {{acme: {{client_id: storefront}}}}\n\
         store:\n  kind: redis\n  redis: {{url: 'redis://127.0.0.1:{redis}'}}\n  seal:\n    active: one\n    \
         keys: [{{id: one, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}}]\n",
        port("listen.public"),
        port("admin.listen"),
        port("forward_auth.listen"),
        port("internal.listen"),
    )
}

#[test]
fn a_port_in_use_is_found_before_redis_is_spoken_to() {
    let [taken, redis] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [port, redis_port] = [&taken, &redis].map(|listener| listener.local_addr().unwrap().port());
    redis.set_nonblocking(true).unwrap();
    for key in LISTENERS {
        let file = configuration(redis_port, key, port);
        let (code, _, errors) = said(&program(&["serve", "--config", file.path().to_str().unwrap()]));
        assert_eq!(code, Some(69), "{key}: {errors}");
        let clear = format!("{key}: cannot listen on 127.0.0.1:{port}: ");
        assert!(errors.lines().count() == 1 && errors.starts_with(&clear), "{key}: {errors}");
        assert!(redis.accept().is_err(), "{key}: Redis saw a connection");
    }
}

#[test]
fn what_cannot_be_used_is_one_line_with_its_place_before_any_listener_is_tried() {
    let held = [(); 5].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = held.each_ref().map(|listener| listener.local_addr().unwrap().port());
    let [redis, ..] = &held;
    redis.set_nonblocking(true).unwrap();
    // Who tried to listen would be told that somebody does.
    let usable = listening(ports[0], |of| ports[1 + LISTENERS.iter().position(|listener| *listener == of).unwrap()]);
    let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let ([certificate, key], [_, others_key]) =
        (Certificate::new().write(folder.path()), Certificate::new().write(other.path()));
    let tls = |of: &str, certificate: &str, key: &str| {
        format!("{of}: {{tls: {{certificate_file: '{certificate}', key_file: '{key}'}}, ")
    };
    let file = folder.path().join("gateway.yaml");
    let serve = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let (code, shown, said) = said(&program(&[&["serve", "--config", file.to_str().unwrap()], more].concat()));
        (code, shown + &said)
    };
    let (code, said) = serve(&usable, &[]);
    assert_eq!(code, Some(69), "it is usable but for the ports: {said}");
    let [listen, internal] = ["listen: {", "internal: {"];
    let nowhere = "cannot read /nowhere";
    for (from, to, place, why) in [
        (listen, &*tls("listen", "/nowhere.pem", &key), "listen.tls.certificate_file", "/nowhere.pem: "),
        (listen, &tls("listen", &certificate, "/nowhere.pem"), "listen.tls.key_file", "/nowhere.pem: "),
        (listen, &tls("listen", "/", &key), "listen.tls.certificate_file", "Is a directory"),
        (
            listen,
            &tls("listen", &certificate, &others_key),
            "listen.tls.key_file",
            "does not belong to the certificate",
        ),
        (internal, &tls("internal", &certificate, &others_key), "internal.tls.key_file", "does not belong to the"),
        (listen, "listen: {colour: red, ", "listen.colour", "unknown field"),
        ("admin: {", "admin: {token_file: /nowhere, ", "admin.token_file", nowhere),
        ("redis: {", "redis: {password_file: /nowhere, ", "store.redis.password_file", nowhere),
        (
            "secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
            "secret_file: /nowhere",
            "store.seal.keys.0.secret_file",
            nowhere,
        ),
        ("secret: MD", "secret: ", "store.seal.keys.0.secret", "32 bytes"),
        ("redis://", "mysql://", "store.redis.url", "expected redis://"),
        ("redis://127", "redis://[127", "store.redis.url", "expected redis://"),
        ("'http://", "'gopher://", "upstream.base_url", "http"),
        ("tenants:", "version: 2\ntenants:", "version", "it reads 1"),
        ("tenants:", "version: 0\ntenants:", "version", "it reads 1"),
    ] {
        assert!(usable.contains(from), "{from}");
        let (code, said) = serve(&usable.replacen(from, to, 1), &[]);
        assert_eq!((code, said.lines().count()), (Some(64), 1), "{to}: {said}");
        let mut parts = said.strip_prefix(&format!("{}:", file.display())).expect("the file").split(": ");
        let line_and_column = parts.next().unwrap().split(':').map(str::parse::<u16>);
        assert_eq!(line_and_column.filter_map(Result::ok).count(), 2, "{to}: {said}");
        assert_eq!(parts.next(), Some(place), "{to}: {said}");
        assert!(said.contains(why), "{to}: {said}");
    }
    let (code, said) = serve(&usable, &["--upgrade"]);
    assert_eq!((code, said.as_str()), (Some(64), "listen.upgrade_socket: needed by --upgrade\n"));
    assert!(redis.accept().is_err(), "Redis saw a connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_not_there_or_refuses_is_named_once_and_waited_for() {
    let world = World::builder().redis().start().await;
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    let guarded = Redis::start().await;
    guarded.command("CONFIG SET requirepass sesame");
    for (url, why) in [
        (nowhere.clone(), "connection refused"),
        ("redis://no-such-host.invalid:6379".to_owned(), "the name of its host cannot be resolved"),
        (nowhere.replace("redis:", "rediss:"), "connection refused"),
        (format!("redis://{}", world.simulator.address), "what answers there does not speak as Redis does"),
        (guarded.url().replace("redis:", "rediss:"), "no answer in time"),
        (format!("rediss://{}", world.simulator.address), "no encrypted connection: "),
        (guarded.url().replace("://", "://:open-onion@"), "WRONGPASS"),
    ] {
        let gateway = ProcessReplica::begin(&world, &[("STORE__REDIS__URL", &*url)]).await;
        let says = |path: &str| plain_get(gateway.admin, path);
        let lines = || {
            let log = gateway.logged();
            log.lines().filter(|line| line.contains("the session store does not answer")).count()
        };
        eventually("it says so", async || lines() == 1).await;
        let place = url.replace(":open-onion@", "");
        assert!(gateway.logged().contains(&format!(r#""at":"{place}""#)), "{url}: {}", gateway.logged());
        assert!(gateway.logged().contains(why), "{url}: {}", gateway.logged());
        assert!(says("/livez").contains(" 200 "), "{url}: it lives");
        let ready = says("/readyz");
        assert!(ready.contains(" 503 ") && ready.contains("the session store does not answer"), "{url}: {ready}");
        let refused = world.ask_at(gateway.public, crate::steps::ANONYMOUS_LOGIN).send().await;
        assert_eq!((refused.status, lines()), (503, 1), "{url}: said once, however often it is tried");
        assert!(!gateway.logged().contains("onion"), "{url}: no secret is shown");
        if url.contains("onion") {
            guarded.command("AUTH sesame\r\nCONFIG SET requirepass open-onion");
            eventually("it is ready", async || says("/readyz").contains(" 200 ")).await;
        }
    }
}
