//! The gateway's program: arguments, configuration, logs, and then the app; or an operator's errand to one that runs.
//! Exit codes: 0 done, 64 the configuration or the command is faulty, 69 something it needs is not there or refuses.

#[path = "main/sessions.rs"]
mod sessions;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use emporix_gateway::app::{App, Source, StartError};
use emporix_gateway::clock::{Clock, SystemClock};
use emporix_gateway::config::{self, Config};
use emporix_gateway::telemetry;
use sessions::Sessions;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FAULTY: u8 = 64;
const UNAVAILABLE: u8 = 69;

/// Stands between storefronts and the Emporix commerce API, and owns every customer token.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the gateway.
    Serve(Serving),
    /// Says all that is wrong with a configuration.
    CheckConfig(ConfigFile),
    /// Prints the configuration as it takes effect, secrets masked.
    PrintConfig(ConfigFile),
    /// Lists and ends sessions of a gateway that runs.
    #[command(subcommand)]
    Sessions(Sessions),
}

#[derive(Args)]
struct ConfigFile {
    /// The YAML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args)]
struct Serving {
    #[command(flatten)]
    file: ConfigFile,
    /// Takes the listeners over from the gateway that runs, once SIGQUIT tells that one to hand them over.
    #[arg(long)]
    upgrade: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let asked_for = !error.use_stderr();
            // Where help cannot be printed, nothing can.
            let _ = error.print();
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(FAULTY) };
        }
    };
    match run(&arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            let _ = writeln!(std::io::stderr(), "{message}");
            ExitCode::from(code)
        }
    }
}

fn run(command: &Command) -> Result<(), (u8, String)> {
    match command {
        Command::Serve(serving) => serve(serving),
        Command::CheckConfig(file) => {
            emporix_gateway::app::check(&load(file)?).map_err(|error| (FAULTY, error))?;
            say(&format!("{}: ok", file.config.display()))
        }
        Command::PrintConfig(file) => {
            let text = serde_saphyr::to_string(&load(file)?).map_err(|error| (FAULTY, error.to_string()))?;
            say(text.trim_end())
        }
        Command::Sessions(errand) => say(&sessions::run(errand, std::env::vars().collect())?),
    }
}

fn load(file: &ConfigFile) -> Result<Config, (u8, String)> {
    config::load(&file.config, std::env::vars()).map_err(|faults| (FAULTY, faults.to_string()))
}

fn serve(serving: &Serving) -> Result<(), (u8, String)> {
    let read_at = SystemClock.now();
    let config = load(&serving.file)?;
    let levels = telemetry::start_logging(&config.log, std::io::stderr);
    let levels = levels.map_err(|error| (UNAVAILABLE, error.to_string()))?;
    let code = |error: StartError| match error {
        StartError::Config(message) => (FAULTY, message),
        StartError::Unavailable(message) => (UNAVAILABLE, message),
    };
    let file = serving.file.config.clone();
    let source = Source {
        load: Box::new({
            let file = file.clone();
            move || config::load(&file, std::env::vars()).map_err(|faults| faults.to_string())
        }),
        log_at: Box::new(move |level| levels.set(level)),
        file,
        read_at,
    };
    let app = App::new(&config, Arc::new(SystemClock)).map_err(code)?.following(source);
    let app = if serving.upgrade { app.taking_over() } else { app };
    app.run().map_err(code)
}

fn say(text: &str) -> Result<(), (u8, String)> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| (UNAVAILABLE, error.to_string()))
}
