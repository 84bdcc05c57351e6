//! Threads for reads that may wait.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use fuser::{Errno, ReplyData};

use super::filesystem::failed;
use crate::image::Image;
use crate::tree::NodeId;

/// Reads that wait for store or network at once. The kernel sends at most `max_background` read-aheads
/// and one read for each thread of a program that waits.
const WORKERS: usize = 16;

/// Reads that wait for a worker at most, each about 100 bytes.
const QUEUE_LIMIT: usize = 4096;

/// Takes reads off the threads that talk to the kernel. Every read is answered soon after its deadline at the
/// latest: a worker works on one no longer than until that read's own deadline, and the reads before it in the queue
/// have earlier ones.
pub(super) struct Workers {
    queue: Sender<Read>,
    timeout: Duration,
}

struct Read {
    id: NodeId,
    offset: u64,
    len: u32,
    deadline: Instant,
    reply: ReplyData,
}

impl Workers {
    /// They end when this is dropped.
    pub(super) fn start(image: &Arc<Image>, timeout: Duration) -> io::Result<Self> {
        let (queue, reads) = bounded(QUEUE_LIMIT);
        for number in 0..WORKERS {
            let image = Arc::clone(image);
            let reads = reads.clone();
            thread::Builder::new()
                .name(format!("read-{number}"))
                .spawn(move || work(&image, &reads))?;
        }
        Ok(Self { queue, timeout })
    }

    /// Answers `reply` from a worker. Returns at once, unless thousands of reads wait already: then when
    /// there is room, or with EIO at the read's deadline.
    pub(super) fn read(&self, id: NodeId, offset: u64, len: u32, reply: ReplyData) {
        let deadline = Instant::now() + self.timeout;
        let read = Read {
            id,
            offset,
            len,
            deadline,
            reply,
        };
        if let Err(unsent) = self.queue.send_deadline(read, deadline) {
            tracing::warn!(ino = id.0, "too many reads wait");
            unsent.into_inner().reply.error(Errno::EIO);
        }
    }
}

fn work(image: &Image, reads: &Receiver<Read>) {
    for read in reads {
        let id = read.id;
        // A reply that is dropped by a panic answers EIO.
        let answered = catch_unwind(AssertUnwindSafe(|| answer(image, read)));
        if answered.is_err() {
            tracing::error!(op = "read", ino = id.0, "panicked");
        }
    }
}

fn answer(image: &Image, read: Read) {
    if Instant::now() >= read.deadline {
        tracing::warn!(op = "read", ino = read.id.0, "waited too long for others");
        return read.reply.error(Errno::EIO);
    }
    match image.read(read.id, read.offset, read.len, read.deadline) {
        Ok(bytes) => read.reply.data(&bytes),
        Err(err) => read.reply.error(failed("read", read.id, &err)),
    }
}
