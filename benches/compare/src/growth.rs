//! How the cost of a request grows: with sessions, token sizes, routes, replicas and header fields.

use std::io::Result;
use std::path::Path;

use crate::info;
use crate::load::{Request, request, saturate};
use crate::meter::Counting;
use crate::mint::{Holds, Minted, Part, mint};
use crate::plot;
use crate::program::{Setting, Stage};
use crate::statistics::median;
use crate::table::{PATH, TOKEN_BYTES, cost, instructions, request_of};

/// Requests that are counted for one point.
const COUNT: usize = 2_000;

/// One table: what grows, and what a request then costs.
struct Growth {
    file: &'static str,
    grows: &'static str,
    unit: &'static str,
    points: Vec<(String, f64)>,
}

impl Growth {
    /// Prints the table and draws it.
    fn show(&self, plots: &Path) -> Result<()> {
        println!("| {} | {} |\n|---|---|", self.grows, self.unit);
        for (point, cost) in &self.points {
            println!("| {point} | {cost:.1} |");
        }
        println!();
        plot::bars(&plots.join(self.file), self.grows, self.unit, &self.points)
    }
}

/// Measures and shows them all; plots go into the folder `plots`.
pub(crate) async fn print(stage: &Stage, plots: &Path) -> Result<()> {
    token_sizes(stage).await?.show(plots)?;
    routes(stage).await?.show(plots)?;
    replicas(stage).await?.show(plots)?;
    header_fields(stage).await?.show(plots)?;
    threads(stage).await?.show(plots)
}

const THOUSANDS: &str = "thousand instructions of a request";

async fn counted(stage: &Stage, setting: &Setting<'_>, requests: &[Request]) -> Result<f64> {
    let counting = Counting::here();
    let gateway = stage.gateway(setting, Some(counting))?;
    Ok(instructions(counting, &gateway, requests, COUNT).await? / 1e3)
}

/// A session that every gateway finds.
async fn saved(stage: &Stage, token_bytes: usize) -> Result<Minted> {
    let session = mint(Holds::Cookie, token_bytes);
    stage.save(std::slice::from_ref(&session)).await?;
    Ok(session)
}

async fn token_sizes(stage: &Stage) -> Result<Growth> {
    let mut points = Vec::new();
    for (name, bytes) in [("28 B", TOKEN_BYTES), ("0.5 KiB", 512), ("2 KiB", 2_048), ("8 KiB", 5_800)] {
        let session = saved(stage, bytes).await?;
        let name = format!("{name} (JWT of {} B)", session.jwt.len());
        points.push((name, counted(stage, &Setting::default(), &[request_of(&session)]).await?));
    }
    Ok(Growth { file: "token-size.svg", grows: "access token", unit: THOUSANDS, points })
}

async fn routes(stage: &Stage) -> Result<Growth> {
    let requests = [request_of(&saved(stage, TOKEN_BYTES).await?)];
    let mut points = Vec::new();
    for count in [0, 10, 100, 1_000] {
        let rule = |number| format!("- {{path: '/service-{number}/{{tenant}}/things/{{id}}', access: customer}}\n");
        let further =
            if count == 0 { String::new() } else { format!("routes:\n{}", (0..count).map(rule).collect::<String>()) };
        let setting = Setting { further, ..Setting::default() };
        points.push((format!("{count} and the shipped table"), counted(stage, &setting, &requests).await?));
    }
    Ok(Growth { file: "routes.svg", grows: "own routes", unit: THOUSANDS, points })
}

/// What other replicas cost one: sessions that they renew and end are heard of by all.
async fn replicas(stage: &Stage) -> Result<Growth> {
    let requests = [request_of(&saved(stage, TOKEN_BYTES).await?)];
    let mut points = vec![("1".to_owned(), counted(stage, &Setting::default(), &requests).await?)];
    let others = [stage.gateway(&Setting::default(), None)?, stage.gateway(&Setting::default(), None)?];
    for other in &others {
        saturate(other.address, &requests, 1, 10).await?;
    }
    points.push(("3".to_owned(), counted(stage, &Setting::default(), &requests).await?));
    Ok(Growth { file: "replicas.svg", grows: "replicas", unit: THOUSANDS, points })
}

