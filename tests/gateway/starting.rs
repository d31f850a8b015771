//! The gateway is started with something in its way: one clear line, a documented exit code, and nothing half begun.
//! A Redis that is not there, or refuses, is nothing to end for: it says so, is not ready, and waits.

use std::net::TcpListener;

use crate::errands::{program, said};
use crate::process::ProcessReplica;
use crate::world::{Redis, World, eventually, free_port, plain_get};

/// A configuration with every listener, Redis at `redis`, and `key` listening on `taken`.
fn configuration(redis: u16, key: &str, taken: u16) -> tempfile::NamedTempFile {
    let port = |own: &str| if own == key { taken } else { free_port() };
    let text = format!(
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
    );
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn a_port_in_use_is_found_before_redis_is_spoken_to() {
    let [taken, redis] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [port, redis_port] = [&taken, &redis].map(|listener| listener.local_addr().unwrap().port());
    redis.set_nonblocking(true).unwrap();
    for key in ["listen.public", "admin.listen", "forward_auth.listen", "internal.listen"] {
        let file = configuration(redis_port, key, port);
        let (code, _, errors) = said(&program(&["serve", "--config", file.path().to_str().unwrap()]));
        assert_eq!(code, Some(69), "{key}: {errors}");
        let clear = format!("{key}: cannot listen on 127.0.0.1:{port}: ");
        assert!(errors.lines().count() == 1 && errors.starts_with(&clear), "{key}: {errors}");
        assert!(redis.accept().is_err(), "{key}: Redis saw a connection");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_not_there_or_refuses_is_named_once_and_waited_for() {
    let world = World::builder().redis().start().await;
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    let guarded = Redis::start().await;
    guarded.command("CONFIG SET requirepass sesame");
    for (url, why) in [
        (nowhere.clone(), "Io"),
        ("redis://no-such-host.invalid:6379".to_owned(), "Io"),
        (guarded.url().replace("://", "://:open-onion@"), "WRONGPASS"),
    ] {
        let gateway = ProcessReplica::begin(&world, &[("STORE__REDIS__URL", &*url)]).await;
        let says = |path: &str| plain_get(gateway.admin, path);
        let lines = || {
            let log = gateway.logged();
            log.lines().filter(|line| line.contains("the session store does not answer")).count()
        };
        eventually("it says so", async || lines() == 1).await;
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
