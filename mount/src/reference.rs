//! What the user calls an image: `docker://python:3.11`, `oras://HOST/NAME:TAG`, `https://HOST/x.sif`, `oci:DIR`,
//! `oci-archive:FILE`, `docker-archive:FILE`, `docker-daemon:NAME`, `FILE.sif`.
//!
//! Nothing is looked up here; a reference is a value.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use crate::digest::Digest;

/// The host that a reference without one means.
pub const DOCKER_HUB: &str = "docker.io";

/// The tag that a reference without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

/// Where an image is, in the user's words. Prints in its canonical form, which reads back the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `docker://[host[:port]/]repository[:tag][@digest]`
    Registry(RegistryReference),
    /// `oci:DIR[:tag]`, an OCI image layout.
    OciLayout {
        /// The directory with `oci-layout` and `index.json`.
        directory: PathBuf,
        /// Which image of it; not needed when there is only one.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:tag]`, an OCI image layout in a tar file.
    OciArchive {
        /// The tar file.
        file: PathBuf,
        /// Which image of it; not needed when there is only one.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:name]`, what `docker save` writes.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// Which image of it, as `name:tag` or tag; not needed when there is only one.
        tag: Option<String>,
    },
    /// `docker-daemon:NAME[:TAG]`, an image in a Docker daemon on this machine.
    DockerDaemon {
        /// Its name as the daemon knows it.
        name: String,
    },
    /// `FILE.sif`, `./FILE`, `/DIR/FILE`: a SIF or a squashfs.
    File(PathBuf),
    /// `oras://[host[:port]/]repository[:tag][@digest]`, a SIF in a registry.
    Oras(RegistryReference),
    /// `http[s]://…/FILE.sif`, a SIF or a squashfs at a web server.
    Web(WebAddress),
}

/// The address of a file at a web server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebAddress(String);

/// Stands in place of what follows a question mark, before the name of that.
const HIDDEN: &str = "hidden-";

/// No browser or server takes longer ones.
const WEB_ADDRESS_BYTES_LIMIT: usize = 8192;

impl WebAddress {
    /// All of it, as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the user wrote `http:`, not `https:`.
    pub fn is_plain(&self) -> bool {
        self.0.starts_with("http:")
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        let (_, rest) = self
            .0
            .split_once("://")
            .expect("every address has a scheme");
        rest.split(['/', '?']).next().unwrap_or(rest)
    }

    /// Without what follows a question mark, which may be a secret.
    pub fn without_query(&self) -> &str {
        self.0.split('?').next().unwrap_or(&self.0)
    }

    /// What follows the question mark, as far as others may know it: which address it is, not what it says.
    fn hidden_query(&self) -> Option<String> {
        let (_, query) = self.0.split_once('?')?;
        if query.starts_with(HIDDEN) {
            return Some(query.to_owned());
        }
        let digest = Digest::of(query.as_bytes());
        let name: String = digest.hex().chars().take(16).collect();
        Some(format!("{HIDDEN}{name}"))
    }

    /// Whether it is one that was shown, of which nobody knows any more what follows the question mark.
    pub fn is_incomplete(&self) -> bool {
        self.0
            .split_once('?')
            .is_some_and(|(_, query)| query.starts_with(HIDDEN))
    }

    fn parse(scheme: &str, rest: &[u8]) -> Result<Self, String> {
        let rest = str::from_utf8(rest).ok();
        let is_printed = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte);
        let rest = rest.filter(|rest| rest.bytes().all(is_printed));
        let rest =
            rest.ok_or("an address is written in ASCII: other characters, spaces and # as %XX")?;
        if rest.len() > WEB_ADDRESS_BYTES_LIMIT {
            return Err("the address is longer than any server takes".into());
        }
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.contains('@') {
            return Err("credentials do not belong into an address".into());
        }
        check_host(host)?;
        if path.is_empty() {
            return Err("the address names no file".into());
        }
        Ok(Self(format!("{scheme}://{rest}")))
    }
}

