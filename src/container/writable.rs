//! Writing into an image: kernel overlayfs on top of it, in the program's own mount namespace.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use sifon_mount::sys::mountinfo;

use super::binds::{self, Root};
use super::directory::{Directory, placed};
use super::error::Error;
use super::ext::{DIRECTORIES, Ext};
use super::front::PLACE;
use super::namespaces::{self, Privilege};
use super::outside::{self, Upper};
use super::plan::Bind;
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
    /// The same in a file system of the ext family.
    Ext(Ext),
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

/// What writes where the kernel does not. It marks what is removed by files `.wh.NAME`, which the kernel shows as files.
const FUSE_OVERLAYFS: &str = "fuse-overlayfs";

/// Puts what `writable` says over `image`, in this process's own mount namespace. Gives the new root directory.
pub fn overlaid(image: &OwnedFd, writable: &Writable) -> Result<OwnedFd, Error> {
    let stage = stage(image)?;
    laid_over(vec![path_of(image).into()], writable, &stage, None)
}

/// A root directory made from one of the host's, with what `writable` says over it and places for `binds`. `image` is there for its
/// place only, as for [`overlaid`].
pub fn on_directory(
    image: &OwnedFd,
    from: &Directory,
    writable: &Writable,
    binds: &[Bind],
) -> Result<Root, Error> {
    let stage = stage(image)?;
    directory(&stage, "own")?;
    let own = opened(&stage, "own")?;
    let shown = from.open()?;
    if from.is_written {
        let merged = directory(&stage, "merged")?;
        let failed = |err: Errno| {
            let action = format!("image {}: it cannot be shown", from.path.display());
            Error::system(action, err)
        };
        // With what is mounted below it: the kernel uncovers nothing that another user namespace has covered.
        rustix::mount::mount_bind_recursive(path_of(&shown), merged).map_err(failed)?;
        let root = opened(&stage, "merged")?;
        binds::restrict(&root, MountFlags::NOSUID | MountFlags::NODEV).map_err(failed)?;
        return Ok(Root {
            placed: placed(&shown, None, binds),
            directory: root,
            stage: Some(own),
            is_kept: true,
        });
    }
    let points = directory(&stage, "points")?;
    let placed = placed(&shown, Some(&opened(&stage, "points")?), binds);
    // Below it, so that what both have looks as it does in the directory.
    let lower = vec![path_of(&shown).into(), points];
    Ok(Root {
        directory: laid_over(lower, writable, &stage, Some(&from.path))?,
        placed,
        stage: Some(own),
        is_kept: false,
    })
}

/// A file system in memory in a directory of the image: nothing of the host is hidden, and what was there is seen again in an
/// overlay, whose lower layer has no mounts.
fn stage(image: &OwnedFd) -> Result<OwnedFd, Error> {
    let failed = |err: Errno| Error::system("overlay over the image", err);
    let place = place_in(image).map_err(failed)?;
    rustix::mount::mount(
        "tmpfs",
        path_of(&place),
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=0755",
    )
    .map_err(failed)?;
    place_in(image).map_err(failed)
}

/// What `writable` says over `lower`, the topmost first, made in `stage`. `of` is the directory that is the lowest, if the image is one.
fn laid_over(
    mut lower: Vec<PathBuf>,
    writable: &Writable,
    stage: &OwnedFd,
    of: Option<&Path>,
) -> Result<OwnedFd, Error> {
    let mut upper = None;
    let mut has_marks = false;
    for (number, overlay) in writable.overlays.iter().enumerate() {
        match (&overlay.place, overlay.is_read_only) {
            (Place::Directory(path), true) => lower.insert(0, path.join("upper")),
            (Place::Directory(path), false) => upper = Some(Upper::Directory(path)),
            (Place::Ext(from), true) => {
                let place = directory(stage, &format!("overlay-{number}"))?;
                outside::ext(from, &place)?;
                outside::require_directories(from, &place, &DIRECTORIES[..1])?;
                lower.insert(0, place.join("upper"));
                has_marks = true;
            }
            (Place::Ext(from), false) => upper = Some(Upper::Ext(from)),
            (Place::Image(tree), _) => {
                let place = directory(stage, &format!("overlay-{number}"))?;
                outside::attach(tree, &place)?;
                lower.insert(0, place);
            }
        }
    }
    let memory = directory(stage, "memory")?;
    if upper.is_none() && writable.in_memory {
        upper = Some(Upper::Memory);
    }
    let merged = directory(stage, "merged")?;
    if has_marks && found(FUSE_OVERLAYFS).is_some() {
        outside::overlay(&lower, upper.as_ref(), &merged)?;
    } else {
        if has_marks {
            tracing::warn!(
                "what was removed in an ext3 file shows again: install {FUSE_OVERLAYFS} (the package has this name)"
            );
        }
        show(&lower, upper.as_ref(), &memory, &merged, of)?;
    }
    opened(stage, "merged")
}

