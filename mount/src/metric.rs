//! What is counted while the program runs. A number that is not declared here does not exist.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only rises.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    unit: &'static str,
    meaning: &'static str,
    count: AtomicU64,
}

impl Counter {
    const fn new(name: &'static str, unit: &'static str, meaning: &'static str) -> Self {
        Self {
            name,
            unit,
            meaning,
            count: AtomicU64::new(0),
        }
    }

    /// Counts `more` of them.
    pub fn add(&self, more: u64) {
        self.count.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far in this process.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Its name, for machines.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What one of them is.
    pub fn unit(&self) -> &'static str {
        self.unit
    }

    /// What is counted, for people.
    pub fn meaning(&self) -> &'static str {
        self.meaning
    }
}

/// HTTP requests sent to registries, token servers and the storage behind them.
pub static REQUESTS: Counter = Counter::new(
    "registry_requests",
    "requests",
    "HTTP requests sent to registries, token servers and the storage behind them",
);

/// Bytes of HTTP bodies received.
pub static RECEIVED: Counter = Counter::new(
    "registry_received",
    "bytes",
    "bytes of HTTP bodies received",
);

/// Tries that failed and were made again.
pub static RETRIES: Counter = Counter::new(
    "registry_retries",
    "requests",
    "requests made again because the first try failed",
);

/// All counters, in the order in which they are shown.
pub static ALL: [&Counter; 3] = [&REQUESTS, &RECEIVED, &RETRIES];