/// As it is shown, logged, and written into tables of mounts and records that others can read: a question mark is often followed
/// by a signature or a token. Different addresses stay different.
impl fmt::Display for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.without_query())?;
        match self.hidden_query() {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}

/// Ends of names that only files of this kind have.
const FILE_SUFFIXES: [&[u8]; 4] = [b".sif", b".sqsh", b".squashfs", b".img"];

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

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image {text:?}: {problem}")]
pub struct ParseReferenceError {
    text: String,
    problem: String,
    hint: Option<String>,
}

impl ParseReferenceError {
    /// What the user could have meant, or write instead.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

const SCHEMES: &str = "docker://[HOST/]NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], \
     docker-daemon:NAME[:TAG], FILE.sif, oras://HOST/NAME[:TAG], https://HOST/FILE.sif";

impl Reference {
    /// Reads a reference whose path, if it has one, may be any bytes.
    pub fn parse(text: &OsStr) -> Result<Self, ParseReferenceError> {
        let bytes = text.as_bytes();
        if is_path(bytes) {
            return Ok(Self::File(text.into()));
        }
        let problem = match bytes.iter().position(|&byte| byte == b':') {
            Some(colon) => match Self::of_scheme(&bytes[..colon], &bytes[colon + 1..]) {
                Ok(reference) => return Ok(reference),
                Err(problem) => problem,
            },
            None => Problem::unknown("it does not say what kind of place it is in"),
        };
        let shown = without_password(&text.to_string_lossy());
        let hint = problem.hint.unwrap_or_else(|| advice(&shown));
        Err(ParseReferenceError {
            problem: problem.what,
            hint: Some(hint),
            text: shown,
        })
    }

    /// The digest that the user named, which decides what the reference means.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Registry(reference) => reference.digest,
            _ => None,
        }
    }

    /// What [`Reference::parse`] makes this of again, secrets included: for those who are to fetch it. [`Reference::to_string`] is
    /// for all others.
    pub fn written(&self) -> String {
        match self {
            Self::Web(address) => address.as_str().to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether the image is on another machine.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Registry(_) | Self::Oras(_) | Self::Web(_))
    }

    /// Whether what it names is a file system in a file, such as a SIF: it has scripts of its own, and no layers.
    pub fn is_file_system(&self) -> bool {
        matches!(self, Self::File(_) | Self::Oras(_) | Self::Web(_))
    }

    fn of_scheme(scheme: &[u8], rest: &[u8]) -> Result<Self, Problem> {
        match scheme {
            b"docker" => {
                let name = rest
                    .strip_prefix(b"//")
                    .ok_or_else(|| Problem::unknown("docker: is followed by //"))?;
                let name = str::from_utf8(name)
                    .map_err(|_| Problem::bad("a registry's names are ASCII".into()))?;
                name.parse().map(Self::Registry).map_err(Problem::bad)
            }
            b"oras" => {
                let name = rest
                    .strip_prefix(b"//")
                    .and_then(|name| str::from_utf8(name).ok())
                    .ok_or_else(|| Problem::bad("oras: is followed by // and a name".into()))?;
                name.parse().map(Self::Oras).map_err(Problem::bad)
            }
            b"http" | b"https" if rest.starts_with(b"//") => {
                let scheme = if scheme == b"http" { "http" } else { "https" };
                WebAddress::parse(scheme, &rest[2..])
                    .map(Self::Web)
                    .map_err(Problem::bad)
            }
            b"docker-daemon" => {
                let name = str::from_utf8(rest)
                    .map_err(|_| Problem::bad("a daemon's names are ASCII".into()))?;
                daemon_name(name)
                    .map(|name| Self::DockerDaemon { name })
                    .map_err(Problem::bad)
            }
            b"oci" => {
                let (directory, tag) = path_and_tag(rest)?;
                Ok(Self::OciLayout { directory, tag })
            }
            b"oci-archive" => {
                let (file, tag) = path_and_tag(rest)?;
                Ok(Self::OciArchive { file, tag })
            }
            b"docker-archive" => {
                let (file, tag) = path_and_tag(rest)?;
                Ok(Self::DockerArchive { file, tag })
            }
            _ if rest.starts_with(b"//") => {
                Err(Problem::unknown("images cannot be taken from such a place"))
            }
            _ => Err(Problem::unknown(
                "it does not say what kind of place it is in",
            )),
        }
    }
}

