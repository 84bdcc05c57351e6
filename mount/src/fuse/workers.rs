//! Reads that may wait, and the threads for those that the threads that take requests cannot do themselves.

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

/// Does reads that may wait: on the thread that took the request, which saves waking another one, if they need nothing from a
/// registry and as long as that leaves one thread that takes requests; else on a worker. Every read is answered soon after its
/// deadline at the latest: a worker works on one no longer than until that read's own deadline, and the reads before it in the
/// queue have earlier ones.
pub(super) struct Workers {
    queue: Sender<Read>,
    timeout: Duration,
    /// Threads that take requests and may do a read now, all but one of them.
    free: AtomicIsize,
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
    /// For an image whose requests `takers` threads take. The workers end when this is dropped.
    pub(super) fn start(image: &Arc<Image>, timeout: Duration, takers: usize) -> io::Result<Self> {
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
            free: AtomicIsize::new(isize::try_from(takers).unwrap_or(isize::MAX) - 1),
            team,
        })
    }

    /// Answers `reply`, on this thread, which takes requests, or from a worker; then it returns at once, unless thousands of reads
    /// wait already: when there is room, or with EIO at the read's deadline.
    pub(super) fn read(&self, id: NodeId, offset: u64, len: u32, reply: ReplyData) {
        let deadline = Instant::now() + self.timeout;
        let read = Read {
            id,
            offset,
            len,
            deadline,
            reply,
        };
        let image = &self.team.image;
        // Who unmounts waits for the threads that take requests: none of them is to wait for a registry.
        let turn = image.is_near(id, offset, len).then(|| Turn::of(&self.free));
        match turn.flatten() {
            Some(turn) => read.answer(image, turn),
            None => self.hand_over(read),
        }
    }

    fn hand_over(&self, read: Read) {
        let (id, deadline) = (read.id, read.deadline);
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
            read.answer(&self.image, Turn(&self.idle));
        }
    }
}

/// One of the threads that may do a read is at work. They are counted as free again before the read is answered: who gets the answer
/// may ask for more before this thread is there again.
struct Turn<'a>(&'a AtomicIsize);

impl<'a> Turn<'a> {
    fn of(free: &'a AtomicIsize) -> Option<Self> {
        let fewer = |free: isize| (free > 0).then_some(free - 1);
        let taken = free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        taken.is_ok().then_some(Self(free))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Read {
    fn answer(self, image: &Image, turn: Turn<'_>) {
        if Instant::now() >= self.deadline {
            tracing::warn!(op = "read", ino = self.id.0, "waited too long for others");
            drop(turn);
            return self.reply.error(Errno::EIO);
        }
        let read = || image.read(self.id, self.offset, self.len, self.deadline);
        let read = catch_unwind(AssertUnwindSafe(read));
        drop(turn);
        match read {
            Ok(Ok(bytes)) => self.reply.data(&bytes),
            Ok(Err(err)) => self.reply.error(failed("read", self.id, &err)),
            Err(_) => {
                tracing::error!(op = "read", ino = self.id.0, "panicked");
                self.reply.error(Errno::EIO);
            }
        }
    }
}
