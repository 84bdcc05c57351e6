//! Threads that compress chunks for every layer that streams at the moment.

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
        Self { jobs, threads }
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

fn compress_all(queue: &Receiver<Job>) {
    let mut context = zstd::bulk::Compressor::new(LEVEL).expect("the level is one that zstd has");
    for Job {
        sequence,
        plain,
        reply,
    } in queue
    {
        let packed = compressed(&mut context, sequence, plain);
        // A layer that failed meanwhile no longer listens.
        let _ = reply.send(packed);
    }
}

fn compressed(context: &mut zstd::bulk::Compressor<'_>, sequence: u64, plain: Vec<u8>) -> Packed {
    let plain_len = plain.len() as u32;
    let (bytes, codec) = match context.compress(&plain) {
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
