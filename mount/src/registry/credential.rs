//! Who we are to a registry: the user's word, a credential file, or a helper program that it names.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::settings::{Credentials, Secret, Settings};
use crate::reference::DOCKER_HUB;
use crate::sys::answer::answer_of;

/// How Docker names its hub in credential files and to helpers.
pub(super) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Larger files and answers of helpers are nobody's credentials.
const BYTES_LIMIT: u64 = 1 << 20;

/// What proves who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Sent as basic authentication, to the registry or to its token server.
    Password(Credentials),
    /// A refresh token, which only a token server takes.
    Token(Secret),
}

/// The result of looking for credentials, with the words for an error message.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) identity: Option<Identity>,
    /// `with the credentials from …`, or `without credentials: …`.
    pub(super) story: String,
}

/// Looks up the credentials for `repository` at `host`. Blocks for the files and for a helper, at most until `deadline`.
pub(super) fn found(settings: &Settings, host: &str, repository: &str, deadline: Instant) -> Found {
    if let Some(credentials) = &settings.credentials {
        return Found {
            identity: Some(Identity::Password(credentials.clone())),
            story: "with the user name and password that were given".into(),
        };
    }
    let files: Vec<&PathBuf> = match &settings.authfile {
        Some(file) => vec![file],
        None => settings.credential_files.iter().collect(),
    };
    let mut without = Vec::new();
    for file in files {
        match in_file(file, host, repository, deadline) {
            Ok(Some((identity, place))) => {
                return Found {
                    identity: Some(identity),
                    story: format!("with the credentials from {place}"),
                };
            }
            Ok(None) => without.push(format!("none for {host} in {}", file.display())),
            Err(problem) => {
                tracing::warn!("credentials: {problem}");
                without.push(problem);
            }
        }
    }
    let mut story = String::from("without credentials");
    if !without.is_empty() {
        story = format!("{story}: {}", without.join(", "));
    }
    Found {
        identity: None,
        story,
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: Option<HashMap<String, Entry>>,
    creds_store: Option<String>,
    cred_helpers: Option<HashMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

fn in_file(
    file: &Path,
    host: &str,
    repository: &str,
    deadline: Instant,
) -> Result<Option<(Identity, String)>, String> {
    let name = file.display();
    let mut text = Vec::new();
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{name}: {error}")),
    };
    opened
        .take(BYTES_LIMIT)
        .read_to_end(&mut text)
        .map_err(|error| format!("{name}: {error}"))?;
    // The parser's own words would quote the file.
    let config: ConfigFile = serde_json::from_slice(&text)
        .map_err(|error| format!("{name}, line {}: not a credential file", error.line()))?;

    let helper_key = if host == DOCKER_HUB {
        DOCKER_HUB_KEY
    } else {
        host
    };
    let helpers = config.cred_helpers.unwrap_or_default();
    if let Some(helper) = best(&helpers, host, repository).filter(|helper| !helper.is_empty()) {
        return from_helper(helper, helper_key, deadline)
            .map(|identity| identity.map(|identity| (identity, format!("helper {helper}"))));
    }
    let auths = config.auths.unwrap_or_default();
    if let Some(entry) = best(&auths, host, repository)
        && let Some(identity) = entry
            .identity()
            .map_err(|problem| format!("{name}: {problem}"))?
    {
        return Ok(Some((identity, name.to_string())));
    }
    match config.creds_store.filter(|store| !store.is_empty()) {
        Some(store) => from_helper(&store, helper_key, deadline)
            .map(|identity| identity.map(|identity| (identity, format!("helper {store}")))),
        None => Ok(None),
    }
}

/// The entry whose key names the most of `host/repository`; keys may be URLs, as Docker writes them.
fn best<'a, T>(entries: &'a HashMap<String, T>, host: &str, repository: &str) -> Option<&'a T> {
    let wanted = format!("{host}/{repository}");
    entries
        .iter()
        .filter_map(|(key, entry)| {
            let key = normalised(key);
            let rest = wanted.strip_prefix(&key)?;
            (rest.is_empty() || rest.starts_with('/')).then_some((key.len(), entry))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, entry)| entry)
}

pub(super) fn normalised(key: &str) -> String {
    let key = key.strip_prefix("https://").unwrap_or(key);
    let key = key.strip_prefix("http://").unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or(key.strip_suffix("/v2"))
        .unwrap_or(key);
    let (host, path) = key.split_at(key.find('/').unwrap_or(key.len()));
    match host {
        "index.docker.io" | "registry-1.docker.io" => format!("{DOCKER_HUB}{path}"),
        _ => key.to_owned(),
    }
}

impl Entry {
    fn identity(&self) -> Result<Option<Identity>, String> {
        let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        if let Some(token) = set(&self.identitytoken) {
            return Ok(Some(Identity::Token(Secret(token))));
        }
        let (username, password) = match set(&self.auth) {
            Some(auth) => decoded(&auth).ok_or("an auth entry is not base64 of user:password")?,
            None => match (set(&self.username), set(&self.password)) {
                (Some(username), Some(password)) => (username, password),
                _ => return Ok(None),
            },
        };
        Ok(Some(Identity::Password(Credentials {
            username,
            password: Secret(password),
        })))
    }
}

