//! The house rules that a compiler does not hold: who imports whom, which room names which crate, what a file looks like.

use std::path::{Path, PathBuf};

/// What each room may import. `app` may import everything; `main` sees the crate from outside.
const ARROWS: [(&str, &[&str]); 9] = [
    ("edge", &["broker", "session", "config", "error", "telemetry", "clock"]),
    ("broker", &["store", "identity", "session", "config", "error", "telemetry", "clock"]),
    ("store", &["session", "clock", "telemetry", "config"]),
    ("identity", &["session", "clock", "telemetry", "config"]),
    ("session", &["clock"]),
    ("config", &["session"]),
    ("error", &["store", "identity"]),
    ("clock", &[]),
    ("telemetry", &["config", "clock"]),
];

/// What `main` may import from the library.
const MAIN: &[&str] = &["app", "config", "clock", "telemetry"];

/// Where a crate may be named: a room, or a file.
const CRATES: [(&str, &[&str]); 5] = [
    ("pingora", &["edge", "app"]),
    ("redis", &["store"]),
    ("moka", &["store", "edge/limits.rs", "broker/flights.rs", "broker/adopt.rs"]),
    ("reqwest", &["identity", "app", "main/admin.rs", "main/probe.rs", "telemetry/otlp.rs"]),
    ("jsonwebtoken", &["session/saas_token.rs", "identity/keys.rs"]),
];

/// Lines of code a file may have, its tests module not counted.
const MOST_LINES: usize = 450;

/// Files that were larger when the rule came, and what they may have: these numbers only shrink.
const LARGER: [(&str, usize); 1] = [("config/sections.rs", 600)];

/// A source file: its path below `src`, its text, and the text without the tests module.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code = code.split("#[cfg(test)]\npub(crate) mod tests").next().unwrap_or_default();
        let code: String =
            code.lines().filter(|line| !line.trim_start().starts_with("//")).fold(String::new(), |mut code, line| {
                code.push_str(line);
                code.push('\n');
                code
            });
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    fn room(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// The rooms that are named behind `prefix`, such as `crate::`; also inside braces.
    fn imports(&self, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices(prefix) {
            let before = self.code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let rest = &self.code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                None => found.push(first_word(rest)),
                Some(list) => found.extend(top_level_words(list)),
            }
        }
        found
    }

    /// Whether the crate `name` (or one of its parts, such as `pingora_core`) is named.
    fn names_crate(&self, name: &str) -> bool {
        self.code.match_indices(name).any(|(at, _)| {
            let before = self.code[..at].chars().next_back();
            let rest = self.code[at..].trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_');
            let own = before.is_some_and(|c| c.is_alphanumeric() || "_:$\"/".contains(c));
            !own && (rest.starts_with("::") || self.code[..at].ends_with("use "))
        })
    }
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

fn top_level_words(list: &str) -> Vec<String> {
    let (mut depth, mut words, mut word) = (0_u32, Vec::new(), String::new());
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => words.push(std::mem::take(&mut word)),
            _ if depth == 0 => word.push(c),
            _ => {}
        }
    }
    words.push(word);
    words.iter().map(|word| first_word(word.trim())).filter(|word| !word.is_empty()).collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        match entry.unwrap().path() {
            path if path.is_dir() => files.extend(files_below(&path)),
            path if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            _ => {}
        }
    }
    files.sort();
    files
}

fn sources_below(folder: &str) -> Vec<Source> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let read = |file: PathBuf| {
        let path = file.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
        Source::new(&path, &std::fs::read_to_string(&file).unwrap())
    };
    files_below(&folder).into_iter().map(read).collect()
}

/// The gateway's sources; the simulator shares no code with it.
fn sources() -> Vec<Source> {
    let all = sources_below("src");
    assert!(all.len() > 40, "the sources are found");
    all.into_iter().filter(|source| !source.path.starts_with("bin/")).collect()
}

/// The arrows of `source` that the house does not have.
fn wrong_arrows(source: &Source) -> Vec<String> {
    let (prefix, allowed) = match source.room() {
        "app" | "lib" => return Vec::new(),
        "main" => ("emporix_gateway::", MAIN),
        room => {
            let arrows = ARROWS.iter().find(|(name, _)| *name == room);
            ("crate::", arrows.unwrap_or_else(|| panic!("{room} is no room: add it to ARROWS")).1)
        }
    };
    let wrong = source.imports(prefix).into_iter().filter(|room| room != source.room() && !allowed.contains(&&**room));
    let may = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
    wrong.map(|room| format!("{} imports {room}: {} may import {may}", source.path, source.room())).collect()
}

