//! Other places that have a registry's images: those that the user names, then those of containerd's `hosts.toml` and of
//! podman's `registries.conf`, in that order. What they send is checked as what the registry itself sends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::client::Client;
use super::settings::Settings;
use crate::reference::{DOCKER_HUB, RegistryReference};

/// A configuration is never longer.
const CONFIG_BYTES_LIMIT: u64 = 1 << 20;

/// Mirrors that are tried at most.
const MIRRORS_LIMIT: usize = 16;

/// One that failed is asked last for this long.
const AVOIDED_FOR: Duration = Duration::from_secs(60);

/// A place that may have a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mirror {
    /// Host and port.
    pub host: String,
    pub repository: String,
    pub plain_http: bool,
    pub ca_files: Vec<PathBuf>,
    /// Whether it may say what a tag means.
    pub resolves_tags: bool,
    /// The registry that it stands for, where it wants to be told (containerd's `ns`).
    pub namespace: Option<String>,
}

/// A place to ask, and how it did lately.
pub(super) struct Place {
    pub client: std::sync::Arc<Client>,
    pub resolves_tags: bool,
    since: Instant,
    /// Milliseconds after `since` until which others are asked first.
    avoided_until_ms: AtomicU64,
}

impl Place {
    pub fn new(client: Client, resolves_tags: bool) -> Self {
        Self {
            client: std::sync::Arc::new(client),
            resolves_tags,
            since: Instant::now(),
            avoided_until_ms: AtomicU64::new(0),
        }
    }

    pub fn is_healthy(&self) -> bool {
        self.since.elapsed().as_millis() as u64 >= self.avoided_until_ms.load(Ordering::Relaxed)
    }

    /// It failed, or sent something wrong.
    pub fn avoid(&self) {
        let until = self.since.elapsed() + AVOIDED_FOR;
        self.avoided_until_ms
            .store(until.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn did_well(&self) {
        self.avoided_until_ms.store(0, Ordering::Relaxed);
    }
}

/// The places of `places` in the order in which they should be asked: as given, but those that failed lately last.
pub(super) fn by_health(places: &[Place]) -> Vec<&Place> {
    let (healthy, avoided): (Vec<_>, Vec<_>) = places.iter().partition(|place| place.is_healthy());
    healthy.into_iter().chain(avoided).collect()
}

/// The mirrors of a repository, in the order in which they are asked.
pub(super) fn mirrors(reference: &RegistryReference, settings: &Settings) -> Vec<Mirror> {
    let named = settings.mirrors.iter().filter_map(|mirror| {
        let found = at(mirror, &reference.repository);
        if found.is_none() {
            tracing::warn!("mirror {mirror:?}: not [http[s]://]HOST[:PORT][/PREFIX]");
        }
        found
    });
    let named: Vec<Mirror> = named.collect();
    if !named.is_empty() {
        return named.into_iter().take(MIRRORS_LIMIT).collect();
    }
    let hosts = settings
        .hosts_directories
        .iter()
        .find_map(|directory| of_hosts(directory, reference));
    let found = hosts.unwrap_or_else(|| {
        let mut files = settings.registries_files.iter();
        files
            .find_map(|file| of_registries(file, reference))
            .unwrap_or_default()
    });
    found.into_iter().take(MIRRORS_LIMIT).collect()
}

/// `[http[s]://]HOST[:PORT][/PREFIX]` for a repository.
fn at(place: &str, repository: &str) -> Option<Mirror> {
    let (plain_http, rest) = match place.split_once("://") {
        Some(("http", rest)) => (true, rest),
        Some(("https", rest)) => (false, rest),
        Some(_) => return None,
        None => (false, place),
    };
    let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_host = !host.is_empty()
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c));
    let prefix = prefix.trim_matches('/');
    let is_path = prefix
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-._/".contains(c));
    (is_host && is_path && !prefix.split('/').any(|part| part == "..")).then(|| Mirror {
        host: host.to_owned(),
        repository: match prefix {
            "" => repository.to_owned(),
            prefix => format!("{prefix}/{repository}"),
        },
        plain_http,
        ca_files: Vec::new(),
        resolves_tags: true,
        namespace: None,
    })
}

