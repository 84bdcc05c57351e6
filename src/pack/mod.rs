//! What an image becomes: one file for machines without a network.

pub mod zstd_chunked;
