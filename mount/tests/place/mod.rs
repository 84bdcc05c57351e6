//! Where tests mount.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sifon_mount::fuse::{Served, View, serve};
use sifon_mount::image::Image;
use sifon_mount::sys::mount::{self, FuseOptions};
use sifon_mount::sys::mountinfo;

/// A directory to mount on that leaves neither mounts nor files behind, however the test ends.
pub struct Place(pub tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(place.path().join("m")).unwrap();
        Self(place)
    }

    pub fn target(&self) -> PathBuf {
        self.0.path().canonicalize().unwrap().join("m")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while mountinfo::mounted_on(&self.target()).is_ok_and(|mount| mount.is_some()) {
            if mount::detach(&self.target()).is_err() {
                break;
            }
        }
    }
}

pub fn can_mount() -> bool {
    let is_root = rustix::process::getuid().is_root() && Path::new("/dev/fuse").exists();
    if !is_root {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    is_root
}

pub fn mounted(place: &Place, image: Arc<Image>, view: View) -> Served {
    let connection = mount::mount_fuse(&place.target(), &FuseOptions::default()).unwrap();
    serve(image, connection, view).unwrap()
}
