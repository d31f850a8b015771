//! OpenMetrics text, and what only it can carry: exemplars, each the trace that tells of one duration.
//! A timer remembers one for each of its buckets, and of a trace no more than its id.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::tally::seconds;
use super::trace::hex;

/// A duration, and the trace that it was measured in.
pub(super) struct Exemplar {
    pub(super) trace: [u8; 16],
    pub(super) micros: u64,
    /// When it was measured, since 1970.
    pub(super) at: Duration,
}

impl fmt::Display for Exemplar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, seconds) = (hex(&self.trace), seconds(self.micros));
        write!(f, "{{trace_id=\"{trace}\"}} {seconds} {}.{:03}", self.at.as_secs(), self.at.subsec_millis())
    }
}

/// The last exemplar of each bucket.
pub(super) struct Exemplars(Box<[ArcSwapOption<Exemplar>]>);

impl Exemplars {
    pub(super) fn new(buckets: usize) -> Self {
        Self((0..buckets).map(|_| ArcSwapOption::empty()).collect())
    }

    pub(super) fn keep(&self, bucket: usize, exemplar: Exemplar) {
        self.0[bucket].store(Some(Arc::new(exemplar)));
    }

    /// Those that there are, by their buckets.
    pub(super) fn kept(&self) -> impl Iterator<Item = (usize, Arc<Exemplar>)> {
        self.0.iter().enumerate().filter_map(|(bucket, kept)| Some((bucket, kept.load_full()?)))
    }
}

/// What Prometheus' text format says, as OpenMetrics says it: a counter's family is named without `_total`, an exemplar
/// stands behind the series that it belongs to, and the end is marked.
pub(super) fn openmetrics(text: &str, exemplars: &HashMap<String, Arc<Exemplar>>) -> String {
    let mut said = String::with_capacity(text.len());
    for line in text.lines() {
        let exemplar = line.rsplit_once(' ').and_then(|(series, _)| exemplars.get(series));
        // Writing to a string does not fail.
        let _ = match exemplar {
            Some(exemplar) => writeln!(said, "{line} # {exemplar}"),
            None if line.starts_with('#') => writeln!(said, "{}", line.replacen("_total ", " ", 1)),
            None => writeln!(said, "{line}"),
        };
    }
    said + "# EOF\n"
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::super::trace::{TRACEPARENT, Tracer};
    use super::super::{EmporixCall, Metrics, RouteClass};
    use super::*;
    use crate::clock::{Clock, Timestamp};

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(1_700_000_000_007)
        }

        fn uptime(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// Records durations, in milliseconds, at a place in a trace with these flags, and returns what OpenMetrics says then.
    fn recorded(flags: &str, durations: &[u64]) -> String {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (tracer, _finished) = Tracer::new(0.0, Arc::new(Stopped), metrics.clone());
        let parent = HeaderValue::try_from(format!("00-{TRACE}-b7ad6b7169203331-{flags}")).unwrap();
        let span = tracer.request(&HeaderMap::from_iter([(TRACEPARENT, parent)]), |_| false);
        let place = span.as_ref().map(super::super::trace::Span::context);
        for millis in durations {
            let elapsed = Duration::from_millis(*millis);
            metrics.request_seconds.record_at(place, RouteClass::Login, elapsed);
            metrics.emporix_seconds.record_at(place, EmporixCall::Refresh, elapsed);
        }
        String::from_utf8(metrics.render_openmetrics()).unwrap()
    }

    #[test]
    fn the_last_sampled_request_of_a_bucket_is_its_example_and_stands_in_no_other() {
        let said = recorded("01", &[7, 9, 40_000]);
        for (series, count, value) in [
            (r#"gateway_request_seconds_bucket{route="login",le="0.01"}"#, 2, "0.009"),
            (r#"gateway_request_seconds_bucket{route="login",le="+Inf"}"#, 3, "40"),
            (r#"gateway_emporix_seconds_bucket{operation="refresh",le="0.01"}"#, 2, "0.009"),
            (r#"gateway_emporix_seconds_bucket{operation="refresh",le="+Inf"}"#, 3, "40"),
        ] {
            let expected = format!("{series} {count} # {{trace_id=\"{TRACE}\"}} {value} 1700000000.0");
            assert_eq!(said.lines().filter(|line| line.starts_with(&expected)).count(), 1, "{expected} in {said}");
        }
        assert_eq!(said.matches("trace_id").count(), 4, "{said}");
    }

    #[test]
    fn a_trace_that_is_not_sampled_leaves_no_example() {
        assert!(!recorded("00", &[7]).contains("trace_id"));
        assert!(!recorded("nonsense", &[7]).contains("trace_id"), "it is replaced by one that is not sampled");
    }

    #[test]
    fn counters_and_only_they_are_named_without_total_where_they_are_described() {
        let said = recorded("01", &[7]);
        let metrics = Metrics::new().unwrap();
        for family in metrics.families() {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let described = family.name().strip_suffix("_total");
            assert_eq!(described.is_some(), kind == "counter", "{}", family.name());
            let name = described.unwrap_or_else(|| family.name());
            for line in [format!("# HELP {name} {}\n", family.help()), format!("# TYPE {name} {kind}\n")] {
                assert_eq!(said.matches(&line).count(), 1, "{line}");
            }
        }
        assert!(said.contains("\ngateway_requests_total{"), "{said}");
        assert!(said.ends_with("\n# EOF\n") && said.matches("# EOF").count() == 1);
        let lines = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(lines(&said), lines(&String::from_utf8(metrics.render()).unwrap()), "nothing is left out");
    }
}
