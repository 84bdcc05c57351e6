//! The file of a streamed layer, and the second streaming that mends it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::layer_chunks::decoded;
use super::{NativeBytes, WholeChunk};
use crate::digest::ChunkDigest;
use crate::layer::native::{Footer, is_frame};
use crate::layer::table::{Chunk, Codec};
use crate::sys::disk::begin_reading;

/// Streams the layer once more and gives its new file; takes as long as that takes.
pub type Restream = Box<dyn Fn() -> Result<File, Box<dyn std::error::Error>> + Send + Sync>;

/// After a second streaming, good or bad, the next one waits at least this long: a disk that tears every file must not keep
/// the registry busy.
const PAUSE: Duration = Duration::from_secs(60);

/// A native file that may be torn, or edited by a stranger: a wrong chunk is a miss, and the layer is streamed again.
pub(super) struct Native {
    state: Mutex<State>,
    changed: Condvar,
    restream: Restream,
    pause: Duration,
    /// Whether packed bytes are what this program would make of the plain ones; those of a layer that is streamed
    /// again are.
    is_packed_as_now: bool,
}

struct State {
    file: Arc<File>,
    /// How many times the layer was streamed again, successfully or not.
    generation: u32,
    /// When that was last over.
    ended: Option<Instant>,
    is_streaming: bool,
}

/// Why a chunk of a native file does not come.
pub(super) enum Miss {
    /// The layer was streamed again just now, and it is still wrong, or that failed.
    Corrupt,
    /// The layer is being streamed again, which takes longer than the reader can wait.
    Late,
}

impl Native {
    pub fn new(file: File, restream: Restream) -> Arc<Self> {
        Self::with_pause(file, restream, PAUSE)
    }

    fn with_pause(file: File, restream: Restream, pause: Duration) -> Arc<Self> {
        let footer = Footer::of(&file).ok().flatten();
        let state = State {
            file: Arc::new(file),
            generation: 0,
            ended: None,
            is_streaming: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            restream,
            pause,
            is_packed_as_now: footer.is_some_and(|footer| footer.is_packed_as_now()),
        })
    }

    pub fn plain(self: &Arc<Self>, chunk: &Chunk<'_>, deadline: Instant) -> Result<Bytes, Miss> {
        Ok(self.read(chunk, deadline, read)?.0)
    }

    /// The chunk with its packed bytes, if they are what we would make of it.
    pub fn whole(
        self: &Arc<Self>,
        chunk: &Chunk<'_>,
        deadline: Instant,
    ) -> Result<WholeChunk, Miss> {
        let (plain, packed) = self.read(chunk, deadline, read)?;
        let frame = match chunk.codec {
            Codec::Raw => Some(None),
            Codec::Zstd if is_frame(&packed, plain.len()) => Some(Some(packed.into())),
            _ => None,
        };
        let native = match (frame, chunk.digest) {
            (Some(frame), ChunkDigest::PackedBlake3(digest)) if self.is_packed_as_now => {
                Some(NativeBytes { frame, digest })
            }
            _ => None,
        };
        Ok(WholeChunk { plain, native })
    }

    /// The packed bytes alone, if they are what we would make of the chunk, and if it shrinks.
    pub fn packed(
        self: &Arc<Self>,
        chunk: &Chunk<'_>,
        deadline: Instant,
    ) -> Result<Option<NativeBytes>, Miss> {
        let (Codec::Zstd, ChunkDigest::PackedBlake3(digest), true) =
            (chunk.codec, chunk.digest, self.is_packed_as_now)
        else {
            return Ok(None);
        };
        let packed = self.read(chunk, deadline, read_packed)?;
        let is_frame = is_frame(&packed, chunk.plain_len as usize);
        Ok(is_frame.then(|| NativeBytes {
            frame: Some(packed.into()),
            digest,
        }))
    }

    /// What `read` makes of the file, or of the one that is streamed because it makes nothing of this one.
    fn read<T>(
        self: &Arc<Self>,
        chunk: &Chunk<'_>,
        deadline: Instant,
        read: impl Fn(&File, &Chunk<'_>) -> Option<T>,
    ) -> Result<T, Miss> {
        let (file, generation) = {
            let state = self.state.lock();
            (Arc::clone(&state.file), state.generation)
        };
        if let Some(read) = read(&file, chunk) {
            return Ok(read);
        }
        let file = self.streamed_after(generation, deadline)?;
        read(&file, chunk).ok_or(Miss::Corrupt)
    }

    /// These bytes of the file will be read soon.
    pub fn announce(&self, bytes: &Range<u64>) {
        let file = Arc::clone(&self.state.lock().file);
        begin_reading(&file, bytes);
    }

    /// The file that follows the one of `generation`. One thread streams it, whoever asks, and goes on when those who ask
    /// have given up.
    fn streamed_after(
        self: &Arc<Self>,
        generation: u32,
        deadline: Instant,
    ) -> Result<Arc<File>, Miss> {
        let mut state = self.state.lock();
        if state.generation == generation && !state.is_streaming {
            if state
                .ended
                .is_some_and(|ended| ended.elapsed() < self.pause)
            {
                return Err(Miss::Corrupt);
            }
            state.is_streaming = true;
            let native = Arc::clone(self);
            thread::spawn(move || native.stream());
        }
        while state.is_streaming {
            let timed_out = self.changed.wait_until(&mut state, deadline).timed_out();
            if timed_out && state.is_streaming {
                return Err(Miss::Late);
            }
        }
        Ok(Arc::clone(&state.file))
    }

    fn stream(&self) {
        let streamed = (self.restream)();
        let mut state = self.state.lock();
        match streamed {
            Ok(file) => state.file = Arc::new(file),
            Err(err) => {
                tracing::warn!(error = &*err, "a damaged layer could not be streamed again")
            }
        }
        state.generation += 1;
        state.ended = Some(Instant::now());
        state.is_streaming = false;
        self.changed.notify_all();
    }
}

