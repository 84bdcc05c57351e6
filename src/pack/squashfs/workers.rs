//! Threads that read blocks, hash them and compress what is not compressed already.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::compressor::{Compression, Compressor};
use crate::pack::layout::{Packing, Stored, Tail};
use crate::pack::node::Source;

/// Bytes as they go into the file.
pub(super) enum Packed {
    /// As they are.
    Stored(Bytes),
    Compressed(Bytes),
}

/// A whole block of a file; `None` if it is all zeros.
pub(super) type Block = Option<PackedBlock>;

/// A block with the digest of its bytes as they are packed, which tells blocks of one file system apart as that of the plain bytes
/// would: what is compressed is shorter than what is not.
pub(super) struct PackedBlock {
    pub packed: Packed,
    pub digest: blake3::Hash,
}

/// The tails of some files, one after another.
#[derive(Default)]
pub(super) struct Bundle {
    pub plain: Bytes,
    /// Where each tail ends.
    pub ends: Vec<usize>,
    /// What each tail hashes to.
    pub digests: Vec<blake3::Hash>,
    /// All of it, if that was known without compressing.
    pub packed: Option<Packed>,
}

enum Work {
    Block {
        file: u64,
        at: u64,
        reply: Sender<io::Result<Block>>,
    },
    Bundle {
        tails: Vec<Tail>,
        reply: Sender<io::Result<Bundle>>,
    },
    /// The same of a file that the image does not have.
    Own {
        plain: Arc<[u8]>,
        at: usize,
        len: usize,
        reply: Own,
    },
    Fragment {
        plain: Bytes,
        reply: Sender<Packed>,
    },
}

enum Own {
    Block(Sender<io::Result<Block>>),
    Bundle(Sender<io::Result<Bundle>>),
}

/// Threads that work as long as somebody can ask them. Every question is answered, in any order.
pub(super) struct Workers<'s> {
    work: Sender<Work>,
    /// Set when nobody waits for answers any more: what is still asked then might wait for a registry, each in turn.
    is_over: Arc<AtomicBool>,
    _source: std::marker::PhantomData<&'s ()>,
}

impl Drop for Workers<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl<'s> Workers<'s> {
    /// As many threads as the machine has cores; they end when this is dropped.
    pub fn start<'scope>(
        scope: &'scope thread::Scope<'scope, 's>,
        source: &'s dyn Source,
        compression: Compression,
    ) -> io::Result<Self> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let (work, queue) = unbounded();
        let is_over = Arc::new(AtomicBool::new(false));
        for _ in 0..threads {
            let queue = queue.clone();
            let is_over = Arc::clone(&is_over);
            thread::Builder::new()
                .name("squashfs".into())
                .spawn_scoped(scope, move || serve(&queue, &is_over, source, compression))?;
        }
        Ok(Self {
            work,
            is_over,
            _source: std::marker::PhantomData,
        })
    }

    /// The block of a file of the image that begins at `at`.
    pub fn block(&self, file: u64, at: u64) -> Receiver<io::Result<Block>> {
        self.asked(|reply| Work::Block { file, at, reply })
    }

    /// Tails of files of the image.
    pub fn bundle(&self, tails: Vec<Tail>) -> Receiver<io::Result<Bundle>> {
        self.asked(|reply| Work::Bundle { tails, reply })
    }

    /// `len` bytes of ours from `at` on, a whole block.
    pub fn own_block(
        &self,
        plain: &Arc<[u8]>,
        at: usize,
        len: usize,
    ) -> Receiver<io::Result<Block>> {
        let plain = Arc::clone(plain);
        self.asked(|reply| Work::Own {
            plain,
            at,
            len,
            reply: Own::Block(reply),
        })
    }

    /// `len` bytes of ours from `at` on, a tail alone.
    pub fn own_tail(
        &self,
        plain: &Arc<[u8]>,
        at: usize,
        len: usize,
    ) -> Receiver<io::Result<Bundle>> {
        let plain = Arc::clone(plain);
        self.asked(|reply| Work::Own {
            plain,
            at,
            len,
            reply: Own::Bundle(reply),
        })
    }

    /// Compresses.
    pub fn fragment(&self, plain: Bytes) -> Receiver<Packed> {
        self.asked(|reply| Work::Fragment { plain, reply })
    }

    fn asked<T>(&self, work: impl FnOnce(Sender<T>) -> Work) -> Receiver<T> {
        let (reply, answer) = bounded(1);
        self.work
            .send(work(reply))
            .expect("workers live as long as somebody can ask them");
        answer
    }
}

