//! What tags named: asked again after a while, so that a job sees one image from start to end.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Store;
use super::directory::Directory;
use crate::digest::Digest;

#[derive(Serialize, Deserialize)]
struct Memory {
    reference: String,
    digest: Digest,
    /// Seconds since 1970.
    at: u64,
    /// The batch job that asked.
    job: Option<String>,
}

const MEMORY_BYTES_LIMIT: u64 = 64 << 10;

pub(super) fn recall(directory: &Directory, reference: &str, age: Duration) -> Option<Digest> {
    let bytes = directory.read(&path(reference), MEMORY_BYTES_LIMIT)?;
    let memory: Memory = serde_json::from_slice(&bytes).ok()?;
    let age_now = Duration::from_secs(now().checked_sub(memory.at)?);
    let same_job = memory.job.is_some() && memory.job == batch_job();
    (memory.reference == reference && (age_now <= age || same_job)).then_some(memory.digest)
}

pub(super) fn remember(store: &Store, reference: &str, digest: Digest) -> io::Result<()> {
    let memory = Memory {
        reference: reference.into(),
        digest,
        at: now(),
        job: batch_job(),
    };
    let mut draft = store.draft()?;
    draft.write_all(&serde_json::to_vec(&memory)?)?;
    store.own.place_at(draft, &path(reference))?;
    Ok(())
}

fn path(reference: &str) -> PathBuf {
    Path::new("tags").join(Digest::of(reference.as_bytes()).hex())
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The batch job that this process runs in: Slurm, PBS, LSF or Grid Engine.
fn batch_job() -> Option<String> {
    ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"]
        .iter()
        .find_map(|variable| {
            let id = std::env::var(variable).ok().filter(|id| !id.is_empty())?;
            Some(format!("{variable}={id}"))
        })
}
