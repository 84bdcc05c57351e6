//! Writing into an image: kernel overlayfs on top of it, in the program's own mount namespace.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use sifon_mount::sys::mountinfo;

use super::error::Error;
use super::outside::{self, Upper};
use super::subids::found;

/// What is put over an image.
#[derive(Debug)]
pub struct Overlay {
    /// What it is.
    pub place: Place,
    /// Whether it is only read.
    pub is_read_only: bool,
}

/// Where an overlay's files are.
#[derive(Debug)]
pub enum Place {
    /// In `upper` in a directory, with `work` beside it, as Singularity makes them.
    Directory(PathBuf),
    /// The same in a file system of the ext family, in this file.
    Ext(PathBuf),
    /// In a SIF or squashfs: a mount of it, attached nowhere.
    Image(OwnedFd),
}

/// Where writes into the image go.
#[derive(Debug, Default)]
pub struct Writable {
    /// `--writable-tmpfs`: into memory, gone with the program.
    pub in_memory: bool,
    /// `--overlay`, the first one undermost; at most one is not read-only.
    pub overlays: Vec<Overlay>,
}

impl Writable {
    /// Whether anything is put over the image.
    pub fn is_wanted(&self) -> bool {
        self.in_memory || !self.overlays.is_empty()
    }
}

/// Puts what `writable` says over `image`, below the host's `place`, a directory that is hidden by that in this process's own mount
/// namespace. Gives the new root directory.
pub fn overlaid(image: &OwnedFd, writable: &Writable) -> Result<OwnedFd, Error> {
    let failed = |err: Errno| Error::system("overlay over the image", err);
    // A directory of the image is the place where the others are made: nothing of the host is hidden, and what was there is
    // seen again in the overlay, whose lower layer has no mounts.
    let place = place_in(image).map_err(failed)?;
    rustix::mount::mount(
        "tmpfs",
        path_of(&place),
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=0755",
    )
    .map_err(failed)?;
    let stage = place_in(image).map_err(failed)?;
    let mut lower = vec![PathBuf::from(path_of(image))];
    let mut upper = None;
    for (number, overlay) in writable.overlays.iter().enumerate() {
        match (&overlay.place, overlay.is_read_only) {
            (Place::Directory(path), true) => lower.insert(0, path.join("upper")),
            (Place::Directory(path), false) => upper = Some(Upper::Directory(path)),
            (Place::Ext(file), true) => {
                let place = directory(&stage, &format!("overlay-{number}"))?;
                outside::attach(&outside::ext(file)?, &place)?;
                lower.insert(0, place.join("upper"));
            }
            (Place::Ext(file), false) => upper = Some(Upper::Ext(file)),
            (Place::Image(tree), _) => {
                let place = directory(&stage, &format!("overlay-{number}"))?;
                outside::attach(tree, &place)?;
                lower.insert(0, place);
            }
        }
    }
    let memory = Path::new(&path_of(&stage)).join("memory");
    if upper.is_none() && writable.in_memory {
        for name in ["memory", "memory/upper", "memory/work"] {
            directory(&stage, name)?;
        }
        upper = Some(Upper::Directory(&memory));
    }
    let merged = directory(&stage, "merged")?;
    show(&lower, upper.as_ref(), &merged)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&stage, "merged", flags, Mode::empty()).map_err(failed)
}

/// By the kernel where it can, else by fuse-overlayfs where that is installed.
fn show(lower: &[PathBuf], upper: Option<&Upper<'_>>, merged: &Path) -> Result<(), Error> {
    let refused = match upper {
        None => return mount_overlay(lower, None, merged),
        // The kernel writes to no file system that a program serves.
        Some(Upper::Ext(_)) => None,
        Some(Upper::Directory(path)) => {
            let writes = (path.join("upper"), path.join("work"));
            match mount_overlay(lower, Some(&writes), merged) {
                Ok(()) => return Ok(()),
                Err(error) => Some(error),
            }
        }
    };
    if let Some(error) = refused {
        if found("fuse-overlayfs").is_none() {
            return Err(error);
        }
        tracing::debug!("{}; fuse-overlayfs is asked", error.in_one_line());
    }
    let upper = upper.expect("without one, all was done above");
    outside::attach(&outside::overlay(lower, upper)?, merged)
}

fn mount_overlay(
    lower: &[PathBuf],
    upper: Option<&(PathBuf, PathBuf)>,
    merged: &Path,
) -> Result<(), Error> {
    let lower: Vec<Vec<u8>> = lower.iter().map(|path| escaped(path)).collect();
    let mut data = [b"lowerdir=", lower.join(&b':').as_slice()].concat();
    if let Some((upper, work)) = upper {
        for (option, path) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
            data.extend_from_slice(option);
            data.extend_from_slice(&escaped(path));
        }
    }
    // Attributes that a user namespace may write; kernels before 5.11 have no overlays there.
    data.extend_from_slice(b",userxattr");
    let data = CString::new(data).map_err(|err| Error::system("overlay", io::Error::from(err)))?;
    let mount = |data: &CString| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("overlay", merged, "overlay", flags, data.as_c_str())
    };
    mount(&data).map_err(|source| Error::System {
        action: match upper {
            Some((upper, _)) => format!("overlay with {}", upper.display()),
            None => "overlay".into(),
        },
        source: source.into(),
        hint: upper.map(|(upper, _)| hint(upper)),
    })
}

/// Why the kernel may refuse a directory, and what to do.
fn hint(upper: &Path) -> String {
    let kind = mountinfo::mounts()
        .ok()
        .and_then(|mounts| {
            let above = mounts
                .into_iter()
                .filter(|mount| upper.starts_with(&mount.target));
            above.max_by_key(|mount| mount.target.as_os_str().len())
        })
        .map(|mount| mount.file_system);
    format!(
        "the directory is on {}; kernel overlays need Linux 5.11 and a local file system for writing (not NFS, Lustre, GPFS or \
         another overlay): name a local directory, or use --writable-tmpfs",
        kind.as_deref().unwrap_or("an unknown file system")
    )
}

/// A path in the options of overlayfs: commas, colons and backslashes escaped (Documentation/filesystems/overlayfs.rst).
fn escaped(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b',' | b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

/// A directory that every image has here.
fn place_in(image: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(image, PLACE, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS | Errno::PERM) => {
            let flags = flags | OFlags::NOFOLLOW;
            let above = rustix::fs::openat(image, ".singularity.d", flags, Mode::empty())?;
            rustix::fs::openat(&above, "libs", flags, Mode::empty())
        }
        opened => opened,
    }
}

/// Where a plan makes files of the container's own, too.
const PLACE: &str = ".singularity.d/libs";

fn directory(stage: &OwnedFd, name: &str) -> Result<PathBuf, Error> {
    rustix::fs::mkdirat(stage, name, Mode::from_raw_mode(0o755))
        .map_err(|err| Error::system("directory in memory", err))?;
    Ok(Path::new(&path_of(stage)).join(name))
}

fn path_of(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_paths_stay_parts_of_them() {
        assert_eq!(escaped(Path::new("/a,b:c\\d")), b"/a\\,b\\:c\\\\d");
    }
}
