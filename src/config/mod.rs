//! Loads the configuration: one YAML file, overlaid by the environment, secrets from files where asked.
//! Every fault is reported at once, each with its place, its key and what is accepted there.

pub mod files;
pub mod routes;
pub mod secret;
pub mod sections;
pub mod service;
pub mod store;
pub mod traces;
pub mod version;
pub mod webhook;

mod check;
mod hint;
mod schema;
mod secret_files;
mod span;
mod tree;

use std::fmt;
use std::path::Path;

use serde::de::{Error as _, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use files::NamedFile;
pub use schema::schema;
pub use secret::Secret;
pub use sections::*;
pub use service::{InternalSection, ServiceName, ServiceSection};
pub use span::text as span_text;
pub use store::*;
pub use traces::TracesSection;
pub use version::Version;
pub use webhook::WebhookSection;

pub use crate::session::TenantId;
use tree::{Origin, Tree};

/// Environment variables with this prefix override the file: `EMPORIX_GATEWAY__STORE__KIND=redis`.
pub const ENVIRONMENT_PREFIX: &str = "EMPORIX_GATEWAY__";

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    origin: Option<Origin>,
    key: String,
    message: String,
}

impl Fault {
    fn at(origin: Option<Origin>, key: &str, message: String) -> Self {
        Self { origin, key: key.to_owned(), message }
    }
}

/// All that is wrong with a configuration, in the order of its lines.
#[derive(Debug)]
pub struct Faults {
    file: String,
    faults: Vec<Fault>,
}

impl Faults {
    fn of(file: String, mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|one, other| one.origin.cmp(&other.origin));
        Self { file, faults }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match &fault.origin {
                Some(Origin::File { line, column }) => write!(f, "{}:{line}:{column}: ", self.file)?,
                Some(Origin::Environment(name)) => write!(f, "environment {name}: ")?,
                None => write!(f, "{}: ", self.file)?,
            }
            if !fault.key.is_empty() {
                write!(f, "{}: ", fault.key)?;
            }
            write!(f, "{}", fault.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Something that was found in a configuration by who built with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key, its segments joined by dots.
    pub key: String,
    /// What is wrong there.
    pub message: String,
    /// Whether the gateway runs nevertheless.
    pub is_warning: bool,
}

impl Finding {
    /// Something that cannot be used.
    pub fn fault(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into(), is_warning: false }
    }

    /// Something that can be used, and had better be looked at.
    pub fn warning(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { is_warning: true, ..Self::fault(key, message) }
    }
}

/// What was read of a configuration: what could be understood of it, and what is wrong with it.
#[derive(Debug)]
pub struct Reading {
    file: String,
    tree: Tree,
    config: Option<Config>,
    faults: Vec<Fault>,
}

impl Reading {
    /// Reads `file`, overlaid by `environment` (names and values).
    pub fn of(file: &Path, environment: impl Iterator<Item = (String, String)>) -> Self {
        let name = file.display().to_string();
        match files::read_text_once(file, files::MOST_CONFIGURATION) {
            Ok(text) => Self::parse(&name, &text, environment),
            Err(error) => Self::failed(&name, Fault::at(None, "", format!("cannot be read: {error}"))),
        }
    }

    fn failed(name: &str, fault: Fault) -> Self {
        Self { file: name.to_owned(), tree: Tree::default(), config: None, faults: vec![fault] }
    }

    fn parse(name: &str, text: &str, environment: impl Iterator<Item = (String, String)>) -> Self {
        let mut tree = match Tree::parse(text) {
            Ok(tree) => tree,
            Err(fault) => return Self::failed(name, fault),
        };
        overlay(&mut tree, environment);
        if let Some(fault) = of_another_version(&tree) {
            return Self::failed(name, fault);
        }
        let (mut faults, secret_files) = secret_files::read(&mut tree);
        let config = deserialize(&mut tree, &mut faults).map(|config| Config { secret_files, ..config });
        let found = config.as_ref().map(check::faults).unwrap_or_default();
        let mut reading = Self { file: name.to_owned(), tree, config, faults };
        reading.add(found.into_iter().map(|(key, message)| Finding::fault(key, message)));
        reading
    }

    /// Has what was understood looked at by `judge`, adds the faults that it finds, and returns its warnings, each in a
    /// line of its own.
    pub fn judged(&mut self, judge: impl FnOnce(&Config) -> Vec<Finding>) -> Vec<String> {
        let found = self.config.as_ref().map(judge).unwrap_or_default();
        let (warnings, faults): (Vec<_>, Vec<_>) = found.into_iter().partition(|finding| finding.is_warning);
        self.add(faults.into_iter());
        let warnings = warnings.into_iter().map(|warning| self.placed(warning)).collect();
        let warnings = Faults::of(self.file.clone(), warnings).faults.into_iter();
        warnings.map(|fault| Faults { file: self.file.clone(), faults: vec![fault] }.to_string()).collect()
    }

