//! What a request costs: the floor, the gateway in each transport and the peers, in alternated rounds on one core.

use std::io::Result;

use crate::load::{Request, request, saturate};
use crate::meter::{Counter, Counting, Cpu};
use crate::mint::{Holds, Minted, mint};
use crate::peers::PEERS;
use crate::program::{Program, Setting, Stage};
use crate::statistics::{median, spread};

/// A request that customers make: both tokens go along.
pub(crate) const PATH: &str = "/order-v2/acme/orders?pageSize=20";

/// Bytes of an access token as Emporix issues them.
pub(crate) const TOKEN_BYTES: usize = 28;

/// Connections of every load.
pub(crate) const CONNECTIONS: usize = 64;

/// The ways to hold a session, with their names.
pub(crate) const TRANSPORTS: [(&str, Holds); 3] =
    [("cookie", Holds::Cookie), ("handle", Holds::Handle), ("saas_token", Holds::SaasToken)];

/// One of each transport.
pub(crate) fn one_of_each() -> Vec<Minted> {
    TRANSPORTS.iter().map(|(_, holds)| mint(*holds, TOKEN_BYTES)).collect()
}

/// The request of a session's client.
pub(crate) fn request_of(session: &Minted) -> Request {
    request(PATH, std::slice::from_ref(&session.presented))
}

struct Contender {
    name: String,
    does: &'static str,
    program: Program,
    request: Request,
    /// CPU of a request in each round.
    cost: Vec<Cpu>,
}

/// CPU of one request.
pub(crate) async fn cost(program: &Program, requests: &[Request], count: usize) -> Result<Cpu> {
    saturate(program.address, requests, CONNECTIONS, count / 10).await?;
    let before = Cpu::of(program.pid());
    saturate(program.address, requests, CONNECTIONS, count).await?;
    Ok(Cpu::of(program.pid()).each_since(before, count))
}

/// Instructions of one request, in user mode.
pub(crate) async fn instructions(
    counting: Counting,
    program: &Program,
    requests: &[Request],
    count: usize,
) -> Result<f64> {
    // Every session is asked for twice before it counts: caches are warm.
    saturate(program.address, requests, 16, (2 * requests.len()).max(count / 4)).await?;
    let counter = Counter::start(counting, program.pid()).await?;
    saturate(program.address, requests, 16, count).await?;
    Ok(counter.stop(program.folder()).await? / count as f64)
}

/// Prints the table, and the line that sums it up.
pub(crate) async fn print(stage: &Stage, rounds: usize, count: usize) -> Result<()> {
    let minted = one_of_each();
    stage.save(&minted).await?;
    let by_tokens = request(PATH, &minted[0].tokens());
    let contender = |name: &str, does, program, request| Contender {
        name: name.to_owned(),
        does,
        program,
        request,
        cost: Vec::new(),
    };
    let floor = stage.floor(1, None)?;
    let mut contenders = vec![contender("floor (stock Pingora)", "proxies", floor, by_tokens.clone())];
    for ((name, _), session) in TRANSPORTS.iter().zip(&minted) {
        let gateway = stage.gateway(&Setting::default(), None)?;
        contenders.push(contender(&format!("gateway, {name}"), "all of it", gateway, request_of(session)));
    }
    for peer in &PEERS {
        let request = if peer.is_brought_tokens { by_tokens.clone() } else { request_of(&minted[0]) };
        match peer.start(stage.api.address, &minted[0], None) {
            Ok(program) => contenders.push(contender(peer.name, peer.does, program, request)),
            Err(error) => println!("left out: {}: {error}", peer.name),
        }
    }
    for _ in 0..rounds {
        for contender in &mut contenders {
            let cost = cost(&contender.program, std::slice::from_ref(&contender.request), count).await?;
            contender.cost.push(cost);
        }
    }
    let floor = contenders[0].cost.clone();
    let ratios = |contender: &Contender| -> Vec<f64> {
        contender.cost.iter().zip(&floor).map(|(cost, floor)| cost.total() / floor.total()).collect()
    };
    println!(
        "| | does | CPU of a request, µs | user + kernel | ratio to the floor, same round |\n|---|---|---|---|---|"
    );
    for contender in &contenders {
        let of = |part: fn(&Cpu) -> f64| contender.cost.iter().map(part).collect::<Vec<f64>>();
        let (cost, ratio) = (spread(&of(|cpu| cpu.total()), 1), spread(&ratios(contender), 2));
        let (user, kernel) = (median(&of(|cpu| cpu.user)), median(&of(|cpu| cpu.kernel)));
        println!("| {} | {} | {cost} | {user:.1} + {kernel:.1} | {ratio} |", contender.name, contender.does);
    }
    let [cookie, handle, saas] = [1, 2, 3].map(|place| median(&ratios(&contenders[place])));
    println!("\nhot path: {cookie:.2} x floor (cookie), {handle:.2} (handle), {saas:.2} (saas_token)");
    Ok(())
}
