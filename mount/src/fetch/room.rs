//! Room for work that takes memory or a core for a while: large chunks that are decoded, tables that are parsed.

use std::collections::BTreeSet;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// A few places.
pub struct Room {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: usize,
    /// Who waits: their ranks, and when they came.
    waiting: BTreeSet<(usize, u64)>,
    come: u64,
}

/// A place, until it is dropped.
pub struct Place<'a>(&'a Room);

impl Room {
    /// So many can be in it at a time.
    pub fn with_places(places: usize) -> Self {
        Self {
            state: Mutex::new(State {
                free: places,
                waiting: BTreeSet::new(),
                come: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// One for each core.
    pub fn of_cores() -> Self {
        Self::with_places(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Waits for a place; `None` at the deadline.
    pub fn enter(&self, deadline: Instant) -> Option<Place<'_>> {
        self.enter_as(0, deadline)
    }

    /// The same for one of `rank`: those of a lower one go first, and who came first among equals.
    pub fn enter_as(&self, rank: usize, deadline: Instant) -> Option<Place<'_>> {
        let mut state = self.state.lock();
        let me = (rank, state.come);
        state.come += 1;
        state.waiting.insert(me);
        let is_next = |state: &State| state.free > 0 && state.waiting.first() == Some(&me);
        while !is_next(&state) {
            let is_over = self.changed.wait_until(&mut state, deadline).timed_out();
            if is_over && !is_next(&state) {
                state.waiting.remove(&me);
                self.changed.notify_all();
                return None;
            }
        }
        state.waiting.remove(&me);
        state.free -= 1;
        if state.free > 0 && !state.waiting.is_empty() {
            self.changed.notify_all();
        }
        Some(Place(self))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.free += 1;
        if !state.waiting.is_empty() {
            self.0.changed.notify_all();
        }
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

    #[test]
    fn those_of_a_lower_rank_go_first() {
        let room = Room::with_places(1);
        let soon = Instant::now() + Duration::from_secs(30);
        let place = room.enter(soon).unwrap();
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for rank in [3, 1, 2, 1] {
                let (room, order) = (&room, &order);
                scope.spawn(move || {
                    let _place = room.enter_as(rank, soon).unwrap();
                    order.lock().push(rank);
                });
            }
            while room.state.lock().waiting.len() < 4 {
                std::thread::yield_now();
            }
            // Who gives up is not waited for.
            assert!(room.enter_as(0, Instant::now()).is_none());
            drop(place);
        });
        assert_eq!(*order.lock(), [1, 1, 2, 3]);
        assert_eq!(room.state.lock().free, 1);
    }
}
