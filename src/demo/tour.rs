//! The demonstration itself: its steps, in order, and what each has cost.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sifon_mount::registry::Platform;

use super::image::{self, ImageError};
use super::registry::{Registry, Served};
use super::scratch::{Ran, RunError, Scratch};
use super::{program, unpacked};
use crate::output::Verbosity;

/// The image in its registry, and where what is fetched is kept.
pub struct Tour<'a> {
    scratch: &'a Scratch,
    registry: Registry,
    /// What is said to this program first, whatever it does.
    options: Vec<OsString>,
    /// How large the image is.
    pub image: Size,
}

/// How large an image is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Size {
    /// Bytes in its layers as the registry keeps them.
    pub packed_bytes: u64,
    /// Bytes in its files.
    pub plain_bytes: u64,
}

/// What a step has cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// Bytes that the registry sent.
    pub fetched_bytes: u64,
    /// Requests that it answered.
    pub requests: u64,
    /// Until the program's first output; of a step without a program, until its end.
    pub milliseconds: f64,
}

/// A program that has run, and what that has cost.
pub struct Start {
    /// What the program said.
    pub said: Vec<u8>,
    /// Its cost.
    pub cost: Cost,
}

/// Why the demonstration could not go on.
#[derive(Debug, thiserror::Error)]
pub enum TourError {
    /// There is no image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Nobody can serve it.
    #[error("the demonstration's registry on 127.0.0.1")]
    Registry(#[source] io::Error),
    /// A step failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl TourError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Run(err) => err.hint(),
            Self::Image(_) | Self::Registry(_) => None,
        }
    }
}

impl<'a> Tour<'a> {
    /// Makes the image and serves it.
    pub fn begin(
        scratch: &'a Scratch,
        data_bytes: u64,
        verbosity: Verbosity,
    ) -> Result<Self, TourError> {
        let architecture = Platform::host().architecture;
        let image = image::made(scratch.path(), &architecture, data_bytes)?;
        let size = Size {
            packed_bytes: image.packed_bytes,
            plain_bytes: image.plain_bytes,
        };
        let how_loud = match verbosity {
            Verbosity::Quiet | Verbosity::Normal => "--quiet",
            Verbosity::Verbose => "--verbose",
            Verbosity::Debug => "--debug",
        };
        let store = scratch.path().join("store").into_os_string();
        Ok(Self {
            scratch,
            registry: Registry::serve(image.repository).map_err(TourError::Registry)?,
            options: vec![how_loud.into(), "--store".into(), store],
            image: size,
        })
    }

    /// What the image is called.
    pub fn reference(&self) -> String {
        let (name, tag) = image::NAME;
        format!("docker://{}/{name}:{tag}", self.registry.address())
    }

    /// Runs the program in the image: `exec`.
    pub fn start(&self) -> Result<Start, TourError> {
        let reference = self.reference();
        let words = [
            "exec",
            "--private",
            "--cleanenv",
            "--no-home",
            &reference,
            image::PROGRAM,
            program::VERB,
        ];
        let (ran, served) = self.ran(words.map(OsString::from), &[])?;
        Ok(Start::of(ran, served))
    }

    /// Packs the image into `file`: `compact`.
    pub fn compact(&self, file: &Path) -> Result<Cost, TourError> {
        let words = [
            "compact".into(),
            self.reference().into(),
            file.as_os_str().to_owned(),
        ];
        let (ran, served) = self.ran(words, &[])?;
        Ok(Cost::of(ran.whole, served))
    }

    /// Runs the program from the root file system in the SIF.
    pub fn start_from_sif(&self, file: &Path) -> Result<Start, TourError> {
        let request = unpacked::Request {
            sif: file.to_owned(),
        };
        let request = serde_json::to_vec(&request).map_err(io::Error::from);
        let request = request.map_err(RunError::System)?;
        let before = self.registry.served();
        let ran = self.scratch.run(&[unpacked::VERB.into()], &request)?;
        Ok(Start::of(ran, since(before, self.registry.served())))
    }

    /// Where a SIF can be put that goes with everything else.
    pub fn sif(&self) -> PathBuf {
        self.scratch.path().join("demo.sif")
    }

    fn ran<const N: usize>(
        &self,
        words: [OsString; N],
        input: &[u8],
    ) -> Result<(Ran, Served), TourError> {
        let before = self.registry.served();
        let arguments: Vec<_> = self.options.iter().cloned().chain(words).collect();
        let ran = self.scratch.run(&arguments, input)?;
        Ok((ran, since(before, self.registry.served())))
    }
}

impl Start {
    fn of(ran: Ran, served: Served) -> Self {
        Self {
            cost: Cost::of(ran.first_output, served),
            said: ran.said,
        }
    }
}

impl Cost {
    fn of(time: Duration, served: Served) -> Self {
        Self {
            fetched_bytes: served.bytes,
            requests: served.requests,
            milliseconds: (time.as_secs_f64() * 1e4).round() / 10.0,
        }
    }
}

fn since(before: Served, now: Served) -> Served {
    Served {
        requests: now.requests - before.requests,
        bytes: now.bytes - before.bytes,
    }
}
