//! Who vouches for a SIF: signatures over the digests of its objects, as Apptainer makes and checks them
//! (`pkg/integrity` of github.com/apptainer/sif).
//!
//! ```text
//! objects of a group ─→ digests ─→ JSON ─→ clear-signed by a PGP key, or in a DSSE envelope by a PEM key
//! ```
//!
//! A signature is an object of its own, in no group, that is linked to the group whose objects it covers.

mod dsse;
mod pem;
mod pgp;
mod sign;
mod statement;
mod verify;

pub use dsse::is_envelope;
pub use pem::{KeyError, PrivateKey, PublicKey};
pub use pgp::{Keyring, KeyringError};
pub use sign::{SignError, sign};
pub use statement::Selection;
pub use verify::{Material, Signer, Verified, VerifyError, verify};

#[cfg(test)]
mod tests;