async fn header_fields(stage: &Stage) -> Result<Growth> {
    let session = saved(stage, TOKEN_BYTES).await?;
    let mut points = Vec::new();
    for count in [0, 10, 30, 100] {
        let fields = (0..count).map(|number| (format!("X-Field-{number}"), "a value of twenty-four b".to_owned()));
        let headers: Vec<_> = std::iter::once(session.presented.clone()).chain(fields).collect();
        points.push((format!("{count} more"), counted(stage, &Setting::default(), &[request(PATH, &headers)]).await?));
    }
    Ok(Growth { file: "headers.svg", grows: "header fields", unit: THOUSANDS, points })
}

async fn threads(stage: &Stage) -> Result<Growth> {
    let sessions: Vec<_> = (0..64).map(|_| mint(Holds::Cookie, TOKEN_BYTES)).collect();
    let requests: Vec<Request> = sessions.iter().map(request_of).collect();
    stage.save(&sessions).await?;
    let mut points = Vec::new();
    for threads in [1, 2] {
        let setting = Setting { threads, ..Setting::default() };
        points.push((threads.to_string(), counted(stage, &setting, &requests).await?));
    }
    Ok(Growth { file: "threads.svg", grows: "proxy threads", unit: THOUSANDS, points })
}

/// What a request costs when it is one of many sessions' each time, and what memory each session takes.
pub(crate) async fn print_sessions(stage: &Stage, counts: &[usize], rounds: usize, plots: &Path) -> Result<()> {
    let mut points = Vec::new();
    println!(
        "| sessions | CPU of a request, µs | memory of the process, MiB | of a session, B \
         | Redis: of a record, B | of its alias, B | of its index, B |"
    );
    println!("|---|---|---|---|---|---|---|");
    for count in counts {
        let sessions: Vec<_> = (0..*count).map(|_| mint(Holds::Cookie, TOKEN_BYTES)).collect();
        let mut in_redis = [Part::Record, Part::Alias, Part::Index].map(|part| (part, 0.0));
        for (part, each) in &mut in_redis {
            let before = info::memory(stage.redis.address).await?;
            stage.save_parts(&sessions, &[*part]).await?;
            *each = (info::memory(stage.redis.address).await? - before) / *count as f64;
        }
        let [record, alias, index] = in_redis.map(|(_, each)| each);
        let requests: Vec<Request> = sessions.iter().map(request_of).collect();
        let setting = Setting { always_fresh: true, ..Setting::default() };
        let gateway = stage.gateway(&setting, None)?;
        saturate(gateway.address, &requests[..1], 64, 20_000).await?;
        let empty = crate::meter::memory(gateway.pid());
        // Once through all of them: they are hot then.
        saturate(gateway.address, &requests, 64, *count).await?;
        let full = crate::meter::memory(gateway.pid());
        let shuffled = shuffled(requests);
        let mut costs = Vec::new();
        for _ in 0..rounds {
            costs.push(cost(&gateway, &shuffled, 100_000).await?.total());
        }
        let each = (full.saturating_sub(empty)) as f64 / *count as f64;
        let mebibytes = full as f64 / (1 << 20) as f64;
        println!(
            "| {count} | {:.1} | {mebibytes:.0} | {each:.0} | {record:.0} | {alias:.0} | {index:.0} |",
            median(&costs)
        );
        points.push((count.to_string(), median(&costs)));
    }
    plot::bars(&plots.join("sessions.svg"), "sessions", "CPU of a request, µs", &points)
}

/// In an order that no cache expects.
fn shuffled(mut requests: Vec<Request>) -> Vec<Request> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for place in (1..requests.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        requests.swap(place, (state % (place as u64 + 1)) as usize);
    }
    requests
}
