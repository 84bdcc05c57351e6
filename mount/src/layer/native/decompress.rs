//! A layer's plain blocks out of its packed ones.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use crossbeam_channel::bounded;

use super::blocks::{BLOCKS_WAITING, BlockReader, Blocks, Buffers};
use super::compress::Streaming;
use crate::layer::inflate;

/// Packed bytes that are still read when a tar stream has turned out to be damaged, to see whether they are the
/// ones that the manifest names.
const DRAINED_BYTES_LIMIT: u64 = 256 << 20;

/// Plain blocks for one reader.
pub(super) enum Decompressed {
    /// The reader's thread decompresses them.
    Here(Decompressor, Arc<Streaming>),
    /// Another thread does, ahead of the reader, until it has `abandoned` the stream.
    Ahead {
        blocks: Blocks,
        abandoned: Arc<AtomicBool>,
    },
}

impl Decompressed {
    pub fn new(packed: Blocks, streaming: Arc<Streaming>) -> Self {
        let decompressor = Decompressor {
            packed,
            plain: None,
            buffers: Buffers::new(),
            is_whole: false,
        };
        Self::Here(decompressor, streaming)
    }

    /// The next block; empty at the end of the stream.
    pub fn next(&mut self) -> io::Result<Bytes> {
        match self {
            // Not before its first bytes came: by then the layers that start with it have started.
            Self::Here(decompressor, streaming)
                if streaming.fills_cores() || !decompressor.has_begun() =>
            {
                decompressor.next_block()
            }
            Self::Here(..) => {
                self.go_ahead();
                self.next()
            }
            Self::Ahead { blocks, .. } => blocks.recv().unwrap_or_else(|_| Ok(Bytes::new())),
        }
    }

    fn go_ahead(&mut self) {
        let (sender, blocks) = bounded(BLOCKS_WAITING);
        let abandoned = Arc::default();
        let ahead = Self::Ahead {
            blocks,
            abandoned: Arc::clone(&abandoned),
        };
        if let Self::Here(mut decompressor, _) = std::mem::replace(self, ahead) {
            thread::spawn(move || {
                loop {
                    let block = decompressor.next_block();
                    let is_last = block.as_ref().map_or(true, Bytes::is_empty);
                    if sender.send(block).is_err() || is_last {
                        break;
                    }
                }
                drop(sender);
                decompressor.drain(&abandoned);
            });
        }
    }

    /// Ends it, and sees to it that packed blocks are taken, all or at least [`DRAINED_BYTES_LIMIT`], so that their digest can be
    /// told.
    pub fn finish(self) {
        if let Self::Here(decompressor, _) = self {
            decompressor.drain(&AtomicBool::default());
        }
    }

    /// Ends it for a reason of ours; nobody asks for a digest.
    pub fn abandon(self) {
        if let Self::Ahead { abandoned, .. } = self {
            abandoned.store(true, Ordering::Relaxed);
        }
    }
}

impl From<Blocks> for Decompressed {
    /// Blocks that are plain already.
    fn from(blocks: Blocks) -> Self {
        let abandoned = Arc::default();
        Self::Ahead { blocks, abandoned }
    }
}

pub(super) struct Decompressor {
    packed: Blocks,
    /// Its plain bytes, once the first packed ones have come.
    plain: Option<Box<dyn Read + Send>>,
    buffers: Buffers,
    /// Whether all that follows belongs to no stream.
    is_whole: bool,
}

impl Decompressor {
    fn has_begun(&self) -> bool {
        self.plain.is_some()
    }

    fn next_block(&mut self) -> io::Result<Bytes> {
        let plain = match &mut self.plain {
            Some(plain) => plain,
            None => {
                let packed = BlockReader::new(self.packed.clone());
                self.plain.insert(inflate::plain(packed)?)
            }
        };
        let block = self.buffers.next_block(plain)?;
        self.is_whole = block.is_empty();
        Ok(block)
    }

    fn drain(self, abandoned: &AtomicBool) {
        let mut drained = 0;
        for block in self.packed.iter().flatten() {
            drained += block.len() as u64;
            let is_enough = !self.is_whole && drained > DRAINED_BYTES_LIMIT;
            if is_enough || abandoned.load(Ordering::Relaxed) {
                break;
            }
        }
    }
}
