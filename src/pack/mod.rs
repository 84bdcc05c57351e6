//! What an image becomes: one file for machines without a network.

pub mod date;
pub mod node;
pub mod shell;
pub mod sif;
pub mod squashfs;
