//! Bytes under a digest, wherever they lie: at a registry, in a layout, inside an archive, in memory.

use std::io::Read;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use lru::LruCache;
use parking_lot::Mutex;

use crate::digest::Digest;
use crate::extent::PackedOffset;

/// A source without a way of its own to pour reads so much at once.
const POURED_BYTES: u64 = 1 << 20;

/// How long to wait for bytes.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// For all of them.
    Until(Instant),
    /// For the first, and from one to the next, as long as there is progress.
    While(Duration),
}

/// A blob that can be read from the start or in ranges. Nothing it returns has been verified.
pub trait Blob: Send + Sync {
    /// The name that its bytes must hash to.
    fn digest(&self) -> Digest;

    /// Its length in bytes, as the manifest says.
    fn size(&self) -> u64;

    /// Exactly `len` bytes from `at`; fewer are an error. Blocks until then, or until `deadline`.
    fn read(&self, at: PackedOffset, len: usize, deadline: Instant) -> Result<Bytes, BlobError>;

    /// The bytes of `range`, handed over in order as they come. Ends with an error when `patience` does; what was handed over
    /// until then is right to keep. `each` may take any time.
    fn pour(
        &self,
        range: Range<u64>,
        patience: Patience,
        each: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), BlobError> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(POURED_BYTES);
            let deadline = match patience {
                Patience::Until(deadline) => deadline,
                Patience::While(progress) => Instant::now() + progress,
            };
            each(self.read(PackedOffset(at), len as usize, deadline)?);
            at += len;
        }
        Ok(())
    }

    /// All of it, in order. Each `read` of the stream blocks for at most the source's deadline; the
    /// stream ends early only with an error.
    fn stream(&self) -> Result<Box<dyn Read + Send>, BlobError> {
        self.stream_of(0..self.size())
    }

    /// The same of the bytes of `range`, which is within the blob.
    fn stream_of(&self, range: Range<u64>) -> Result<Box<dyn Read + Send>, BlobError>;

    /// These bytes will be read soon: what lies on a disk is to be in memory then. Waits for nothing, and promises nothing.
    fn announce(&self, _range: &Range<u64>) {}

    /// What it sent last was wrong: if there is another place that has it, that is asked next.
    fn doubt(&self) {}

    /// Whether a range costs a request over a network, so that few large ones are better.
    fn is_remote(&self) -> bool;

    /// Whether all its bytes hash to its digest. If not, the digest is only a name that another version would not have.
    fn is_named_by_its_bytes(&self) -> bool {
        true
    }
}

/// Reads a blob in large pieces, of which the last are kept, so that many small reads in some order cost few requests.
pub struct Windows {
    blob: Arc<dyn Blob>,
    bytes: u64,
    timeout: Duration,
    kept: Mutex<LruCache<u64, Bytes>>,
}

impl Windows {
    /// Pieces of `bytes` bytes at multiples of that, `count` of which are kept; each may take `timeout`.
    pub fn new(blob: Arc<dyn Blob>, bytes: u64, count: NonZeroUsize, timeout: Duration) -> Self {
        Self {
            blob,
            bytes,
            timeout,
            kept: Mutex::new(LruCache::new(count)),
        }
    }

    /// The same; the blob's first bytes are known.
    pub fn beginning_with(self, head: Bytes) -> Self {
        if head.len() as u64 == self.bytes.min(self.blob.size()) {
            self.kept.lock().put(0, head);
        }
        self
    }

    /// How long the blob is.
    pub fn blob_size(&self) -> u64 {
        self.blob.size()
    }

    /// Exactly `len` bytes from `at`. Takes that much memory only once they are known to be within the blob.
    pub fn read(&self, at: u64, len: usize) -> Result<Bytes, BlobError> {
        let end = at.checked_add(len as u64);
        let end = end.filter(|&end| end <= self.blob.size());
        let end = end.ok_or_else(|| BlobError::Wrong {
            object: format!("blob {}", self.blob.digest()),
            problem: format!("{len} bytes at {at} are not within it"),
        })?;
        let part = |number: u64| {
            let window = self.window(number)?;
            let start = number * self.bytes;
            let from = at.saturating_sub(start) as usize;
            let until = (end - start).min(window.len() as u64) as usize;
            Ok::<_, BlobError>(window.slice(from..until))
        };
        let numbers = at / self.bytes..end.div_ceil(self.bytes).max(at / self.bytes);
        if numbers.end - numbers.start == 1 {
            return part(numbers.start);
        }
        let mut bytes = BytesMut::new();
        for number in numbers {
            bytes.extend_from_slice(&part(number)?);
        }
        Ok(bytes.freeze())
    }

    fn window(&self, number: u64) -> Result<Bytes, BlobError> {
        if let Some(window) = self.kept.lock().get(&number) {
            return Ok(window.clone());
        }
        let at = number * self.bytes;
        let len = self.bytes.min(self.blob.size() - at) as usize;
        let deadline = Instant::now() + self.timeout;
        let window = self.blob.read(PackedOffset(at), len, deadline)?;
        self.kept.lock().put(number, window.clone());
        Ok(window)
    }
}

/// Why bytes of a blob did not come.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Nobody answered in time.
    #[error("{object}: no answer from {place} within {waited:.1?}")]
    Unreachable {
        /// What was asked for, with its digest or tag.
        object: String,
        /// Host and port, or the file's path.
        place: String,
        /// How long was waited, all tries together.
        waited: Duration,
        /// The last failure.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The place answered, and the answer was no.
    #[error("{object}: {place} answered {answer}")]
    Refused {
        /// What was asked for.
        object: String,
        /// Host and port, or the file's path.
        place: String,
        /// HTTP status and what the registry's error body said, shortened; or the system's error.
        answer: String,
        /// HTTP status, where there was one.
        status: Option<u16>,
    },
    /// The place answered with something else than what it should be.
    #[error("{object}: {problem}")]
    Wrong {
        /// What was asked for.
        object: String,
        /// What was wrong with the answer.
        problem: String,
    },
    /// It would have to be asked for, and the user forbade that.
    #[error("{object}: not in the store, and --offline forbids to ask for it")]
    Offline {
        /// What is missing.
        object: String,
    },
}