/// By the kernel where it can, else by fuse-overlayfs where that is installed. `memory` is an empty directory in memory.
fn show(
    lower: &[PathBuf],
    upper: Option<&Upper<'_>>,
    memory: &Path,
    merged: &Path,
    of: Option<&Path>,
) -> Result<(), Error> {
    let refused = |err| refused(err, upper, of);
    let by_kernel = match upper {
        None => mount_overlay(lower, None, merged).map_err(refused),
        Some(Upper::Memory) => {
            for name in ["upper", "work"] {
                fs::create_dir(memory.join(name))
                    .map_err(|err| Error::system("directory in memory", err))?;
            }
            mount_overlay(lower, Some(memory), merged).map_err(refused)
        }
        Some(Upper::Directory(path)) => mount_overlay(lower, Some(path), merged).map_err(refused),
        // The kernel writes to no file system that a program serves.
        Some(Upper::Ext(_)) => return outside::overlay(lower, upper, merged),
    };
    let Err(error) = by_kernel else {
        return Ok(());
    };
    if found(FUSE_OVERLAYFS).is_none() {
        return Err(error);
    }
    tracing::debug!("{}; fuse-overlayfs is asked", error.in_one_line());
    outside::overlay(lower, upper, merged).map_err(|by_program| match of {
        // What the kernel says of the directory, and what to do about it, is what helps.
        Some(_) => {
            tracing::debug!("{}", by_program.in_one_line());
            error
        }
        None => by_program,
    })
}

/// The kernel's overlay of `lower`, the topmost first, on the directory `merged`; writes go to `upper` in `above`.
fn mount_overlay(lower: &[PathBuf], above: Option<&Path>, merged: &Path) -> io::Result<()> {
    let lower: Vec<Vec<u8>> = lower.iter().map(|path| escaped(path)).collect();
    let mut data = [b"lowerdir=", lower.join(&b':').as_slice()].concat();
    if let Some(above) = above {
        for (option, name) in [(&b",upperdir="[..], "upper"), (b",workdir=", "work")] {
            data.extend_from_slice(option);
            data.extend_from_slice(&escaped(&above.join(name)));
        }
    }
    // Attributes that a user namespace may write.
    let in_namespace = CString::new([&data[..], b",userxattr"].concat())?;
    let data = CString::new(data)?;
    let mount = |data: &CString| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("overlay", merged, "overlay", flags, data.as_c_str())
    };
    Ok(match mount(&in_namespace) {
        // Before Linux 5.11 the option is unknown. Root may mount overlays there, and others where a distribution lets them.
        Err(Errno::INVAL) => mount(&data),
        mounted => mounted,
    }?)
}

/// Tries whether the kernel makes overlays for this caller. This process must have a single thread.
pub fn try_kernel_overlay(privilege: Privilege) -> Result<(), Error> {
    namespaces::create(privilege, || {
        let failed = |err: io::Error| Error::system("place for an overlay", err);
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", "/sys", "tmpfs", flags, c"mode=0755")
            .map_err(|err| failed(err.into()))?;
        let place = Path::new("/sys");
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(place.join(name)).map_err(failed)?;
        }
        let merged = place.join("merged");
        mount_overlay(&[place.join("lower")], Some(place), &merged)
            .map_err(|err| refused(err, Some(&Upper::Memory), None))?;
        Ok(OwnedFd::from(fs::File::open(merged).map_err(failed)?))
    })
    .map(drop)
}

/// The kernel's refusal, with why it may have refused and what to do.
fn refused(source: io::Error, upper: Option<&Upper<'_>>, of: Option<&Path>) -> Error {
    if let Some(directory) = of.filter(|_| upper.is_none()) {
        return over_directory(source, directory);
    }
    let hint = match (source.raw_os_error().map(Errno::from_raw_os_error), upper) {
        (Some(Errno::PERM), _) => {
            "the kernel makes overlays in user namespaces from Linux 5.11 on: install fuse-overlayfs (the package has this name), which is \
             used then, or bind a directory where the program writes"
                .into()
        }
        (Some(Errno::NODEV), _) => {
            "the kernel has no overlays: load its module overlay, or install fuse-overlayfs (the package has this name), which is used then"
                .into()
        }
        (_, Some(Upper::Directory(path))) => format!(
            "the directory is on {}; kernel overlays need a local file system for writing (not NFS, Lustre, GPFS or another overlay): name \
             a local directory, or use --writable-tmpfs",
            file_system(path).as_deref().unwrap_or("an unknown file system")
        ),
        _ => "where fuse-overlayfs is installed it is used if the kernel refuses".into(),
    };
    Error::System {
        action: match upper {
            Some(Upper::Directory(path)) => format!("overlay with {}", path.display()),
            Some(_) => "overlay in memory".into(),
            None => "overlay".into(),
        },
        source,
        hint: Some(hint),
    }
}

/// The same for a directory in an image's place.
fn over_directory(source: io::Error, directory: &Path) -> Error {
    let place = directory.display();
    let file_system = file_system(directory);
    Error::System {
        action: format!("image {place}: overlay over the directory"),
        source,
        hint: Some(format!(
            "the directory is on {}; the kernel may refuse overlays there, over directories in which something else is mounted, or, before \
             Linux 5.11, in user namespaces: install fuse-overlayfs (the package has this name), which is used then; or run the file \
             that `sifon build FILE.sif {place}` makes; --writable needs no overlay",
            file_system.as_deref().unwrap_or("an unknown file system")
        )),
    }
}

/// What kind of file system `path` is on.
fn file_system(path: &Path) -> Option<String> {
    let above = mountinfo::mounts()
        .ok()?
        .into_iter()
        .filter(|mount| path.starts_with(&mount.target));
    above
        .max_by_key(|mount| mount.target.as_os_str().len())
        .map(|mount| mount.file_system)
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

fn directory(stage: &OwnedFd, name: &str) -> Result<PathBuf, Error> {
    rustix::fs::mkdirat(stage, name, Mode::from_raw_mode(0o755))
        .map_err(|err| Error::system("directory in memory", err))?;
    Ok(Path::new(&path_of(stage)).join(name))
}

fn opened(stage: &OwnedFd, name: &str) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(stage, name, flags, Mode::empty())
        .map_err(|err| Error::system("directory in memory", err))
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
