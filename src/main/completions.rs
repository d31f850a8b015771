//! `emporix-gateway completions`: prints what makes a shell complete the program's commands and options.
//! Made from the same declaration that parses them.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// For which shell.
#[derive(Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

/// The script.
pub(super) fn run(errand: &Completions) -> String {
    let (mut command, mut script) = (super::Arguments::command(), Vec::new());
    clap_complete::generate(errand.shell, &mut command, env!("CARGO_PKG_NAME"), &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
