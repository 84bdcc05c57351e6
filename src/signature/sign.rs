//! Making signatures.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sifon_mount::source::sif::{GROUP, HASH_SHA256, RawSignature, Sif, SifError, TYPE_SIGNATURE};
use zerocopy::IntoBytes;

use super::dsse;
use super::pem::PrivateKey;
use super::statement::{Selection, Statement};
use crate::pack::sif::{Appended, append};
use crate::pack::{PlaceError, with_copy};

/// Why a file was not signed. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// It is no SIF.
    #[error(transparent)]
    Sif(#[from] SifError),
    /// What was asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// The signed file cannot take the place of the other.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Reading or writing failed.
    #[error("signing failed")]
    Io(#[from] io::Error),
}

/// Adds a signature by `key` for each group that is meant. A copy gets them and takes the file's place: whoever reads the file goes on
/// with the one that it opened, and one who is interrupted leaves it as it was. `now` counts from 1970 in seconds.
pub fn sign(
    path: &Path,
    selection: &Selection,
    key: &PrivateKey,
    now: i64,
) -> Result<(), SignError> {
    // The name may be a link, which stays one.
    let path = path.canonicalize()?;
    with_copy(&path, |file| {
        let sif = Sif::open(file)?;
        let parts = selection.parts(&sif).map_err(SignError::Missing)?;
        for part in &parts {
            let statement = Statement::of(file, &sif, part)?;
            let envelope = dsse::sealed(&statement.json(), key)
                .map_err(|_| io::Error::other("the key makes no signature"))?;
            add(file, part.group, &envelope, now)?;
        }
        Ok(())
    })
}

fn add(file: &File, group: u32, envelope: &[u8], now: i64) -> Result<(), SignError> {
    let extra = RawSignature {
        hash: HASH_SHA256.into(),
        entity: [0; 256],
    };
    let appended = Appended {
        object_type: TYPE_SIGNATURE,
        group: GROUP,
        linked: GROUP | group,
        extra: extra.as_bytes(),
        alignment: 1,
    };
    // The table has changed since the last one was added.
    let sif = Sif::open(file)?;
    append(file, &sif, &appended, now, |at| {
        file.write_all_at(envelope, at)?;
        Ok(envelope.len() as u64)
    })
}
