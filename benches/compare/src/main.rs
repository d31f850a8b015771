//! Compares what a request costs: the gateway, a stock Pingora proxy and the peers, on the same work, in one run.
//! Loopback only; every program is started and ended here.

mod api;
mod growth;
mod guard;
mod info;
mod latency;
mod load;
mod meter;
mod mint;
mod peers;
mod plot;
mod program;
mod statistics;
mod table;
mod tls;

use std::io::Result;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;
use tokio::task::LocalSet;

use program::Stage;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compares what a request costs.
#[derive(Parser)]
struct Arguments {
    /// Where the programs lie that are measured.
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// Where plots go.
    #[arg(long, default_value = "docs/performance")]
    plots: PathBuf,
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// Serves the API that the proxies stand before.
    Api { port: u16 },
    /// CPU of a request: floor, gateway, peers.
    Table {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        #[arg(long, default_value_t = 40_000)]
        count: usize,
    },
    /// Instructions of a request, held to the recorded ratio to the floor's.
    Guard {
        #[arg(long, default_value = "benches/compare/recorded")]
        recorded: PathBuf,
        /// Writes what is measured instead.
        #[arg(long)]
        record: bool,
    },
    /// How instructions grow with token sizes, routes, replicas, fields, threads.
    Growth,
    /// CPU and memory with many sessions.
    Sessions {
        #[arg(default_values_t = [1, 10_000, 1_000_000])]
        counts: Vec<usize>,
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Latency at a third of capacity.
    Latency {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Sessions that are not in memory.
    Cold {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        #[arg(long, default_value_t = 10_000)]
        count: usize,
    },
    /// What a login waits beside Emporix' own time.
    Login {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Memory of idle connections.
    Idle,
    /// TLS 1.3 and HTTP/2.
    Tls {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        #[arg(long, default_value_t = 20_000)]
        count: usize,
    },
}

fn main() -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(Arguments::parse()))
}

async fn run(Arguments { programs, plots, suite }: Arguments) -> Result<()> {
    if let Suite::Api { port } = suite {
        return api::serve(port).await;
    }
    let mut stage = Stage::set(programs)?;
    match suite {
        Suite::Api { .. } => Ok(()),
        Suite::Table { rounds, count } => table::print(&stage, rounds, count).await,
        Suite::Guard { recorded, record } => guard::check(&stage, &recorded, record).await,
        Suite::Growth => growth::print(&stage, &plots).await,
        Suite::Sessions { counts, rounds } => growth::print_sessions(&stage, &counts, rounds, &plots).await,
        Suite::Latency { rounds } => latency::print(&mut stage, rounds).await,
        Suite::Cold { rounds, count } => latency::print_cold(&stage, rounds, count).await,
        Suite::Login { rounds } => latency::print_login(&stage, rounds).await,
        Suite::Idle => latency::print_idle(&stage).await,
        Suite::Tls { rounds, count } => tls::print(&stage, rounds, count).await,
    }
}
