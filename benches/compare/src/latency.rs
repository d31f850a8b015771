//! What a request waits: at a third of the floor's capacity, whether those before are answered or not; on a session
//! that is not in memory; and connections that idle.

use std::io::{Error, Result};
use std::time::Instant;

use crate::info;
use crate::load::{Connection, Request, hold, login, open_loop, request, saturate};
use crate::meter::{Cpu, memory};
use crate::mint::{Holds, mint};
use crate::program::{Awake, Program, Setting, Stage};
use crate::statistics::{median, microseconds, percentile, spread};
use crate::table::{CONNECTIONS, PATH, TOKEN_BYTES, one_of_each, request_of};

/// Prints the latencies of `rounds` alternated rounds. What is measured runs on core 0; the rest belongs on another.
pub(crate) async fn print(stage: &mut Stage, rounds: usize) -> Result<()> {
    stage.core = Some(0);
    let minted = one_of_each();
    stage.save(&minted).await?;
    let floor = stage.floor(1, None)?;
    let gateway = stage.gateway(&Setting::default(), None)?;
    let direct = request(PATH, &minted[0].tokens());
    let contenders: [(&str, &Program, &Request); 2] =
        [("floor", &floor, &direct), ("gateway, cookie", &gateway, &request_of(&minted[0]))];
    let begun = Instant::now();
    saturate(floor.address, std::slice::from_ref(&direct), CONNECTIONS, 20_000).await?;
    let rate = (20_000.0 / begun.elapsed().as_secs_f64() / 3.0) as u32;
    let mut figures = vec![(Vec::new(), Vec::new()); contenders.len()];
    for _ in 0..rounds {
        for ((_, program, request), (p50, p99)) in contenders.iter().zip(&mut figures) {
            open_loop(program.address, request, rate, 1).await?;
            let times = microseconds(&open_loop(program.address, request, rate, 5).await?);
            p50.push(percentile(&times, 0.5));
            p99.push(percentile(&times, 0.99));
        }
    }
    println!("at {rate} requests a second, a third of what the floor can:\n");
    println!("| | p50, µs | p99, µs |\n|---|---|---|");
    for ((name, ..), (p50, p99)) in contenders.iter().zip(&figures) {
        println!("| {name} | {} | {} |", spread(p50, 0), spread(p99, 0));
    }
    println!("\nratio of the medians: p50 {:.2}", median(&figures[1].0) / median(&figures[0].0));
    Ok(())
}

/// Prints what a session costs that is not in memory, on cores that sleep in between and on cores that do not, and that each
/// is read once.
pub(crate) async fn print_cold(stage: &Stage, rounds: usize, count: usize) -> Result<()> {
    println!("cores that sleep between two messages:");
    print_added(stage, rounds).await?;
    println!("cores that are kept awake:");
    let awake = Awake::keep()?;
    print_added(stage, rounds).await?;
    drop(awake);

    let requests = cold_requests(stage, count).await?;
    let gateway = stage.gateway(&Setting::default(), None)?;
    let gets = || info::number(stage.redis.address, "commandstats", "cmdstat_get:calls=");
    let before = gets().await?.unwrap_or_default();
    saturate(gateway.address, &requests, 256.min(count), count).await?;
    println!(
        "{count} requests on {count} cold sessions: no error, {} GETs",
        gets().await?.unwrap_or_default() - before
    );
    Ok(())
}

async fn print_added(stage: &Stage, rounds: usize) -> Result<()> {
    const EACH: usize = 1_000;
    let requests = cold_requests(stage, (rounds + 1) * EACH).await?;
    let gateway = stage.gateway(&Setting::default(), None)?;
    let (mut added, mut gets) = (Vec::new(), Vec::new());
    for (round, few) in requests.chunks(EACH).enumerate() {
        let [cold, hot, get] = cold_times(stage, &gateway, few).await?;
        // The first round warms the program.
        if round > 0 {
            println!("one after the other: p50 {cold:.0} µs cold, {hot:.0} µs hot, one GET of Redis {get:.0} µs");
            added.push(cold - hot);
            gets.push(get);
        }
    }
    println!("added at the median: {} µs, a GET by itself {} µs", spread(&added, 0), spread(&gets, 0));
    Ok(())
}

