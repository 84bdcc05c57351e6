//! The demonstration's program, run from the root file system in its SIF: without a registry, a store, root or
//! anything installed.
//!
//! The kernel mounts a squashfs only for root, and other readers of it may not be here. So the files are
//! unpacked, into memory that only the program sees, and that goes with it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use backhand::{FilesystemReader, InnerNode};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use super::{image, program};
use crate::container;
use crate::container::environment::{self, Sources, Variables};
use crate::container::namespaces::{self, Privilege};
use crate::container::process;
use crate::pack::sif::{Object, ObjectKind, Sif};
use crate::setting::Error;

/// The hidden verb of the process that does it.
pub const VERB: &str = "demo-unpacked";

/// More than any configuration has.
const CONFIGURATION_BYTES_LIMIT: u64 = 4 << 20;

/// What that process is told on stdin.
#[derive(Serialize, Deserialize)]
pub struct Request {
    /// The SIF.
    pub sif: PathBuf,
}

/// Becomes the program; returns only if that fails. The process must have a single thread.
pub fn become_program(request: &Request) -> Result<Infallible, Error> {
    let file = File::open(&request.sif)?;
    let sif = Sif::open(&file)?;
    let root_file_system = sif.primary_partition().ok_or("no root file system")?;
    let variables = environment::variables(&Sources {
        image: variables(&file, &sif)?,
        is_clean: true,
        ..Sources::default()
    });
    let privilege = Privilege::of_caller();
    let (joinable, _) = namespaces::create(privilege, memory)?;
    let root = namespaces::join(joinable, |_| true)?;
    rustix::process::fchdir(&root)?;
    unpack(&file, root_file_system)?;
    namespaces::change_root(&root)?;
    process::drop_privileges(privilege, false)?;
    let words = [image::PROGRAM, program::VERB].map(OsString::from);
    Err(process::become_program(&words, variables).into())
}

/// Puts an empty file system in memory on top of `/`. No process serves it: the descriptor stands for nothing.
fn memory() -> Result<OwnedFd, container::Error> {
    let failed = |err| container::Error::system("file system in memory", err);
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("sifon-demo", "/", "tmpfs", flags, c"mode=0755").map_err(failed)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).map_err(failed)
}

/// The environment that the SIF's configuration sets.
fn variables(file: &File, sif: &Sif) -> Result<Variables, Error> {
    #[derive(Deserialize)]
    struct Configuration {
        #[serde(rename = "Env", default)]
        env: Vec<String>,
    }
    let object = sif
        .named(ObjectKind::GenericJson, "oci-config.json")
        .filter(|object| object.len <= CONFIGURATION_BYTES_LIMIT)
        .ok_or("no configuration")?;
    let mut text = vec![0; object.len as usize];
    file.read_exact_at(&mut text, object.at)?;
    let configuration: Configuration = serde_json::from_slice(&text)?;
    let pairs = configuration.env.iter().filter_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        Some((name.as_bytes().to_vec(), value.as_bytes().to_vec()))
    });
    Ok(pairs.collect())
}

/// Writes every directory, file and symlink below the current directory; the demonstration's image has
/// nothing else.
fn unpack(file: &File, root_file_system: &Object) -> Result<(), Error> {
    let reader = BufReader::new(file.try_clone()?);
    let reader = FilesystemReader::from_reader_with_offset(reader, root_file_system.at)?;
    // Parents stand before their children in this order.
    let nodes: BTreeMap<_, _> = reader.files().map(|node| (&node.fullpath, node)).collect();
    for (path, node) in nodes {
        let Some(path) = below(path) else { continue };
        let mode = u32::from(node.header.permissions) & 0o7777;
        let written = match &node.inner {
            InnerNode::Dir(_) => DirBuilder::new().mode(mode).create(&path),
            InnerNode::Symlink(link) => std::os::unix::fs::symlink(&link.link, &path),
            InnerNode::File(file) => write(&path, mode, &mut reader.file(file).reader()),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        written.map_err(|err| container::Error::system(path.display().to_string(), err))?;
    }
    Ok(())
}

/// `path`, which begins with `/`, as seen from there; `None` for the root directory itself and for what
/// no file system has.
fn below(path: &Path) -> Option<PathBuf> {
    let path = path.strip_prefix("/").ok()?;
    let is_plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    (is_plain && path != Path::new("")).then(|| path.to_owned())
}

fn write(path: &Path, mode: u32, content: &mut dyn Read) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    io::copy(content, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_directory() {
        for (path, expected) in [
            ("/", None),
            ("/bin/sifon", Some("bin/sifon")),
            ("/../etc/passwd", None),
            ("/bin/../../etc", None),
            ("etc", None),
        ] {
            let expected = expected.map(PathBuf::from);
            assert_eq!(below(Path::new(path)), expected, "{path}");
        }
    }
}
