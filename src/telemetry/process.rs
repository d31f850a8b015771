//! What the process itself costs, under the names that Prometheus' own libraries give it.
//! Read from /proc when asked; what is not to be read there is not said, and the rest is.

use std::fs;
use std::path::Path;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, Metric, MetricFamily, MetricType};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use crate::clock::{Clock, SystemClock, Timestamp};

/// Names and meanings, in the order of [`Process::read`].
const FAMILIES: [(&str, &str, MetricType); 5] = [
    ("process_start_time_seconds", "When the process started, since 1970.", MetricType::GAUGE),
    ("process_cpu_seconds_total", "CPU time that the process took.", MetricType::COUNTER),
    ("process_resident_memory_bytes", "Memory of the process that is resident.", MetricType::GAUGE),
    ("process_open_fds", "File descriptors that are open.", MetricType::GAUGE),
    ("process_max_fds", "File descriptors that may be open.", MetricType::GAUGE),
];

/// What the kernel tells a process of itself.
const OWN: &str = "/proc/self";

/// Tells of the process when it is asked.
pub(super) struct Process {
    families: Vec<Desc>,
    started: Timestamp,
}

impl Process {
    pub(super) fn new() -> prometheus::Result<Self> {
        let desc = |(name, help, _): (&str, &str, _)| Desc::new(name.into(), help.into(), vec![], Default::default());
        let families = FAMILIES.into_iter().map(desc).collect::<Result<_, _>>()?;
        // The kernel's word for it takes /proc/stat, which a service manager may hide.
        Ok(Self { families, started: SystemClock.now() })
    }

    /// Start, CPU time, resident memory, descriptors that are and may be open: each by itself, of what `own` shows.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
    fn read(&self, own: &Path) -> [Option<f64>; 5] {
        let stat = Stat::read(own);
        // The folder that is being read is one of them.
        let open = fs::read_dir(own.join("fd")).ok().map(|open| open.count().saturating_sub(1) as f64);
        let most = getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |most| most as f64);
        let started = self.started.millis() as f64 / 1e3;
        [Some(started), stat.as_ref().and_then(Stat::cpu), stat.as_ref().and_then(Stat::resident), open, Some(most)]
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let readings = self.read(Path::new(OWN));
        FAMILIES.into_iter().zip(readings).filter_map(|(family, reading)| Some(told(family, reading?))).collect()
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

/// The fields of the process' `stat` behind its name, numbered as in proc_pid_stat(5).
struct Stat(Vec<String>);

impl Stat {
    fn read(own: &Path) -> Option<Self> {
        let stat = fs::read_to_string(own.join("stat")).ok()?;
        // The second field is a name, and may hold anything.
        Some(Self(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect()))
    }

    fn field(&self, number: usize) -> Option<f64> {
        self.0.get(number - 3)?.parse().ok()
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
    fn cpu(&self) -> Option<f64> {
        Some((self.field(14)? + self.field(15)?) / clock_ticks_per_second() as f64)
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
    fn resident(&self) -> Option<f64> {
        Some(self.field(24)? * page_size() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_when_it_started_what_it_took_and_what_it_holds() {
        let now = SystemClock.now().millis() as f64 / 1e3;
        let process = Process::new().unwrap();
        let [started, cpu, resident, open, most] = process.read(Path::new(OWN)).map(Option::unwrap);
        assert!((now..now + 2.0).contains(&started), "{started} at {now}");
        assert!((0.0..600.0).contains(&cpu), "{cpu}");
        assert!((1e6..1e11).contains(&resident), "{resident}");
        let more: Vec<_> = (0..9).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        let then = process.read(Path::new(OWN))[3].unwrap();
        assert!(then >= open.max(3.0) + 4.0 && open < most, "{open} of {most}, then {}", more.len());
    }

    #[test]
    fn what_cannot_be_read_costs_its_own_series_alone() {
        let own = tempfile::tempdir().unwrap();
        let told = || Process::new().unwrap().read(own.path()).map(|reading| reading.is_some());
        assert_eq!(told(), [true, false, false, false, true]);
        fs::create_dir(own.path().join("fd")).unwrap();
        assert_eq!(told(), [true, false, false, true, true]);
        fs::copy("/proc/self/stat", own.path().join("stat")).unwrap();
        assert_eq!(told(), [true; 5]);
    }
}
