//! Programs in images, from the outside: `sifon exec` on small images made on the spot, as root and
//! as a plain user. A part that this machine cannot do is skipped, and says so.
#![allow(clippy::unwrap_used)]

#[path = "../oracle/enter.rs"]
mod enter;
mod image;
mod instance;
mod machine;
#[path = "../../mount/tests/support/namespace.rs"]
mod namespace;

mod apps;
mod data;
mod directory;
mod doctor;
mod environment;
mod fakeroot;
mod gpu;
mod hostile;
mod leftovers;
mod older;
mod options;
mod oracle;
mod overlay;
mod places;
mod process;
mod pulls;
mod script;
mod server;
mod sifs;
mod surroundings;
mod transcript;
mod transcripts;
mod view;
