//! What the user calls an image: `docker://python:3.11`, `oras://HOST/NAME:TAG`, `https://HOST/x.sif`, `oci:DIR`,
//! `oci-archive:FILE`, `docker-archive:FILE`, `docker-daemon:NAME`, `FILE.sif`, `./DIR/`.
//!
//! Nothing is looked up here; a reference is a value.

mod registry;
mod web;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use registry::{DEFAULT_TAG, DOCKER_HUB, RegistryReference};
pub use web::WebAddress;

use crate::digest::Digest;

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
    /// `./DIR/`, `/DIR/`: a root file system in a directory of this machine. The kernel shows its files, and what changes in it is
    /// seen at once: the tree that stands for it here is empty.
    Directory(PathBuf),
    /// `oras://[host[:port]/]repository[:tag][@digest]`, a SIF in a registry.
    Oras(RegistryReference),
    /// `http[s]://…/FILE.sif`, a SIF or a squashfs at a web server.
    Web(WebAddress),
}

/// Ends of names that only files of this kind have.
const FILE_SUFFIXES: [&[u8]; 4] = [b".sif", b".sqsh", b".squashfs", b".img"];

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
            return Ok(match bytes.ends_with(b"/") {
                true => Self::Directory(text.into()),
                false => Self::File(text.into()),
            });
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

    /// What [`Reference::parse`] makes this of again, secrets included: for those who are to fetch it. Its text as it is shown is
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

/// Whether a text without looking further is a path: one that says where it begins, or one without a scheme that ends as
/// such files, or directories, do.
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
    let ends = text.ends_with(b"/") || FILE_SUFFIXES.iter().any(|end| text.ends_with(end));
    begins || (ends && !has_scheme)
}

/// A path as it is written where it could be something else.
fn path_as_such(path: &Path) -> String {
    let start = match is_path(path.as_os_str().as_bytes()) {
        true => "",
        false => "./",
    };
    format!("{start}{}", path.display())
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
            Self::File(path) => return write!(f, "{}", path_as_such(path)),
            Self::Directory(path) => {
                let path = path.components().as_path().join("");
                return write!(f, "{}", path_as_such(&path));
            }
        };
        write!(f, "{scheme}:{}", path.display())?;
        match tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
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
    fn a_path_that_ends_with_a_slash_is_a_directory() {
        for text in ["/a/", "a/b/", "../", "/", "x.sif/", "./oci:a/"] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference, Reference::Directory(text.into()));
            assert!(!reference.is_remote() && !reference.is_file_system());
            assert_eq!(canonical(text), text);
        }
        for (path, text) in [("/a", "/a/"), ("a", "a/"), ("./a//", "./a/")] {
            assert_eq!(Reference::Directory(path.into()).to_string(), text);
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