fn read<T: DeserializeOwned>(file: &Path) -> Option<T> {
    let is_small = fs::metadata(file).ok()?.len() <= CONFIG_BYTES_LIMIT;
    let text = is_small.then(|| fs::read_to_string(file).ok())??;
    toml::from_str(&text)
        .inspect_err(|err| {
            let line = err.message();
            tracing::warn!("{}: not used: {line}", file.display());
        })
        .ok()
}

/// One host, or the files of several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Files {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// containerd's `docs/hosts.md`, as far as it concerns pulling.
#[derive(Deserialize)]
struct Hosts {
    #[serde(default)]
    host: toml::Table,
}

#[derive(Deserialize)]
struct Host {
    capabilities: Option<Vec<String>>,
    ca: Option<Files>,
    #[serde(default)]
    override_path: bool,
}

/// `None` if the directory says nothing about the registry.
fn of_hosts(directory: &Path, reference: &RegistryReference) -> Option<Vec<Mirror>> {
    let names = [
        reference.host.clone(),
        reference.host.replace(':', "_") + "_",
        "_default".into(),
    ];
    let own = names
        .iter()
        .map(|name| directory.join(name).join("hosts.toml"));
    let file = own.into_iter().find(|file| file.is_file())?;
    let hosts: Hosts = read(&file)?;
    let mut mirrors = Vec::new();
    for (url, host) in hosts.host {
        let Ok(host) = host.try_into::<Host>() else {
            tracing::warn!("{}: host {url:?}: not understood", file.display());
            continue;
        };
        let can = |what: &str| {
            let capabilities = host.capabilities.as_ref();
            capabilities.is_none_or(|all| all.iter().any(|one| one == what))
        };
        let mirror = (!host.override_path)
            .then(|| at(&url, &reference.repository))
            .flatten();
        match mirror {
            Some(mirror) if can("pull") => mirrors.push(Mirror {
                resolves_tags: can("resolve"),
                ca_files: match host.ca {
                    None => Vec::new(),
                    Some(Files::One(file)) => vec![file],
                    Some(Files::Many(files)) => files,
                }
                .into_iter()
                .map(|ca| file.with_file_name(ca))
                .collect(),
                namespace: Some(reference.host.clone()),
                ..mirror
            }),
            Some(_) => {}
            None => tracing::warn!("{}: host {url:?}: not used", file.display()),
        }
    }
    Some(mirrors)
}

/// containers-registries.conf(5), version 2, as far as it concerns mirrors.
#[derive(Deserialize)]
struct Registries {
    #[serde(default)]
    registry: Vec<Configured>,
}

#[derive(Deserialize)]
struct Configured {
    prefix: Option<String>,
    #[serde(default)]
    location: String,
    #[serde(default)]
    mirror: Vec<ConfiguredMirror>,
}

#[derive(Deserialize)]
struct ConfiguredMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(rename = "pull-from-mirror", default)]
    pull: String,
}

/// `None` if the file says nothing about the repository.
fn of_registries(file: &Path, reference: &RegistryReference) -> Option<Vec<Mirror>> {
    let registries: Registries = read(file)?;
    let name = format!("{}/{}", reference.host, reference.repository);
    let matching = registries.registry.iter().filter_map(|configured| {
        let prefix = configured.prefix.as_ref().unwrap_or(&configured.location);
        let rest = name.strip_prefix(prefix.as_str())?;
        let is_whole = !prefix.is_empty() && (rest.is_empty() || rest.starts_with('/'));
        is_whole.then(|| {
            (
                prefix.len(),
                rest.trim_start_matches('/').to_owned(),
                configured,
            )
        })
    });
    // The longest prefix decides.
    let (_, rest, configured) = matching.max_by_key(|(len, ..)| *len)?;
    let mirrors = configured.mirror.iter().filter_map(|mirror| {
        let repository = match rest.is_empty() {
            true => None,
            false => Some(rest.as_str()),
        };
        let mut found = match repository {
            Some(repository) => at(&mirror.location, repository)?,
            None => {
                let (host, path) = mirror.location.split_once('/')?;
                at(host, path)?
            }
        };
        found.plain_http |= mirror.insecure;
        found.resolves_tags = mirror.pull != "digest-only";
        (mirror.pull != "tag-only").then_some(found)
    });
    Some(mirrors.collect())
}

