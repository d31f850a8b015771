//! Keeps the hot path as cheap as it was: instructions of a request, as a ratio to the floor's, beside the recorded
//! ratio. A ratio of instructions does not depend on how busy the machine is.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Error, Result};
use std::path::Path;

use crate::load::request;
use crate::meter::Counting;
use crate::program::{Setting, Stage};
use crate::table::{PATH, TRANSPORTS, instructions, one_of_each, request_of};

/// Requests that are counted.
const COUNT: usize = 3_000;

/// How far a ratio may grow over the recorded one.
const SLACK: f64 = 1.03;

/// Measures, prints and compares. With `record` it writes what it measured instead.
pub(crate) async fn check(stage: &Stage, recorded: &Path, record: bool) -> Result<()> {
    let mut known = read(recorded)?;
    let counting = match Counting::here() {
        // Ratios counted one way say nothing of those counted the other.
        Counting::Processor if !record && !known.keys().any(|key| key.starts_with("processor ")) => Counting::Callgrind,
        counting => counting,
    };
    let minted = one_of_each();
    stage.save(&minted).await?;
    let floor = stage.floor(1, Some(counting))?;
    let base = instructions(counting, &floor, &[request(PATH, &minted[0].tokens())], COUNT).await?;
    drop(floor);
    println!("instructions of a request in user mode, counted by {}: {base:.0} (floor)", counting.name());
    let gateway = stage.gateway(&Setting::default(), Some(counting))?;
    let mut grown = Vec::new();
    for ((name, _), session) in TRANSPORTS.iter().zip(&minted) {
        let counted = instructions(counting, &gateway, &[request_of(session)], COUNT).await?;
        let (ratio, key) = (counted / base, format!("{} {name}", counting.name()));
        let before = known.insert(key, ratio);
        let said = before.map_or_else(|| "none recorded".to_owned(), |before| format!("recorded {before:.3}"));
        println!("{name}: {counted:.0}, {ratio:.3} x floor ({said})");
        if before.is_none_or(|before| ratio > before * SLACK) {
            grown.push(*name);
        }
    }
    if record {
        let lines: String = known.iter().map(|(key, ratio)| format!("{key} {ratio:.3}\n")).collect();
        return fs::write(recorded, lines);
    }
    if grown.is_empty() {
        return Ok(());
    }
    let grown = grown.join(", ");
    Err(Error::other(format!("more than 3 % over the recorded ratio: {grown}; `make record` takes it as it is")))
}

fn read(recorded: &Path) -> Result<BTreeMap<String, f64>> {
    let text = fs::read_to_string(recorded)?;
    let entry = |line: &str| {
        let (key, ratio) = line.rsplit_once(' ')?;
        Some((key.to_owned(), ratio.parse().ok()?))
    };
    text.lines().map(|line| entry(line).ok_or_else(|| Error::other(format!("not a ratio: {line}")))).collect()
}
