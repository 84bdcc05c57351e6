//! A seekable blob: ranges come from its source in segments, which the store keeps at their own offsets.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::flights::Flights;
use crate::blob::{Blob, BlobError};
use crate::extent::PackedOffset;

/// What is fetched at once at least: a multiple of 64 KiB, as an NFS client writes whole pages. At 200
/// Mbit/s it takes as long as one round trip of 40 ms.
const SEGMENT_BYTES: u64 = 1 << 20;

/// A sequential reader's range grows up to this many segments.
const SEGMENTS_AT_ONCE_LIMIT: u64 = 16;

/// So many bytes of zeros are taken for a hole: nearly no packed bytes look like that, and those that do are only
/// fetched again.
const SAMPLE_BYTES: usize = 64;

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
            .take(SAMPLE_BYTES)
            .any(|&byte| byte != 0)
            .then_some(packed)
    }

    /// The packed bytes at this place; what the store lacks of them comes from the source, and the store keeps it and
    /// what lies around it. Unless `trusts_store`, all of them come from the source. While another reader fetches the
    /// same segments it waits for that reader, and gives `None`: look at [`Remote::kept`] again.
    pub fn fetched(
        &self,
        at: PackedOffset,
        len: usize,
        trusts_store: bool,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, BlobError> {
        let wanted = at.0..at.0 + len as u64;
        let mut packed = vec![0; len];
        let missing = match trusts_store {
            true => self.filled(&mut packed, &wanted),
            false => wanted.clone(),
        };
        let first = missing.start / SEGMENT_BYTES;
        let Some(_leader) = self.flights.lead_or_wait(first, deadline) else {
            return Ok(None);
        };
        let needed = missing.end.div_ceil(SEGMENT_BYTES);
        let planned = self.planned_end(first, needed);
        // What others fetch already, or the store has, ends the range, but not before this reader has what it needs.
        let leaders: Vec<_> = (first + 1..planned)
            .take_while(|&segment| segment < needed || !self.has(&segment_at(segment)))
            .map_while(|segment| self.flights.try_lead(segment))
            .collect();
        let end = needed.max(first + 1 + leaders.len() as u64);
        self.readahead.lock().next_segment = end;
        let from = first * SEGMENT_BYTES;
        let until = (end * SEGMENT_BYTES).min(self.blob.size());
        let range = self
            .blob
            .read(PackedOffset(from), (until - from) as usize, deadline)?;
        if let Err(err) = self.copy.write_all_at(&range, from) {
            tracing::debug!(layer = %self.blob.digest(), error = %err, "range not kept");
        }
        let to = (missing.start - wanted.start) as usize..(missing.end - wanted.start) as usize;
        let skip = (missing.start - from) as usize;
        // A blob that ends earlier than it should leaves zeros, which no digest matches.
        for (to, &byte) in packed[to].iter_mut().zip(range.get(skip..).unwrap_or(&[])) {
            *to = byte;
        }
        Ok(Some(packed))
    }

    /// Fills `packed`, the bytes at `wanted`, as far as the store has whole segments of them at the beginning and the
    /// end, and gives the rest; everything, if the store seems to lack nothing.
    fn filled(&self, packed: &mut [u8], wanted: &Range<u64>) -> Range<u64> {
        let part = |segment: u64| {
            let segment = segment_at(segment);
            segment.start.max(wanted.start)..segment.end.min(wanted.end)
        };
        let mut segments = wanted.start / SEGMENT_BYTES..wanted.end.div_ceil(SEGMENT_BYTES).max(1);
        while segments.start < segments.end && self.has(&part(segments.start)) {
            segments.start += 1;
        }
        while segments.start < segments.end && self.has(&part(segments.end - 1)) {
            segments.end -= 1;
        }
        if segments.is_empty() {
            return wanted.clone();
        }
        let missing = part(segments.start).start..part(segments.end - 1).end;
        let (before, from_missing) = packed.split_at_mut((missing.start - wanted.start) as usize);
        let after = &mut from_missing[(missing.end - missing.start) as usize..];
        let read = self
            .copy
            .read_exact_at(before, wanted.start)
            .and_then(|()| self.copy.read_exact_at(after, missing.end));
        match read {
            Ok(()) => missing,
            Err(_) => wanted.clone(),
        }
    }

    /// Whether the store has something at `place`, which lies in one segment. Segments are written whole.
    fn has(&self, place: &Range<u64>) -> bool {
        let mut sample = [0; SAMPLE_BYTES];
        let len = (place.end - place.start).min(SAMPLE_BYTES as u64) as usize;
        let read = self.copy.read_exact_at(&mut sample[..len], place.start);
        read.is_ok() && sample.iter().any(|&byte| byte != 0)
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
        needed.max(first + readahead.segments)
    }
}

