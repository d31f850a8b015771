//! `emporix-gateway keys`: makes a new sealing key, and says how a fleet moves over to it without losing a session.
//! A key is shown to no terminal, and overwrites no file.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use emporix_gateway::clock::{Clock, SystemClock};
use emporix_gateway::config::{self, Config, Secret, span_text};
use humantime_serde::re::humantime::format_rfc3339_seconds;

use super::{FAULTY, Failure, UNAVAILABLE};

/// What is done with sealing keys.
#[derive(Subcommand)]
pub(super) enum Keys {
    /// Makes the key that follows the active one.
    Rotate(Rotate),
}

/// Whose key is followed, and where the new one goes.
#[derive(Args)]
pub(super) struct Rotate {
    /// The YAML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Writes the key into a file of its own in this folder; without, it stands in what is printed.
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

/// Makes it, and returns what is to be shown.
pub(super) fn run(Keys::Rotate(rotate): &Keys, environment: HashMap<String, String>) -> Result<String, Failure> {
    let config = config::load(&rotate.config, environment.into_iter());
    let config = config.map_err(|faults| (FAULTY, faults.to_string()))?;
    let key = new_key().map_err(|error| (UNAVAILABLE, format!("no random bytes: {error}")))?;
    match &rotate.write {
        Some(folder) => {
            // A gateway may be started elsewhere.
            let folder = std::path::absolute(folder).map_err(|error| (UNAVAILABLE, format!("--write: {error}")))?;
            let id = free_id(&config, |id| file_of(&folder, id).exists());
            let file = file_of(&folder, &id);
            write(&file, &key).map_err(|error| (UNAVAILABLE, format!("{}: {error}", file.display())))?;
            Ok(steps(&config, &id, &format!("secret_file: '{}'", file.display())))
        }
        None if std::io::stdout().is_terminal() => {
            Err((FAULTY, "a key is shown to no terminal: name --write DIR, or send the output elsewhere".to_owned()))
        }
        None => Ok(steps(&config, &free_id(&config, |_| false), &format!("secret: {}", key.expose()))),
    }
}

fn new_key() -> Result<Secret, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(Secret::new(STANDARD.encode(bytes)))
}

fn file_of(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("seal-{id}"))
}

/// Today, or today's first that is not taken.
fn free_id(config: &Config, is_taken: impl Fn(&str) -> bool) -> String {
    let now = SystemTime::from(SystemClock.now());
    let today: String = format_rfc3339_seconds(now).to_string().chars().take_while(|c| *c != 'T').collect();
    let known = |id: &str| config.store.seal.keys.iter().any(|key| key.id == id) || is_taken(id);
    let later = (2..=u16::MAX).map(|nth| format!("{today}.{nth}"));
    std::iter::once(today.clone()).chain(later).find(|id| !known(id)).unwrap_or(today)
}

/// For the owner's eyes alone from the first byte on, and never over something that is there.
fn write(file: &Path, key: &Secret) -> std::io::Result<()> {
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut made = made.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            std::io::Error::new(ErrorKind::AlreadyExists, "is there already, and stays as it is")
        }
        _ => error,
    })?;
    writeln!(made, "{}", key.expose())?;
    made.sync_all()
}

/// The section as it is to become, and the way there.
fn steps(config: &Config, id: &str, secret: &str) -> String {
    let seal = &config.store.seal;
    let mut shown = String::new();
    let mut line = |text: &str| {
        // Writing to a text does not fail.
        let _ = writeln!(shown, "{text}");
    };
    if seal.keys.is_empty() {
        line("# The first key: every replica has to have it before sessions are kept in Redis.");
    } else {
        line(
            "# 1. Add the new key in every replica, and let all of them run with it: now each opens what any other seals.",
        );
    }
    line("store:");
    line("  seal:");
    line(&format!("    active: '{}'", if seal.keys.is_empty() { id } else { &seal.active }));
    line("    keys:");
    for key in &seal.keys {
        line(&format!("      - id: '{}'    # its secret as it stands", key.id));
    }
    line(&format!("      - id: '{id}'"));
    line(&format!("        {secret}"));
    if !seal.keys.is_empty() {
        let absolute = span_text(config.session.absolute);
        line(&format!(
            "# 2. Then seal with it: `active: '{id}'` in every replica. Records that are met are sealed anew."
        ));
        line(&format!("# 3. Then, {absolute} (session.absolute) after the last replica runs so, remove the others."));
    }
    shown.trim_end().to_owned()
}
