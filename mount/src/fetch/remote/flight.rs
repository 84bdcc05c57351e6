//! A job done: what is lacking is asked for, and kept as it comes.

use std::ops::Range;
use std::sync::Arc;

use super::Remote;
use crate::blob::BlobError;
use crate::fetch::activity::{Begun, Why};
use crate::fetch::blocks::{BLOCK_BYTES, Flight};
use crate::fetch::fetcher::{Job, Shared};

/// What comes is written in pieces of this size: readers wait for a block, not for the range it came with.
const WRITTEN_BYTES: usize = 128 << 10;

impl Remote {
    /// Does a job: asks for what is lacking of it when its turn has come.
    pub fn fly(&self, job: &Job, shared: &Shared) -> Result<(), BlobError> {
        self.look(&job.blocks);
        let gap = shared.pace.worth_blocks() - 1;
        let mut left = job.blocks.clone();
        loop {
            let flight = Arc::new(Flight::default());
            let mut blocks = self.blocks.lock();
            let Some(planned) = blocks.planned(&left, gap) else {
                return Ok(());
            };
            blocks.take_off(&planned, &flight);
            drop(blocks);
            let flown = Flown {
                remote: self,
                blocks: planned.clone(),
                flight,
            };
            if job.why == Why::Read {
                flown.flight.hurry();
            }
            self.pour(&flown, job, shared)?;
            left.start = planned.end;
        }
    }

    fn pour(&self, flown: &Flown<'_>, job: &Job, shared: &Shared) -> Result<(), BlobError> {
        let wanted = self.bytes_of(&flown.blocks);
        let from = wanted.start;
        let mut begun = Begun::now();
        let (mut at, mut buffer) = (from, Vec::with_capacity(2 * WRITTEN_BYTES));
        let poured = self.blob.pour(wanted, job.patience, &mut |bytes| {
            begun.came(bytes.len() as u64);
            buffer.extend_from_slice(&bytes);
            if buffer.len() >= WRITTEN_BYTES {
                let whole = whole_blocks(at, buffer.len());
                self.land(at, &buffer[..whole]);
                at += whole as u64;
                buffer.drain(..whole);
                shared.make_way(job.why, &flown.flight);
            }
        });
        let whole = match poured {
            Ok(()) => buffer.len(),
            Err(_) => whole_blocks(at, buffer.len()),
        };
        self.land(at, &buffer[..whole]);
        if let Some(first_byte) = begun.first_byte
            && poured.is_ok()
        {
            shared
                .pace
                .measured(first_byte, begun.elapsed(), begun.bytes);
        }
        let layer = self.blob.digest();
        shared
            .activity
            .ended(&begun, layer, from, job.why, poured.is_err());
        poured
    }

    /// Keeps blocks that came, all that was asked for of them, and tells those who wait for them.
    fn land(&self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let first = at / BLOCK_BYTES;
        if let Err(err) = self.copy.write(bytes, at) {
            tracing::debug!(layer = %self.blob.digest(), error = %err, "not kept");
            *self.unkept.lock() = Some(err.to_string());
            let mut padded = vec![0; (at - first * BLOCK_BYTES) as usize];
            padded.extend_from_slice(bytes);
            let gone = self.spare.keep(first, &padded);
            let mut blocks = self.blocks.lock();
            for block in gone {
                blocks.set(block, false);
            }
        }
        let mut blocks = self.blocks.lock();
        for block in first..(at + bytes.len() as u64).div_ceil(BLOCK_BYTES) {
            blocks.land(block);
        }
        drop(blocks);
        self.landed.notify_all();
    }
}

/// How many of `len` bytes from `at` on lie before the last block's beginning.
fn whole_blocks(at: u64, len: usize) -> usize {
    let end = (at + len as u64) / BLOCK_BYTES * BLOCK_BYTES;
    end.saturating_sub(at) as usize
}

/// A request on its way. Dropping it leaves what it has not brought to others, however it ended.
struct Flown<'a> {
    remote: &'a Remote,
    blocks: Range<u64>,
    flight: Arc<Flight>,
}

impl Drop for Flown<'_> {
    fn drop(&mut self) {
        self.remote.blocks.lock().end(&self.blocks, &self.flight);
        self.remote.landed.notify_all();
    }
}