fn segment_at(segment: u64) -> Range<u64> {
    segment * SEGMENT_BYTES..(segment + 1) * SEGMENT_BYTES
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use parking_lot::Mutex;

    use super::*;
    use crate::digest::Digest;

    /// A blob that remembers what was asked of it.
    struct Asked {
        content: Bytes,
        ranges: Mutex<Vec<Range<u64>>>,
    }

    impl Blob for Asked {
        fn digest(&self) -> Digest {
            Digest::of(b"")
        }

        fn size(&self) -> u64 {
            self.content.len() as u64
        }

        fn read(&self, at: PackedOffset, len: usize, _: Instant) -> Result<Bytes, BlobError> {
            let range = at.0 as usize..at.0 as usize + len;
            self.ranges.lock().push(at.0..at.0 + len as u64);
            Ok(self.content.slice(range))
        }

        fn stream(&self) -> Result<Box<dyn std::io::Read + Send>, BlobError> {
            unimplemented!("not asked for here")
        }

        fn is_remote(&self) -> bool {
            true
        }
    }

    const CHUNK: usize = 100_000;

    fn blob() -> Arc<Asked> {
        let content: Vec<u8> = (0..40 * SEGMENT_BYTES + 12_345)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        Arc::new(Asked {
            content: content.into(),
            ranges: Mutex::default(),
        })
    }

    /// As a caller does: what the store has if it is right, else what is fetched.
    fn chunk(remote: &Remote, blob: &Asked, at: usize) {
        let expected = &blob.content[at..(at + CHUNK).min(blob.content.len())];
        let place = PackedOffset(at as u64);
        if remote.kept(place, expected.len()).as_deref() == Some(expected) {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        let packed = remote.fetched(place, expected.len(), true, deadline);
        assert!(packed.unwrap().as_deref() == Some(expected), "at {at}");
    }

    #[test]
    fn a_sequential_reader_fetches_no_byte_twice_and_more_and_more_at_once() {
        let blob = blob();
        let remote = Remote::new(blob.clone(), tempfile::tempfile().unwrap());
        for at in (0..blob.content.len()).step_by(CHUNK) {
            chunk(&remote, &blob, at);
        }
        let ranges = blob.ranges.lock();
        let fetched: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert_eq!(fetched, blob.size(), "{ranges:?}");
        assert!(ranges.len() < 8, "{ranges:?}");
    }

    #[test]
    fn what_the_store_has_is_not_fetched_again_whatever_the_order() {
        let blob = blob();
        let remote = Remote::new(blob.clone(), tempfile::tempfile().unwrap());
        let chunks = blob.content.len() / CHUNK;
        for number in 0..chunks {
            chunk(&remote, &blob, number * 37 % chunks * CHUNK);
        }
        let ranges = blob.ranges.lock();
        let fetched: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(fetched <= blob.size(), "{ranges:?}");
    }

    #[test]
    fn a_wrong_segment_in_the_store_is_fetched_again_with_what_belongs_to_it() {
        let blob = blob();
        let remote = Remote::new(blob.clone(), tempfile::tempfile().unwrap());
        remote.copy.write_all_at(&[7; 3 << 20], 0).unwrap();
        chunk(&remote, &blob, (1 << 20) - 1000);
        assert!(matches!(
            blob.ranges.lock()[..],
            [Range {
                start: 0,
                end: 0x20_0000
            }]
        ));
        // The first half is wrong, the second missing: what comes is wrong, until the store is not trusted.
        remote.copy.write_all_at(&[7; 5 << 20], 4 << 20).unwrap();
        let (place, deadline) = (
            PackedOffset((9 << 20) - 1000),
            Instant::now() + Duration::from_secs(60),
        );
        let expected = &blob.content[place.0 as usize..][..CHUNK];
        let half = remote
            .fetched(place, CHUNK, true, deadline)
            .unwrap()
            .unwrap();
        assert!(half[..1000] == [7; 1000] && half[1000..] == expected[1000..]);
        let whole = remote.fetched(place, CHUNK, false, deadline).unwrap();
        assert!(whole.as_deref() == Some(expected));
    }
}
