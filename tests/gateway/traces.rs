//! Traces: who looks at one sees what a request waited for, here and at Emporix, and no secret.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::world::{Builder, Received, World, canaries, eventually, scan};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ABOVE: &str = "b7ad6b7169203331";
const PRODUCTS: &str = "GET /product/acme/products";
const ME: &str = "GET /customer/acme/me";

/// Takes spans as an OpenTelemetry collector does.
pub struct Collector {
    address: SocketAddr,
    taken: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, taken) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let takes = taken.clone();
        let take = async move |batch: String| takes.lock().unwrap().push(batch);
        let router = Router::new().route("/v1/traces", post(take));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, taken }
    }

    /// A world whose gateway tells this collector of the share `sample` of its own traces.
    pub fn world(&self, sample: &str) -> Builder {
        let endpoint = format!("http://{}/v1/traces", self.address);
        World::builder().set("TRACES__OTLP_ENDPOINT", endpoint).set("TRACES__SAMPLE", sample)
    }

    fn spans(&self) -> Vec<Value> {
        let batches = self.taken.lock().unwrap();
        let batches = batches.iter().map(|batch| serde_json::from_str::<Value>(batch).unwrap());
        batches
            .flat_map(|batch| batch["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone())
            .collect()
    }

    /// The spans of `trace`, once `count` requests of it have come.
    pub async fn spans_of(&self, trace: &str, count: usize) -> Vec<Value> {
        let spans = || self.spans().into_iter().filter(|span| span["traceId"] == trace).collect::<Vec<_>>();
        eventually("its spans come", async || named(&spans(), "request").len() >= count).await;
        spans()
    }
}

fn named<'s>(spans: &'s [Value], name: &str) -> Vec<&'s Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

fn attribute<'s>(span: &'s Value, name: &str) -> &'s str {
    let mut attributes = span["attributes"].as_array().unwrap().iter();
    let found = attributes.find(|attribute| attribute["key"] == name);
    found.and_then(|attribute| attribute["value"]["stringValue"].as_str()).unwrap_or_default()
}

pub fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{ABOVE}-{flags}")
}

