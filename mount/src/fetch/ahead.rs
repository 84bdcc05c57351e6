//! Sequential readers, and what they will ask for next.

use std::ops::Range;

use parking_lot::Mutex;

/// A reader's next place may lie so far from the last one: the kernel reads ahead in several requests at a time.
const SLACK_BYTES: u64 = 1 << 20;

/// What a reader that has just turned out to be sequential is given.
const FIRST_BYTES: u64 = 1 << 20;

/// What one that goes on is given at most.
const WINDOW_BYTES_LIMIT: u64 = 16 << 20;

/// Readers of one blob that are followed.
const STREAMS: usize = 16;

/// The readers of one blob, the one that read last in front.
#[derive(Default)]
pub(super) struct Ahead(Mutex<Vec<Stream>>);

struct Stream {
    next: u64,
    /// How far it was read ahead.
    until: u64,
    window: u64,
    /// How much it has read in a row.
    read: u64,
}

impl Ahead {
    /// Somebody reads `bytes`. Gives what should come next beyond that, if anything should: as much again as was read ahead
    /// before, whenever half of that is used.
    pub fn read(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        let mut streams = self.0.lock();
        let place = streams
            .iter()
            .position(|stream| bytes.start.abs_diff(stream.next) <= SLACK_BYTES);
        let mut stream = match place {
            Some(place) => streams.remove(place),
            None => Stream {
                next: bytes.end,
                until: bytes.end,
                window: 0,
                read: 0,
            },
        };
        stream.read += bytes.end - bytes.start;
        stream.next = stream.next.max(bytes.end);
        let wanted = stream.wanted();
        streams.insert(0, stream);
        streams.truncate(STREAMS);
        wanted
    }
}

impl Stream {
    fn wanted(&mut self) -> Option<Range<u64>> {
        let left = self.until.saturating_sub(self.next);
        if self.read < FIRST_BYTES || left > self.window / 2 {
            return None;
        }
        self.window = (self.window * 2).clamp(FIRST_BYTES, WINDOW_BYTES_LIMIT);
        let from = self.until.max(self.next);
        self.until = self.next.saturating_add(self.window);
        (from < self.until).then_some(from..self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 100_000;

    #[test]
    fn a_sequential_reader_is_read_ahead_for_more_and_more_and_never_twice() {
        let ahead = Ahead::default();
        let mut given: Vec<Range<u64>> = Vec::new();
        for at in (0..200 << 20).step_by(CHUNK as usize) {
            given.extend(ahead.read(&(at..at + CHUNK)));
        }
        assert!(given.is_sorted_by_key(|range| range.start));
        for pair in given.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        let longest = given.iter().map(|range| range.end - range.start).max();
        assert!(longest <= Some(WINDOW_BYTES_LIMIT));
        assert!(given.len() < 40, "{}", given.len());
    }

    #[test]
    fn readers_here_and_there_are_not_read_ahead_for() {
        let ahead = Ahead::default();
        for number in 0..1000 {
            let at = number * 37 % 1000 * (4 << 20);
            assert_eq!(ahead.read(&(at..at + CHUNK)), None);
        }
    }

    #[test]
    fn several_readers_at_a_time_are_each_read_ahead_for() {
        let ahead = Ahead::default();
        let mut given = [0; 8];
        for step in 0..100 {
            for (reader, given) in given.iter_mut().enumerate() {
                let at = (reader as u64) * (1 << 30) + step * CHUNK;
                *given += ahead
                    .read(&(at..at + CHUNK))
                    .map_or(0, |range| range.end - range.start);
            }
        }
        assert!(given.iter().all(|&given| given > 8 << 20), "{given:?}");
    }
}
