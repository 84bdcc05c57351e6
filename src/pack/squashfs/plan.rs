//! What is to be stored, step by step, and asked of the workers some steps ahead.

use std::collections::VecDeque;
use std::io;

use crossbeam_channel::Receiver;

use super::catalogue::{Catalogue, FileIndex};
use super::workers::{Block, Bundle, Workers};
use super::{BLOCK_BYTES, SquashfsError};
use crate::pack::contents::Contents;
use crate::pack::layout::{Placed, Sized, Tail, tail_len};
use crate::pack::node::{Content, Source};

/// Steps that are ahead at most: blocks of 128 KiB, plain and packed, so 12 MiB.
const AHEAD: usize = 48;

/// One step. A file is `Start`, its blocks, and `End`; a bundle comes before the first file with a tail in it.
pub(super) enum Step {
    Bundle {
        bundle: Receiver<io::Result<Bundle>>,
        is_whole: bool,
    },
    Start,
    Block {
        block: Receiver<io::Result<Block>>,
    },
    Zeros {
        blocks: u64,
    },
    End {
        file: FileIndex,
        tail: usize,
    },
}

/// A file with bytes.
#[derive(Clone)]
struct File {
    index: FileIndex,
    size: u64,
    content: Content,
}

/// The steps that store all contents.
pub(super) struct Plan<'a> {
    source: &'a dyn Source,
    files: Vec<File>,
    order: Vec<Placed>,
    /// The place in the order of the next file.
    next: usize,
    is_whole: Vec<bool>,
    /// The last bundle that was asked for.
    bundle: Option<u32>,
    /// The file whose blocks come next, and where.
    current: Option<(File, u64)>,
    ahead: VecDeque<(FileIndex, Step)>,
    /// The file of the last step.
    file: FileIndex,
}

/// Why there is no next step.
pub(super) struct PlanError {
    file: FileIndex,
    source: io::Error,
}

impl PlanError {
    pub fn of(self, catalogue: &Catalogue) -> SquashfsError {
        SquashfsError::Content {
            path: catalogue.path(self.file),
            source: self.source,
        }
    }
}

impl<'a> Plan<'a> {
    /// Stores the image's files in the order of its layers, and then ours.
    pub fn of(contents: &Contents<'a>, catalogue: &Catalogue) -> io::Result<Self> {
        let source = contents.source();
        let file = |(index, size, content): (FileIndex, u64, &Content)| File {
            index,
            size,
            content: content.clone(),
        };
        let (mut files, own): (Vec<_>, Vec<_>) = catalogue
            .contents()
            .map(file)
            .partition(|file| matches!(file.content, Content::InImage(_)));
        let sized: Vec<_> = files
            .iter()
            .filter_map(|file| match file.content {
                Content::InImage(number) => Some(Sized {
                    file: number,
                    size: file.size,
                }),
                Content::Here(_) => None,
            })
            .collect();
        let mut layout = source.layout(&sized)?;
        for file in own {
            // Each alone in a bundle that is not whole, so that they share a fragment.
            let bundle = (tail_len(file.size) > 0).then(|| {
                layout.is_whole.push(false);
                layout.is_whole.len() as u32 - 1
            });
            let index = files.len();
            layout.order.push(Placed { index, bundle });
            files.push(file);
        }
        Ok(Self {
            source,
            files,
            order: layout.order,
            next: 0,
            is_whole: layout.is_whole,
            bundle: None,
            current: None,
            ahead: VecDeque::new(),
            file: 0,
        })
    }

    /// The next step, when enough others have been asked for.
    pub fn next(&mut self, workers: &Workers<'_>) -> Result<Option<Step>, PlanError> {
        while self.ahead.len() < AHEAD && self.advance(workers)? {}
        Ok(self.ahead.pop_front().map(|(file, step)| {
            self.file = file;
            step
        }))
    }

    /// The file that the last step belongs to.
    pub fn file_of(&self) -> FileIndex {
        self.file
    }

    /// Asks for one more step, or several that need no work; `false` at the end.
    fn advance(&mut self, workers: &Workers<'_>) -> Result<bool, PlanError> {
        match self.current.take() {
            Some((file, at)) => {
                let failed = |source| PlanError {
                    file: file.index,
                    source,
                };
                let whole = file.size - tail_len(file.size) as u64;
                if at == whole {
                    let tail = tail_len(file.size);
                    let index = file.index;
                    self.push(index, Step::End { file: index, tail });
                    return Ok(true);
                }
                let (step, len) = self.blocks(&file, at, whole, workers).map_err(failed)?;
                self.push(file.index, step);
                self.current = Some((file, at + len));
                Ok(true)
            }
            None => {
                let Some(&placed) = self.order.get(self.next) else {
                    return Ok(false);
                };
                if placed.bundle.is_some() && placed.bundle != self.bundle {
                    self.ask_for_bundle(placed, workers);
                }
                let file = self.files[placed.index].clone();
                self.push(file.index, Step::Start);
                self.current = Some((file, 0));
                self.next += 1;
                Ok(true)
            }
        }
    }

    fn push(&mut self, file: FileIndex, step: Step) {
        self.ahead.push_back((file, step));
    }

    /// The block at `at`, or the hole there, and how many bytes that is.
    fn blocks(
        &self,
        file: &File,
        at: u64,
        whole: u64,
        workers: &Workers<'_>,
    ) -> io::Result<(Step, u64)> {
        let block_bytes = BLOCK_BYTES as u64;
        let block = match &file.content {
            Content::InImage(number) => {
                let blocks = self.source.hole(*number, at)?.min(whole - at) / block_bytes;
                if blocks > 0 {
                    return Ok((Step::Zeros { blocks }, blocks * block_bytes));
                }
                workers.block(*number, at)
            }
            Content::Here(bytes) => workers.own_block(bytes, at as usize, BLOCK_BYTES),
        };
        Ok((Step::Block { block }, block_bytes))
    }

    /// Asks for the bundle of `first`, which has the tails of all files that share it.
    fn ask_for_bundle(&mut self, first: Placed, workers: &Workers<'_>) {
        self.bundle = first.bundle;
        let File {
            index,
            size,
            content,
        } = &self.files[first.index];
        let index = *index;
        let tail_at = size - tail_len(*size) as u64;
        let bundle = match content {
            Content::Here(bytes) => workers.own_tail(bytes, tail_at as usize, tail_len(*size)),
            Content::InImage(_) => workers.bundle(self.tails(first)),
        };
        let is_whole = first
            .bundle
            .and_then(|bundle| self.is_whole.get(bundle as usize))
            .copied()
            .unwrap_or(false);
        self.push(index, Step::Bundle { bundle, is_whole });
    }

    /// The tails in the bundle of `first`, which the files after it may have, those without a tail among them.
    fn tails(&self, first: Placed) -> Vec<Tail> {
        self.order[self.next..]
            .iter()
            .take_while(|placed| placed.bundle.is_none() || placed.bundle == first.bundle)
            .filter(|placed| placed.bundle.is_some())
            .filter_map(|placed| {
                let File { size, content, .. } = &self.files[placed.index];
                let Content::InImage(file) = content else {
                    return None;
                };
                let len = tail_len(*size);
                Some(Tail {
                    file: *file,
                    at: size - len as u64,
                    len,
                })
            })
            .collect()
    }
}