/// Requests, each on a session that only Redis knows.
async fn cold_requests(stage: &Stage, count: usize) -> Result<Vec<Request>> {
    let sessions: Vec<_> = (0..count).map(|_| mint(Holds::Cookie, TOKEN_BYTES)).collect();
    stage.save(&sessions).await?;
    Ok(sessions.iter().map(request_of).collect())
}

/// The median times of requests on sessions that are not in memory, of the same once they are, and of a GET, in
/// microseconds. They alternate, so that the cores sleep as much before each.
async fn cold_times(stage: &Stage, gateway: &Program, requests: &[Request]) -> Result<[f64; 3]> {
    let (mut connection, mut probe) =
        (Connection::open(gateway.address).await?, info::Probe::open(stage.redis.address).await?);
    let mut times = [const { Vec::new() }; 3];
    for request in requests {
        for of_kind in &mut times[..2] {
            let sent = Instant::now();
            connection.exchange(request).await?;
            of_kind.push(sent.elapsed());
        }
        times[2].push(probe.get().await?);
    }
    Ok(times.map(|of_kind| median(&microseconds(&of_kind))))
}

/// Prints what a login waits beside Emporix' own time: asked of the simulator itself and through the gateway, in turn.
pub(crate) async fn print_login(stage: &Stage, rounds: usize) -> Result<()> {
    let simulator = stage.simulator()?;
    let rate = "{burst: 100000, per_minute: 100000}";
    let further =
        format!("limits: {{sign_in_per_address: {rate}, sign_in_per_account: {rate}, visitors_per_address: {rate}}}");
    let gateway = stage.gateway(&Setting { upstream: Some(simulator.address), further, ..Setting::default() }, None)?;
    let mut added = Vec::new();
    for _ in 0..rounds {
        let (alone, through) = (login_time(&simulator).await?, login_time(&gateway).await?);
        println!("a login: p50 {alone:.0} µs at the simulator, {through:.0} µs through the gateway");
        added.push(through - alone);
    }
    println!("added at the median: {} µs", spread(&added, 0));
    Ok(())
}

/// The median time of logins, each with a visitor of its own, in microseconds.
async fn login_time(program: &Program) -> Result<f64> {
    const LOGINS: usize = 200;
    let anonymous = request("/customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront", &[]);
    let mut connection = Connection::open(program.address).await?;
    let mut times = Vec::with_capacity(LOGINS);
    for _ in 0..LOGINS {
        connection.exchange(&anonymous).await?;
        let visitor = connection.member("access_token").ok_or_else(|| Error::other("no visitor came to be"))?;
        let request = login(&visitor);
        let sent = Instant::now();
        connection.exchange(&request).await?;
        times.push(sent.elapsed());
    }
    Ok(median(&microseconds(&times)))
}

/// Prints what idle connections take.
pub(crate) async fn print_idle(stage: &Stage) -> Result<()> {
    let minted = one_of_each();
    stage.save(&minted).await?;
    let floor = stage.floor(1, None)?;
    let gateway = stage.gateway(&Setting::default(), None)?;
    let direct = request(PATH, &minted[0].tokens());
    println!("| | memory of an idle connection, KiB | CPU of 5,000 that idle for 5 s, ms |\n|---|---|---|");
    let contenders = [("floor", &floor, &direct), ("gateway", &gateway, &request_of(&minted[0]))];
    for (name, program, request) in contenders {
        let (few, many) = (500, 5_500);
        let first = hold(program.address, request, few).await?;
        let before = memory(program.pid());
        let second = hold(program.address, request, many - few).await?;
        let each = memory(program.pid()).saturating_sub(before) as f64 / (many - few) as f64 / 1024.0;
        let busy = Cpu::of(program.pid());
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        let idling = Cpu::of(program.pid()).each_since(busy, 1).total() / 1e3;
        println!("| {name} | {each:.1} | {idling:.0} |");
        drop((first, second));
    }
    Ok(())
}
