//! The least that a first mount of an image nobody indexed has to compute, measured on this machine now.
//!
//! ```text
//! floor LAYOUT [THREADS]      LAYOUT: a directory with blobs/sha256, one image's gzip layers among them
//! ```
//!
//! Each layer is hashed as it comes, inflated, hashed again (its diffID), and compressed in chunks as the native
//! layer stores them: nothing parsed, fetched or written. Prints CPU seconds per step, and what their sum comes to
//! when every core does its share. With several threads the steps of different layers compete for caches and
//! for the halves of a core, as they do in a real mount.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::iter::Sum;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest, Sha256};
use sifon_mount::extent::CHUNK_BYTES;
use sifon_mount::layer::native::LEVEL;

/// Large enough that calls cost nothing, small enough for the caches.
const BUFFER_BYTES: usize = 256 << 10;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (layout, threads) = match arguments.as_slice() {
        [layout] => (layout, 1),
        [layout, threads] => (layout, threads.parse()?),
        _ => {
            eprintln!("usage: floor LAYOUT [THREADS]");
            std::process::exit(1);
        }
    };
    let cores = thread::available_parallelism()?.get();
    let work = measured(layers(Path::new(layout))?, threads)?;
    print(&work, cores);
    Ok(())
}

/// What was worked through, and the CPU time that each step took.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    packed_bytes: u64,
    plain_bytes: u64,
    compressed_bytes: u64,
    packed_hash: Duration,
    inflate: Duration,
    plain_hash: Duration,
    compress: Duration,
}

impl Work {
    fn total(&self) -> Duration {
        self.packed_hash + self.inflate + self.plain_hash + self.compress
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Self>>(works: I) -> Self {
        works.fold(Self::default(), |sum, work| Self {
            packed_bytes: sum.packed_bytes + work.packed_bytes,
            plain_bytes: sum.plain_bytes + work.plain_bytes,
            compressed_bytes: sum.compressed_bytes + work.compressed_bytes,
            packed_hash: sum.packed_hash + work.packed_hash,
            inflate: sum.inflate + work.inflate,
            plain_hash: sum.plain_hash + work.plain_hash,
            compress: sum.compress + work.compress,
        })
    }
}

/// The gzip blobs of a layout, largest first, so that threads end together.
fn layers(layout: &Path) -> io::Result<VecDeque<PathBuf>> {
    let mut layers = Vec::new();
    for blob in fs::read_dir(layout.join("blobs/sha256"))? {
        let path = blob?.path();
        let mut start = Vec::new();
        File::open(&path)?
            .take(GZIP_MAGIC.len() as u64)
            .read_to_end(&mut start)?;
        if start == GZIP_MAGIC {
            layers.push((fs::metadata(&path)?.len(), path));
        }
    }
    layers.sort();
    Ok(layers.into_iter().rev().map(|(_, path)| path).collect())
}

fn measured(layers: VecDeque<PathBuf>, threads: usize) -> io::Result<Work> {
    let waiting = Mutex::new(layers);
    let next = || {
        waiting
            .lock()
            .expect("nothing panics while it is held")
            .pop_front()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| std::iter::from_fn(next).map(|layer| of_layer(&layer)).sum()))
            .collect();
        let works = workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker does not panic"));
        works.sum()
    })
}

fn of_layer(path: &Path) -> io::Result<Work> {
    let mut work = Work::default();
    let mut plain = MultiGzDecoder::new(Packed::new(BufReader::with_capacity(
        BUFFER_BYTES,
        File::open(path)?,
    )));
    let mut diff_id = Sha256::new();
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut compressed = vec![0; zstd::zstd_safe::compress_bound(chunk.len())];
    loop {
        let started = cpu();
        let outside_before = plain.get_ref().spent;
        let len = filled(&mut plain, &mut chunk)?;
        let inflated = cpu();
        work.inflate += inflated - started - (plain.get_ref().spent - outside_before);
        if len == 0 {
            break;
        }
        diff_id.update(&chunk[..len]);
        let hashed = cpu();
        work.compressed_bytes += compressor
            .compress_to_buffer(&chunk[..len], &mut compressed)?
            .min(len) as u64;
        work.plain_hash += hashed - inflated;
        work.compress += cpu() - hashed;
        work.plain_bytes += len as u64;
    }
    std::hint::black_box(diff_id.finalize());
    let packed = plain.into_inner();
    work.packed_bytes = packed.bytes;
    work.packed_hash = packed.hashing;
    std::hint::black_box(packed.digest.finalize());
    Ok(work)
}

/// Reads until `buffer` is full or the stream has ended.
fn filled(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match stream.read(&mut buffer[len..])? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}

/// Hashes a blob on its way to the decoder, and knows what was not the decoder's time.
struct Packed<R> {
    blob: R,
    digest: Sha256,
    bytes: u64,
    hashing: Duration,
    /// Reading and hashing.
    spent: Duration,
}

impl<R: BufRead> Packed<R> {
    fn new(blob: R) -> Self {
        let (hashing, spent) = (Duration::ZERO, Duration::ZERO);
        Self {
            blob,
            digest: Sha256::new(),
            bytes: 0,
            hashing,
            spent,
        }
    }
}

impl<R: BufRead> Read for Packed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(into)?;
        self.consume(len);
        Ok(len)
    }
}

impl<R: BufRead> BufRead for Packed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let started = cpu();
        let filled = self.blob.fill_buf();
        self.spent += cpu() - started;
        filled
    }

    fn consume(&mut self, len: usize) {
        let started = cpu();
        // What was just consumed is still in the buffer: asking for it again reads nothing.
        if let Ok(buffered) = self.blob.fill_buf() {
            self.digest.update(&buffered[..len]);
        }
        self.blob.consume(len);
        self.bytes += len as u64;
        let took = cpu() - started;
        self.hashing += took;
        self.spent += took;
    }
}

/// The CPU time of this thread so far.
fn cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime)
        .try_into()
        .expect("a thread's CPU time is not negative")
}

/// One `name value` line each, for `benches/peers/run`.
fn print(work: &Work, cores: usize) {
    println!("packed_bytes {}", work.packed_bytes);
    println!("plain_bytes {}", work.plain_bytes);
    println!("compressed_bytes {}", work.compressed_bytes);
    println!("level {LEVEL}");
    println!("packed_hash_s {:.3}", work.packed_hash.as_secs_f64());
    println!("inflate_s {:.3}", work.inflate.as_secs_f64());
    println!("plain_hash_s {:.3}", work.plain_hash.as_secs_f64());
    println!("compress_s {:.3}", work.compress.as_secs_f64());
    println!("cores {cores}");
    println!("floor_s {:.3}", work.total().as_secs_f64() / cores as f64);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_byte_of_every_gzip_blob_is_worked_through_once() {
        let layout = tempfile::tempdir().unwrap();
        let blobs = layout.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let mut packed_bytes = 0;
        for (name, plain_len) in [("a", 300_000), ("b", 10)] {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&vec![b'x'; plain_len]).unwrap();
            let packed = gzip.finish().unwrap();
            packed_bytes += packed.len() as u64;
            fs::write(blobs.join(name), packed).unwrap();
        }
        fs::write(blobs.join("config"), "{}").unwrap();

        let work = measured(layers(layout.path()).unwrap(), 2).unwrap();
        assert_eq!(
            (work.plain_bytes, work.packed_bytes),
            (300_010, packed_bytes)
        );
    }
}
