//! One flight for each thing to fetch, however many ask.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// What is being fetched at the moment.
pub(super) struct Flights<K> {
    flying: Mutex<HashSet<K>>,
    landed: Condvar,
}

/// The right, and the duty, to fetch one thing. Dropping it wakes the waiters however the fetch ended, panic
/// included: nobody waits for what no one is fetching.
pub(super) struct Leader<'a, K: Eq + Hash + Copy> {
    flights: &'a Flights<K>,
    key: K,
}

impl<K: Eq + Hash + Copy> Flights<K> {
    /// `Some` for the one who fetches, if nobody does already.
    pub fn lead(&self, key: K) -> Option<Leader<'_, K>> {
        let is_first = self.flying.lock().insert(key);
        is_first.then_some(Leader { flights: self, key })
    }

    /// `Some` for the one who fetches. The others wait until that is over, or until `deadline`, and get
    /// `None`: they look again, and if time is left, ask again.
    pub fn lead_or_wait(&self, key: K, deadline: Instant) -> Option<Leader<'_, K>> {
        let mut flying = self.flying.lock();
        if flying.insert(key) {
            return Some(Leader { flights: self, key });
        }
        let is_flying = |flying: &mut HashSet<K>| flying.contains(&key);
        let left = deadline.saturating_duration_since(Instant::now());
        self.landed.wait_while_for(&mut flying, is_flying, left);
        None
    }
}

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Self {
            flying: Mutex::new(HashSet::new()),
            landed: Condvar::new(),
        }
    }
}

impl<K: Eq + Hash + Copy> Drop for Leader<'_, K> {
    fn drop(&mut self) {
        self.flights.flying.lock().remove(&self.key);
        self.flights.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn many_who_ask_make_one_flight() {
        let flights = Flights::default();
        let (led, done) = (AtomicU32::new(0), AtomicU32::new(0));
        let deadline = Instant::now() + Duration::from_secs(30);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while done.load(Ordering::SeqCst) == 0 {
                        let leader = flights.lead_or_wait(1, deadline);
                        if leader.is_some() && done.load(Ordering::SeqCst) == 0 {
                            led.fetch_add(1, Ordering::SeqCst);
                            done.store(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(led.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_leader_that_panics_leaves_nobody_waiting() {
        let flights = Flights::default();
        let deadline = Instant::now() + Duration::from_secs(30);
        let panicked = thread::scope(|scope| {
            let leading = scope.spawn(|| {
                let _leader = flights.lead_or_wait(1, deadline);
                panic!("the fetch failed");
            });
            leading.join().is_err()
        });
        assert!(panicked);
        assert!(flights.lead_or_wait(1, deadline).is_some());
    }

    #[test]
    fn waiting_ends_by_the_deadline() {
        let flights = Flights::default();
        let _leader = flights.lead_or_wait(1, Instant::now());
        assert!(flights.lead_or_wait(1, Instant::now()).is_none());
    }
}
