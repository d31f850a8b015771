//! What the tests measured and held, for whoever runs them.
//! `make faults` and `make ingress` name the file; without it nothing is written.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// Keeps one figure.
pub fn record(name: &str, value: impl Display) {
    println!("{name} {value}");
    let Some(path) = std::env::var_os("TEST_FIGURES") else { return };
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{name} {value}").unwrap();
}

/// How long the load lasts: full size when at least a minute, as `make faults` has it.
pub fn seconds() -> u64 {
    let text = std::env::var_os("FAULTS_SECONDS").map(|text| text.to_string_lossy().into_owned());
    text.map_or(15, |text| text.parse().expect("FAULTS_SECONDS is a number"))
}

/// Whether figures are held to their targets, and not just to what a busy machine can do.
pub fn full_size() -> bool {
    seconds() >= 60
}