/// The crates that `source` names and that belong to another room.
fn wrong_crates(source: &Source) -> Vec<String> {
    let wrong = CRATES.iter().filter(|(name, places)| {
        let at_home = places.iter().any(|place| source.room() == *place || source.path == *place);
        !at_home && source.names_crate(name)
    });
    wrong.map(|(name, places)| format!("{} names {name}: only {} may", source.path, places.join(", "))).collect()
}

#[test]
fn every_import_follows_an_arrow_of_the_house() {
    let wrong: Vec<String> = sources().iter().flat_map(wrong_arrows).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_crate_is_named_in_its_own_room_only() {
    let wrong: Vec<String> = sources().iter().flat_map(wrong_crates).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_arrow_fails_with_a_sentence() {
    let planted = Source::new("store/redis.rs", "use crate::broker::Broker;\n");
    assert_eq!(
        wrong_arrows(&planted),
        ["store/redis.rs imports broker: store may import session, clock, telemetry, config"]
    );
    let braced = Source::new("session/mod.rs", "use crate::{clock::Clock, config::{Config, Secret}};\n");
    assert_eq!(wrong_arrows(&braced), ["session/mod.rs imports config: session may import clock"]);
    let inline = Source::new("identity/mod.rs", "fn f() -> crate::edge::Gateway {}\n");
    assert_eq!(wrong_arrows(&inline).len(), 1);
    let main = Source::new("main.rs", "use emporix_gateway::broker::Broker;\n");
    assert_eq!(wrong_arrows(&main), ["main.rs imports broker: main may import app, config, clock, telemetry"]);
    let tests = Source::new("session/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::store::Saved;\n}\n");
    assert!(wrong_arrows(&tests).is_empty(), "tests may look further");
}

#[test]
fn a_crate_in_a_wrong_room_fails_with_a_sentence() {
    for text in ["use redis::Client;\n", "fn f() -> redis::RedisResult<()> {}\n"] {
        let planted = Source::new("broker/mod.rs", text);
        assert_eq!(wrong_crates(&planted), ["broker/mod.rs names redis: only store may"], "{text}");
    }
    let part = Source::new("broker/mod.rs", "use pingora_core::Error;\n");
    assert_eq!(wrong_crates(&part), ["broker/mod.rs names pingora: only edge, app may"]);
    let own_module = Source::new("app.rs", "use crate::store::redis::RedisStore;\n");
    assert!(wrong_crates(&own_module).is_empty(), "a module of ours is no crate");
}

/// The log lines of `source` that name a session otherwise than by its label.
fn unlabelled_sessions(source: &Source) -> Vec<String> {
    let fields = source.code.split("session = ").skip(1).filter(|rest| rest.starts_with(['%', '?']));
    let unlabelled = fields.filter(|rest| !rest.split(',').next().unwrap_or_default().contains("label"));
    unlabelled.map(|rest| format!("{}: {}", source.path, rest.lines().next().unwrap_or_default())).collect()
}

#[test]
fn a_log_line_names_a_session_by_its_label_only() {
    let unlabelled: Vec<String> = sources().iter().flat_map(unlabelled_sessions).collect();
    assert!(unlabelled.is_empty(), "{}", unlabelled.join("\n"));
    let planted = Source::new("broker/mod.rs", "tracing::info!(session = ?key.as_bytes(), \"x\");\n");
    assert_eq!(unlabelled_sessions(&planted).len(), 1);
    let labelled = Source::new("broker/mod.rs", "tracing::info!(session = %self.label(&key), \"x\");\n");
    assert!(unlabelled_sessions(&labelled).is_empty());
}

#[test]
fn every_file_says_first_what_it_is_for() {
    for source in sources_below("src").iter().chain(&sources_below("tests")) {
        assert!(source.text.starts_with("//! "), "{} does not begin with `//!`", source.path);
    }
}

#[test]
fn no_file_is_too_long_to_be_read_at_once() {
    for source in sources_below("src") {
        let lines = source.text.split("\n#[cfg(test)]\n").next().unwrap().lines().count();
        let larger = LARGER.iter().find(|(path, _)| *path == source.path);
        let most = larger.map_or(MOST_LINES, |(_, most)| *most);
        assert!(lines <= most, "{} has {lines} lines without its tests: {most} is the bound", source.path);
    }
}

#[test]
fn no_test_is_switched_off() {
    let mark = ["#[", "ignore"].concat();
    for source in sources_below("src").iter().chain(&sources_below("tests")) {
        assert!(!source.text.contains(&mark), "{} ignores a test", source.path);
    }
}
