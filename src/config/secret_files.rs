//! Secrets that stand in files of their own: `password_file` in the place of `password`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::tree::{Origin, Tree};
use super::{Fault, files};

/// Keys that take their value from the file that `<key>_file` names; `*` stands for any one segment.
const SECRET_PATHS: [&str; 10] = [
    "tenants.*.saas_token.secret",
    "tenants.*.webhook.secret",
    "tenants.*.services.*.client_secret",
    "store.redis.url",
    "store.redis.password",
    "store.redis.sentinel.password",
    "store.seal.keys.*.secret",
    "admin.token",
    "internal.token",
    "traces.otlp_endpoint",
];

/// Puts the content of each `<secret>_file` in the place of its secret. Returns the files beside the faults.
pub(super) fn read(tree: &mut Tree) -> (Vec<Fault>, Vec<PathBuf>) {
    let (mut faults, mut files) = (Vec::new(), Vec::new());
    let named: Vec<Vec<String>> = tree.origins.keys().filter(|path| is_secret_file(path)).cloned().collect();
    for path in named {
        let origin = tree.origin(&path);
        let mut target = path.clone();
        let Some(key) = target.last_mut() else { continue };
        key.truncate(key.len() - "_file".len());
        let rival = rival(tree, &target, origin.as_ref());
        if rival == Rival::Contradicts {
            let message = format!("stands beside `{}`: expected one of both", target.join("."));
            faults.push(Fault::at(origin.clone(), &path.join("."), message));
        }
        if rival != Rival::None {
            tree.remove(&path);
            continue;
        }
        let Some(Value::String(file)) = tree.remove(&path) else { continue };
        files.push(PathBuf::from(&file));
        match files::read_text(Path::new(&file), files::MOST_SECRET) {
            Ok(text) => {
                tree.set(&target, Value::String(text.trim_end().to_owned()), Origin::Environment(file));
                if let Some(origin) = origin {
                    tree.origins.insert(target, origin);
                }
            }
            Err(error) => faults.push(Fault::at(origin, &path.join("."), format!("cannot read {file}: {error}"))),
        }
    }
    (faults, files)
}

/// What stands where the content of a file is to stand.
#[derive(PartialEq, Eq)]
enum Rival {
    None,
    /// It comes from the environment, which wins over what the configuration's file says.
    Wins,
    Contradicts,
}

fn rival(tree: &Tree, target: &[String], origin: Option<&Origin>) -> Rival {
    let is_environment = |origin: Option<&Origin>| matches!(origin, Some(Origin::Environment(_)));
    let Some(known) = tree.origins.get(target).filter(|_| tree.holds(target)) else { return Rival::None };
    match (is_environment(Some(known)), is_environment(origin)) {
        (true, false) => Rival::Wins,
        (false, true) => Rival::None,
        _ => Rival::Contradicts,
    }
}

fn is_secret_file(path: &[String]) -> bool {
    path.last().is_some_and(|key| keys_beside(path).any(|known| known == *key))
}

/// The keys that name files of secrets in the section of `path`.
pub(super) fn keys_beside(path: &[String]) -> impl Iterator<Item = String> {
    let section = path.split_last().map_or(path, |(_, section)| section);
    SECRET_PATHS.iter().filter_map(move |pattern| {
        let (place, key) = pattern.rsplit_once('.')?;
        let place: Vec<&str> = place.split('.').collect();
        let fits = place.len() == section.len()
            && place.iter().zip(section).all(|(expected, segment)| *expected == "*" || expected == segment);
        fits.then(|| format!("{key}_file"))
    })
}
