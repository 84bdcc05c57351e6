//! `sifon demo`: the whole way, from a registry to a SIF, without a network: the parts that only the
//! demonstration needs. A registry inside this process, an image made from what the machine has, and the
//! program that runs in it.

pub mod cleaner;
pub mod image;
pub mod libraries;
pub mod program;
pub mod registry;
pub mod scratch;
pub mod tour;
pub mod unpacked;
