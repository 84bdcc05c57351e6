//! Programs in an image: what they see, as a value, and the few steps that make it so.
//!
//! A server process, one for each user, job and node, shows images and owns a user namespace. The program's own process joins
//! that, mounts the image in a mount namespace if nobody has yet, binds what a Singularity user expects in a copy of it, and becomes
//! the program: nothing of ours stays above it.
//!
//! The modules stand in dependency order: each names only those above it.

mod error;

pub mod bind;
pub mod identity;
pub mod runscript;
pub mod variables;

pub mod environment;
pub mod scripts;

pub mod app;
pub mod subids;

pub mod ext;

pub mod plan;

pub mod wire;

pub mod namespaces;

pub mod front;

pub mod directory;

pub mod binds;
mod devices;
pub mod outside;
pub mod process;
pub mod supervise;
pub mod writable;

pub mod clients;
pub mod meeting;

pub mod images;

pub mod ahead;
mod attended;
pub mod targets;

pub mod server;

pub mod client;

pub mod instance;

pub mod launch;

pub use error::{Error, in_one_line};