/// Where these files are: the user's own before the machine's.
pub(super) fn usual_places(
    variable: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let set = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    let registries = match set("CONTAINERS_REGISTRIES_CONF") {
        Some(file) => vec![file],
        None => {
            let own = config.map(|config| config.join("containers/registries.conf"));
            own.into_iter()
                .chain(["/etc/containers/registries.conf".into()])
                .collect()
        }
    };
    let hosts = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];
    (hosts.map(PathBuf::from).into(), registries)
}

/// Whether this is Docker Hub's own name, whose API has another one.
pub(super) fn api_host(host: &str) -> &str {
    match host {
        DOCKER_HUB => "registry-1.docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> RegistryReference {
        match text.parse().unwrap() {
            crate::reference::Reference::Registry(reference) => reference,
            other => panic!("{other}"),
        }
    }

    fn places(mirrors: &[Mirror]) -> Vec<String> {
        let place = |mirror: &Mirror| {
            let tags = if mirror.resolves_tags {
                ""
            } else {
                " digests only"
            };
            let scheme = if mirror.plain_http { "http" } else { "https" };
            format!("{scheme}://{}/{}{tags}", mirror.host, mirror.repository)
        };
        mirrors.iter().map(place).collect()
    }

    #[test]
    fn mirrors_are_named_with_scheme_port_and_prefix() {
        for (text, place) in [
            ("mirror.example", Some("https://mirror.example/a/b")),
            ("http://10.0.0.1:5000/", Some("http://10.0.0.1:5000/a/b")),
            ("https://m/hub/cache", Some("https://m/hub/cache/a/b")),
            ("", None),
            ("ftp://m", None),
            ("m/../x", None),
            ("user@m", None),
            ("m?x", None),
        ] {
            let found: Vec<Mirror> = at(text, "a/b").into_iter().collect();
            assert_eq!(places(&found).first().map(String::as_str), place, "{text}");
        }
    }

    #[test]
    fn the_longest_prefix_of_registries_conf_decides() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("registries.conf");
        let text = r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            location = "docker.io"
            [[registry.mirror]]
            location = "wide.example/hub"
            [[registry]]
            prefix = "docker.io/library"
            location = "docker.io/library"
            [[registry.mirror]]
            location = "near.example:5000/lib"
            insecure = true
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "second.example"
            [[registry.mirror]]
            location = "tags.example"
            pull-from-mirror = "tag-only"
        "#;
        fs::write(&file, text).unwrap();
        let of = |name: &str| of_registries(&file, &reference(name)).map(|found| places(&found));
        assert_eq!(
            of("docker://python:3"),
            Some(vec![
                "http://near.example:5000/lib/python digests only".into(),
                "https://second.example/python".into()
            ])
        );
        assert_eq!(
            of("docker://a/b"),
            Some(vec!["https://wide.example/hub/a/b".into()])
        );
        assert_eq!(of("docker://ghcr.io/a/b"), None);
        fs::write(&file, "[[registry").unwrap();
        assert_eq!(of("docker://a/b"), None);
    }

    #[test]
    fn hosts_toml_is_found_for_a_registry_and_tells_who_may_resolve() {
        let scratch = tempfile::tempdir().unwrap();
        let own = scratch.path().join("docker.io");
        fs::create_dir(&own).unwrap();
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."http://near.example:5000"]
              capabilities = ["pull"]
              ca = "ca.pem"
            [host."https://push.example"]
              capabilities = ["push"]
            [host."https://odd.example/v2/x"]
              override_path = true
        "#;
        fs::write(own.join("hosts.toml"), text).unwrap();
        let found = of_hosts(scratch.path(), &reference("docker://a/b")).unwrap();
        assert_eq!(
            places(&found),
            ["http://near.example:5000/a/b digests only"]
        );
        assert_eq!(found[0].ca_files, [own.join("ca.pem")]);
        assert_eq!(found[0].namespace.as_deref(), Some("docker.io"));
        assert_eq!(
            of_hosts(scratch.path(), &reference("docker://ghcr.io/a/b")),
            None
        );
    }
}
