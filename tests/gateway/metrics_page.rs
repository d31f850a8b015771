//! The page that operators look metrics up in, `docs/METRICS.md`, is what the gateway exposes, to the letter.
//!
//! `WRITE_METRICS=1 cargo test --test gateway -- metrics_page::` writes the page anew.

use std::collections::BTreeMap;
use std::fmt::Write;

use emporix_gateway::telemetry::Metrics;
use prometheus::proto::{MetricFamily, MetricType};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");

const HEAD: &str = "\
# Metrics

Everything that `GET /metrics` of the admin listener exposes. What to do with it: [OBSERVABILITY.md](OBSERVABILITY.md).

Each label is an enum: its values stand here, every series is there from the start, at zero, and their number does not
grow. A histogram has a series for each of its buckets, one for those beyond, its sum and its count.

Who asks for OpenMetrics gets that (`Accept: application/openmetrics-text`, as Prometheus does): the same series,
and exemplars. Each bucket of `gateway_request_seconds` and `gateway_emporix_seconds` names the last sampled trace that fell
into it (`trace_id`), where traces are on. All others get Prometheus' text format.

This page is written by `tests/gateway/metrics_page.rs` from the table in `src/telemetry/table.rs`.

";

/// How many series a family has.
fn series(family: &MetricFamily) -> usize {
    let of_one = family.get_metric().first().map_or(0, |one| match family.get_field_type() {
        MetricType::HISTOGRAM => one.get_histogram().get_bucket().len() + 3,
        _ => 1,
    });
    family.get_metric().len() * of_one
}

/// Each label of a family, with its values in the order of the table.
fn labels(family: &MetricFamily) -> BTreeMap<&str, Vec<&str>> {
    let mut labels = BTreeMap::<_, Vec<_>>::new();
    for pair in family.get_metric().iter().flat_map(|series| series.get_label()) {
        let values = labels.entry(pair.name()).or_default();
        if !values.contains(&pair.value()) {
            values.push(pair.value());
        }
    }
    labels
}

fn described(family: &MetricFamily) -> String {
    let kind = format!("{:?}", family.get_field_type()).to_lowercase();
    let mut text = format!("## {}\n\n{} A {kind} of {} series.\n\n", family.name(), family.help(), series(family));
    for (name, values) in labels(family) {
        let values = if name == "version" { "the release".to_owned() } else { format!("`{}`", values.join("` `")) };
        writeln!(text, "- `{name}`: {values}").unwrap();
    }
    if !labels(family).is_empty() {
        text.push('\n');
    }
    text
}

fn bounds(families: &[MetricFamily]) -> String {
    let timer = families.iter().find(|family| family.get_field_type() == MetricType::HISTOGRAM).unwrap();
    let buckets = timer.get_metric()[0].get_histogram().get_bucket();
    let bounds: Vec<String> = buckets.iter().map(|bucket| format!("{}", bucket.upper_bound())).collect();
    format!("The buckets of every histogram end at {} seconds.\n\n", bounds.join(", "))
}

#[test]
fn the_page_on_metrics_says_what_is_exposed() {
    let families = Metrics::new().unwrap().families();
    let all: usize = families.iter().map(series).sum();
    let total = format!("All metrics together: {all} series of a replica.\n");
    let mut exposed = [HEAD, &bounds(&families)].concat();
    families.iter().for_each(|family| exposed.push_str(&described(family)));
    exposed.push_str(&total);
    if is_to_be_written() {
        std::fs::write(PAGE, &exposed).unwrap();
    }
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    for (number, (said, seen)) in page.lines().zip(exposed.lines()).enumerate() {
        assert_eq!(said, seen, "line {} of docs/METRICS.md says otherwise than the table", number + 1);
    }
    assert_eq!(page.len(), exposed.len(), "docs/METRICS.md is of another length");
}

#[test]
fn what_the_page_counts_is_what_prometheus_reads() {
    let metrics = Metrics::new().unwrap();
    let text = String::from_utf8(metrics.render()).unwrap();
    let read = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(metrics.families().iter().map(series).sum::<usize>(), read);
}

#[expect(clippy::disallowed_methods, reason = "a wish of whoever runs the test, not configuration")]
fn is_to_be_written() -> bool {
    std::env::var("WRITE_METRICS").is_ok_and(|wish| wish == "1")
}
