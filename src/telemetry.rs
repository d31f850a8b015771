//! What the gateway tells its operators: metrics, declared in one table, log lines, and traces.

mod labels;
mod otlp;
mod process;
mod table;
mod tally;
pub mod trace;

use std::io;

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

pub use labels::*;
pub use otlp::Exporter;
pub use table::Metrics;
pub use tally::{Census, CounterGrid, Counters, Gauges, Timers};

use crate::config::{LogFormat, LogLevel, LogSection};

/// Starts logging to `writer`. Libraries that may log a URL or a header are held at levels that do not.
///
/// # Errors
/// When the process logs already.
pub fn start_logging<W>(section: &LogSection, writer: W) -> io::Result<()>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    const SILENCED: &str = "pingora_core=error,h2=off,hyper=off,hyper_util=off,reqwest=off,rustls=error,redis=error";
    let level = match section.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    };
    let filter = EnvFilter::try_new(format!("{level},{SILENCED}")).map_err(io::Error::other)?;
    let layer = match section.format {
        LogFormat::Json => tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
        LogFormat::Text => tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(io::Error::other)
}
