//! From a slow request to its trace: a real Prometheus reads which traces tell of the durations, and finds them sent.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::traces::{Collector, parent};
use crate::world::{World, eventually, free_port};

/// Where the Makefile unpacks Debian's package.
const PROGRAM: &str = "target/observe/prometheus/usr/bin/prometheus";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A Prometheus that scrapes one gateway, and keeps exemplars.
struct Prometheus {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(gateway: SocketAddr) -> Self {
        let (folder, address) = (tempfile::tempdir().unwrap(), SocketAddr::from(([127, 0, 0, 1], free_port())));
        let config = folder.path().join("prometheus.yaml");
        let text = format!(
            "global: {{scrape_interval: 200ms}}\n\
             scrape_configs: [{{job_name: gateway, static_configs: [{{targets: ['{gateway}']}}]}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(PROGRAM))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage")
            .stderr(Stdio::null())
            .spawn()
            .expect("`make observers` unpacks Prometheus");
        Self { process, address, _folder: folder }
    }

    /// What its API answers; nothing while it is not there.
    async fn told(&self, world: &World, question: &str) -> Vec<Value> {
        let asked = world.ask_at(self.address, &format!("GET /api/v1/{question}")).try_send().await;
        let Some(answer) = asked.ok().filter(|answer| answer.status == 200) else { return Vec::new() };
        let data = &answer.json()["data"];
        data.as_array().or_else(|| data["result"].as_array()).cloned().unwrap_or_default()
    }

    /// The traces that tell of a series.
    async fn traces(&self, world: &World, series: &str) -> Vec<String> {
        let found = self.told(world, &format!("query_exemplars?query={series}&start=0&end=4102444800")).await;
        let exemplars = found.iter().flat_map(|series| series["exemplars"].as_array().unwrap());
        exemplars.map(|exemplar| exemplar["labels"]["trace_id"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_finds_the_traces_of_requests_and_token_calls_that_the_collector_has() {
    let collector = Collector::start().await;
    let world = collector.world("0").start().await;
    let prometheus = Prometheus::start(world.gateway().admin);
    let visitor = world.visitor().await;
    let login = world.ask("POST /customer/acme/login").header("traceparent", &parent("01")).bearer(&visitor.access);
    assert_eq!(login.json(&crate::steps::john()).send().await.status, 200);
    let sent = collector.spans_of(&parent("01")[3..35], 1).await[0]["traceId"].as_str().unwrap().to_owned();
    for series in [
        r#"gateway_request_seconds_bucket%7Broute="login"%7D"#,
        r#"gateway_emporix_seconds_bucket%7Boperation="login"%7D"#,
    ] {
        let found = async || prometheus.traces(&world, series).await == [sent.clone()];
        eventually("Prometheus tells of the trace", found).await;
    }
    assert_eq!(
        prometheus.traces(&world, "gateway_request_seconds_bucket").await,
        [sent],
        "of none that is not sampled"
    );
    let samples = async |query: &str| {
        let found = prometheus.told(&world, &format!("query?query={query}")).await;
        found.first().and_then(|one| one["value"][1].as_str()?.parse::<usize>().ok())
    };
    let series =
        world.gateway().metrics().lines().filter(|line| line.contains("gateway_") && !line.starts_with('#')).count();
    assert_eq!(samples("count(%7B__name__=~%22gateway_.*%22%7D)").await, Some(series), "it reads all there is");
    assert_eq!(samples("gateway_requests_total%7Broute=%22login%22,outcome=%22success%22%7D").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn openmetrics_is_answered_to_who_asks_for_it_and_no_exemplar_where_nothing_is_traced() {
    let world = World::new().await;
    let traced = world.ask("GET /product/acme/products").header("traceparent", &parent("01"));
    assert_eq!(traced.send().await.status, 200);
    let ask = async |accept: &str| world.ask_admin(0, "GET /metrics").header("accept", accept).send().await;
    let (asked, other) = (ask(OPENMETRICS).await, ask("*/*").await);
    assert_eq!((asked.header("content-type").as_str(), asked.text.ends_with("\n# EOF\n")), (OPENMETRICS, true));
    assert_eq!(other.header("content-type"), "text/plain; version=0.0.4");
    assert!(other.text.contains("# TYPE gateway_requests_total counter\n") && !other.text.contains("# EOF"));
    assert!(!asked.text.contains("trace_id") && !other.text.contains("trace_id"));
}
