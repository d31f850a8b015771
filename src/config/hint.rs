//! What was probably meant where a key or a word is not known: the nearest of those that are, or the section it is in.
//! Reads the message of the deserializer, which names both.

use serde_json::Value;

use super::{Config, TenantSection};
use crate::session::TenantId;

/// `message` in the configuration's own words, with a hint where it is about something unknown; `files` are keys that the
/// section takes beside those that the message names. A value in the place of another kind is not repeated: where a section
/// with secrets belongs, it may be one.
pub(super) fn told(message: String, files: impl Iterator<Item = String>) -> String {
    match message.strip_prefix("invalid type: ").and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, expected)) => format!("expected {}, found {}", wanted(expected), kind(found)),
        None => hinted(message, files),
    }
}

fn wanted(expected: &str) -> &str {
    match expected {
        "a map" => "a section",
        "a sequence" => "a list",
        "a string" => "a text",
        "f64" => "a number",
        _ if expected.starts_with("struct ") => "a section",
        _ if ["u8", "u16", "u32", "u64", "usize"].contains(&expected) => "a whole number",
        _ => expected,
    }
}

/// What serde calls `string "…"`, without the value.
fn kind(found: &str) -> &'static str {
    match found.split(' ').next() {
        Some("string" | "character") => "a text",
        Some("boolean") => "true or false",
        Some("integer") => "a number",
        Some("floating") => "a fraction",
        Some("sequence") => "a list",
        Some("map") => "a section",
        Some("null" | "unit") => "nothing",
        _ => "something else",
    }
}

fn hinted(message: String, files: impl Iterator<Item = String>) -> String {
    let Some(rest) = ["unknown field `", "unknown variant `"].iter().find_map(|start| message.strip_prefix(start))
    else {
        return message;
    };
    let end = ["`, expected ", "`, there are no "].iter().find_map(|end| rest.rfind(end));
    let Some((unknown, known)) = end.and_then(|end| rest.split_at_checked(end)) else { return message };
    if !unknown.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)) {
        // No slip of any word: an address with a password, perhaps.
        return message.replacen(&format!("`{unknown}`"), "word", 1);
    }
    let files: Vec<String> = files.filter(|_| message.starts_with("unknown field")).collect();
    let known = known.split('`').skip(2).step_by(2).chain(files.iter().map(String::as_str));
    let meant = nearest(unknown, known).map(str::to_owned);
    let meant = meant.or_else(|| message.starts_with("unknown field").then(|| elsewhere(unknown)).flatten());
    match meant {
        Some(meant) => format!("{message}; did you mean `{meant}`?"),
        None => message,
    }
}

/// The known word that `unknown` is a slip of.
fn nearest<'k>(unknown: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    const ALIKE: f64 = 0.7;
    let unknown = unknown.to_lowercase().replace('-', "_");
    known
        .map(|word| (strsim::normalized_damerau_levenshtein(&unknown, &word.to_lowercase()), word))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, word)| word)
}

/// The one place where a key of this name belongs.
fn elsewhere(key: &str) -> Option<String> {
    let tenant = TenantId::parse("tenant")?;
    let whole = Config { tenants: [(tenant, TenantSection::default())].into(), ..Config::default() };
    let mut places = Vec::new();
    collect(&serde_json::to_value(whole).ok()?, key, "", &mut places);
    match &places[..] {
        [place] => Some(place.replace("tenants.tenant.", "tenants.<tenant>.")),
        _ => None,
    }
}

fn collect(value: &Value, key: &str, path: &str, places: &mut Vec<String>) {
    for (name, inner) in value.as_object().into_iter().flatten() {
        let here = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect(inner, key, &here, places);
        if name == key {
            places.push(here);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_what_was_probably_meant() {
        for (message, expected) in [
            ("unknown field `trheads`, expected one of `public`, `threads`", Some("`threads`?")),
            ("unknown field `drain-timeout`, expected one of `public`, `drain_timeout`", Some("`drain_timeout`?")),
            ("unknown variant `Redis`, expected `memory` or `redis`", Some("`redis`?")),
            ("unknown field `base_url`, expected one of `listen`, `upstream`", Some("`upstream.base_url`?")),
            ("unknown field `client_id`, expected one of `listen`", Some("`tenants.<tenant>.client_id`?")),
            ("unknown field `connect_timeout`, expected one of `listen`", None),
            ("unknown field `token_flie`, expected `listen` or `token`", Some("`token_file`?")),
            ("unknown field `colour`, expected one of `public`, `threads`", None),
            ("unknown variant `mongo`, expected `memory` or `redis`", None),
            ("unknown field ``", None),
            ("unknown field `", None),
        ] {
            let hinted = hinted(message.to_owned(), std::iter::once("token_file".to_owned()));
            assert_eq!(hinted.split_once("; did you mean ").map(|(_, hint)| hint), expected, "{message}");
            assert!(hinted.starts_with(message));
        }
    }

    #[test]
    fn a_value_in_the_place_of_another_kind_is_not_repeated() {
        for (message, expected) in [
            (
                r#"invalid type: string "hush, expected", expected struct RedisSection"#,
                "expected a section, found a text",
            ),
            ("invalid type: integer `5`, expected a sequence", "expected a list, found a number"),
            ("invalid type: floating point `0.5`, expected usize", "expected a whole number, found a fraction"),
            ("invalid type: sequence, expected a map", "expected a section, found a list"),
            ("invalid type: map, expected a duration", "expected a duration, found a section"),
            ("invalid type: null, expected a string", "expected a text, found nothing"),
            ("invalid type: boolean `true`, expected f64", "expected a number, found true or false"),
            ("unknown variant `redis://:h`ush@h`, expected `a`", "unknown variant word, expected `a`"),
            (
                "unknown variant `redis://:hush@h`, expected `memory` or `redis`",
                "unknown variant word, expected `memory` or `redis`",
            ),
        ] {
            assert_eq!(told(message.to_owned(), std::iter::empty()), expected);
        }
    }
}
