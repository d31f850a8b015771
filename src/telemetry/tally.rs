//! Metric families that are counted thread by thread and summed when they are read.
//! A request touches no number that a request on another thread touches.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use thread_local::ThreadLocal;

use super::Label;
use super::openmetrics::{Exemplar, Exemplars};
use super::trace::Context;

/// Numbers that every thread has for itself, and only adds to. A sum that is taken meanwhile is no snapshot.
pub(super) struct Tally {
    cells: ThreadLocal<Box<[AtomicU64]>>,
    length: usize,
}

impl Tally {
    pub(super) const fn new(length: usize) -> Self {
        Self { cells: ThreadLocal::new(), length }
    }

    /// Adds to the number at `index`.
    pub(super) fn add(&self, index: usize, amount: u64) {
        let cells = self.cells.get_or(|| (0..self.length).map(|_| AtomicU64::new(0)).collect());
        // No other thread writes here: a load and a store lose nothing, and lock nothing.
        let cell = &cells[index];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Release);
    }

    /// The number at `index`, of all threads together.
    pub(super) fn sum(&self, index: usize) -> u64 {
        self.cells.iter().fold(0, |sum, cells| sum.wrapping_add(cells[index].load(Ordering::Acquire)))
    }
}

/// How many of something there are, when each is counted in and counted out, on whatever thread.
pub struct Census(Tally);

impl Default for Census {
    fn default() -> Self {
        Self(Tally::new(2))
    }
}

impl Census {
    const ENTERED: usize = 0;
    const LEFT: usize = 1;

    /// Counts one in.
    pub fn enter(&self) {
        self.0.add(Self::ENTERED, 1);
    }

    /// Counts one out.
    pub fn leave(&self) {
        self.0.add(Self::LEFT, 1);
    }

    /// How many are in. Who moves while it counts may be counted in though out, never the other way: those who left are
    /// counted before those who entered.
    #[must_use]
    pub fn count(&self) -> usize {
        let left = self.0.sum(Self::LEFT);
        usize::try_from(self.0.sum(Self::ENTERED).wrapping_sub(left)).unwrap_or(usize::MAX)
    }
}

/// A kind of metric: how it is declared.
pub(super) trait Kind: Sized {
    /// Declares a metric by name and help, with a name for each of its labels.
    fn register(registry: &Registry, said: (&str, &str), labels: &[&str]) -> prometheus::Result<Self>;
}

impl Kind for IntGauge {
    fn register(registry: &Registry, (name, help): (&str, &str), _: &[&str]) -> prometheus::Result<Self> {
        let gauge = Self::new(name, help)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }
}

/// A family of series, as Prometheus collects it.
struct Family {
    desc: Desc,
    kind: MetricType,
    /// The labels of each series.
    labels: Vec<Vec<LabelPair>>,
    tally: Tally,
    read: fn(&Tally, usize) -> proto::Metric,
}

#[derive(Clone)]
struct Registered(Arc<Family>);

impl Registered {
    fn new(
        registry: &Registry,
        (name, help): (&str, &str),
        mut labels: Vec<Vec<LabelPair>>,
        (kind, cells, read): (MetricType, usize, fn(&Tally, usize) -> proto::Metric),
    ) -> prometheus::Result<Self> {
        for series in &mut labels {
            series.sort_by(|one, other| one.name().cmp(other.name()));
        }
        let names = labels.first().into_iter().flatten().map(|pair| pair.name().to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, Opts::new(name, help).const_labels)?;
        let tally = Tally::new(labels.len() * cells);
        let family = Self(Arc::new(Family { desc, kind, labels, tally, read }));
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    }
}

