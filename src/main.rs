//! The gateway's program: arguments, configuration, logs, and then the app; or an operator's errand to one that runs.
//! Exit codes: 0 done, 64 the configuration or the command is faulty, 69 something it needs is not there or refuses.

#[path = "main/admin.rs"]
mod admin;
#[path = "main/completions.rs"]
mod completions;
#[path = "main/doctor.rs"]
mod doctor;
#[path = "main/healthcheck.rs"]
mod healthcheck;
#[path = "main/keys.rs"]
mod keys;
#[path = "main/probe.rs"]
mod probe;
#[path = "main/sessions.rs"]
mod sessions;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use completions::Completions;
use doctor::Doctor;
use emporix_gateway::app::{self, App, Source, StartError};
use emporix_gateway::clock::{Clock, SystemClock};
use emporix_gateway::config::{self, Config};
use emporix_gateway::telemetry;
use healthcheck::Healthcheck;
use keys::Keys;
use sessions::Sessions;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FAULTY: u8 = 64;
const UNAVAILABLE: u8 = 69;

/// Why an errand failed: exit code and message.
type Failure = (u8, String);

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
    /// Prints the JSON Schema of the configuration, for editors.
    Schema,
    /// Asks a gateway that runs whether it is ready.
    Healthcheck(Healthcheck),
    /// Prints what makes a shell complete this program's commands.
    Completions(Completions),
    /// Says what would happen to a request. Sends nothing.
    Explain(Explain),
    /// Asks a live tenant of Emporix what its documentation leaves open, and says which switches the answers want.
    Doctor(Doctor),
    /// Makes sealing keys.
    #[command(subcommand)]
    Keys(Keys),
    /// Lists and ends sessions of a gateway that runs.
    #[command(subcommand)]
    Sessions(Sessions),
}

#[derive(Args, Clone)]
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

/// A request, and the configuration that decides about it.
#[derive(Args)]
struct Explain {
    #[command(flatten)]
    file: ConfigFile,
    /// Its method.
    method: String,
    /// Its address, or the path and query of it.
    url: String,
    /// A field of its head.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
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

fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Serve(serving) => serve(serving),
        Command::CheckConfig(file) => {
            let (_, warnings) = checked(file)?;
            for warning in warnings {
                say(&format!("warning: {warning}"))?;
            }
            say(&format!("{}: ok", file.config.display()))
        }
        Command::PrintConfig(file) => {
            let text = serde_saphyr::to_string(&load(file)?).map_err(|error| (FAULTY, error.to_string()))?;
            say(text.trim_end())
        }
        Command::Schema => say(&config::schema().to_string()),
        Command::Healthcheck(errand) => say(&healthcheck::run(errand, environment()?.collect())?),
        Command::Completions(errand) => say(&completions::run(errand)),
        Command::Explain(Explain { file, method, url, headers }) => {
            let explained = app::explain(&load(file)?, method, url, headers, SystemClock.now());
            say(&explained.map_err(|error| (FAULTY, error))?.to_string())
        }
        Command::Doctor(errand) => {
            let (seen, all) = doctor::run(errand, environment()?.collect())?;
            say(&seen)?;
            all
        }
        Command::Keys(errand) => say(&keys::run(errand, environment()?.collect())?),
        Command::Sessions(errand) => say(&sessions::run(errand, environment()?.collect())?),
    }
}

/// The environment, without what is no text: none of ours may be that.
fn environment() -> Result<impl Iterator<Item = (String, String)>, Failure> {
    let (mut texts, mut faults) = (Vec::new(), Vec::new());
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => texts.push((name, value)),
            (Ok(name), Err(_)) if name.starts_with(config::ENVIRONMENT_PREFIX) => {
                faults.push(format!("environment {name}: is no text in UTF-8"));
            }
            _ => {}
        }
    }
    if faults.is_empty() { Ok(texts.into_iter()) } else { Err((FAULTY, faults.join("\n"))) }
}

fn load(file: &ConfigFile) -> Result<Config, Failure> {
    config::load(&file.config, environment()?).map_err(|faults| (FAULTY, faults.to_string()))
}

/// The configuration, with everything tried that can be known before a listener opens; and what is dubious about it.
fn checked(file: &ConfigFile) -> Result<(Config, Vec<String>), Failure> {
    let mut reading = config::Reading::of(&file.config, environment()?);
    let warnings = reading.judged(|config| app::check(config, SystemClock.now()));
    Ok((reading.accepted().map_err(|faults| (FAULTY, faults.to_string()))?, warnings))
}

/// The same of a configuration that is followed.
fn followed(file: &ConfigFile) -> Result<(Config, Vec<String>), Failure> {
    config::files::expect_regular(&file.config)
        .map_err(|error| (FAULTY, format!("{}: cannot be read: {error}", file.config.display())))?;
    checked(file)
}

fn serve(serving: &Serving) -> Result<(), Failure> {
    let read_at = SystemClock.now();
    let (config, warnings) = followed(&serving.file)?;
    let levels = telemetry::start_logging(&config.log, std::io::stderr);
    let levels = levels.map_err(|error| (UNAVAILABLE, error.to_string()))?;
    warn(&warnings);
    let code = |error: StartError| match error {
        StartError::Config(message) => (FAULTY, message),
        StartError::Unavailable(message) => (UNAVAILABLE, message),
    };
    let file = serving.file.clone();
    let source = Source {
        file: file.config.clone(),
        read_at,
        load: Box::new(move || {
            let (config, warnings) = followed(&file).map_err(|(_, faults)| faults)?;
            warn(&warnings);
            Ok(config)
        }),
        log_at: Box::new(move |level| levels.set(level)),
    };
    let build = if serving.upgrade { App::taking_over } else { App::new };
    let app = build(&config, Arc::new(SystemClock)).map_err(code)?;
    app.following(source).run().map_err(code)
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
}

fn say(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| (UNAVAILABLE, error.to_string()))
}

/// Text of somebody else's as a terminal may show it: what could move its cursor or turn its lines around is left out.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}