    /// The configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn accepted(self) -> Result<Config, Faults> {
        match self.config {
            Some(config) if self.faults.is_empty() => Ok(config),
            _ => Err(Faults::of(self.file, self.faults)),
        }
    }

    /// Adds faults, of each key only what was found first: what follows may follow from it.
    fn add(&mut self, found: impl Iterator<Item = Finding>) {
        for finding in found {
            let fault = self.placed(finding);
            let is_known = |known: &Fault| known.key.strip_suffix("_file").unwrap_or(&known.key) == fault.key;
            if !self.faults.iter().any(|known| known.key == fault.key || is_known(known)) {
                self.faults.push(fault);
            }
        }
    }

    fn placed(&self, Finding { key, message, .. }: Finding) -> Fault {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        Fault::at(self.tree.origin(&path), &key, message)
    }
}

/// Loads `file`, overlaid by `environment` (names and values).
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(file: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Config, Faults> {
    Reading::of(file, environment).accepted()
}

/// Parses the text of the file `name`, overlaid by `environment`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(name: &str, text: &str, environment: impl Iterator<Item = (String, String)>) -> Result<Config, Faults> {
    Reading::parse(name, text, environment).accepted()
}

/// The one fault of a file of another version: each that follows would follow from it.
fn of_another_version(tree: &Tree) -> Option<Fault> {
    let error = Version::deserialize(tree.root.get("version")?).err()?;
    Some(Fault::at(tree.origin(&["version".to_owned()]), "version", error.to_string()))
}

fn overlay(tree: &mut Tree, environment: impl Iterator<Item = (String, String)>) {
    for (name, value) in environment {
        let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
        let path: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        let value = if value.starts_with(['[', '{']) {
            serde_json::from_str(&value).unwrap_or(Value::String(value))
        } else {
            tree::plain_scalar(&value)
        };
        tree.set(&path, value, Origin::Environment(name));
    }
}

/// Deserializes, and for each fault takes the faulty value out and tries again, so that all are found.
fn deserialize(tree: &mut Tree, faults: &mut Vec<Fault>) -> Option<Config> {
    const MOST_FAULTS: usize = 50;
    while faults.len() < MOST_FAULTS {
        let error = match serde_path_to_error::deserialize::<_, Config>(tree.root.clone().into_deserializer()) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let mut path: Vec<String> = segments(error.path());
        let message = hint::told(error.inner().to_string(), secret_files::keys_beside(&path));
        let fault = Fault::at(tree.origin(&path), &path.join("."), message);
        if faults.iter().any(|known| known.key == fault.key) {
            // An item whose place in its sequence cannot be empty: the sequence goes.
            path.pop();
        } else {
            faults.push(fault);
        }
        tree.remove(&path)?;
    }
    None
}

fn segments(path: &serde_path_to_error::Path) -> Vec<String> {
    use serde_path_to_error::Segment;
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.clone(),
            Segment::Enum { variant } => variant.clone(),
            Segment::Unknown => "?".to_owned(),
        })
        .collect()
}

impl<'de> Deserialize<'de> for TenantId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format!("`{text}` is no tenant name: 3 to 16 lowercase letters and digits, letter first"))
        })
    }
}

