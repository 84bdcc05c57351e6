//! Shows a container image as a file system: registry → layers → tree → store → FUSE.
//!
//! The modules stand in dependency order: each names only those above it.

pub mod digest;
pub mod extent;
pub mod sys;

pub mod scratch;

pub mod metric;

pub mod reference;

pub mod blob;
pub mod registry;
pub mod source;

pub mod layer;

pub mod tree;

pub mod store;

pub mod fetch;

pub mod image;

pub mod fuse;

pub mod daemon;