fn decoded(auth: &str) -> Option<(String, String)> {
    let lenient =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
    let text = String::from_utf8(engine.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    // Docker's own writer pads with zero bytes.
    Some((
        username.to_owned(),
        password.trim_end_matches('\0').to_owned(),
    ))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Runs `docker-credential-NAME get`; `None` when it has nothing for `key`.
fn from_helper(name: &str, key: &str, deadline: Instant) -> Result<Option<Identity>, String> {
    let program = format!("docker-credential-{name}");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.bytes().all(is_plain) {
        return Err(format!(
            "credential helper {name:?}: not the name of a program"
        ));
    }
    let (status, output) = answer_of(Command::new(&program).arg("get"), key.as_bytes(), deadline)
        .map_err(|error| format!("{program}: {error}"))?;
    if !status.success() {
        let said: String = String::from_utf8_lossy(&output)
            .trim()
            .chars()
            .take(200)
            .collect();
        return match said.contains("not found") {
            true => Ok(None),
            false => Err(format!("{program}: it failed and said {said:?}")),
        };
    }
    let answer: HelperAnswer = serde_json::from_slice(&output)
        .map_err(|_| format!("{program}: its answer is not what a credential helper says"))?;
    let secret = Secret(answer.secret);
    Ok(Some(match answer.username.as_str() {
        "<token>" => Identity::Token(secret),
        _ => Identity::Password(Credentials {
            username: answer.username,
            password: secret,
        }),
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn lookup(config: &str, host: &str, repository: &str) -> Found {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config).unwrap();
        let settings = Settings {
            credential_files: vec!["/nonexistent/x.json".into(), file.path().into()],
            ..Settings::default()
        };
        found(&settings, host, repository, soon())
    }

    fn username(found: &Found) -> Option<&str> {
        match found.identity.as_ref()? {
            Identity::Password(credentials) => Some(&credentials.username),
            Identity::Token(_) => Some("<token>"),
        }
    }

    #[test]
    fn every_spelling_of_docker_hub_is_understood() {
        for key in [
            "https://index.docker.io/v1/",
            "docker.io",
            "index.docker.io",
            "https://registry-1.docker.io/v2/",
        ] {
            // "me:pw"
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"bWU6cHc="}}}}}}"#);
            let found = lookup(&config, "docker.io", "library/python");
            assert_eq!(username(&found), Some("me"), "{key}");
        }
    }

    #[test]
    fn the_most_specific_key_wins() {
        let config = r#"{"auths":{
            "quay.io":{"username":"host","password":"x"},
            "quay.io/team":{"username":"team","password":"x"},
            "quay.io/te":{"username":"wrong","password":"x"}}}"#;
        assert_eq!(username(&lookup(config, "quay.io", "team/a")), Some("team"));
        assert_eq!(
            username(&lookup(config, "quay.io", "other/a")),
            Some("host")
        );
        assert_eq!(username(&lookup(config, "other.io", "team/a")), None);
    }

    #[test]
    fn the_story_names_the_files_that_were_consulted() {
        let found = lookup(r#"{"auths":{"quay.io":{}}}"#, "quay.io", "a");
        assert!(found.identity.is_none());
        assert!(
            found.story.contains("/nonexistent/x.json"),
            "{}",
            found.story
        );
        let found = lookup(
            r#"{"auths":{"quay.io":{"auth":"bWU6cHc"}}}"#,
            "quay.io",
            "a",
        );
        assert!(
            found.story.starts_with("with the credentials from /"),
            "{}",
            found.story
        );
    }

    #[test]
    fn a_damaged_file_is_told_without_its_content() {
        for config in [
            "{\"auths\": secret",
            r#"{"auths":{"quay.io":{"auth":"!secret!"}}}"#,
        ] {
            let found = lookup(config, "quay.io", "a");
            assert!(found.identity.is_none());
            assert!(!found.story.contains("secret"), "{}", found.story);
        }
    }

    #[test]
    fn identity_tokens_are_kept_apart() {
        let found = lookup(
            r#"{"auths":{"r.io":{"auth":"bWU6","identitytoken":"t"}}}"#,
            "r.io",
            "a",
        );
        assert_eq!(found.identity, Some(Identity::Token(Secret("t".into()))));
    }

    #[test]
    fn a_missing_helper_leaves_us_anonymous_and_is_named() {
        let config = r#"{"credsStore":"sifon-test-that-does-not-exist"}"#;
        let found = lookup(config, "quay.io", "a");
        assert!(found.identity.is_none());
        assert!(
            found.story.contains("docker-credential-sifon-test"),
            "{}",
            found.story
        );
        let found = lookup(r#"{"credsStore":"../x"}"#, "quay.io", "a");
        assert!(
            found.story.contains("not the name of a program"),
            "{}",
            found.story
        );
    }
}
