//! A seekable blob: ranges come from its source in segments, which the store keeps at their own offsets.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use super::flights::Flights;
use crate::blob::{Blob, BlobError};
use crate::extent::PackedOffset;

/// What is fetched at once at least: a multiple of 64 KiB, as an NFS client writes whole pages. At 200
/// Mbit/s it takes as long as one round trip of 40 ms.
const SEGMENT_BYTES: u64 = 1 << 20;

/// A sequential reader's range grows up to this many segments.
const SEGMENTS_AT_ONCE_LIMIT: u64 = 16;

/// Packed ranges of one blob, fetched where the store has none.
pub(super) struct Remote {
    blob: Arc<dyn Blob>,
    /// Sparse, at the blob's own offsets; what it holds is unverified.
    copy: File,
    flights: Flights<u64>,
    readahead: Mutex<ReadAhead>,
}

/// How far the last reader got, and how much it is given at once.
struct ReadAhead {
    next_segment: u64,
    segments: u64,
}

impl Remote {
    pub fn new(blob: Arc<dyn Blob>, copy: File) -> Self {
        let readahead = Mutex::new(ReadAhead {
            next_segment: u64::MAX,
            segments: 1,
        });
        Self {
            blob,
            copy,
            flights: Flights::default(),
            readahead,
        }
    }

    /// How long the blob is: every place that is asked for must lie in it.
    pub fn blob_size(&self) -> u64 {
        self.blob.size()
    }

    /// What the store's copy has at this place, verified or not.
    pub fn kept(&self, at: PackedOffset, len: usize) -> Option<Vec<u8>> {
        let mut packed = vec![0; len];
        self.copy.read_exact_at(&mut packed, at.0).ok()?;
        // A hole reads as zeros, which no chunk's packed bytes begin with; the rest is up to the digest.
        packed
            .iter()
            .take(64)
            .any(|&byte| byte != 0)
            .then_some(packed)
    }

    /// The packed bytes at this place from the source; the store keeps them, and what lies around them. While another
    /// reader fetches the same segments it waits for that reader, and gives `None`: look at [`Remote::kept`] again.
    pub fn fetched(
        &self,
        at: PackedOffset,
        len: usize,
        deadline: Instant,
    ) -> Result<Option<Bytes>, BlobError> {
        let first = at.0 / SEGMENT_BYTES;
        let Some(_leader) = self.flights.lead_or_wait(first, deadline) else {
            return Ok(None);
        };
        let needed = (at.0 + len as u64).div_ceil(SEGMENT_BYTES);
        let planned = self.planned_end(first, needed);
        // What others fetch already ends the range, but not before this reader has what it needs.
        let leaders: Vec<_> = (first + 1..planned)
            .map_while(|segment| self.flights.try_lead(segment))
            .collect();
        let end = needed.max(first + 1 + leaders.len() as u64);
        let from = first * SEGMENT_BYTES;
        let until = (end * SEGMENT_BYTES).min(self.blob.size());
        let range = self
            .blob
            .read(PackedOffset(from), (until - from) as usize, deadline)?;
        if let Err(err) = self.copy.write_all_at(&range, from) {
            tracing::debug!(layer = %self.blob.digest(), error = %err, "range not kept");
        }
        let skip = (at.0 - from) as usize;
        Ok(Some(range.slice(skip..(skip + len).min(range.len()))))
    }

    /// Where the range that begins at segment `first` and must reach `needed` should end: a reader that goes on
    /// where the last range ended gets twice as much each time.
    fn planned_end(&self, first: u64, needed: u64) -> u64 {
        let mut readahead = self.readahead.lock();
        readahead.segments = if readahead.next_segment == first {
            (readahead.segments * 2).min(SEGMENTS_AT_ONCE_LIMIT)
        } else {
            1
        };
        readahead.next_segment = needed.max(first + readahead.segments);
        readahead.next_segment
    }
}
