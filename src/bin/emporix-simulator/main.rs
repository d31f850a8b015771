//! The Emporix simulator: an offline stand-in for the customer-auth surface of the Emporix commerce API.
//! It answers like the documentation says, misbehaves on demand, and remembers every call for the test that made it.

mod account;
mod admin;
mod anonymous;
mod caller;
mod carts;
mod commerce;
mod events;
mod faults;
mod gzip;
mod intake;
mod issue;
mod login;
mod operation;
mod random;
mod refusal;
mod renewal;
mod routes;
mod saas;
mod settings;
mod simulator;
mod streams;
mod tokens;
mod wire;

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::Arc,
};

use clap::Parser;
use tokio::{
    net::TcpListener,
    select,
    signal::unix::{SignalKind, signal},
};

use crate::{saas::SaasSigner, simulator::Simulator, wire::Wire};

/// Imitates the customer-auth surface of the Emporix commerce API.
#[derive(Parser)]
#[command(name = "emporix-simulator", version)]
struct Arguments {
    /// Where to listen; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// The passphrase that signs SaaS tokens.
    #[arg(long, default_value = "simulator-passphrase")]
    saas_secret: String,
    /// The secret of every client that asks for service tokens.
    #[arg(long, default_value = "simulator-client-secret")]
    client_secret: String,
    /// A tenant that exists; may be repeated.
    #[arg(long = "tenant", default_values = ["acme", "globex"])]
    tenants: Vec<String>,
    /// An API key storefronts may use; may be repeated.
    #[arg(long = "client-id", default_values = ["storefront"])]
    client_ids: Vec<String>,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let Arguments { listen, saas_secret, client_secret, tenants, client_ids } = Arguments::parse();
    let simulator = Arc::new(Simulator::new(tenants, client_ids, client_secret, SaasSigner::new(saas_secret)));
    let listener = TcpListener::bind(listen).await?;
    announce(&listener)?;
    let app = routes::all(simulator).into_make_service_with_connect_info::<Wire>();
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // Leaves open connections behind: a test that ends the simulator is done with them.
    select! {
        served = axum::serve(listener, app) => served,
        _ = interrupted.recv() => Ok(()),
        _ = terminated.recv() => Ok(()),
    }
}

/// Tells whoever started us which port it became.
fn announce(listener: &TcpListener) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "emporix-simulator listening on http://{}", listener.local_addr()?)?;
    stdout.flush()
}
