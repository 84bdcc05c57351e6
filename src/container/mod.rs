//! Programs in an image: what they see, as a value, and the few steps that make it so.
//!
//! A server process owns a user namespace, a mount namespace and the image's mount in it. The
//! program's own process joins them, binds what a Singularity user expects, and becomes the program:
//! nothing of ours stays above it. Everything lives exactly as long as the program's processes.
//!
//! The modules stand in dependency order: each names only those above it.

mod error;

pub mod bind;
pub mod environment;
pub mod identity;

pub mod plan;

pub mod wire;

pub mod namespaces;

pub mod binds;
pub mod process;

pub mod server;

pub mod launch;

pub use error::Error;