impl Serialize for TenantId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(text: &str) -> String {
        parse("gateway.yaml", text, std::iter::empty()).expect_err("the text is faulty").to_string()
    }

    #[test]
    fn every_fault_is_reported_at_once_with_its_place_and_what_is_accepted() {
        let text = "listen:\n  public: nowhere\n  colour: red\nstore:\n  kind: mongo\ntenants:\n  acme:\n    client_id: x\n    transport: pigeon\n";
        let shown = faults_of(text);
        for expected in [
            "gateway.yaml:2:3: listen.public: ",
            "gateway.yaml:3:3: listen.colour: unknown field `colour`, expected one of `public`",
            "gateway.yaml:5:3: store.kind: unknown variant `mongo`, expected `memory` or `redis`",
            "gateway.yaml:9:5: tenants.acme.transport: unknown variant `pigeon`",
        ] {
            assert!(shown.contains(expected), "{expected}\nin\n{shown}");
        }
    }

    const REFERENCE: &str = include_str!("../../config/gateway.yaml");

    /// The keys that a section accepts, as its own error lists them.
    fn accepted_keys(section: &str, depth: usize) -> Vec<String> {
        let text = format!("{section}\n{}no-such-key: 1\n", "  ".repeat(depth)).trim_start().to_owned();
        let shown = faults_of(&text);
        let listed = shown.split("unknown field `no-such-key`, expected").nth(1).expect("a list of keys");
        listed.lines().next().unwrap_or_default().split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_reference_file_shows_every_key() {
        let tenant = "tenants:\n  acme:\n    client_id: x";
        for (section, depth) in [
            (String::new(), 0),
            ("listen:".into(), 1),
            ("upstream:".into(), 1),
            ("identity:".into(), 1),
            (tenant.into(), 2),
            (format!("{tenant}\n    site:"), 3),
            (format!("{tenant}\n    saas_token:"), 3),
            (format!("{tenant}\n    foreign_bearer:"), 3),
            (format!("{tenant}\n    webhook:"), 3),
            (format!("{tenant}\n    services:\n      erp:"), 4),
            ("cookie:".into(), 1),
            ("session:".into(), 1),
            ("refresh:".into(), 1),
            ("store:".into(), 1),
            ("store:\n  memory:".into(), 2),
            ("store:\n  redis:".into(), 2),
            ("store:\n  redis:\n    sentinel:".into(), 3),
            ("store:\n  seal:".into(), 2),
            ("hot_cache:".into(), 1),
            ("limits:".into(), 1),
            ("log:".into(), 1),
            ("traces:".into(), 1),
            ("admin:".into(), 1),
            ("forward_auth:".into(), 1),
            ("internal:".into(), 1),
            ("internal:\n  tls:".into(), 2),
        ] {
            for key in accepted_keys(&section, depth) {
                let shows = |line: &str| line.trim_start_matches(['#', '-', ' ']).starts_with(&format!("{key}:"));
                assert!(REFERENCE.lines().any(shows), "{section} {key}");
            }
        }
    }

    #[test]
    fn the_reference_file_shows_the_defaults() {
        let mut shown = parse("gateway.yaml", REFERENCE, std::iter::empty()).unwrap();
        for tenant in shown.tenants.values_mut() {
            tenant.client_id = String::new();
        }
        let acme = TenantId::parse("acme").unwrap();
        let defaults = Config { tenants: [(acme, TenantSection::default())].into(), ..Config::default() };
        assert_eq!(serde_json::to_value(&shown).unwrap(), serde_json::to_value(&defaults).unwrap());
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let environment = [("EMPORIX_GATEWAY__LISTEN__THREADS".to_owned(), "7".to_owned())];
        let text = "tenants:\n  acme:\n    client_id: x\nlisten:\n  threads: 2\n";
        let config = parse("f", text, environment.into_iter()).unwrap();
        assert_eq!(config.listen.threads, 7);
        let environment = [("EMPORIX_GATEWAY__LISTEN__THREADS".to_owned(), "many".to_owned())];
        let shown = parse("f", text, environment.into_iter()).unwrap_err().to_string();
        assert!(
            shown.starts_with(
                "environment EMPORIX_GATEWAY__LISTEN__THREADS: listen.threads: expected a whole number, found a text"
            ),
            "{shown}"
        );
    }

    #[test]
    fn a_secret_in_a_wrong_place_is_not_repeated() {
        let said = |text: &str, environment: &[(&str, &str)]| {
            let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            parse("f", &format!("tenants:\n  acme:\n    client_id: x\n{text}"), environment).unwrap_err().to_string()
        };
        for text in [
            "    webhook: hunter2\n",
            "    services: {erp: hunter2}\n",
            "    saas_token: hunter2\n",
            "    saas_token: {mode: jwks, jwks_url: 'https://me:hunter2@keys.example.com'}\n",
            "admin: hunter2\n",
            "store: {redis: 'redis://:hunter2@h:6379'}\n",
            "store: {seal: {keys: [hunter2]}}\n",
            "traces: {otlp_endpoint: 'tcp://me:hunter2@h'}\n",
        ] {
            assert!(!said(text, &[]).contains("hunter2"), "{text}");
        }
        let slip = r#"{"keys": [{"id": "a", "secret": "hunter2"},]}"#;
        let said = said("", &[("EMPORIX_GATEWAY__STORE__SEAL", slip)]);
        assert!(said.contains("store.seal: expected a section, found a text") && !said.contains("hunter2"), "{said}");
    }

    #[test]
    fn no_two_listeners_have_one_address() {
        let said = |public: &str, admin: &str| {
            let text = format!(
                "listen: {{public: '{public}'}}\nadmin: {{listen: '{admin}'}}\ntenants:\n  acme:\n    client_id: x\n"
            );
            parse("f", &text, std::iter::empty()).err().map(|faults| faults.to_string())
        };
        for (one, other) in
            [("127.0.0.1:80", "127.0.0.1:80"), ("0.0.0.0:80", "127.0.0.1:80"), ("127.0.0.1:80", "[::]:80")]
        {
            let said = said(one, other).expect("they clash");
            assert!(said.contains("admin.listen: expected another address than listen.public"), "{said}");
        }
        for (one, other) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("127.0.0.1:80", "127.0.0.2:80"), ("0.0.0.0:80", "[::1]:80")]
        {
            assert_eq!(said(one, other), None);
        }
    }

    #[test]
    fn an_admin_token_that_can_be_guessed_or_sent_in_no_header_is_a_fault() {
        let text = |token: &str| format!("tenants:\n  acme:\n    client_id: x\nadmin:\n  token: {token}\n");
        for bad in ["''", "fifteen-letters", "sixteen letters and more", "sixteen-létters-and-more"] {
            let shown = faults_of(&text(bad));
            assert!(shown.starts_with("gateway.yaml:5:3: admin.token: expected 16 to 256"), "{shown}");
        }
        assert!(parse("f", &text("sixteen-letters!"), std::iter::empty()).is_ok());
    }

    #[test]
    fn secrets_come_from_files_and_are_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("passphrase");
        std::fs::write(&file, "hush-hush\n").unwrap();
        let text = format!(
            "tenants:\n  acme:\n    client_id: x\n    saas_token:\n      mode: hs256\n      secret_file: {}\n",
            file.display()
        );
        let config = parse("f", &text, std::iter::empty()).unwrap();
        let secret = config.tenants.values().next().unwrap().saas_token.secret.clone().unwrap();
        assert_eq!(secret.expose(), "hush-hush");
        let printed = serde_saphyr::to_string(&config).unwrap();
        assert!(!printed.contains("hush-hush") && !format!("{config:?}").contains("hush-hush"));
        assert!(faults_of(&text.replace("passphrase", "missing")).contains("cannot read"));
    }

    #[test]
    fn a_secret_stands_in_one_place_and_the_environments_wins() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "the-token-of-the-file\n").unwrap();
        let parsed = |admin: &str, environment: &[(&str, &str)]| {
            let text = format!("tenants:\n  acme:\n    client_id: x\nadmin: {{{admin}}}\n");
            let environment =
                environment.iter().map(|(key, value)| (format!("{ENVIRONMENT_PREFIX}{key}"), (*value).to_owned()));
            let token = parse("f", &text, environment).map(|config| config.admin.token.unwrap().expose().to_owned());
            token.map_err(|faults| faults.to_string())
        };
        let (plain, file) = ("token: the-token-of-the-yaml", file.display().to_string());
        let in_file = format!("token_file: {file}");
        let both = parsed(&format!("{plain}, {in_file}"), &[]).unwrap_err();
        assert_eq!(both, "f:4:39: admin.token_file: stands beside `admin.token`: expected one of both");
        let environment = [("ADMIN__TOKEN", "the-token-of-the-environment")];
        assert_eq!(parsed(&in_file, &environment).as_deref(), Ok("the-token-of-the-environment"));
        assert_eq!(parsed(plain, &[("ADMIN__TOKEN_FILE", &*file)]).as_deref(), Ok("the-token-of-the-file"));
        let both = parsed("", &[environment[0], ("ADMIN__TOKEN_FILE", &*file)]).unwrap_err();
        assert!(both.ends_with("expected one of both"), "{both}");
    }

    #[test]
    fn a_sealing_key_can_stand_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n").unwrap();
        let text = format!(
            "tenants:\n  acme:\n    client_id: x\nstore:\n  seal:\n    keys:\n      - id: a\n        secret_file: {}\n",
            file.display()
        );
        let config = parse("f", &text, std::iter::empty()).unwrap();
        let secret = config.store.seal.keys[0].secret.clone().unwrap();
        assert_eq!(secret.expose(), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    }

    #[test]
    fn a_webhook_with_an_empty_secret_or_an_endless_age_is_a_fault() {
        let text = |webhook: &str| format!("tenants:\n  acme:\n    client_id: x\n    webhook: {webhook}\n");
        assert!(parse("f", &text("{secret: hush, max_age: 1h}"), std::iter::empty()).is_ok());
        assert!(faults_of(&text("{secret: ''}")).contains("tenants.acme.webhook.secret: "));
        for age in ["0s", "2d"] {
            assert!(
                faults_of(&text(&format!("{{secret: hush, max_age: {age}}}"))).contains("webhook.max_age: "),
                "{age}"
            );
        }
    }
}
