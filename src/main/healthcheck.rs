//! `emporix-gateway healthcheck`: asks a gateway that runs whether it is ready, for images without a shell.
//! One line and an exit code, within a time that probes wait.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;

use super::admin::{Listener, Question};
use super::{Failure, UNAVAILABLE, plain};

const TIMEOUT: Duration = Duration::from_secs(3);

/// Which gateway is asked.
#[derive(Args)]
pub(super) struct Healthcheck {
    #[command(flatten)]
    listener: Listener,
}

/// Asks, and returns what is to be shown.
pub(super) fn run(errand: &Healthcheck, environment: HashMap<String, String>) -> Result<String, Failure> {
    let configured = errand.listener.configured(environment)?;
    let url = errand.listener.url(configured.as_ref(), "/readyz")?;
    let (status, body) = Question { url, token: None, body: None, timeout: TIMEOUT }.ask()?;
    match status {
        200 => Ok("ready".to_owned()),
        _ => Err((UNAVAILABLE, format!("not ready: the gateway answered {status} ({})", first_line(&body)))),
    }
}

fn first_line(body: &[u8]) -> String {
    const MOST_SHOWN: usize = 100;
    let text = String::from_utf8_lossy(body);
    plain(text.lines().next().unwrap_or_default()).chars().take(MOST_SHOWN).collect()
}
