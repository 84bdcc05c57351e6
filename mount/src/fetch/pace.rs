//! How far away a source is, and how fast: what decides whether bytes that nobody wants are cheaper than another request.

use std::time::Duration;

use parking_lot::Mutex;

use super::blocks::BLOCK_BYTES;

/// What is assumed before anything was measured: a megabyte at 200 Mbit/s takes one round trip of 40 ms.
const ASSUMED_WORTH_BYTES: u64 = 1 << 20;

/// A reader that waits gets this much more than it asked for at most.
const WORTH_BYTES_LIMIT: u64 = 1 << 20;

/// After so many waits one more of such ranges is fetched beyond each for which a reader waits, and so on, up to the limit.
const WAITS_FOR_ONE_MORE: u64 = 16;

/// As many ranges are fetched beyond one at most. On lines of 5 ms and 40 ms the imports of a Python image take 5 and 10 % less
/// time with four, and 15 % more bytes.
const BEYOND_LIMIT: u64 = 4;

/// Shorter answers tell nothing about the rate.
const TELLING_BYTES: u64 = 128 << 10;

/// New measurements count for a quarter.
const WEIGHT: f64 = 0.25;

/// Round trip and rate of one source, as its answers showed them, and how often somebody waited for it.
#[derive(Default)]
pub(super) struct Pace(Mutex<Measured>);

#[derive(Clone, Copy, Default)]
struct Measured {
    round_trip_secs: Option<f64>,
    bytes_per_sec: Option<f64>,
    waits: u64,
}

impl Pace {
    /// An answer's first byte came after `first_byte`, all `bytes` of it after `whole`.
    pub fn measured(&self, first_byte: Duration, whole: Duration, bytes: u64) {
        let mut measured = self.0.lock();
        average(&mut measured.round_trip_secs, first_byte.as_secs_f64());
        let moving = whole.saturating_sub(first_byte).as_secs_f64();
        if bytes >= TELLING_BYTES && moving > 0.0 {
            average(&mut measured.bytes_per_sec, bytes as f64 / moving);
        }
    }

    /// How many bytes come in the time that a request costs, in whole blocks.
    pub fn worth_bytes(&self) -> u64 {
        let measured = *self.0.lock();
        let worth = match (measured.round_trip_secs, measured.bytes_per_sec) {
            (Some(secs), Some(rate)) => (secs * rate) as u64,
            _ => ASSUMED_WORTH_BYTES,
        };
        worth
            .clamp(BLOCK_BYTES, WORTH_BYTES_LIMIT)
            .next_multiple_of(BLOCK_BYTES)
    }

    /// The same in blocks.
    pub fn worth_blocks(&self) -> u64 {
        self.worth_bytes() / BLOCK_BYTES
    }

    /// Somebody begins to wait; how many blocks beyond those that are fetched for them are worth fetching, too. Programs that have
    /// waited often go on reading here and there, and much of it lies nearby; those that read little do not get as far.
    pub fn blocks_beyond_a_wait(&self) -> u64 {
        let waits = {
            let mut measured = self.0.lock();
            measured.waits += 1;
            measured.waits
        };
        (waits / WAITS_FOR_ONE_MORE).min(BEYOND_LIMIT) * self.worth_blocks()
    }

    /// The round trip that was measured, if any was.
    pub fn round_trip(&self) -> Option<Duration> {
        self.0.lock().round_trip_secs.map(Duration::from_secs_f64)
    }

    /// Bytes a second over one connection, if that was measured.
    pub fn rate(&self) -> Option<u64> {
        self.0.lock().bytes_per_sec.map(|rate| rate as u64)
    }
}

fn average(slot: &mut Option<f64>, new: f64) {
    *slot = Some(match *slot {
        Some(old) => old + (new - old) * WEIGHT,
        None => new,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_readers_wait_the_more_is_fetched_beyond_what_they_wait_for() {
        let pace = Pace::default();
        let beyond: Vec<u64> = (0..1000).map(|_| pace.blocks_beyond_a_wait()).collect();
        assert!(beyond.is_sorted());
        assert!(beyond[..15].iter().all(|&blocks| blocks == 0));
        assert_eq!(beyond[999], BEYOND_LIMIT * pace.worth_blocks());
    }

    #[test]
    fn a_far_source_is_worth_larger_ranges_than_a_near_one() {
        let measured = |round_trip_ms, megabytes_per_sec: u64| {
            let pace = Pace::default();
            let first = Duration::from_millis(round_trip_ms);
            let bytes = 1_000_000;
            pace.measured(
                first,
                first + Duration::from_secs(1) / megabytes_per_sec as u32,
                bytes,
            );
            pace.worth_bytes()
        };
        assert_eq!(measured(1, 20), BLOCK_BYTES);
        assert_eq!(measured(5, 100), 8 * BLOCK_BYTES);
        assert_eq!(measured(400, 100), WORTH_BYTES_LIMIT);
        assert_eq!(Pace::default().worth_bytes(), ASSUMED_WORTH_BYTES);
    }
}
