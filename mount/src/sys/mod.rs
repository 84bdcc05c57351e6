//! The system underneath: every `unsafe` of the project, and types for the promises it needs.
#![allow(unsafe_code)]

pub mod account;
pub mod answer;
pub mod descriptor;
pub mod disk;
pub mod inflate;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod process;
mod sealed;
pub mod signal;

pub use sealed::Sealed;
