//! What TLS 1.3 and HTTP/2 cost downstream, beside peers that terminate them too; h2load asks.

use std::io::{Error, Result};
use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::process::Command;

use crate::meter::{Cpu, memory};
use crate::mint::Minted;
use crate::peers::{PEERS, certificate};
use crate::program::{Program, Setting, Stage};
use crate::statistics::spread;
use crate::table::{PATH, one_of_each};

/// How h2load asks.
#[derive(Clone, Copy)]
enum Asks {
    /// HTTP/1.1 over 64 connections that are kept.
    Http1,
    /// HTTP/2 over 16 connections with 4 streams each.
    Http2,
    /// Each request over a connection of its own.
    Anew,
}

struct Contender<'m> {
    name: &'static str,
    program: Program,
    headers: Vec<&'m (String, String)>,
    cost: [Vec<f64>; 3],
}

/// Prints the table.
pub(crate) async fn print(stage: &Stage, rounds: usize, count: usize) -> Result<()> {
    let folder = TempDir::new()?;
    let certificate = certificate(folder.path())?;
    let minted = one_of_each();
    stage.save(&minted).await?;
    let session: &Minted = &minted[0];
    let tokens = session.tokens();
    let setting = Setting { tls: Some(&certificate), ..Setting::default() };
    let gateway = stage.gateway(&setting, None)?;
    let mut contenders = vec![Contender {
        name: "gateway, cookie",
        program: gateway,
        headers: vec![&session.presented],
        cost: Default::default(),
    }];
    for peer in PEERS.iter().filter(|peer| ["nginx", "HAProxy", "Envoy"].contains(&peer.name)) {
        match peer.start(stage.api.address, session, Some(&certificate)) {
            Ok(program) => contenders.push(Contender {
                name: peer.name,
                program,
                headers: tokens.iter().collect(),
                cost: Default::default(),
            }),
            Err(error) => println!("left out: {}: {error}", peer.name),
        }
    }
    for _ in 0..rounds {
        for Contender { program, headers, cost, name } in &mut contenders {
            for (place, asks) in [Asks::Http1, Asks::Http2, Asks::Anew].into_iter().enumerate() {
                // nginx of Debian stable offers HTTP/2 only where it is asked for by its own directive.
                if *name == "nginx" && matches!(asks, Asks::Http2) {
                    continue;
                }
                let count = if matches!(asks, Asks::Anew) { count / 10 } else { count };
                ask(program.address, headers, asks, count.div_ceil(10)).await?;
                let before = Cpu::of(program.pid());
                ask(program.address, headers, asks, count).await?;
                cost[place].push(Cpu::of(program.pid()).each_since(before, count).total());
            }
        }
    }
    println!("| CPU of a request, µs | HTTP/1.1, kept | HTTP/2 | a new connection each |\n|---|---|---|---|");
    for Contender { name, cost, .. } in &contenders {
        let [http1, http2, anew] =
            cost.each_ref().map(|cost| if cost.is_empty() { "-".to_owned() } else { spread(cost, 1) });
        println!("| {name} | {http1} | {http2} | {anew} |");
    }
    idle(&contenders[0]).await
}

/// Prints what an idle TLS connection takes: h2load holds them open between two requests each.
async fn idle(contender: &Contender<'_>) -> Result<()> {
    const CONNECTIONS: usize = 2_000;
    let before = memory(contender.program.pid());
    let mut asking = command(contender.program.address, &contender.headers);
    asking.args(["--h1", "-n", "100000000", "-c", &CONNECTIONS.to_string(), "--rps", "0.1", "-D", "20"]);
    let mut asking = asking.stdout(std::process::Stdio::null()).spawn()?;
    tokio::time::sleep(std::time::Duration::from_secs(15)).await;
    let each = memory(contender.program.pid()).saturating_sub(before) as f64 / CONNECTIONS as f64 / 1024.0;
    asking.kill().await?;
    println!("\nan idle TLS connection of {CONNECTIONS}: {each:.1} KiB");
    Ok(())
}

fn command(address: SocketAddr, headers: &[&(String, String)]) -> Command {
    let mut command = Command::new("h2load");
    for (name, value) in headers {
        command.arg("-H").arg(format!("{}: {value}", name.to_lowercase()));
    }
    command.arg(format!("https://localhost:{}{PATH}", address.port()));
    command
}

/// Sends `count` requests; of those over connections of their own, as many at once as h2load opens without a pause.
async fn ask(address: SocketAddr, headers: &[&(String, String)], asks: Asks, count: usize) -> Result<()> {
    const AT_ONCE: usize = 100;
    let (each, times) = if matches!(asks, Asks::Anew) { (AT_ONCE, count.div_ceil(AT_ONCE)) } else { (count, 1) };
    for _ in 0..times {
        let mut command = command(address, headers);
        command.args(["-n", &each.to_string()]);
        match asks {
            Asks::Http1 => command.args(["--h1", "-c", "64"]),
            Asks::Http2 => command.args(["-c", "16", "-m", "4"]),
            Asks::Anew => command.args(["--h1", "-c", &each.to_string()]),
        };
        let output = command.output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !text.contains(&format!("{each} succeeded")) {
            let line = text.lines().find(|line| line.starts_with("requests:")).unwrap_or("h2load says nothing");
            return Err(Error::other(line.to_owned()));
        }
    }
    Ok(())
}
