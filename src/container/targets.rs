//! Places in an image where something is bound, added where the image lacks them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sifon_mount::fuse::{Served, ServedAddError};
use sifon_mount::image::{AddError, AdditionKind};

use super::plan::{IfMissing, TargetKind};
use super::wire::{Placed, Target};

/// Where a target lies in an image that is being served, added if it must be.
pub fn placed(served: &Served, target: &Target) -> Placed {
    match found(served, target) {
        Ok(Some(path)) => Placed::At([b"/", path.as_slice()].concat()),
        Ok(None) => Placed::Absent,
        Err(err) => Placed::Impossible(err.to_string()),
    }
}

fn found(served: &Served, target: &Target) -> Result<Option<Vec<u8>>, ServedAddError> {
    let image = served.image();
    let kind = match target.kind {
        TargetKind::Directory => AdditionKind::Directory,
        TargetKind::File => AdditionKind::File,
    };
    if target.if_missing == IfMissing::Skip && image.resolved(&target.path)?.is_none() {
        return Ok(None);
    }
    if target.covers_link {
        let path = Path::new(OsStr::from_bytes(&target.path));
        if let (Some(above), Some(name)) = (path.parent(), path.file_name()) {
            let above = served.add(above.as_os_str().as_bytes(), AdditionKind::Directory)?;
            let there = image.lookup(above.id, name.as_bytes());
            if there.map_err(AddError::from)?.is_some() {
                return Ok(Some([&above.path, name.as_bytes()].join(&b'/')));
            }
        }
    }
    Ok(Some(served.add(&target.path, kind)?.path))
}
