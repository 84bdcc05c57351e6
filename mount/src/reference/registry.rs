//! `HOST/NAME:TAG@DIGEST`: an image, or a file, in a registry.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// The host that a reference without one means.
pub const DOCKER_HUB: &str = "docker.io";

/// The tag that a reference without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    /// Host and port as the user means them: [`DOCKER_HUB`] when there was none.
    pub host: String,
    /// The repository's full name, on Docker Hub with `library/` in front where it was left out.
    pub repository: String,
    /// The tag; [`DEFAULT_TAG`] when there was neither tag nor digest.
    pub tag: Option<String>,
    /// The digest of a manifest or index. It decides when there is a tag as well.
    pub digest: Option<Digest>,
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for RegistryReference {
    type Err = String;

    /// `[host[:port]/]repository[:tag][@digest]`, the grammar of the distribution project.
    fn from_str(text: &str) -> Result<Self, String> {
        let (host, path) = match text.split_once('/') {
            Some((first, rest)) if is_meant_as_host(first) => (first, rest),
            _ => (DOCKER_HUB, text),
        };
        check_host(host)?;
        let (path, digest) = match path.split_once('@') {
            Some((path, digest)) => (path, Some(digest.parse().map_err(text_of)?)),
            None => (path, None),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(checked_tag(tag)?)),
            None if digest.is_none() => (path, Some(DEFAULT_TAG.to_owned())),
            None => (path, None),
        };
        check_repository(repository)?;
        let is_hub = matches!(
            host,
            DOCKER_HUB | "index.docker.io" | "registry-1.docker.io"
        );
        let repository = match is_hub && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository.to_owned(),
        };
        Ok(Self {
            host: if is_hub { DOCKER_HUB } else { host }.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

fn text_of(error: crate::digest::ParseDigestError) -> String {
    error.to_string()
}

/// The first part of a name is a host when it could not be a part of a repository on Docker Hub, or is `localhost`.
fn is_meant_as_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':', '['])
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

pub(super) fn check_host(host: &str) -> Result<(), String> {
    if host.contains('@') {
        return Err(
            "credentials do not belong into a reference; use --docker-username and --docker-password"
                .into(),
        );
    }
    let wrong = || format!("{host:?} is no host name with an optional port");
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            ("v6", port)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let name_is_good = name.len() <= 253 && name.split('.').all(is_label);
    let port_is_good = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => {
            digits.bytes().all(|byte| byte.is_ascii_digit())
                && digits.parse::<u16>().is_ok_and(|port| port > 0)
        }
    };
    match name_is_good && port_is_good {
        true => Ok(()),
        false => Err(wrong()),
    }
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("the name of the repository is missing".into());
    }
    if repository.len() > 255 {
        return Err("the name of the repository is longer than 255 bytes".into());
    }
    match repository.split('/').find(|part| !is_path_component(part)) {
        None => Ok(()),
        Some(part) if part.bytes().any(|byte| byte.is_ascii_uppercase()) => Err(format!(
            "{part:?} in the name of the repository is not in lower case"
        )),
        Some(part) => Err(format!("{part:?} cannot be part of a repository's name")),
    }
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_well = bytes.first().is_some_and(|&byte| is_alphanumeric(byte))
        && bytes.last().is_some_and(|&byte| is_alphanumeric(byte));
    ends_well
        && bytes
            .chunk_by(|&a, &b| is_alphanumeric(a) == is_alphanumeric(b))
            .all(|run| {
                is_alphanumeric(run[0])
                    || matches!(run, b"." | b"_" | b"__")
                    || run.iter().all(|&byte| byte == b'-')
            })
}

fn checked_tag(tag: &str) -> Result<String, String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_good = (1..=128).contains(&tag.len())
        && is_word(tag.as_bytes()[0])
        && tag
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
    match is_good {
        true => Ok(tag.to_owned()),
        false => Err(format!("{tag:?} is no tag")),
    }
}