impl BlobError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let login = "give --docker-username and --docker-password, or log in with apptainer, docker or podman";
        let hint = match self {
            Self::Refused { status, .. } => match status {
                Some(401 | 403) => format!(
                    "check the name; if the image is private, {login} (see --authfile)"
                ),
                Some(404) => "check the name and the tag; what was deleted must be pushed again".into(),
                Some(429) => {
                    format!("wait a while; users who log in may ask more often: {login}")
                }
                Some(500..) => "the registry is in trouble: try again later".into(),
                Some(_) => return None,
                None => "it may be damaged: make or copy it again".into(),
            },
            Self::Unreachable { source, .. } => {
                let chain = source.as_deref().map(|source| chain_of(source)).unwrap_or_default();
                if chain.contains("InvalidContentType") || chain.contains("corrupt message") {
                    "if the registry speaks plain HTTP, use --no-https".into()
                } else if chain.contains("certificate") {
                    "name the file with the certificate of the registry's authority: --ca-file".into()
                } else {
                    "check the name and the network; --timeout SECONDS waits longer".into()
                }
            }
            Self::Offline { .. } => "run it once without --offline".into(),
            Self::Wrong { .. } => {
                "try again; if it stays so, the image must be pushed or copied again, or its registry repaired"
                    .into()
            }
        };
        Some(hint)
    }
}

fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    let rest = error.source().map(chain_of).unwrap_or_default();
    format!("{error} {rest}")
}

/// A blob elsewhere that may not be asked for: every read fails.
pub struct OfflineBlob {
    digest: Digest,
    size: u64,
}

impl OfflineBlob {
    /// Stands for the blob of this digest and size.
    pub fn new(digest: Digest, size: u64) -> Self {
        Self { digest, size }
    }

    fn refused(&self) -> BlobError {
        BlobError::Offline {
            object: format!("layer {}", self.digest),
        }
    }
}

impl Blob for OfflineBlob {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, _: PackedOffset, _: usize, _: Instant) -> Result<Bytes, BlobError> {
        Err(self.refused())
    }

    fn stream_of(&self, _: Range<u64>) -> Result<Box<dyn Read + Send>, BlobError> {
        Err(self.refused())
    }

    fn is_remote(&self) -> bool {
        true
    }
}

/// A blob that is made here, and in memory.
pub struct MemoryBlob {
    digest: Digest,
    bytes: Bytes,
}

impl MemoryBlob {
    /// With these bytes, under their own digest.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            digest: Digest::of(&bytes),
            bytes,
        }
    }
}

impl Blob for MemoryBlob {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, at: PackedOffset, len: usize, _: Instant) -> Result<Bytes, BlobError> {
        let from = usize::try_from(at.0).unwrap_or(usize::MAX);
        let range = from..from.saturating_add(len);
        if self.bytes.get(range.clone()).is_none() {
            return Err(BlobError::Wrong {
                object: format!("blob {}", self.digest),
                problem: format!("it has {} bytes, none at {}", self.bytes.len(), at.0),
            });
        }
        Ok(self.bytes.slice(range))
    }

    fn stream_of(&self, range: Range<u64>) -> Result<Box<dyn Read + Send>, BlobError> {
        let len = range.end.saturating_sub(range.start);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = self.read(PackedOffset(range.start), len, Instant::now())?;
        Ok(Box::new(bytes.reader()))
    }

    fn is_remote(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob that counts what is read of it.
    struct Counted(Bytes, Mutex<Vec<(u64, usize)>>);

    impl Blob for Counted {
        fn digest(&self) -> Digest {
            Digest::of(&self.0)
        }

        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, at: PackedOffset, len: usize, _: Instant) -> Result<Bytes, BlobError> {
            self.1.lock().push((at.0, len));
            Ok(self.0.slice(at.0 as usize..at.0 as usize + len))
        }

        fn stream_of(&self, _: Range<u64>) -> Result<Box<dyn Read + Send>, BlobError> {
            unimplemented!("not asked for here")
        }

        fn is_remote(&self) -> bool {
            true
        }
    }

    #[test]
    fn small_reads_in_windows_give_the_blob_and_ask_for_each_window_once() {
        let content: Vec<u8> = (0..1050u32).map(|at| (at % 251) as u8).collect();
        let blob = Arc::new(Counted(content.clone().into(), Mutex::default()));
        let count = NonZeroUsize::new(20).unwrap();
        let windows = Windows::new(blob.clone(), 100, count, Duration::from_secs(9));
        let windows = windows.beginning_with(blob.0.slice(..100));
        for at in 0..content.len() {
            for len in [0, 1, 7, 100, 250].map(|len: usize| len.min(content.len() - at)) {
                let read = windows.read(at as u64, len).unwrap();
                assert_eq!(read, content[at..at + len], "{len} at {at}");
            }
        }
        let expected: Vec<_> = (1..11)
            .map(|n| (n * 100, if n < 10 { 100 } else { 50 }))
            .collect();
        assert_eq!(*blob.1.lock(), expected);
        for (at, len) in [(1051, 0), (1050, 1), (0, 1051), (u64::MAX, 2)] {
            assert!(windows.read(at, len).is_err(), "{len} at {at}");
        }
    }
}
