//! Threads for reads that may wait.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use fuser::{Errno, ReplyData};

use super::filesystem::failed;
use crate::image::Image;
use crate::tree::NodeId;

/// Reads that wait for store or network at once; as many threads are there as were needed. The kernel sends at most `max_background` read-aheads
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
    team: Arc<Team>,
}

/// The threads: each new one has caches to warm, so that those which are there are used first.
struct Team {
    image: Arc<Image>,
    reads: Receiver<Read>,
    started: AtomicUsize,
    /// Workers that wait, less the reads that wait for one.
    idle: AtomicIsize,
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
        let team = Arc::new(Team {
            image: Arc::clone(image),
            reads,
            started: AtomicUsize::new(0),
            idle: AtomicIsize::new(0),
        });
        // With one there is nobody whose failure to start would matter later.
        team.grow()?;
        Ok(Self {
            queue,
            timeout,
            team,
        })
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
        if self.team.idle.fetch_sub(1, Ordering::Relaxed) <= 0
            && let Err(err) = self.team.grow()
        {
            tracing::debug!(error = %err, "no more threads for reads");
        }
        if let Err(unsent) = self.queue.send_deadline(read, deadline) {
            self.team.idle.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(ino = id.0, "too many reads wait");
            unsent.into_inner().reply.error(Errno::EIO);
        }
    }
}

impl Team {
    /// Starts one more worker, unless there are enough.
    fn grow(self: &Arc<Self>) -> io::Result<()> {
        let more = |started| (started < WORKERS).then_some(started + 1);
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let Ok(number) = self.started.fetch_update(success, failure, more) else {
            return Ok(());
        };
        let team = Arc::clone(self);
        let started = thread::Builder::new()
            .name(format!("read-{number}"))
            .spawn(move || team.work());
        match started {
            Ok(_) => {
                self.idle.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(err) => {
                self.started.fetch_sub(1, Ordering::Relaxed);
                Err(err)
            }
        }
    }

    fn work(&self) {
        for read in &self.reads {
            let id = read.id;
            // A reply that is dropped by a panic answers EIO.
            let answered = catch_unwind(AssertUnwindSafe(|| answer(&self.image, read)));
            if answered.is_err() {
                tracing::error!(op = "read", ino = id.0, "panicked");
            }
            self.idle.fetch_add(1, Ordering::Relaxed);
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
