//! The system underneath: every `unsafe` of the project, and types for the promises it needs.
#![allow(unsafe_code)]

mod sealed;

pub use sealed::Sealed;