impl Collector for Registered {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Family { desc, kind, labels, tally, read } = &*self.0;
        let metrics = labels.iter().enumerate().map(|(series, labels)| {
            let mut metric = read(tally, series);
            metric.set_label(labels.clone());
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(desc.fq_name.clone());
        family.set_help(desc.help.clone());
        family.set_field_type(*kind);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

/// A series for each value of the label `A`, which the first of `names` is the name of.
fn series<A: Label>(names: &[&str]) -> Vec<Vec<LabelPair>> {
    let series = A::ALL.iter().map(|value| {
        let mut pair = LabelPair::default();
        pair.set_name(names[0].to_owned());
        pair.set_value(value.text().to_owned());
        vec![pair]
    });
    series.collect()
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
fn read_counter(tally: &Tally, series: usize) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(tally.sum(series) as f64);
    let mut metric = proto::Metric::default();
    metric.set_counter(counter);
    metric
}

/// One counter for each value of a label.
pub struct Counters<A>(Registered, PhantomData<A>);

impl<A: Label> Kind for Counters<A> {
    fn register(registry: &Registry, said: (&str, &str), labels: &[&str]) -> prometheus::Result<Self> {
        let counter = (MetricType::COUNTER, 1, read_counter as fn(&Tally, usize) -> _);
        Ok(Self(Registered::new(registry, said, series::<A>(labels), counter)?, PhantomData))
    }
}

impl<A: Label> Counters<A> {
    /// Counts one.
    pub fn count(&self, value: A) {
        self.0.0.tally.add(value.index(), 1);
    }
}

/// One counter for each pair of values of two labels.
pub struct CounterGrid<A, B>(Registered, PhantomData<(A, B)>);

impl<A: Label, B: Label> Kind for CounterGrid<A, B> {
    fn register(registry: &Registry, said: (&str, &str), labels: &[&str]) -> prometheus::Result<Self> {
        let counter = (MetricType::COUNTER, 1, read_counter as fn(&Tally, usize) -> _);
        let (first, second) = (series::<A>(labels), series::<B>(&labels[1..]));
        let pairs = first.iter().flat_map(|first| second.iter().map(|second| [&first[..], second].concat()));
        Ok(Self(Registered::new(registry, said, pairs.collect(), counter)?, PhantomData))
    }
}

impl<A: Label, B: Label> CounterGrid<A, B> {
    /// Counts one.
    pub fn count(&self, first: A, second: B) {
        self.0.0.tally.add(first.index() * B::ALL.len() + second.index(), 1);
    }
}

/// One gauge for each value of a label.
pub struct Gauges<A>(Vec<IntGauge>, PhantomData<A>);

impl<A: Label> Kind for Gauges<A> {
    fn register(registry: &Registry, (name, help): (&str, &str), labels: &[&str]) -> prometheus::Result<Self> {
        let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(family.clone()))?;
        Ok(Self(A::ALL.iter().map(|value| family.with_label_values(&[value.text()])).collect(), PhantomData))
    }
}

impl<A: Label> Gauges<A> {
    /// Says how many there are now, or what it is.
    pub fn set(&self, value: A, now: usize) {
        self.0[value.index()].set(i64::try_from(now).unwrap_or(i64::MAX));
    }
}

/// Upper bounds of a timer's buckets, in microseconds.
const BOUNDS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    30_000_000,
];

/// Buckets of one timer: the last takes what is beyond the others.
const BUCKETS: usize = BOUNDS.len() + 1;

/// Cells of one timer: its buckets, and the sum in microseconds.
const CELLS: usize = BUCKETS + 1;

/// One histogram of seconds for each value of a label.
pub struct Timers<A>(Registered, Exemplars, PhantomData<A>);

impl<A: Label> Kind for Timers<A> {
    fn register(registry: &Registry, said: (&str, &str), labels: &[&str]) -> prometheus::Result<Self> {
        let timer = (MetricType::HISTOGRAM, CELLS, read_timer as fn(&Tally, usize) -> _);
        let exemplars = Exemplars::new(A::ALL.len() * BUCKETS);
        Ok(Self(Registered::new(registry, said, series::<A>(labels), timer)?, exemplars, PhantomData))
    }
}

impl<A: Label> Timers<A> {
    /// Records one duration.
    pub fn record(&self, value: A, elapsed: Duration) {
        let (micros, bucket) = measured(elapsed);
        let first = value.index() * CELLS;
        self.0.0.tally.add(first + bucket, 1);
        self.0.0.tally.add(first + CELLS - 1, micros);
    }

