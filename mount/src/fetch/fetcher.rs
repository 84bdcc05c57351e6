//! The threads that fetch, and who is served first: one who waits, then read-ahead, then what a profile tells, then what
//! completes the image.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::activity::{Activity, Why};
use super::blocks::Flight;
use super::pace::Pace;
use super::remote::Remote;
use crate::blob::{BlobError, Patience};

/// Readers count as active for this long after the last one was served: what completes the image waits so long.
const QUIET: Duration = Duration::from_millis(200);

/// What is less important holds its breath for a reader so long at most, or its server would hang up.
const PAUSE_LIMIT: Duration = Duration::from_millis(500);

/// How the source of an image is asked.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests at a time.
    pub connections: usize,
    /// Time without progress after which a range that nobody waits for fails.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8,
            timeout: Duration::from_secs(60),
        }
    }
}

/// Ranges of blocks to be brought, and how that ended.
pub(super) struct Job {
    pub remote: Arc<Remote>,
    pub blocks: Range<u64>,
    pub why: Why,
    pub patience: Patience,
    pub outcome: Arc<Outcome>,
}

/// `None` until the job is over; taken by the one who asked for it.
#[derive(Default)]
pub(super) struct Outcome {
    result: Mutex<Option<Result<(), BlobError>>>,
    came: Condvar,
}

impl Outcome {
    pub fn take(&self) -> Option<Result<(), BlobError>> {
        self.result.lock().take()
    }

    /// Waits for the end of the job, which has a deadline of its own.
    pub fn wait(&self) -> Result<(), BlobError> {
        let mut result = self.result.lock();
        loop {
            if let Some(result) = result.take() {
                return result;
            }
            self.came.wait(&mut result);
        }
    }

    fn set(&self, result: Result<(), BlobError>) {
        *self.result.lock() = Some(result);
        self.came.notify_all();
    }
}

/// Fetches for one opened image. Its threads start when they are needed, and end after it is dropped.
pub(super) struct Fetcher(Arc<Shared>);

/// What the threads share.
pub(super) struct Shared {
    pub limits: Limits,
    pub pace: Pace,
    pub activity: Activity,
    line: Mutex<Line>,
    changed: Condvar,
}

#[derive(Default)]
struct Line {
    waiting: [VecDeque<Job>; 4],
    flying: [usize; 4],
    threads: usize,
    idle: usize,
    last_read: Option<Instant>,
    is_over: bool,
}

impl Fetcher {
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared {
            limits,
            pace: Pace::default(),
            activity: Activity::new(),
            line: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Has these blocks brought; returns at once.
    pub fn bring(
        &self,
        remote: &Arc<Remote>,
        blocks: Range<u64>,
        why: Why,
        patience: Patience,
    ) -> Arc<Outcome> {
        let outcome = Arc::new(Outcome::default());
        let job = Job {
            remote: Arc::clone(remote),
            blocks,
            why,
            patience,
            outcome: Arc::clone(&outcome),
        };
        let mut line = self.0.line.lock();
        line.waiting[why as usize].push_back(job);
        let waiting: usize = line.waiting.iter().map(VecDeque::len).sum();
        if line.idle < waiting && line.threads < self.0.limits.connections.max(1) {
            let shared = Arc::clone(&self.0);
            let started = thread::Builder::new()
                .name("fetch".into())
                .spawn(move || shared.work());
            match started {
                Ok(_) => line.threads += 1,
                Err(err) if line.threads == 0 => {
                    if let Some(job) = line.waiting[why as usize].pop_back() {
                        job.outcome.set(Err(BlobError::Wrong {
                            object: format!("layer {}", remote.layer()),
                            problem: format!("no thread to fetch it with: {err}"),
                        }));
                    }
                }
                Err(_) => {}
            }
        }
        drop(line);
        self.0.changed.notify_all();
        outcome
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let mut line = self.0.line.lock();
        line.is_over = true;
        line.waiting = Default::default();
        drop(line);
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut line = self.line.lock();
        loop {
            if line.is_over {
                return;
            }
            let Some(job) = line.next(self.limits.connections.max(1)) else {
                line.idle += 1;
                match line.waiting.iter().all(VecDeque::is_empty) {
                    true => self.changed.wait(&mut line),
                    // What may not begin yet may when it has been quiet for a while.
                    false => drop(self.changed.wait_for(&mut line, QUIET)),
                }
                line.idle -= 1;
                continue;
            };
            let why = job.why;
            line.flying[why as usize] += 1;
            drop(line);
            let landing = Landing {
                shared: self,
                why,
                outcome: Arc::clone(&job.outcome),
                remote: Arc::clone(&job.remote),
                result: None,
            };
            landing.with(|| job.remote.fly(&job, self));
            line = self.line.lock();
        }
    }

    /// Called by one who brings what nobody waits for, between two pieces of it: lets readers have the line.
    pub fn make_way(&self, why: Why, flight: &Flight) {
        if why <= Why::ReadAhead {
            return;
        }
        let until = Instant::now() + PAUSE_LIMIT;
        let mut line = self.line.lock();
        while line.flying[Why::Read as usize] > 0 && !flight.is_urgent() && !line.is_over {
            if self.changed.wait_until(&mut line, until).timed_out() {
                return;
            }
        }
    }

    /// Wakes those who make way: a flight has become urgent.
    pub fn hurry(&self, flight: &Flight) {
        flight.hurry();
        self.changed.notify_all();
    }
}

/// Ends a job however it ended, panic included.
struct Landing<'a> {
    shared: &'a Shared,
    why: Why,
    outcome: Arc<Outcome>,
    remote: Arc<Remote>,
    result: Option<Result<(), BlobError>>,
}

impl Landing<'_> {
    fn with(mut self, job: impl FnOnce() -> Result<(), BlobError>) {
        let job = std::panic::AssertUnwindSafe(job);
        self.result = std::panic::catch_unwind(job).ok();
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            Err(BlobError::Wrong {
                object: format!("layer {}", self.remote.layer()),
                problem: "fetching it broke down".into(),
            })
        });
        self.outcome.set(result);
        self.remote.wake();
        let mut line = self.shared.line.lock();
        line.flying[self.why as usize] -= 1;
        if self.why <= Why::ReadAhead {
            line.last_read = Some(Instant::now());
        }
        drop(line);
        self.shared.changed.notify_all();
    }
}

impl Line {
    /// The most important job that may begin while others fly: a reader finds a thread without waiting for one.
    fn next(&mut self, threads: usize) -> Option<Job> {
        Why::ALL.into_iter().find_map(|why| {
            let may = why == Why::Read || self.others() < self.share(why, threads);
            may.then(|| self.waiting[why as usize].pop_front())?
        })
    }

    fn others(&self) -> usize {
        self.flying[Why::ReadAhead as usize..].iter().sum()
    }

    /// How many threads may bring what nobody waits for, if the next one is for this purpose.
    fn share(&self, why: Why, threads: usize) -> usize {
        if threads == 1 {
            return usize::from(self.flying[Why::Read as usize] == 0);
        }
        match why {
            Why::Read | Why::ReadAhead => threads - 1,
            Why::Profile => threads - (threads / 4).max(1),
            Why::Background => match self.last_read {
                None => threads - 1,
                Some(_) if !self.is_quiet() => 0,
                Some(_) => (threads / 2).max(1),
            },
        }
    }

    fn is_quiet(&self) -> bool {
        self.flying[Why::Read as usize] + self.flying[Why::ReadAhead as usize] == 0
            && self.last_read.is_none_or(|last| last.elapsed() >= QUIET)
    }
}
