//! What several test programs share: servers to be tested against.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod faulty;
pub mod http;
pub mod namespace;
pub mod real;
pub mod xattrs;
