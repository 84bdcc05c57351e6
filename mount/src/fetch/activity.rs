//! What was fetched, why, and how that went: what `stats` tells.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Requests that are remembered one by one; older ones are only counted.
const REQUESTS_LIMIT: usize = 1 << 14;

/// Why bytes are fetched. The order is that of their importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A reader waits for them.
    Read,
    /// A sequential reader will ask for them next.
    ReadAhead,
    /// They were read when the image was mounted before, or its publisher says that they will be.
    Profile,
    /// They complete the image.
    Background,
}

impl Why {
    /// All of them, the most important first.
    pub const ALL: [Self; 4] = [Self::Read, Self::ReadAhead, Self::Profile, Self::Background];

    /// For people and as a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadAhead => "read ahead",
            Self::Profile => "profile",
            Self::Background => "background",
        }
    }
}

/// One request for a range of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Microseconds after the image was opened.
    pub at_us: u64,
    /// Until the first byte came.
    pub first_byte_us: u64,
    /// Until the last.
    pub took_us: u64,
    /// The blob.
    pub layer: Digest,
    /// The range's first byte.
    pub from: u64,
    /// How many bytes came.
    pub bytes: u64,
    /// Why.
    pub why: Why,
    /// Whether it ended with an error.
    pub failed: bool,
}

/// Requests and bytes for one purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Requests.
    pub requests: u64,
    /// Those that failed.
    pub failures: u64,
    /// Packed bytes that came.
    pub bytes: u64,
}

/// What moved since an image was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// By purpose, in the order of [`Why::ALL`].
    pub fetched: [Count; 4],
    /// Chunks that were decoded from what the store had.
    pub chunks_from_store: u64,
    /// Chunks for which a reader waited for the source.
    pub chunks_waited_for: u64,
    /// Bytes that were fetched again because the first time, or in the store, they were wrong.
    pub fetched_again: u64,
    /// How long a request takes to the first byte, in microseconds, lately.
    pub round_trip_us: Option<u64>,
    /// Bytes a second over one connection, lately.
    pub bytes_per_sec: Option<u64>,
}

/// Counts and remembers, for one opened image.
pub(super) struct Activity {
    since: Instant,
    requests: Mutex<Requests>,
    pub chunks_from_store: AtomicU64,
    pub chunks_waited_for: AtomicU64,
    pub fetched_again: AtomicU64,
}

#[derive(Default)]
struct Requests {
    counts: [Count; 4],
    latest: VecDeque<Request>,
}

/// A request that has begun.
pub(super) struct Begun {
    at: Instant,
    pub first_byte: Option<Duration>,
    pub bytes: u64,
}

impl Begun {
    pub fn now() -> Self {
        Self {
            at: Instant::now(),
            first_byte: None,
            bytes: 0,
        }
    }

    pub fn came(&mut self, bytes: u64) {
        self.first_byte.get_or_insert_with(|| self.at.elapsed());
        self.bytes += bytes;
    }

    pub fn elapsed(&self) -> Duration {
        self.at.elapsed()
    }
}

impl Activity {
    pub fn new() -> Self {
        Self {
            since: Instant::now(),
            requests: Mutex::default(),
            chunks_from_store: AtomicU64::new(0),
            chunks_waited_for: AtomicU64::new(0),
            fetched_again: AtomicU64::new(0),
        }
    }

    pub fn ended(&self, begun: &Begun, layer: Digest, from: u64, why: Why, failed: bool) {
        let took = begun.elapsed();
        let micros = |time: Duration| time.as_micros() as u64;
        let mut requests = self.requests.lock();
        let count = &mut requests.counts[why as usize];
        count.requests += 1;
        count.failures += u64::from(failed);
        count.bytes += begun.bytes;
        if requests.latest.len() == REQUESTS_LIMIT {
            requests.latest.pop_front();
        }
        requests.latest.push_back(Request {
            at_us: micros(begun.at.saturating_duration_since(self.since)),
            first_byte_us: micros(begun.first_byte.unwrap_or(took)),
            took_us: micros(took),
            layer,
            from,
            bytes: begun.bytes,
            why,
            failed,
        });
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().latest.iter().cloned().collect()
    }

    pub fn moved(&self) -> Moved {
        Moved {
            fetched: self.requests.lock().counts,
            chunks_from_store: self.chunks_from_store.load(Ordering::Relaxed),
            chunks_waited_for: self.chunks_waited_for.load(Ordering::Relaxed),
            fetched_again: self.fetched_again.load(Ordering::Relaxed),
            round_trip_us: None,
            bytes_per_sec: None,
        }
    }
}