/// Plain and packed bytes.
fn read(file: &File, chunk: &Chunk<'_>) -> Option<(Bytes, Vec<u8>)> {
    let packed = bytes(file, chunk)?;
    Some((decoded(chunk, &packed)?, packed))
}

fn read_packed(file: &File, chunk: &Chunk<'_>) -> Option<Vec<u8>> {
    bytes(file, chunk).filter(|packed| chunk.digest.matches_packed(packed))
}

/// As the file has them, right or wrong.
fn bytes(file: &File, chunk: &Chunk<'_>) -> Option<Vec<u8>> {
    let mut packed = vec![0; chunk.packed_len as usize];
    file.read_exact_at(&mut packed, chunk.packed_at.0).ok()?;
    Some(packed)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::extent::PackedOffset;
    use crate::layer::table::Codec;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn chunk() -> Chunk<'static> {
        Chunk {
            packed_at: PackedOffset(0),
            packed_len: 5,
            skip: 0,
            plain_len: 5,
            codec: Codec::Raw,
            digest: ChunkDigest::blake3_of(b"right"),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn a_torn_file_is_streamed_again_once_for_all_readers() {
        let streamed = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&streamed);
        let native = Native::new(
            file(b"wrong"),
            Box::new(move || {
                counter.fetch_add(1, Ordering::SeqCst);
                Ok(file(b"right"))
            }),
        );
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let plain = native.plain(&chunk(), soon()).ok().unwrap();
                    assert_eq!(&plain[..], b"right");
                });
            }
        });
        assert_eq!(streamed.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_is_still_wrong_is_corrupt_and_not_tried_for_ever() {
        let streamed = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&streamed);
        let native = Native::new(
            file(b"wrong"),
            Box::new(move || {
                counter.fetch_add(1, Ordering::SeqCst);
                Err("the registry is away".into())
            }),
        );
        for _ in 0..3 {
            assert!(matches!(native.plain(&chunk(), soon()), Err(Miss::Corrupt)));
        }
        assert_eq!(streamed.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_could_not_be_streamed_again_is_tried_later() {
        let outages = AtomicU32::new(2);
        let restream = move || match outages.load(Ordering::SeqCst) {
            0 => Ok(file(b"right")),
            left => {
                outages.store(left - 1, Ordering::SeqCst);
                Err("the registry is away".into())
            }
        };
        let native = Native::with_pause(file(b"wrong"), Box::new(restream), Duration::ZERO);
        for _ in 0..2 {
            assert!(matches!(native.plain(&chunk(), soon()), Err(Miss::Corrupt)));
        }
        assert_eq!(&native.plain(&chunk(), soon()).ok().unwrap()[..], b"right");
    }

    #[test]
    fn a_reader_does_not_wait_beyond_its_deadline() {
        let (go_on, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let native = Native::new(
            file(b"wrong"),
            Box::new(move || {
                let _ = gate.lock().recv();
                Ok(file(b"right"))
            }),
        );
        assert!(matches!(
            native.plain(&chunk(), Instant::now()),
            Err(Miss::Late)
        ));
        drop(go_on);
        assert!(native.plain(&chunk(), soon()).is_ok());
    }
}
