//! What the gateway tells its operators: metrics, declared in one table, log lines, and traces.

mod labels;
mod openmetrics;
mod otlp;
mod process;
mod strangers;
mod table;
mod tally;
pub mod trace;

use std::io;

use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, reload, util::SubscriberInitExt};

pub use labels::*;
pub use otlp::Exporter;
pub use strangers::{FailedHandshakes, Seldom};
pub use table::Metrics;
pub use tally::{Census, CounterGrid, Counters, Gauges, Timers};

use strangers::Handshakes;

use crate::config::{LogFormat, LogLevel, LogSection};

/// What changes the level of a log that was started.
pub struct LogLevels(reload::Handle<EnvFilter, Registered>);

type Registered = tracing_subscriber::Registry;

impl LogLevels {
    /// Logs at `level` from now on.
    pub fn set(&self, level: LogLevel) {
        // The log lives as long as the process.
        let _ = filter(level).map(|filter| self.0.reload(filter));
    }
}

/// Libraries that may log a URL or a header are held at levels that do not.
fn filter(level: LogLevel) -> io::Result<EnvFilter> {
    const SILENCED: &str = "pingora_core=error,h2=off,hyper=off,hyper_util=off,reqwest=off,rustls=error,redis=error";
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    };
    EnvFilter::try_new(format!("{level},{SILENCED}")).map_err(io::Error::other)
}

/// Starts logging to `writer`.
///
/// # Errors
/// When the process logs already.
pub fn start_logging<W>(section: &LogSection, writer: W) -> io::Result<LogLevels>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, levels) = reload::Layer::new(filter(section.level)?);
    let layer = match section.format {
        LogFormat::Json => tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
        LogFormat::Text => tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer).boxed(),
    };
    let layer = layer.with_filter(filter.and(Handshakes));
    tracing_subscriber::registry().with(layer).try_init().map_err(io::Error::other)?;
    Ok(LogLevels(levels))
}
