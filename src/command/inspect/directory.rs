//! The same of a directory with a root file system in it: from its files, of which a link leads nowhere.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::metadata::{App, Attributes, Texted};

/// Bytes of a text at most.
const TEXT_BYTES_LIMIT: u64 = 1 << 20;

/// What the files of `directory` say, by the names that Singularity gives them.
pub(super) fn attributes(directory: &Path) -> io::Result<Attributes> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = Root(rustix::fs::open(directory, flags, Mode::empty())?);
    let own = |name: &str| root.text(&format!(".singularity.d/{name}"));
    let mut attributes = Attributes {
        environment: root.scripts(".singularity.d/env")?,
        labels: labels(&own("labels.json")?),
        runscript: own("runscript")?,
        startscript: own("startscript")?,
        test: own("test")?,
        helpfile: own("runscript.help")?,
        deffile: own("Singularity")?,
        ..Attributes::default()
    };
    for name in root.names("scif/apps")? {
        let Some(name) = name.to_str() else {
            continue;
        };
        let place = format!("scif/apps/{name}/scif");
        if root
            .open(Path::new(&place), OFlags::PATH | OFlags::DIRECTORY)?
            .is_none()
        {
            continue;
        }
        let own = |name: &str| root.text(&format!("{place}/{name}"));
        let app = App {
            environment: root.scripts(&format!("{place}/env"))?,
            labels: labels(&own("labels.json")?),
            runscript: own("runscript")?,
            test: own("test")?,
            helpfile: own("runscript.help")?,
        };
        attributes.apps.insert(name.to_owned(), app);
    }
    Ok(attributes)
}

/// Labels as a file has them; a value that is no text is empty.
fn labels(text: &str) -> Texted {
    if text.is_empty() {
        return Texted::new();
    }
    let found: serde_json::Map<_, _> = serde_json::from_str(text).unwrap_or_else(|err| {
        tracing::warn!("Unable to parse labels: {err}");
        serde_json::Map::new()
    });
    let value = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let labels = found
        .iter()
        .map(|(name, label)| (name.clone(), value(label)));
    labels.collect()
}

struct Root(OwnedFd);

impl Root {
    /// What lies at `path`, without a link on the way; none if nothing does.
    fn open(&self, path: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let mut at = self.0.try_clone()?;
        let last = path.file_name();
        for name in path {
            let flags = match Some(name) == last {
                true => flags | OFlags::NONBLOCK,
                false => OFlags::PATH | OFlags::DIRECTORY,
            };
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = match rustix::fs::openat(&at, name, flags, Mode::empty()) {
                Ok(found) => found,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
                Err(err) => {
                    let err = io::Error::from(err);
                    let text = format!("/{}: {err}", path.display());
                    return Err(io::Error::new(err.kind(), text));
                }
            };
        }
        Ok(Some(at))
    }

    /// The text of a regular file without the ends of lines that end it; empty if there is no such file.
    fn text(&self, path: &str) -> io::Result<String> {
        let Some(file) = self.open(Path::new(path), OFlags::RDONLY)?.map(File::from) else {
            return Ok(String::new());
        };
        if !file.metadata()?.is_file() {
            return Ok(String::new());
        }
        let mut bytes = Vec::new();
        file.take(TEXT_BYTES_LIMIT).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// The names in a directory, sorted; none if there is no such directory.
    fn names(&self, path: &str) -> io::Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Some(directory) = self.open(Path::new(path), flags)? else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(directory)? {
            let name = entry?.file_name().to_bytes().to_owned();
            if !matches!(&*name, b"." | b"..") {
                names.push(OsStr::from_bytes(&name).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Those scripts in a directory that are about the image.
    fn scripts(&self, directory: &str) -> io::Result<Texted> {
        let mut scripts = Texted::new();
        for name in self.names(directory)? {
            let Some(name) = name.to_str().filter(|name| is_shown(name)) else {
                continue;
            };
            let path = format!("{directory}/{name}");
            let text = self.text(&path)?;
            if !text.is_empty() {
                scripts.insert(format!("/{path}"), text);
            }
        }
        Ok(scripts)
    }
}

/// Whether Singularity shows a script of this name: it looks for `10-docker*.sh` and `9*-environment.sh`.
fn is_shown(name: &str) -> bool {
    let is_between = |start: &str, end: &str| {
        let rest = name.strip_prefix(start);
        rest.is_some_and(|rest| rest.ends_with(end))
    };
    is_between("10-docker", ".sh") || is_between("9", "-environment.sh")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn texts_are_those_of_files_and_never_of_what_a_link_leads_to() {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().join("box");
        let own = place.join(".singularity.d");
        fs::create_dir_all(own.join("env")).unwrap();
        fs::write(scratch.path().join("secret"), "secret").unwrap();
        fs::write(own.join("runscript"), "\n run \n\n").unwrap();
        fs::write(own.join("env/90-environment.sh"), "export A=1\n").unwrap();
        fs::write(own.join("env/99-base.sh"), "export B=1\n").unwrap();
        fs::write(own.join("labels.json"), r#"{"a": "b", "c": 3}"#).unwrap();
        symlink(scratch.path().join("secret"), own.join("test")).unwrap();
        symlink("../../secret", own.join("startscript")).unwrap();
        fs::create_dir(own.join("Singularity")).unwrap();
        symlink(scratch.path(), place.join("scif")).unwrap();
        let texts = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(name, text)| (name.to_string(), text.to_string()));
            Texted::from_iter(pairs)
        };
        let expected = Attributes {
            environment: texts(&[("/.singularity.d/env/90-environment.sh", "export A=1")]),
            labels: texts(&[("a", "b"), ("c", "")]),
            runscript: "\n run ".into(),
            ..Attributes::default()
        };
        assert_eq!(attributes(&place).unwrap(), expected);
        fs::create_dir_all(scratch.path().join("empty")).unwrap();
        let nothing = attributes(&scratch.path().join("empty")).unwrap();
        assert_eq!(nothing, Attributes::default());
    }
}
