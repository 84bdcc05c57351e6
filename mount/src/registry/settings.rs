//! What the user decides about registries. It goes through a pipe to our own daemon, so it serialises.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mirrors;
use super::platform::Platform;

/// How registries are asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Which build of an image is wanted.
    pub platform: Platform,
    /// User name and password that were given for this run; they win over all files.
    pub credentials: Option<Credentials>,
    /// The one file to look for credentials in, as the user named it.
    pub authfile: Option<PathBuf>,
    /// Files to look for credentials in when neither was given, in this order; missing ones are passed over.
    pub credential_files: Vec<PathBuf>,
    /// Places that are asked before the registry itself: `[http[s]://]HOST[:PORT][/PREFIX]`.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Directories with containerd's `HOST/hosts.toml`, if no mirror was named.
    #[serde(default)]
    pub hosts_directories: Vec<PathBuf>,
    /// podman's `registries.conf`, if neither says anything.
    #[serde(default)]
    pub registries_files: Vec<PathBuf>,
    /// Plain HTTP to every registry. Loopback addresses get it without.
    pub plain_http: bool,
    /// Where the Docker daemon is, as `DOCKER_HOST` says it; without, at its usual socket.
    #[serde(default)]
    pub docker_host: Option<String>,
    /// PEM files with certificates to trust beside the system's (which `SSL_CERT_FILE` moves).
    pub ca_files: Vec<PathBuf>,
    /// Requests at a time to one host.
    pub connections: usize,
    /// Time for one connection to come about.
    pub connect_timeout: Duration,
    /// Time without any byte after which an answer counts as stalled, and is asked for again.
    pub stall_timeout: Duration,
    /// Time for a manifest or a token, all tries together; a layer's stream ends with an error after such
    /// a time without progress.
    pub timeout: Duration,
    /// The first pause before something is tried again; it doubles.
    pub backoff: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            credentials: None,
            authfile: None,
            credential_files: Vec::new(),
            mirrors: Vec::new(),
            hosts_directories: Vec::new(),
            registries_files: Vec::new(),
            plain_http: false,
            docker_host: None,
            ca_files: Vec::new(),
            connections: 8,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(60),
            backoff: Duration::from_millis(250),
        }
    }
}

impl Settings {
    /// The default settings with what the environment says about credentials and mirrors.
    pub fn from_environment() -> Self {
        let (hosts_directories, registries_files) =
            mirrors::usual_places(|name| std::env::var_os(name));
        Self {
            hosts_directories,
            registries_files,
            credentials: Credentials::from_environment(),
            credential_files: credential_files(|name| std::env::var_os(name)),
            docker_host: PREFIXES.into_iter().find_map(|prefix| {
                let host = std::env::var(format!("{prefix}DOCKER_HOST"));
                host.ok().filter(|host| !host.is_empty())
            }),
            ..Self::default()
        }
    }
}

impl Settings {
    /// The file that credentials are kept in: the one the user named, else the first that is looked at.
    pub fn login_file(&self) -> Option<&PathBuf> {
        self.authfile.as_ref().or(self.credential_files.first())
    }
}

/// Whose variables are read, the first ones first.
const PREFIXES: [&str; 4] = ["SIFON_", "APPTAINER_", "SINGULARITY_", ""];
const USERNAME: &str = "DOCKER_USERNAME";
const PASSWORD: &str = "DOCKER_PASSWORD";

/// A user name and its password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Who.
    pub username: String,
    /// The password, or a token that stands for one.
    pub password: Secret,
}

impl Credentials {
    /// `DOCKER_USERNAME` and `DOCKER_PASSWORD` with the prefix `SIFON_`, `APPTAINER_`, `SINGULARITY_` or none;
    /// the first of these that is set wins, for each of the two.
    pub fn from_environment() -> Option<Self> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let of = |suffix: &str| {
            PREFIXES
                .into_iter()
                .filter_map(|prefix| variable(&format!("{prefix}{suffix}")))
                .find_map(|value| value.into_string().ok().filter(|value| !value.is_empty()))
        };
        Some(Self {
            username: of(USERNAME)?,
            password: Secret(of(PASSWORD)?),
        })
    }

    /// The variables that [`Credentials::from_environment`] reads. A process that is told its settings has no
    /// use for them, and should not show them to others in /proc for as long as it lives.
    pub fn variables() -> impl Iterator<Item = String> {
        PREFIXES
            .into_iter()
            .flat_map(|prefix| [USERNAME, PASSWORD].map(|suffix| format!("{prefix}{suffix}")))
    }
}

/// A password or token. It serialises, but never prints.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// `REGISTRY_AUTH_FILE`, Apptainer's file and Docker's, where the environment says they are.
fn credential_files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let home = set("HOME").map(PathBuf::from);
    let apptainer = set("APPTAINER_CONFIGDIR")
        .or_else(|| set("SINGULARITY_CONFIGDIR"))
        .map(PathBuf::from)
        .or_else(|| Some(home.as_ref()?.join(".apptainer")));
    let docker = set("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| Some(home.as_ref()?.join(".docker")));
    [
        set("REGISTRY_AUTH_FILE").map(PathBuf::from),
        apptainer.map(|directory| directory.join("docker-config.json")),
        docker.map(|directory| directory.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(
        variables: &'a [(&'a str, &'a str)],
    ) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| {
            let (_, value) = variables.iter().find(|(key, _)| *key == name)?;
            Some((*value).into())
        }
    }

    #[test]
    fn the_longest_known_prefix_wins_for_each_variable() {
        let credentials = Credentials::from_variables(environment(&[
            ("SINGULARITY_DOCKER_USERNAME", "old"),
            ("APPTAINER_DOCKER_USERNAME", "new"),
            ("DOCKER_PASSWORD", "plain"),
        ]))
        .unwrap();
        assert_eq!(credentials.username, "new");
        assert_eq!(credentials.password, Secret("plain".into()));
        assert_eq!(
            Credentials::from_variables(environment(&[("DOCKER_USERNAME", "alone")])),
            None
        );
    }

    #[test]
    fn credential_files_follow_the_environment() {
        let files = credential_files(environment(&[("HOME", "/h")]));
        assert_eq!(
            files,
            [
                PathBuf::from("/h/.apptainer/docker-config.json"),
                PathBuf::from("/h/.docker/config.json")
            ]
        );
        let files = credential_files(environment(&[
            ("HOME", "/h"),
            ("REGISTRY_AUTH_FILE", "/r"),
            ("SINGULARITY_CONFIGDIR", "/s"),
            ("DOCKER_CONFIG", "/d"),
        ]));
        assert_eq!(
            files,
            [
                PathBuf::from("/r"),
                PathBuf::from("/s/docker-config.json"),
                PathBuf::from("/d/config.json")
            ]
        );
    }

    #[test]
    fn a_password_does_not_print_but_travels() {
        let settings = Settings {
            credentials: Some(Credentials {
                username: "me".into(),
                password: Secret("hidden".into()),
            }),
            ..Settings::default()
        };
        assert!(!format!("{settings:?}").contains("hidden"));
        let sent = serde_json::to_string(&settings).unwrap();
        let received: Settings = serde_json::from_str(&sent).unwrap();
        assert_eq!(received.credentials, settings.credentials);
    }
}
