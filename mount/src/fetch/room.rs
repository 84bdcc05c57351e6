//! Room for work that takes memory or a core for a while: large chunks that are decoded, tables that are parsed.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// A few places.
pub struct Room {
    free: Mutex<usize>,
    left: Condvar,
}

/// A place, until it is dropped.
pub struct Place<'a>(&'a Room);

impl Room {
    /// So many can be in it at a time.
    pub fn with_places(places: usize) -> Self {
        Self {
            free: Mutex::new(places),
            left: Condvar::new(),
        }
    }

    /// One for each core.
    pub fn of_cores() -> Self {
        Self::with_places(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Waits for a place; `None` at the deadline.
    pub fn enter(&self, deadline: Instant) -> Option<Place<'_>> {
        let mut free = self.free.lock();
        while *free == 0 {
            if self.left.wait_until(&mut free, deadline).timed_out() && *free == 0 {
                return None;
            }
        }
        *free -= 1;
        Some(Place(self))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_finds_no_place_waits_until_one_is_left_or_until_the_deadline() {
        let room = Room::with_places(3);
        let soon = Instant::now() + Duration::from_secs(30);
        let mut places: Vec<_> = (0..3).map(|_| room.enter(soon)).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(room.enter(Instant::now()).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| room.enter(soon).is_some());
            drop(places.pop());
            assert!(waiting.join().unwrap());
        });
    }
}
