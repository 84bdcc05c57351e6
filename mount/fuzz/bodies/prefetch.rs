//! Any bytes as a SOCI prefetch artifact: an error, or stretches of spans none of which is empty.

use sifon_mount::layer::soci::prefetched;

pub fn run(artifact: &[u8]) {
    if let Ok(spans) = prefetched(artifact) {
        assert!(spans.iter().all(|spans| !spans.is_empty()));
    }
}
