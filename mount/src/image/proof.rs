//! Files of layers whose table nobody vouches for: before one is read, its tar headers, which lie in chunks that hash to what
//! the same table says, are compared with what the table tells of it. So an index that somebody attached to an image can
//! hide files, but not show one file's bytes, owner or mode as another's.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::fetch::ReadError;
use crate::layer::entry::{Entry, Kind, shown};
use crate::layer::table::{Proof, Table};
use crate::layer::tar::TarReader;

/// The files that were compared, by layer and entry.
#[derive(Default)]
pub(super) struct Proven(Mutex<HashSet<(u16, u64)>>);

impl Proven {
    pub fn has(&self, layer: u16, entry: u64) -> bool {
        self.0.lock().contains(&(layer, entry))
    }

    /// Compares an entry of `table` with its tar headers, for this time and later ones.
    pub fn prove(
        &self,
        layer: u16,
        table: &Table,
        proof: &Proof,
        header: &[u8],
    ) -> Result<(), ReadError> {
        let (told, _) = table.entry(proof.entry)?;
        if !is_told_by(header, &told) {
            return Err(ReadError::Unproven {
                layer: table.layer(),
                name: shown(told.path),
            });
        }
        self.0.lock().insert((layer, proof.entry));
        Ok(())
    }
}

/// Whether the tar headers in `header` are those of the regular file `told`.
fn is_told_by(header: &[u8], told: &Entry<&[u8]>) -> bool {
    let Ok(Some(own)) = TarReader::new(header).next_entry() else {
        return false;
    };
    let (Kind::Regular { size }, Kind::Regular { size: told_size }) = (&own.kind, &told.kind)
    else {
        return false;
    };
    let mut xattrs: Vec<(&[u8], &[u8])> = own
        .xattrs
        .iter()
        .map(|(name, value)| (&name[..], &value[..]))
        .collect();
    xattrs.sort();
    own.path == told.path
        && size == told_size
        && (own.mode, own.uid, own.gid) == (told.mode, told.uid, told.gid)
        && own.mtime == told.mtime
        && xattrs == told.xattrs
}
