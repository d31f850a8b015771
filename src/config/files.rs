//! The files that a configuration is made of: read as a whole, or refused with the reason.
//! Up to a bound, and what is followed only where it is a regular file: a pipe would keep its reader waiting for ever.

use std::fmt;
use std::fs::{File, metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The configuration itself.
pub const MOST_CONFIGURATION: u64 = 8 * 1024 * 1024;

/// A secret.
pub const MOST_SECRET: u64 = 64 * 1024;

/// Certificates, their keys, and the keys of `saas_token`s.
pub const MOST_KEYS: u64 = 1024 * 1024;

/// Reads `path`, a regular file of `most` bytes at most.
///
/// # Errors
/// When it is another thing, larger, or cannot be read.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    expect_regular(path)?;
    read_once(path, most)
}

/// # Errors
/// When `path` is no file that can be read again and again.
pub fn expect_regular(path: &Path) -> io::Result<()> {
    let kind = metadata(path)?.file_type();
    // A folder says itself that it is one.
    if kind.is_file() || kind.is_dir() { Ok(()) } else { Err(io::Error::other("it is no regular file")) }
}

/// Reads `path`, which may be a pipe.
fn read_once(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {} KiB", most / 1024)));
    }
    Ok(bytes)
}

/// The same for text.
///
/// # Errors
/// As there, and when it is no text.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    read(path, most).and_then(text)
}

/// The same of what may be a pipe.
///
/// # Errors
/// As there.
pub fn read_text_once(path: &Path, most: u64) -> io::Result<String> {
    read_once(path, most).and_then(text)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is no text in UTF-8"))
}

/// A file that a key names, with what it held when the configuration was read: one that was written anew is another one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub struct NamedFile {
    path: PathBuf,
    held: Result<Arc<[u8]>, String>,
}

impl NamedFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it held.
    ///
    /// # Errors
    /// Why it could not be read.
    pub fn held(&self) -> Result<&[u8], &str> {
        self.held.as_deref().map_err(String::as_str)
    }
}

impl From<PathBuf> for NamedFile {
    fn from(path: PathBuf) -> Self {
        let held = read(&path, MOST_KEYS).map(Arc::from).map_err(|error| error.to_string());
        Self { path, held }
    }
}

impl From<NamedFile> for PathBuf {
    fn from(file: NamedFile) -> Self {
        file.path
    }
}

impl fmt::Debug for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_a_file_is_read_and_only_up_to_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, pipe] = ["file", "link", "pipe"].map(|name| folder.path().join(name));
        std::fs::write(&file, [b'x'; 2048]).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let why = |path: &Path, most| read_text(path, most).unwrap_err().to_string();
        assert_eq!(read_text(&link, 2048).unwrap().len(), 2048);
        assert_eq!(why(&link, 2047), "it is larger than 1 KiB");
        for other in [&*pipe, Path::new("/dev/zero")] {
            assert_eq!(why(other, 2048), "it is no regular file", "{}", other.display());
        }
        std::fs::write(&file, [0xff]).unwrap();
        assert_eq!(why(&file, 2048), "it is no text in UTF-8");
    }

    #[test]
    fn a_named_file_that_was_written_anew_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let named = || NamedFile::from(path.clone());
        let missing = named();
        std::fs::write(&path, "one").unwrap();
        let one = named();
        assert_eq!((one.held(), one == named()), (Ok(&b"one"[..]), true));
        std::fs::write(&path, "two").unwrap();
        assert!(one != named() && missing != named() && missing.held().is_err());
        assert_eq!(format!("{one:?}"), format!("{path:?}"), "what it holds is not shown");
    }
}
