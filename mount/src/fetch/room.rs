//! Room for large chunks: packed and plain they take megabytes each, and a machine has few cores to decode them anyway.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Large chunks that are decoded at a time.
const PLACES: usize = 4;

/// A few places.
pub(super) struct Room {
    free: Mutex<usize>,
    left: Condvar,
}

/// A place, until it is dropped.
pub(super) struct Place<'a>(&'a Room);

impl Default for Room {
    fn default() -> Self {
        Self {
            free: Mutex::new(PLACES),
            left: Condvar::new(),
        }
    }
}

impl Room {
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
        let room = Room::default();
        let soon = Instant::now() + Duration::from_secs(30);
        let mut places: Vec<_> = (0..PLACES).map(|_| room.enter(soon)).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(room.enter(Instant::now()).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| room.enter(soon).is_some());
            drop(places.pop());
            assert!(waiting.join().unwrap());
        });
    }
}
