//! Images mounted by the kernel.
#![allow(clippy::unwrap_used)]

mod place;
mod sample;

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use place::{Place, can_mount, mounted};
use sample::{MANY, big, everything};
use sifon_mount::fetch::{ChunkSource, ReadError};
use sifon_mount::fuse::View;
use sifon_mount::image::{AdditionKind, Image, Owners};
use sifon_mount::layer::table::ChunkIndex;
use sifon_mount::sys::mount;

const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn a_mount_shows_what_the_image_holds() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let served = mounted(&place, everything(true).image(), View::default());
    let root = place.target();
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(fs::read(root.join("hello")).unwrap(), b"hello, image\n");
    assert_eq!(fs::read(root.join("big")).unwrap(), big());
    assert_eq!(fs::read(root.join("three")).unwrap(), b"three");
    assert_eq!(fs::read(root.join("empty")).unwrap(), b"");
    assert_eq!(
        fs::read_link(root.join("absolute")).unwrap(),
        Path::new("/bin/sub")
    );
    assert_eq!(stat("bin/run").mode(), 0o104_755);
    assert_eq!(stat("bin/sub").mode(), 0o041_777);
    let secret = stat("secret");
    assert_eq!((secret.uid(), secret.gid()), (70_000, 70_001));
    assert_eq!((secret.mtime(), secret.mtime_nsec()), (-2, 750_000_000));
    let hello = stat("hello");
    assert_eq!((hello.nlink(), hello.ino()), (2, stat("second name").ino()));
    assert_eq!(stat(".").ino(), 1);
    assert_eq!((stat(".").nlink(), stat("bin").nlink()), (5, 3));
    assert_eq!(stat("many/..").ino(), 1);
    let device = stat("device");
    assert!(device.file_type().is_char_device());
    assert_eq!(
        (
            rustix::fs::major(device.rdev()),
            rustix::fs::minor(device.rdev())
        ),
        (300, 70_000)
    );
    assert!(stat("pipe").file_type().is_fifo());
    assert_eq!(
        (stat("big").size(), stat("big").blocks()),
        (2_621_435, 4096)
    );
    assert_eq!(
        (stat("sparse").size(), stat("sparse").blocks()),
        (1 << 40, 0)
    );
    let missing = fs::symlink_metadata(root.join("missing")).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert_listings(&root);
    assert_file_system(&root, served.image());
}

fn assert_listings(root: &Path) {
    for _ in 0..2 {
        let mut names: Vec<_> = fs::read_dir(root.join("many"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names.len(), MANY);
        assert_eq!(names[MANY - 1], "2999");
    }
    let mut names = fs::read_dir(root).unwrap();
    assert!(names.any(|entry| entry.unwrap().file_name().as_bytes() == b"not utf8 \xff"));
}

fn assert_file_system(root: &Path, image: &Image) {
    let told = rustix::fs::statvfs(root).unwrap();
    assert_eq!(told.f_files, image.file_count());
    assert_eq!(
        told.f_blocks * told.f_frsize,
        image.tree().file_bytes().div_ceil(4096) * 4096
    );
    assert_eq!((told.f_bfree, told.f_namemax), (0, 255));
    let refused = fs::write(root.join("new"), "").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    // A place in a hole of a terabyte, and the end.
    let sparse = fs::File::open(root.join("sparse")).unwrap();
    let mut bytes = [1; 10];
    sparse.read_exact_at(&mut bytes, 1 << 39).unwrap();
    assert_eq!(bytes, [0; 10]);
    assert_eq!(sparse.read_at(&mut bytes, (1 << 40) - 3).unwrap(), 3);
    let ran = Command::new(root.join("bin/run")).output().unwrap();
    assert_eq!(ran.stdout, b"ran\n");
}

#[test]
fn attributes_are_shown_where_the_image_has_any() {
    if !can_mount() {
        return;
    }
    let (with, without) = (Place::new(), Place::new());
    let _served = mounted(&with, everything(true).image(), View::default());
    let _also = mounted(&without, everything(false).image(), View::default());
    let get = |place: &Place, file: &str, name: &str| {
        let mut value = [0; 16];
        rustix::fs::lgetxattr(place.target().join(file), name, &mut value[..])
            .map(|len| value[..len].to_vec())
    };
    assert_eq!(get(&with, "secret", "user.key"), Ok(b"value".to_vec()));
    assert_eq!(get(&with, "secret", "user.empty"), Ok(vec![]));
    let none = rustix::io::Errno::NODATA;
    assert_eq!(get(&with, "secret", "user.none"), Err(none));
    assert_eq!(get(&with, "hello", "user.key"), Err(none));
    let mut names = [0; 64];
    let len = rustix::fs::llistxattr(with.target().join("secret"), &mut names[..]).unwrap();
    assert_eq!(&names[..len], b"user.empty\0user.key\0");
    let small = rustix::fs::lgetxattr(with.target().join("secret"), "user.key", &mut [0; 2][..]);
    assert_eq!(small, Err(rustix::io::Errno::RANGE));
    for _ in 0..2 {
        let refused = get(&without, "secret", "user.key");
        assert_eq!(refused, Err(rustix::io::Errno::OPNOTSUPP));
    }
}

#[test]
fn a_caller_owns_everything_in_its_view() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let owners = Owners::Caller { uid: 7, gid: 8 };
    let view = View {
        owners,
        ..View::default()
    };
    let _served = mounted(&place, everything(false).image(), view);
    for name in ["secret", "bin", "."] {
        let shown = fs::metadata(place.target().join(name)).unwrap();
        assert_eq!((shown.uid(), shown.gid()), (7, 8), "{name}");
    }
}

