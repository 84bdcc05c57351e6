//! The binary itself on real mounts: images made here, in files and in a real registry, and what the kernel then
//! shows. What this machine cannot do is skipped, and says so.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

#[path = "../../mount/tests/layers/mod.rs"]
mod layers;
#[path = "../../mount/tests/support/mod.rs"]
mod support;

mod estargz;
mod fixture;
mod layout;
mod openssl;
mod place;
mod server;
mod tricky;
mod view;

mod elsewhere;
mod fetching;
mod files;
mod formats;
mod https;
mod interrupted;
mod lazy;
mod lifetime;
mod outages;
mod packed;
mod pull;
mod pulled;
mod requests;
mod resumed;
mod shared;
mod soci;
mod store;
mod thrift;
mod unpacked;
mod words;
