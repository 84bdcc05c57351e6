//! What Singularity looks for in an image, as one more layer on top of it: for images that are shown, not packed.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sifon_mount::image::open::Below;
use sifon_mount::source::config::ImageConfig;
use sifon_mount::tree::Step;

use super::contents::{Addition, AdditionKind};
use super::node::Standing;
use super::singularity::{Config, Origin, Texts};

/// Changes when the same image, configuration and origin are given another layer than before.
pub const VERSION: u32 = 1;

/// The layer as a tar stream, with the names that a SIF of the image would have beside the image's own; none if the image is a
/// file of Singularity's, which brings its scripts. The same image, configuration and origin give the same bytes.
pub fn layer(below: &Below, config: &ImageConfig, origin: &Origin) -> io::Result<Option<Vec<u8>>> {
    let standings = |path: &[u8]| {
        let step = below.standing(path).map_err(io::Error::other)?;
        Ok(step.map(|step| match step {
            Step::Directory => Standing::Directory,
            Step::Symlink(target) => Standing::Symlink(target.into_owned()),
            Step::Other => Standing::File,
        }))
    };
    if origin.is_file() && Texts::are_at(&standings)? {
        return Ok(None);
    }
    let config = Config::of(config)?;
    let additions = Texts::new(&config, origin)?.additions(&standings)?;
    let (uid, gid) = below.root_owner().map_err(io::Error::other)?;
    let mut tar = tar::Builder::new(Vec::new());
    for addition in Addition::with_directories(additions) {
        if !addition.is_new(&standings)? {
            continue;
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(addition.mode.into());
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(u64::try_from(config.created).unwrap_or_default());
        header.set_size(0);
        let path = Path::new(OsStr::from_bytes(&addition.path));
        match &addition.kind {
            AdditionKind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, path, io::empty())?;
            }
            AdditionKind::File(bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, path, bytes.as_slice())?;
            }
            AdditionKind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, OsStr::from_bytes(target))?;
            }
        }
    }
    tar.into_inner().map(Some)
}
