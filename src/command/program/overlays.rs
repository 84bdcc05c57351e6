//! What lies over the image: what the user names, and what the image's own file has for it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sifon_mount::reference::Reference;
use sifon_mount::source::is_image_file;
use sifon_mount::source::sif::Sif;

use super::options::Args;
use crate::container::ext::{self, Ext};
use crate::container::writable::{Overlay, Place, Writable};
use crate::setting::Error;

impl Args {
    /// What lies over the image that `reference` names. `opened` gives a mount of an image in a file.
    pub(super) fn writable(
        &self,
        reference: &Reference,
        opened: impl Fn(&Path) -> Result<OwnedFd, Error>,
    ) -> Result<Writable, Error> {
        let own = self.of_the_image(reference)?;
        let named = self
            .overlay
            .iter()
            .map(|text| overlay(text, self.numbers_inside(), &opened));
        let overlays = own
            .into_iter()
            .map(Ok)
            .chain(named)
            .collect::<Result<Vec<_>, Error>>()?;
        let writable = overlays.iter().filter(|overlay| !overlay.is_read_only);
        match writable.count() {
            0 => {}
            1 if self.writable => {}
            1 if self.writable_tmpfs => {
                let problem = "--writable-tmpfs: the overlay can be written to; add :ro to it";
                return Err(problem.into());
            }
            1 => {}
            _ => return Err("--overlay: only one can be written to; add :ro to the others".into()),
        }
        if self.writable && self.writable_tmpfs {
            tracing::warn!(
                "--writable-tmpfs is passed over: with --writable, the image itself is written to"
            );
        }
        Ok(Writable {
            in_memory: self.writable_tmpfs && !self.writable,
            overlays,
        })
    }

    /// The overlay in the SIF that is the image: written to with `--writable`, else only shown.
    fn of_the_image(&self, reference: &Reference) -> Result<Option<Overlay>, Error> {
        let found = match reference {
            Reference::File(file) => in_sif(file)?,
            _ => None,
        };
        if !self.writable {
            return Ok(found.map(|place| Overlay {
                place: Place::Ext(place),
                is_read_only: true,
            }));
        }
        if !self.overlay.is_empty() {
            return Err("cannot use --overlay in conjunction with --writable".into());
        }
        if let Reference::Directory(_) = reference {
            return Ok(None);
        }
        let Some(place) = found else {
            if let Reference::File(file) = reference {
                File::open(file).map_err(|err| format!("{}: {err}", file.display()))?;
            }
            let image = reference.written();
            return Err(format!(
                "no SIF writable overlay partition found in {image}: `sifon overlay create FILE.sif` makes one; without it, \
                 --overlay DIR keeps what is written"
            )
            .into());
        };
        ext::give_directories(&place, self.numbers_inside())?;
        Ok(Some(Overlay {
            place: Place::Ext(place),
            is_read_only: false,
        }))
    }
}

/// The overlay in a SIF; none in another file, of which those who read it as an image tell what is wrong with it.
fn in_sif(file: &Path) -> Result<Option<Ext>, Error> {
    let sif = File::open(file).ok().and_then(|file| Sif::open(file).ok());
    let Some(at) = sif.and_then(|sif| Some(sif.writable_overlay()?.at)) else {
        return Ok(None);
    };
    let file = std::path::absolute(file)?;
    Ok(Some(Ext::new(file, at)?))
}

/// `PATH[:ro]` of `--overlay`; a directory with those in it that Singularity makes.
fn overlay(
    text: &OsStr,
    inside: (u32, u32),
    opened: impl Fn(&Path) -> Result<OwnedFd, Error>,
) -> Result<Overlay, Error> {
    let bytes = text.as_bytes();
    let (path, is_read_only) = match bytes.strip_suffix(b":ro") {
        Some(path) => (path, true),
        None => (bytes, false),
    };
    let path = std::path::absolute(OsStr::from_bytes(path))?;
    let failed = |err: &dyn std::fmt::Display| format!("--overlay {}: {err}", path.display());
    let kind = fs::metadata(&path).map_err(|err| failed(&err))?;
    if kind.is_file() {
        let (place, is_read_only) = match is_ext(&path).map_err(|err| failed(&err))? {
            true => {
                let place = Ext::new(path, 0)?;
                if !is_read_only {
                    ext::give_directories(&place, inside)?;
                }
                (Place::Ext(place), is_read_only)
            }
            false if is_image_file(&path) => (Place::Image(opened(&path)?), true),
            false => {
                let known = "neither a directory nor an image with ext3, squashfs or SIF in it";
                return Err(failed(&known).into());
            }
        };
        return Ok(Overlay {
            place,
            is_read_only,
        });
    }
    if !is_read_only {
        for name in ["upper", "work"] {
            fs::create_dir_all(path.join(name)).map_err(|err| failed(&err))?;
        }
    }
    Ok(Overlay {
        place: Place::Directory(path),
        is_read_only,
    })
}

/// Whether a file holds a file system of the ext family: its superblock begins at 1024, and the magic number is at 56 of that
/// (Documentation/filesystems/ext4/super.rst).
fn is_ext(file: &Path) -> io::Result<bool> {
    let mut magic = [0; 2];
    match File::open(file)?.read_exact_at(&mut magic, 1024 + 56) {
        Ok(()) => Ok(magic == [0x53, 0xef]),
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(err) => Err(err),
    }
}