/// Whether a text without looking further is the path of a file: one that says where it begins, or one without a scheme
/// that ends as such files do.
fn is_path(text: &[u8]) -> bool {
    let begins = [&b"/"[..], b"./", b"../"]
        .iter()
        .any(|start| text.starts_with(start));
    let scheme = text
        .iter()
        .position(|&byte| byte == b':')
        .map(|colon| &text[..colon]);
    let has_scheme = scheme.is_some_and(|scheme| {
        let known = [
            &b"docker"[..],
            b"oci",
            b"oci-archive",
            b"docker-archive",
            b"docker-daemon",
        ];
        known.contains(&scheme) || text[scheme.len()..].starts_with(b"://")
    });
    let ends = FILE_SUFFIXES.iter().any(|end| text.ends_with(end));
    begins || (ends && !has_scheme)
}

/// What is wrong, and the hint when the usual one would not help.
struct Problem {
    what: String,
    hint: Option<String>,
}

impl Problem {
    fn unknown(what: &str) -> Self {
        Self {
            what: what.into(),
            hint: None,
        }
    }

    fn bad(what: String) -> Self {
        Self {
            what,
            hint: Some(format!("write one of {SCHEMES}")),
        }
    }
}

/// The hint for a text that has no scheme of ours.
fn advice(text: &str) -> String {
    let works = format!("these work: {SCHEMES}");
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    match scheme {
        "" => {}
        "library" | "shub" => {
            return format!("a SIF is pulled with apptainer and used as a file; {works}");
        }
        _ => return works,
    }
    let name = rest.strip_prefix("docker:").unwrap_or(rest);
    let looks_like_a_path = name.starts_with(['/', '.']) || name.ends_with(".sif");
    if !looks_like_a_path && name.parse::<RegistryReference>().is_ok() {
        return format!("did you mean docker://{name}? {works}");
    }
    works
}

/// `text` with what stands between a scheme and an `@` left out when it holds a password.
fn without_password(text: &str) -> String {
    let short: String = text.chars().take(300).collect();
    let Some((scheme, rest)) = short.split_once("//") else {
        return short;
    };
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((user, _)) if user.contains(':') && rest.len() > authority.len() => {
            format!("{scheme}//…{}", &rest[user.len()..])
        }
        _ => short,
    }
}

/// The name of an image in a daemon, or its number (`sha256:…`): a tag is added as `docker` adds it.
fn daemon_name(name: &str) -> Result<String, String> {
    if name.parse::<Digest>().is_ok() {
        return Ok(name.to_owned());
    }
    let reference: RegistryReference = name.parse()?;
    let has_tag = reference.digest.is_some()
        || name
            .rsplit('/')
            .next()
            .is_some_and(|last| last.contains(':'));
    Ok(match has_tag {
        true => name.to_owned(),
        false => format!("{name}:{DEFAULT_TAG}"),
    })
}

