//! Bad input through the real program: whatever is wrong, one clear error that names it, in time, and nothing left.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]
#![allow(
    dead_code,
    reason = "the HTTP server is shared with tests that use more of it"
)]

#[path = "../../mount/tests/support/faulty.rs"]
mod faulty;
#[path = "../../mount/tests/support/http.rs"]
mod http;

mod documents;
mod files;
mod layers;
mod layout;
mod registry;
mod sandbox;
mod store;
mod tar_stream;