/// Answers; whoever no longer listens has failed meanwhile.
fn serve(
    queue: &Receiver<Work>,
    is_over: &AtomicBool,
    source: &dyn Source,
    compression: Compression,
) {
    let mut packer = Packer {
        compressor: Compressor::new(compression),
        is_native: compression.is_native(),
    };
    for work in queue {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        match work {
            Work::Block { file, at, reply } => {
                let _ = reply.send(packer.block_of(source, file, at));
            }
            Work::Bundle { tails, reply } => {
                let stored = source.bundle(&tails);
                let _ = reply.send(stored.map(|stored| packer.bundle(stored, &tails)));
            }
            Work::Own {
                plain,
                at,
                len,
                reply,
            } => packer.own(plain.get(at..at + len), reply),
            Work::Fragment { plain, reply } => {
                let stored = Stored::plain(plain);
                let _ = reply.send(packer.packed(&stored));
            }
        }
    }
}

struct Packer {
    compressor: Compressor,
    /// Whether packings that the image has are what the compressor would make.
    is_native: bool,
}

impl Packer {
    /// A block that the image has packed as we would is not decoded for that.
    fn block_of(&mut self, source: &dyn Source, file: u64, at: u64) -> io::Result<Block> {
        if self.is_native
            && let Some(Packing {
                compressed: Some(compressed),
                digest,
            }) = source.packed_block(file, at)?
        {
            let packed = Packed::Compressed(compressed);
            return Ok(Some(PackedBlock { packed, digest }));
        }
        source.block(file, at).map(|stored| self.block(&stored))
    }

    fn block(&mut self, stored: &Stored) -> Block {
        if is_zero(&stored.plain) {
            return None;
        }
        let packed = self.packed(stored);
        let digest = match &stored.packing {
            Some(packing) if self.is_native => packing.digest,
            _ => blake3::hash(packed.bytes()),
        };
        Some(PackedBlock { packed, digest })
    }

    fn bundle(&mut self, stored: Stored, tails: &[Tail]) -> Bundle {
        let mut bundle = Bundle::default();
        let mut end = 0;
        for tail in tails {
            bundle
                .digests
                .push(blake3::hash(&stored.plain[end..end + tail.len]));
            end += tail.len;
            bundle.ends.push(end);
        }
        bundle.packed = self.known(&stored);
        bundle.plain = stored.plain;
        bundle
    }

    fn own(&mut self, plain: Option<&[u8]>, reply: Own) {
        let stored = plain
            .map(|plain| Stored::plain(plain.to_vec()))
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        match reply {
            Own::Block(reply) => {
                let _ = reply.send(stored.map(|stored| self.block(&stored)));
            }
            Own::Bundle(reply) => {
                let _ = reply.send(stored.map(|stored| {
                    let len = stored.plain.len();
                    let tail = Tail {
                        file: 0,
                        at: 0,
                        len,
                    };
                    self.bundle(stored, &[tail])
                }));
            }
        }
    }

    fn packed(&mut self, stored: &Stored) -> Packed {
        self.known(stored)
            .unwrap_or_else(|| match self.compressor.packed(&stored.plain) {
                Some(packed) => Packed::Compressed(packed.into()),
                None => Packed::Stored(stored.plain.clone()),
            })
    }

    fn known(&self, stored: &Stored) -> Option<Packed> {
        let packing = stored.packing.as_ref().filter(|_| self.is_native)?;
        Some(match &packing.compressed {
            Some(compressed) => Packed::Compressed(compressed.clone()),
            None => Packed::Stored(stored.plain.clone()),
        })
    }
}

/// Compares against itself shifted by one byte, which the C library's memcmp does at memory speed.
fn is_zero(block: &[u8]) -> bool {
    match block {
        [] => true,
        [first, rest @ ..] => *first == 0 && *rest == block[..rest.len()],
    }
}
