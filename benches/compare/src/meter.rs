//! What a program costs: CPU time and memory from /proc; instructions from the machine's counters, or from valgrind
//! where it has none.

use std::fs;
use std::io::{Error, Result};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// How a program's instructions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counting {
    /// By the processor, in user mode.
    Processor,
    /// By callgrind, in which the program runs.
    Callgrind,
}

impl Counting {
    /// The processor's way, where the machine offers it.
    pub(crate) fn here() -> Self {
        let asked = std::process::Command::new("perf").args(["stat", "-x,", "-e", "instructions:u", "true"]).output();
        let counts = asked.is_ok_and(|output| output.stderr.first().is_some_and(u8::is_ascii_digit));
        if counts { Self::Processor } else { Self::Callgrind }
    }

    /// Its name, as the recorded ratios bear it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Callgrind => "callgrind",
        }
    }
}

/// Counts the instructions of one process while requests are sent.
pub(crate) enum Counter {
    Processor(Child),
    Callgrind { pid: u32 },
}

impl Counter {
    /// Begins to count. A process that is counted by callgrind runs in it.
    pub(crate) async fn start(counting: Counting, pid: u32) -> Result<Self> {
        match counting {
            Counting::Processor => {
                let mut perf = Command::new("perf");
                perf.args(["stat", "-x,", "-e", "instructions:u", "-p", &pid.to_string()]);
                let perf = perf.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
                attached(perf.id()).await?;
                Ok(Self::Processor(perf))
            }
            Counting::Callgrind => {
                control(pid, "--zero").await?;
                Ok(Self::Callgrind { pid })
            }
        }
    }

    /// Ends the count. What callgrind counted stands in `folder`.
    pub(crate) async fn stop(self, folder: &Path) -> Result<f64> {
        match self {
            Self::Processor(perf) => {
                let pid = perf.id().ok_or_else(|| Error::other("perf ended early"))?;
                Command::new("kill").args(["-INT", &pid.to_string()]).status().await?;
                let output = perf.wait_with_output().await?;
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let counted = text.split(',').next().and_then(|count| count.trim().parse().ok());
                counted.ok_or_else(|| Error::other(format!("perf counted nothing: {text}")))
            }
            Self::Callgrind { pid } => {
                control(pid, "--dump").await?;
                let dumps = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
                let is_dump = |path: &std::path::PathBuf| path.to_string_lossy().contains("callgrind.out.");
                let newest =
                    dumps.filter(is_dump).max_by_key(|path| path.metadata().and_then(|file| file.modified()).ok());
                let text = fs::read(newest.ok_or_else(|| Error::other("callgrind left no dump"))?)?;
                let text = String::from_utf8_lossy(&text);
                let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
                totals.and_then(|total| total.trim().parse().ok()).ok_or_else(|| Error::other("a dump without a total"))
            }
        }
    }
}

async fn control(pid: u32, what: &str) -> Result<()> {
    let mut command = Command::new("callgrind_control");
    let output = command.arg(what).arg(pid.to_string()).output().await?;
    if output.status.success() { Ok(()) } else { Err(Error::other("callgrind does not answer")) }
}

/// Waits until perf holds its counters.
async fn attached(pid: Option<u32>) -> Result<()> {
    let folder = format!("/proc/{}/fd", pid.ok_or_else(|| Error::other("perf ended early"))?);
    for _ in 0..400 {
        let targets = fs::read_dir(&folder)?.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        if targets.into_iter().any(|target| target.to_string_lossy().contains("perf_event")) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(Error::other("perf does not begin"))
}

/// CPU time that a process and its children have taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    /// In user mode, in microseconds.
    pub(crate) user: f64,
    /// In the kernel.
    pub(crate) kernel: f64,
}

impl Cpu {
    /// Of the process `pid` and its children.
    pub(crate) fn of(pid: u32) -> Self {
        const TICK: f64 = 10_000.0;
        let taken = family(pid).into_iter().filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            Some((fields.get(11)?.parse::<f64>().ok()?, fields.get(12)?.parse::<f64>().ok()?))
        });
        taken.fold(Self::default(), |sum, (user, kernel)| Self {
            user: sum.user + user * TICK,
            kernel: sum.kernel + kernel * TICK,
        })
    }

    /// For each of `requests` since `before`.
    pub(crate) fn each_since(self, before: Self, requests: usize) -> Self {
        let each = |now: f64, before: f64| (now - before) / requests as f64;
        Self { user: each(self.user, before.user), kernel: each(self.kernel, before.kernel) }
    }

    /// Both.
    pub(crate) fn total(self) -> f64 {
        self.user + self.kernel
    }
}

/// Memory of a process and its children: theirs alone, and their share of what is shared (PSS), in bytes.
pub(crate) fn memory(pid: u32) -> u64 {
    let kilobytes = family(pid).into_iter().filter_map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    kilobytes.sum::<u64>() * 1024
}

/// A process and its children.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let below = children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(family);
    std::iter::once(pid).chain(below).collect()
}
