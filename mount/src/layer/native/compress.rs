//! Threads that compress chunks for every layer that streams at the moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::digest::ChunkDigest;
use crate::layer::table::Codec;

/// The zstd level of native chunks, and so of the SIF files that copy them. Measured in blocks of 128 KiB on the libraries
/// and on the programs of a Python image: level 3 takes 1.2 to 1.7 times as long and saves 3 to 5 % of the bytes, and
/// streaming a layer is bound by exactly this work.
pub const LEVEL: i32 = 1;

/// One chunk to compress; its result goes back under the same `sequence`.
pub(super) struct Job {
    pub sequence: u64,
    pub plain: Vec<u8>,
    pub reply: Sender<Packed>,
}

/// A compressed chunk.
pub(super) struct Packed {
    pub sequence: u64,
    pub bytes: Vec<u8>,
    pub plain_len: u32,
    pub codec: Codec<'static>,
    pub digest: ChunkDigest,
}

/// A pool of compressing threads. They end when the pool and everybody who sends to it is gone.
pub struct Compressors {
    jobs: Sender<Job>,
    threads: usize,
    streaming: Arc<AtomicUsize>,
}

/// A layer that streams, among others that do.
pub(super) struct Streaming {
    layers: Arc<AtomicUsize>,
    cores: usize,
}

/// Chunks of one layer that are in the hands of compressors at most: 4 MiB.
const IN_FLIGHT_LIMIT: u64 = 32;

impl Compressors {
    /// As many threads as the machine has cores.
    pub fn start() -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        // Each layer bounds what it has in flight.
        let (jobs, queue) = unbounded();
        for _ in 0..threads {
            let queue = queue.clone();
            thread::spawn(move || compress_all(&queue));
        }
        Self {
            jobs,
            threads,
            streaming: Arc::default(),
        }
    }

    /// Counts one more layer for as long as what it gives lives.
    pub(super) fn streaming(&self) -> Arc<Streaming> {
        self.streaming.fetch_add(1, Ordering::Relaxed);
        Arc::new(Streaming {
            layers: Arc::clone(&self.streaming),
            cores: self.threads,
        })
    }

    /// Chunks that one layer should give away before it waits: enough to keep every thread busy beside other layers, few enough
    /// that they stay in the caches. On two cores, 32 cost 3 % more than 12.
    pub(super) fn in_flight_limit(&self) -> u64 {
        (8 + 2 * self.threads as u64).min(IN_FLIGHT_LIMIT)
    }

    pub(super) fn jobs(&self) -> Sender<Job> {
        self.jobs.clone()
    }
}

/// Whether `packed` is what a block of a squashfs may be: one zstd frame and nothing after it, its content size, which is
/// `plain_len`, said, no dictionary, and no window beyond the content.
pub fn is_frame(packed: &[u8], plain_len: usize) -> bool {
    use zstd::zstd_safe::{
        find_frame_compressed_size, get_dict_id_from_frame, get_frame_content_size,
    };
    // RFC 8878, 3.1.1.1.1: a single segment's window is its content.
    let is_single_segment = packed
        .get(4)
        .is_some_and(|descriptor| descriptor & 1 << 5 != 0);
    is_single_segment
        && get_frame_content_size(packed).ok() == Some(Some(plain_len as u64))
        && find_frame_compressed_size(packed) == Ok(packed.len())
        && get_dict_id_from_frame(packed).is_none()
}

impl Streaming {
    /// Whether the layers that stream keep every core busy if each does all of its work in one thread. That costs less than a
    /// thread for each step, because bytes stay in one core's cache: on two cores ten layers take a twentieth less time.
    pub fn fills_cores(&self) -> bool {
        self.layers.load(Ordering::Relaxed) >= self.cores
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.layers.fetch_sub(1, Ordering::Relaxed);
    }
}

fn compress_all(queue: &Receiver<Job>) {
    let mut compressor = Compressor::new();
    for Job {
        sequence,
        plain,
        reply,
    } in queue
    {
        // A layer that failed meanwhile no longer listens.
        let _ = reply.send(compressor.packed(sequence, plain));
    }
}

/// Compresses one chunk after another.
pub(super) struct Compressor(zstd::bulk::Compressor<'static>);

impl Compressor {
    pub fn new() -> Self {
        Self(zstd::bulk::Compressor::new(LEVEL).expect("the level is one that zstd has"))
    }

    pub fn packed(&mut self, sequence: u64, plain: Vec<u8>) -> Packed {
        let plain_len = plain.len() as u32;
        let (bytes, codec) = match self.0.compress(&plain) {
            Ok(packed) if packed.len() < plain.len() => (packed, Codec::Zstd),
            _ => (plain, Codec::Raw),
        };
        let digest = ChunkDigest::blake3_of(&bytes);
        Packed {
            sequence,
            bytes,
            plain_len,
            codec,
            digest,
        }
    }
}