impl World {
    /// What the simulator was told of the trace when `operation` was last called.
    async fn told(&self, operation: &str) -> Received {
        let requests = self.simulator.requests().await;
        Received(requests.into_iter().rfind(|request| request["operation"] == operation).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_and_a_refresh_are_spans_of_one_trace_each_below_what_waited_for_it() {
    let collector = Collector::start().await;
    let world = collector.world("0").redis().start().await;
    let visitor = world.visitor().await;
    let traced = |line: &str| world.ask(line).header("traceparent", &parent("01")).header("tracestate", "shop=1");
    let login = traced("POST /customer/acme/login").bearer(&visitor.access).json(&crate::steps::john()).send().await;
    assert_eq!(login.status, 200, "{}", login.text);
    world.simulator.expire("customer_access").await;
    let access = login.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(traced(ME).bearer(&access).send().await.status, 200);

    eventually("all have come", async || named(&collector.spans(), "store save").len() >= 2).await;
    let spans = collector.spans_of(TRACE, 2).await;
    let ids: HashSet<&str> = spans.iter().map(|span| span["spanId"].as_str().unwrap()).chain([ABOVE]).collect();
    assert_eq!(ids.len(), spans.len() + 1, "each has an id of its own");
    let requests = named(&spans, "request");
    assert!(requests.iter().all(|request| request["parentSpanId"] == ABOVE && request["kind"] == 2));
    let mut classes: Vec<_> = requests.iter().map(|request| attribute(request, "route")).collect();
    classes.sort_unstable();
    assert_eq!(classes, ["login", "visitor"]);
    for (name, value) in [("outcome", "success"), ("status", "200"), ("tenant", "acme")] {
        assert!(requests.iter().all(|request| attribute(request, name) == value), "{name}: {requests:?}");
    }
    for operation in ["login", "refresh"] {
        let calls = named(&spans, &format!("emporix {operation}"));
        assert_eq!(calls.len(), 1, "{operation}: {spans:?}");
        let told = world.told(operation).await;
        let expected = format!("00-{TRACE}-{}-01", calls[0]["spanId"].as_str().unwrap());
        assert_eq!((told.headers("traceparent"), told.headers("tracestate")), (vec![expected], vec!["shop=1".into()]));
    }
    for name in ["authenticate", "upstream", "store load", "store save", "emporix login", "emporix refresh"] {
        let found = named(&spans, name);
        assert!(!found.is_empty(), "no {name} in {spans:?}");
        for span in found {
            let above = span["parentSpanId"].as_str().unwrap();
            assert!(above != ABOVE && ids.contains(above), "{name} hangs in the air: {span}");
            let [from, until] = ["startTimeUnixNano", "endTimeUnixNano"].map(|end| span[end].as_str().unwrap());
            assert!(from.len() == 19 && from <= until, "{span}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_trace_is_continued_where_it_is_sampled_and_passed_on_where_it_is_not() {
    let collector = Collector::start().await;
    let world = collector.world("1").start().await;
    let ask = async |flags: &str| {
        let traced = world.ask(PRODUCTS).header("traceparent", &parent(flags)).header("tracestate", "shop=1");
        assert_eq!(traced.send().await.status, 200);
        world.told("api").await
    };
    let told = ask("00").await;
    assert_eq!((told.headers("traceparent"), told.headers("tracestate")), (vec![parent("00")], vec!["shop=1".into()]));
    let told = ask("01").await;
    let spans = collector.spans_of(TRACE, 1).await;
    let expected = format!("00-{TRACE}-{}-01", named(&spans, "upstream")[0]["spanId"].as_str().unwrap());
    assert_eq!((told.headers("traceparent"), told.headers("tracestate")), (vec![expected], vec!["shop=1".into()]));
    assert_eq!(named(&spans, "request").len(), 1, "the one that is not sampled has no span");
    assert_eq!(attribute(named(&spans, "upstream")[0], "status"), "200");
    let exported = || world.gateway().metric(r#"gateway_spans_total{outcome="exported"}"#);
    eventually("they are counted", async || exported() >= spans.len() as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_nobody_began_begins_here_for_the_share_that_is_sampled() {
    let collector = Collector::start().await;
    let (all, none) = (collector.world("1").start().await, collector.world("0").start().await);
    for world in [&none, &all] {
        assert_eq!(world.ask(PRODUCTS).send().await.status, 200);
    }
    assert_eq!(none.told("api").await.headers("traceparent"), Vec::<String>::new());
    let told = all.told("api").await.headers("traceparent").concat();
    let spans = collector.spans_of(&told[3..35], 1).await;
    assert!(named(&spans, "request")[0].get("parentSpanId").is_none());
    assert_eq!(collector.spans().len(), spans.len(), "of one trace alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_traceparent_that_cannot_be_read_is_replaced_and_what_was_noted_beside_it_goes() {
    let collector = Collector::start().await;
    for (sample, flags) in [("0", "00"), ("1", "01")] {
        let world = collector.world(sample).start().await;
        let (short, upper, long) = (&parent("01")[..54], parent("01").to_uppercase(), format!("{}-x", parent("01")));
        let zeros = parent("01").replace(ABOVE, &"0".repeat(16));
        for malformed in ["", "x", short, &upper, &long, &zeros] {
            let ask = world.ask(PRODUCTS).header("traceparent", malformed).header("tracestate", "shop=1");
            assert_eq!(ask.send().await.status, 200);
            let told = world.told("api").await;
            let parents = told.headers("traceparent");
            assert_eq!((parents.len(), parents[0].len()), (1, 55), "{malformed}");
            assert!(parents[0].ends_with(flags) && !parents[0].contains(TRACE), "{malformed}: {parents:?}");
            assert_eq!(told.headers("tracestate"), Vec::<String>::new(), "{malformed}");
        }
        let twice = world.ask(PRODUCTS).header("traceparent", &parent("01")).header("traceparent", &parent("01"));
        assert_eq!(twice.send().await.status, 200);
        let parents = world.told("api").await.headers("traceparent");
        assert!(parents.len() == 1 && !parents[0].contains(TRACE), "{parents:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_traced_trace_headers_pass_as_they_came() {
    let world = World::new().await;
    for passed in [parent("01"), parent("00"), "nonsense".to_owned()] {
        let ask = world.ask(PRODUCTS).header("traceparent", &passed).header("tracestate", "shop=1");
        assert_eq!(ask.send().await.status, 200);
        let told = world.told("api").await;
        assert_eq!((told.headers("traceparent"), told.headers("tracestate")), (vec![passed], vec!["shop=1".into()]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_any_span_and_no_handle_goes_along_with_a_trace() {
    let collector = Collector::start().await;
    let world = collector.world("1").start().await;
    let customer = world.customer().await;
    let (access, refresh) = (&customer.tokens.access, &customer.tokens.refresh);
    world.ask(&format!("GET /product/acme/{access}?q={refresh}")).bearer(access).send().await;
    world.ask(&format!("GET /customer/acme/refreshauthtoken?refreshToken={refresh}")).bearer(access).send().await;
    world.ask(&format!("GET /customer/acme/logout?accessToken={refresh}")).send().await;
    let smuggled = world.ask("POST /customer/acme/login").json(&crate::steps::john());
    let smuggled = smuggled.header("traceparent", &parent("01")).header("tracestate", &format!("shop={access}"));
    assert_eq!(smuggled.send().await.status, 200);
    let told = world.told("login").await;
    assert!(told.headers("traceparent")[0].contains(TRACE));
    assert_eq!(told.headers("tracestate"), Vec::<String>::new());

    collector.spans_of(TRACE, 1).await;
    let all = collector.taken.lock().unwrap().concat();
    let mut secrets = canaries(world.simulator.address);
    secrets.extend([access.clone(), refresh.clone(), "password123".into(), "john.doe@example.com".into()]);
    let mut leaks = Vec::new();
    scan("a span", all.as_bytes(), &secrets, &mut leaks);
    assert!(all.len() > 2_000 && leaks.is_empty(), "{leaks:?}");
    for shown in ["/customer", "http", "refreshToken", "13869000"] {
        assert!(!all.contains(shown), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_spans_and_no_request() {
    let collector = Collector::start().await;
    let world = collector.world("1").set("TRACES__OTLP_ENDPOINT", "http://127.0.0.1:9/v1/traces").start().await;
    assert_eq!(world.ask(PRODUCTS).send().await.status, 200);
    let failed = || world.gateway().metric(r#"gateway_spans_total{outcome="failed"}"#);
    eventually("they are counted", async || failed() >= 2.0).await;
    assert_eq!(collector.spans().len(), 0);
}
