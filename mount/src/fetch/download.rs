//! A whole blob, as it is: what is missing of it is fetched into its copy in the store, so that an interrupted download goes on
//! where it stood, and checked on the way out.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use super::complete::{Completion, completed};
use super::copy::PackedCopy;
use super::fetcher::{Fetcher, Limits};
use super::remote::Remote;
use crate::blob::{Blob, BlobError};

/// A blob elsewhere that is wanted whole.
pub struct Download {
    remote: Arc<Remote>,
    fetcher: Fetcher,
}

/// Why it was not had.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Its bytes did not come, or were wrong.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// What came could not be written.
    #[error("it cannot be written")]
    Write(#[source] io::Error),
}

impl Download {
    /// Of `blob`, as far as `copy` does not have it.
    pub fn new(blob: Arc<dyn Blob>, copy: PackedCopy, limits: Limits) -> Self {
        Self {
            remote: Arc::new(Remote::new(blob, copy)),
            fetcher: Fetcher::new(limits),
        }
    }

    /// How many of its bytes are here already.
    pub fn kept_bytes(&self) -> u64 {
        self.remote.kept_bytes()
    }

    /// Hands all of it to `write`, with its places, in order; what turns out to be wrong at the end is handed over
    /// once more, from the start. `came` is told how many more bytes are here.
    pub fn write_to(
        &self,
        came: &dyn Fn(u64),
        write: &mut dyn FnMut(&[u8], u64) -> io::Result<()>,
    ) -> Result<(), DownloadError> {
        let failed = RefCell::new(None);
        let mut each = |bytes: &[u8], at| {
            let written = write(bytes, at);
            let is_written = written.is_ok();
            *failed.borrow_mut() = written.err();
            is_written
        };
        let is_unwanted = || failed.borrow().is_some();
        let completion = completed(&self.remote, &self.fetcher, came, &is_unwanted, &mut each);
        match (failed.take(), completion) {
            (Some(error), _) => Err(DownloadError::Write(error)),
            (None, Ok(Completion::Whole)) => Ok(()),
            (None, Ok(Completion::GivenUp)) => unreachable!("it was wanted all the time"),
            (None, Err(error)) => Err(error.into()),
        }
    }
}