/// As the original tools do, the first colon ends the path, because tags may be whole image names.
fn path_and_tag(rest: &[u8]) -> Result<(PathBuf, Option<String>), Problem> {
    let (path, tag) = match rest.iter().position(|&byte| byte == b':') {
        Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(Problem::bad("the path is missing".into()));
    }
    if path.contains(&0) {
        return Err(Problem::bad("a path cannot hold a zero byte".into()));
    }
    let tag = match tag {
        None => None,
        Some(tag) => match str::from_utf8(tag) {
            Ok(tag) if !tag.is_empty() => Some(tag.to_owned()),
            _ => {
                return Err(Problem::bad(
                    "the tag after the path is empty or not UTF-8".into(),
                ));
            }
        },
    };
    Ok((OsString::from_vec(path.to_vec()).into(), tag))
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(OsStr::new(text))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path, tag) = match self {
            Self::Registry(reference) => return write!(f, "docker://{reference}"),
            Self::Oras(reference) => return write!(f, "oras://{reference}"),
            Self::Web(address) => return write!(f, "{address}"),
            Self::DockerDaemon { name } => return write!(f, "docker-daemon:{name}"),
            Self::OciLayout { directory, tag } => ("oci", directory, tag),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag),
            Self::DockerArchive { file, tag } => ("docker-archive", file, tag),
            Self::File(path) if is_path(path.as_os_str().as_bytes()) => {
                return write!(f, "{}", path.display());
            }
            Self::File(path) => return write!(f, "./{}", path.display()),
        };
        write!(f, "{scheme}:{}", path.display())?;
        match tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
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