#[test]
fn a_name_that_was_missing_is_seen_once_it_is_added() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let served = mounted(&place, everything(false).image(), View::default());
    let path = place.target().join("bin/new/file");
    let listed = || fs::read_dir(place.target().join("bin")).unwrap().count();
    assert!(fs::metadata(&path).is_err());
    assert!(fs::metadata(path.parent().unwrap()).is_err());
    assert_eq!(listed(), 2);
    let links = fs::metadata(place.target().join("bin")).unwrap().nlink();
    let added = served
        .add(b"absolute/../new/file", AdditionKind::File)
        .unwrap();
    assert_eq!(added.path, b"bin/new/file");
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(listed(), 3);
    let now = fs::metadata(place.target().join("bin")).unwrap().nlink();
    assert_eq!(now, links + 1);
}

/// Chunks that come when the test says so.
struct Slow {
    asked: Sender<()>,
    come: Receiver<()>,
}

impl ChunkSource for Slow {
    fn cached(&self, _: u16, _: ChunkIndex) -> Option<Bytes> {
        None
    }

    fn chunk(&self, _: u16, chunk: ChunkIndex, deadline: Instant) -> Result<Bytes, ReadError> {
        let _ = self.asked.send(());
        match self.come.recv_deadline(deadline) {
            Ok(()) if chunk == ChunkIndex(0) => Ok(Bytes::from_static(b"hello, image\n")),
            Ok(()) => panic!("a source with a bug"),
            Err(_) => Err(ReadError::Tree("late".into())),
        }
    }
}

#[test]
fn a_read_that_waits_holds_up_nobody_else_and_ends_by_its_deadline() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (asked, was_asked) = bounded(100);
    let (come, may_come) = bounded(100);
    let slow = Slow {
        asked,
        come: may_come,
    };
    let (tree, tables, _) = everything(false).tree();
    let image = Arc::new(Image::new(tree, tables, Arc::new(slow)));
    let view = View {
        threads: 1,
        timeout: Duration::from_millis(500),
        ..View::default()
    };
    let _served = mounted(&place, image, view);
    let read = |name: &str| fs::read(place.target().join(name));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read("hello"));
        was_asked.recv_timeout(DEADLINE).unwrap();
        // The only thread that talks to the kernel is free.
        assert!(fs::metadata(place.target().join("bin/run")).is_ok());
        come.send(()).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), b"hello, image\n");
    });
    let late = read("one").unwrap_err();
    assert_eq!(late.raw_os_error(), Some(libc::EIO));
    // A panic is an error of one read, not of the mount.
    come.send(()).unwrap();
    let panicked = read("bin/run").unwrap_err();
    assert_eq!(panicked.raw_os_error(), Some(libc::EIO));
    assert!(fs::metadata(place.target().join("secret")).is_ok());
}

#[test]
fn serving_ends_with_the_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let served = mounted(&place, everything(false).image(), View::default());
    mount::unmount(&place.target()).unwrap();
    served.join().unwrap();
}
