//! The system underneath: every `unsafe` of the project, and types for the promises it needs.
#![allow(unsafe_code)]

pub mod account;
pub mod namespace;
pub mod process;
mod sealed;

pub use sealed::Sealed;
