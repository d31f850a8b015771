//! What the process itself costs, under the names that Prometheus' own libraries give it.
//! Read from /proc when asked; where there is none, nothing is said.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, Metric, MetricFamily, MetricType};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Names and meanings, in the order of [`read`].
const FAMILIES: [(&str, &str, MetricType); 5] = [
    ("process_start_time_seconds", "When the process started, since 1970.", MetricType::GAUGE),
    ("process_cpu_seconds_total", "CPU time that the process took.", MetricType::COUNTER),
    ("process_resident_memory_bytes", "Memory of the process that is resident.", MetricType::GAUGE),
    ("process_open_fds", "File descriptors that are open.", MetricType::GAUGE),
    ("process_max_fds", "File descriptors that may be open.", MetricType::GAUGE),
];

/// Tells of the process when it is asked.
pub(super) struct Process(Vec<Desc>);

impl Process {
    pub(super) fn new() -> prometheus::Result<Self> {
        let desc = |(name, help, _): (&str, &str, _)| Desc::new(name.into(), help.into(), vec![], Default::default());
        Ok(Self(FAMILIES.into_iter().map(desc).collect::<Result<_, _>>()?))
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let readings = read().into_iter().flatten();
        FAMILIES.into_iter().zip(readings).map(|(family, reading)| told(family, reading)).collect()
    }
}

fn told((name, help, kind): (&str, &str, MetricType), reading: f64) -> MetricFamily {
    let mut metric = Metric::default();
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(reading);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(reading);
        metric.set_gauge(gauge);
    }
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

/// Start, CPU time, resident memory, descriptors that are and may be open. Fields are numbered as in proc_pid_stat(5).
#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
fn read() -> Option<[f64; 5]> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name, and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let system = fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = system.lines().find_map(|line| line.strip_prefix("btime ")?.parse().ok())?;
    let ticks = clock_ticks_per_second() as f64;
    // The folder that is being read is one of them.
    let open = fs::read_dir("/proc/self/fd").ok()?.count() - 1;
    let most = getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |most| most as f64);
    Some([
        booted + field(22)? / ticks,
        (field(14)? + field(15)?) / ticks,
        field(24)? * page_size() as f64,
        open as f64,
        most,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn a_process_knows_when_it_started_what_it_took_and_what_it_holds() {
        let now = SystemClock.now().millis() as f64 / 1e3;
        let [started, cpu, resident, open, most] = read().unwrap();
        assert!(now - 600.0 < started && started < now + 2.0, "{started} at {now}");
        assert!((0.0..600.0).contains(&cpu), "{cpu}");
        assert!((1e6..1e11).contains(&resident), "{resident}");
        let more: Vec<_> = (0..9).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        assert!(read().unwrap()[3] >= open.max(3.0) + 4.0 && open < most, "{open} of {most}, then {}", more.len());
    }
}
