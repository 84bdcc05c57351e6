use std::fs::File;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::fetch::Limits;

/// A blob that remembers what was asked of it.
struct Asked {
    content: Bytes,
    ranges: Mutex<Vec<Range<u64>>>,
    /// Requests that are to fail before others do not.
    failures: Mutex<u32>,
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
        Ok(self.content.slice(range))
    }

    fn pour(
        &self,
        range: Range<u64>,
        _: Patience,
        each: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), BlobError> {
        {
            let mut failures = self.failures.lock();
            if *failures > 0 {
                *failures -= 1;
                let object = "blob".into();
                return Err(BlobError::Offline { object });
            }
        }
        self.ranges.lock().push(range.clone());
        for start in range.clone().step_by(30_000) {
            let end = (start + 30_000).min(range.end);
            each(self.content.slice(start as usize..end as usize));
        }
        Ok(())
    }

    fn stream_of(&self, _: Range<u64>) -> Result<Box<dyn std::io::Read + Send>, BlobError> {
        unimplemented!("not asked for here")
    }

    fn is_remote(&self) -> bool {
        true
    }
}

const CHUNK: usize = 100_000;

fn blob() -> Arc<Asked> {
    let content: Vec<u8> = (0..(40 << 20) + 12_345u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect();
    Arc::new(Asked {
        content: content.into(),
        ranges: Mutex::default(),
        failures: Mutex::default(),
    })
}

fn copied(blob: &Arc<Asked>) -> (Arc<Remote>, Fetcher) {
    let copy = tempfile::tempfile().unwrap();
    copy.set_len(blob.size()).unwrap();
    let remote = Remote::new(blob.clone(), PackedCopy::plain(copy, blob.size()));
    (Arc::new(remote), Fetcher::new(Limits::default()))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// As a caller does: what the store has if it is right, else what is fetched.
fn chunk(remote: &Arc<Remote>, fetcher: &Fetcher, blob: &Asked, at: usize) {
    let expected = &blob.content[at..(at + CHUNK).min(blob.content.len())];
    let bytes = at as u64..(at + expected.len()) as u64;
    remote.read_ahead(&bytes, fetcher);
    let came = remote.bring(&bytes, soon(), fetcher).unwrap();
    assert_eq!(came, Came::InTime);
    let kept = remote.kept(PackedOffset(at as u64), expected.len());
    assert!(kept.as_deref() == Some(expected), "at {at}");
}

fn fetched(blob: &Asked) -> u64 {
    let ranges = blob.ranges.lock();
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[test]
fn a_sequential_reader_fetches_no_byte_twice_and_in_long_ranges() {
    let blob = blob();
    let (remote, fetcher) = copied(&blob);
    for at in (0..blob.content.len()).step_by(CHUNK) {
        chunk(&remote, &fetcher, &blob, at);
    }
    remote.await_flights(&(0..blob.size()));
    assert_eq!(fetched(&blob), blob.size());
    let ranges = blob.ranges.lock();
    assert!(ranges.len() < 80, "{}: {ranges:?}", ranges.len());
}

#[test]
fn what_the_store_has_is_not_fetched_again_whatever_the_order() {
    let blob = blob();
    let (remote, fetcher) = copied(&blob);
    let chunks = blob.content.len() / CHUNK;
    for number in 0..chunks {
        chunk(&remote, &fetcher, &blob, number * 37 % chunks * CHUNK);
    }
    remote.await_flights(&(0..blob.size()));
    assert!(fetched(&blob) <= blob.size());
    let copy = remote.copy.again();
    let before = blob.ranges.lock().len();
    let again = Arc::new(Remote::new(blob.clone(), copy));
    chunk(&again, &fetcher, &blob, 7 * CHUNK);
    assert_eq!(blob.ranges.lock().len(), before);
}

#[test]
fn many_who_wait_for_the_same_make_one_request() {
    let blob = blob();
    let (remote, fetcher) = copied(&blob);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| chunk(&remote, &fetcher, &blob, 3 << 20));
        }
    });
    assert_eq!(blob.ranges.lock().len(), 1);
}

#[test]
fn what_is_forgotten_is_fetched_again() {
    let blob = blob();
    let (remote, fetcher) = copied(&blob);
    remote.copy.write(&[7; 2 << 20], 0).unwrap();
    assert!(remote.has(&(0..CHUNK as u64)));
    assert_eq!(blob.ranges.lock().len(), 0);
    remote.forget(&(0..CHUNK as u64));
    chunk(&remote, &fetcher, &blob, 0);
    assert_eq!(blob.ranges.lock().len(), 1);
}

#[test]
fn what_is_missing_is_told_without_a_look_at_what_is_here() {
    let mut content = blob().content.to_vec();
    // A block of zeros that were fetched is no hole.
    content[7 * BLOCK_BYTES as usize..][..BLOCK_BYTES as usize].fill(0);
    let blob = Arc::new(Asked {
        content: content.into(),
        ..Arc::into_inner(blob()).unwrap()
    });
    let size = blob.size();
    let (remote, _) = copied(&blob);
    assert_eq!(remote.kept_bytes(), 0);
    let write = |bytes: Range<u64>| {
        let content = &blob.content[bytes.start as usize..bytes.end as usize];
        remote.copy.write(content, bytes.start).unwrap();
    };
    write(0..10 * BLOCK_BYTES);
    write(20 * BLOCK_BYTES..size);
    let again = || Remote::new(blob.clone(), remote.copy.again());
    assert_eq!(again().kept_bytes(), size - 10 * BLOCK_BYTES);
    write(10 * BLOCK_BYTES..20 * BLOCK_BYTES);
    let whole = again();
    assert_eq!(whole.kept_bytes(), size);
    assert_eq!(whole.blocks.lock().is_present(0), None);
    whole.forget(&(BLOCK_BYTES..BLOCK_BYTES + 1));
    assert_eq!(whole.kept_bytes(), size - BLOCK_BYTES);
}

#[test]
fn a_failure_reaches_the_one_who_waits_and_the_next_one_tries_again() {
    let blob = blob();
    let (remote, fetcher) = copied(&blob);
    *blob.failures.lock() = 1;
    let failed = remote.bring(&(0..10), soon(), &fetcher);
    assert!(failed.is_err(), "{failed:?}");
    chunk(&remote, &fetcher, &blob, 0);
}

#[test]
fn what_cannot_be_written_is_shown_from_memory() {
    let blob = blob();
    let scratch = tempfile::NamedTempFile::new().unwrap();
    scratch.as_file().set_len(blob.size()).unwrap();
    let copy = File::open(scratch.path()).unwrap();
    let copy = PackedCopy::plain(copy, blob.size());
    let remote = Arc::new(Remote::new(blob.clone(), copy));
    let fetcher = Fetcher::new(Limits::default());
    for at in (0..blob.content.len()).step_by(CHUNK) {
        chunk(&remote, &fetcher, &blob, at);
    }
    assert!(remote.has(&(blob.size() - 1..blob.size())));
    assert!(!remote.has(&(0..1)), "memory has an end");
}

#[test]
fn one_who_waits_gives_up_at_the_deadline() {
    let blob = blob();
    let (remote, fetcher) = copied(&blob);
    let flight = Arc::default();
    remote.blocks.lock().take_off(&(0..2), &flight);
    let late = remote.bring(&(0..10), Instant::now(), &fetcher).unwrap();
    assert_eq!(late, Came::Late);
    assert!(flight.is_urgent());
}