fn check_host(host: &str) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn names_are_completed_as_docker_does() {
        for (text, expected) in [
            (
                "docker://python",
                "docker://docker.io/library/python:latest",
            ),
            (
                "docker://python:3.11",
                "docker://docker.io/library/python:3.11",
            ),
            ("docker://me/tool", "docker://docker.io/me/tool:latest"),
            (
                "docker://index.docker.io/python",
                "docker://docker.io/library/python:latest",
            ),
            ("docker://localhost/a:b", "docker://localhost/a:b"),
            (
                "docker://localhost:5000/a",
                "docker://localhost:5000/a:latest",
            ),
            ("docker://[::1]:5000/a", "docker://[::1]:5000/a:latest"),
            (
                "docker://quay.io/a/b/c__d.e-f:1_x",
                "docker://quay.io/a/b/c__d.e-f:1_x",
            ),
            ("oci:some/dir", "oci:some/dir"),
            ("oci:/dir:v1", "oci:/dir:v1"),
            (
                "oci-archive:f.tar:docker.io/a:1",
                "oci-archive:f.tar:docker.io/a:1",
            ),
            ("docker-archive:f.tar", "docker-archive:f.tar"),
        ] {
            assert_eq!(canonical(text), expected);
            assert_eq!(canonical(expected), expected);
        }
    }

    #[test]
    fn a_digest_needs_no_tag_and_keeps_one() {
        let with = format!("docker://quay.io/a@sha256:{HEX}");
        assert_eq!(canonical(&with), with);
        let both = format!("docker://quay.io/a:1@sha256:{HEX}");
        assert_eq!(canonical(&both), both);
    }

    #[test]
    fn other_places_are_refused_with_the_ones_that_work() {
        for text in [
            "library://a/b",
            "shub://a/b",
            "docker:python",
            "ftp://a",
            "",
            "python",
            "a/b",
            "oras:ghcr.io/a/b",
            "oras://",
            "http:x",
            "https://x",
            "docker-daemon:",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            let hint = error.hint().unwrap();
            for scheme in ["docker://", "oci:", "oci-archive:", "docker-archive:"] {
                assert!(hint.contains(scheme), "{text}: {hint}");
            }
        }
    }

    #[test]
    fn a_path_that_can_be_nothing_else_is_a_file() {
        for text in [
            "x.sif",
            "a/x.sif",
            "./x",
            "../x",
            "/x",
            "x.squashfs",
            "./oci:a",
            "a:b.sqsh",
            "x.img",
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference, Reference::File(text.into()));
            assert!(!reference.is_remote());
            assert_eq!(canonical(text), text);
        }
        assert_eq!(Reference::File("x".into()).to_string(), "./x");
        for text in ["oci:x.sif", "docker://x.sif", "docker-archive:x.img"] {
            assert!(
                !matches!(text.parse().unwrap(), Reference::File(_)),
                "{text}"
            );
        }
    }

    #[test]
    fn files_elsewhere_have_addresses() {
        for (text, expected) in [
            ("oras://h.x/a/b", "oras://h.x/a/b:latest"),
            (
                "oras://localhost:5000/a.sif:1",
                "oras://localhost:5000/a.sif:1",
            ),
            ("http://h.x/a/b.sif", "http://h.x/a/b.sif"),
            (
                "https://h.x:8443/b.sif?key=a&b=c",
                "https://h.x:8443/b.sif?key=a&b=c",
            ),
            ("https://[::1]/~me/b%20c.sif", "https://[::1]/~me/b%20c.sif"),
            ("docker-daemon:a", "docker-daemon:a:latest"),
            (
                "docker-daemon:h.x:5000/a/b",
                "docker-daemon:h.x:5000/a/b:latest",
            ),
            ("docker-daemon:a:1", "docker-daemon:a:1"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.written(), expected);
            assert_eq!(expected.parse::<Reference>().unwrap(), reference);
        }
        let Ok(Reference::Web(address)) = "https://h.x:1/b.sif?key=secret".parse() else {
            panic!("an address");
        };
        assert_eq!(address.host(), "h.x:1");
        assert_eq!(address.without_query(), "https://h.x:1/b.sif");
        let shown = address.to_string();
        assert!(shown.starts_with("https://h.x:1/b.sif?hidden-") && !shown.contains("secret"));
        assert_ne!(
            shown,
            "https://h.x:1/b.sif?key=secreT"
                .parse::<Reference>()
                .unwrap()
                .to_string()
        );
        let again: Reference = shown.parse().unwrap();
        assert_eq!(again.to_string(), shown);
        assert_eq!(
            Reference::Web(address.clone()).written(),
            "https://h.x:1/b.sif?key=secret"
        );
        assert!(!address.is_plain());
        for text in [
            "http://",
            "http:///x",
            "https://h.x",
            "https://h.x/",
            "https://me:secret@h.x/y.sif",
            "https://h x/y.sif",
            "https://h.x/y z.sif",
            "https://h.x/y.sif#part",
            "https://h.x:99999/y.sif",
            "oras://A",
            "oras://h.x/a:",
            "docker-daemon:A",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(!format!("{error:?} {error}").contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_bare_name_gets_its_docker_form_as_hint() {
        for (text, meant) in [
            ("python:3.11", "docker://python:3.11?"),
            ("ghcr.io/a/b", "docker://ghcr.io/a/b?"),
            ("docker:python", "docker://python?"),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.hint().unwrap().contains(meant), "{error:?}");
        }
    }

    #[test]
    fn what_the_grammar_forbids_is_refused() {
        let long = format!("docker://{}", "a".repeat(300));
        for text in [
            "docker://",
            "docker:///a",
            "docker://A",
            "docker://a//b",
            "docker://a/../b",
            "docker://a_-b",
            "docker://a___b",
            "docker://-a",
            "docker://a:",
            "docker://a:.x",
            "docker://a@sha256:12",
            "docker://a@sha512:12",
            "docker://host:99999/a",
            "docker://host:+80/a",
            "docker://ho st.x/a",
            "docker://[::1/a",
            "docker://[evil]/a",
            "docker://h.x/a?b=c",
            "docker://h.x#/a",
            "oci:",
            "oci::tag",
            "oci:dir:",
            &long,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_a_reference_is_not_repeated() {
        let error = "docker://me:secret@host.x/a"
            .parse::<Reference>()
            .unwrap_err();
        assert!(
            !format!("{error:?} {error}").contains("secret"),
            "{error:?}"
        );
    }

    #[test]
    fn a_path_may_be_any_bytes() {
        let reference = Reference::parse(OsStr::from_bytes(b"oci:/a\xff:t")).unwrap();
        let Reference::OciLayout { directory, tag } = reference else {
            panic!("{reference}");
        };
        assert_eq!(directory.as_os_str().as_bytes(), b"/a\xff");
        assert_eq!(tag.as_deref(), Some("t"));
    }

    proptest! {
        #[test]
        fn what_parses_reads_back_as_it_prints(text in "(docker://|oci:|oras://|https?://|docker-daemon:)[a-zA-Z0-9./:@_?\\[\\]-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.written().parse(), Ok(reference));
            }
        }
    }
}