    /// Records the duration of work at a place in a trace, which becomes its bucket's example where it is sampled.
    pub fn record_at(&self, place: Option<&Context>, value: A, elapsed: Duration) {
        self.record(value, elapsed);
        if let Some((trace, at)) = place.and_then(Context::sampled) {
            let (micros, bucket) = measured(elapsed);
            self.1.keep(value.index() * BUCKETS + bucket, Exemplar { trace, micros, at });
        }
    }

    /// The examples, each by the series that it is one of, as Prometheus' text format names that.
    pub(super) fn exemplars(&self) -> impl Iterator<Item = (String, Arc<Exemplar>)> {
        let Family { desc, labels, .. } = &*self.0.0;
        self.1.kept().map(move |(place, exemplar)| {
            let (label, bound) = (&labels[place / BUCKETS][0], BOUNDS.get(place % BUCKETS));
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| seconds(*bound).to_string());
            let series = format!("{}_bucket{{{}=\"{}\",le=\"{bound}\"}}", desc.fq_name, label.name(), label.value());
            (series, exemplar)
        })
    }
}

/// A duration in microseconds, and its bucket.
fn measured(elapsed: Duration) -> (u64, usize) {
    let micros = u64::try_from(elapsed.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX);
    (micros, BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len()))
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
pub(super) fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn read_timer(tally: &Tally, series: usize) -> proto::Metric {
    let first = series * CELLS;
    let mut count = 0;
    let mut buckets = Vec::with_capacity(BOUNDS.len());
    for (place, bound) in BOUNDS.iter().enumerate() {
        count += tally.sum(first + place);
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(seconds(*bound));
        bucket.set_cumulative_count(count);
        buckets.push(bucket);
    }
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(count + tally.sum(first + BOUNDS.len()));
    histogram.set_sample_sum(seconds(tally.sum(first + CELLS - 1)));
    let mut metric = proto::Metric::default();
    metric.set_histogram(histogram);
    metric
}

#[cfg(test)]
mod tests {
    use super::super::{Metrics, Outcome, RouteClass};
    use super::*;

    #[test]
    fn threads_count_together() {
        let tally = Tally::new(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| tally.add(1, 2)));
            }
        });
        assert_eq!((tally.sum(0), tally.sum(1)), (0, 8_000));
    }

    #[test]
    fn who_enters_on_one_thread_may_leave_on_another() {
        let census = Census::default();
        census.enter();
        census.enter();
        std::thread::scope(|scope| scope.spawn(|| census.leave()).join()).unwrap();
        assert_eq!(census.count(), 1);
    }

    #[test]
    fn a_timer_is_read_as_prometheus_reads_histograms() {
        let metrics = Metrics::new().unwrap();
        for millis in [0, 1, 2, 40_000] {
            metrics.request_seconds.record(RouteClass::Login, Duration::from_millis(millis));
        }
        metrics.requests.count(RouteClass::Login, Outcome::Success);
        let text = String::from_utf8(metrics.render()).unwrap();
        for line in [
            r#"gateway_request_seconds_bucket{route="login",le="0.0005"} 1"#,
            r#"gateway_request_seconds_bucket{route="login",le="0.001"} 2"#,
            r#"gateway_request_seconds_bucket{route="login",le="0.0025"} 3"#,
            r#"gateway_request_seconds_bucket{route="login",le="30"} 3"#,
            r#"gateway_request_seconds_bucket{route="login",le="+Inf"} 4"#,
            r#"gateway_request_seconds_sum{route="login"} 40.003"#,
            r#"gateway_request_seconds_count{route="login"} 4"#,
            "# TYPE gateway_request_seconds histogram",
            "# TYPE gateway_requests_total counter",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
