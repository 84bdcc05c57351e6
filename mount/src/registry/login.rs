//! Credentials that stay: entries of a file that `docker login` and Apptainer write too.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::credential::{DOCKER_HUB_KEY, normalised};
use super::settings::Credentials;
use crate::reference::DOCKER_HUB;

/// Why a credential file was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// It is somebody else's file.
    #[error("{file:?}: not a credential file")]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// The system refused.
    #[error("{file:?}: cannot be read or written")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Larger files are nobody's credentials.
const BYTES_LIMIT: u64 = 1 << 20;

/// Keeps `credentials` for the registry at `host` in `file`, which only the user can read then. What else the file has stays.
pub fn remember(file: &Path, host: &str, credentials: &Credentials) -> Result<(), LoginError> {
    let mut document = read(file)?;
    let pair = format!("{}:{}", credentials.username, credentials.password.0);
    let auths = auths(&mut document, file)?;
    auths.retain(|key, _| !is_of(key, host));
    let key = if host == DOCKER_HUB {
        DOCKER_HUB_KEY
    } else {
        host
    };
    auths.insert(key.into(), json!({ "auth": STANDARD.encode(pair) }));
    write(file, &document)
}

/// Forgets the credentials for the registry at `host`; whether there were any.
pub fn forget(file: &Path, host: &str) -> Result<bool, LoginError> {
    let mut document = read(file)?;
    let auths = auths(&mut document, file)?;
    let before = auths.len();
    auths.retain(|key, _| !is_of(key, host));
    if auths.len() == before {
        return Ok(false);
    }
    write(file, &document)?;
    Ok(true)
}

/// The registries that `file` has credentials for, sorted, as its writer named them.
pub fn known(file: &Path) -> Result<Vec<String>, LoginError> {
    let mut document = read(file)?;
    let mut known: Vec<String> = auths(&mut document, file)?.keys().cloned().collect();
    known.sort();
    Ok(known)
}

fn is_of(key: &str, host: &str) -> bool {
    normalised(key) == normalised(host)
}

fn failed(file: &Path) -> impl Fn(io::Error) -> LoginError {
    move |source| LoginError::Io {
        file: file.to_owned(),
        source,
    }
}

/// The document in `file`; an empty one where there is no file.
fn read(file: &Path) -> Result<Map<String, Value>, LoginError> {
    let mut text = Vec::new();
    match fs::File::open(file) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        opened => opened
            .and_then(|opened| opened.take(BYTES_LIMIT).read_to_end(&mut text))
            .map_err(failed(file))?,
    };
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    // The parser's own words would quote the file.
    serde_json::from_slice(&text).map_err(|_| LoginError::Foreign {
        file: file.to_owned(),
    })
}

fn auths<'d>(
    document: &'d mut Map<String, Value>,
    file: &Path,
) -> Result<&'d mut Map<String, Value>, LoginError> {
    let auths = document.entry("auths").or_insert_with(|| json!({}));
    auths.as_object_mut().ok_or_else(|| LoginError::Foreign {
        file: file.to_owned(),
    })
}

/// Replaces the file by a rename, so that no reader finds half of it; one that is a link stays one.
fn write(file: &Path, document: &Map<String, Value>) -> Result<(), LoginError> {
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let directory = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let written = || {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut text = serde_json::to_vec_pretty(document)?;
        text.push(b'\n');
        let new = tempfile::Builder::new()
            .prefix(".credentials-")
            .make_in(directory, |path| {
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(0o600).open(path)
            })?;
        new.as_file().write_all(&text)?;
        new.as_file().sync_all()?;
        new.persist(&target).map_err(|err| err.error)?;
        Ok(())
    };
    written().map_err(failed(file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::registry::Secret;

    fn me() -> Credentials {
        Credentials {
            username: "me".into(),
            password: Secret("pass:word".into()),
        }
    }

    #[test]
    fn credentials_stay_until_they_are_forgotten_and_only_their_owner_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("new/docker-config.json");
        assert!(known(&file).unwrap().is_empty());
        remember(&file, "ghcr.io", &me()).unwrap();
        remember(&file, DOCKER_HUB, &me()).unwrap();
        remember(&file, "ghcr.io", &me()).unwrap();
        assert_eq!(known(&file).unwrap(), ["ghcr.io", DOCKER_HUB_KEY]);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(forget(&file, DOCKER_HUB).unwrap());
        assert!(!forget(&file, DOCKER_HUB).unwrap());
        assert_eq!(known(&file).unwrap(), ["ghcr.io"]);
    }

    #[test]
    fn what_else_the_file_has_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        fs::write(
            &file,
            r#"{"credsStore":"x","auths":{"https://a.io/v1/":{}}}"#,
        )
        .unwrap();
        remember(&file, "a.io", &me()).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["credsStore"], "x");
        assert_eq!(document["auths"]["a.io"]["auth"], "bWU6cGFzczp3b3Jk");
        assert_eq!(known(&file).unwrap(), ["a.io"]);
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        for text in ["[]", "not json", r#"{"auths":[]}"#] {
            fs::write(&file, text).unwrap();
            let err = remember(&file, "a.io", &me()).unwrap_err();
            assert!(matches!(err, LoginError::Foreign { .. }), "{err}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }
}
