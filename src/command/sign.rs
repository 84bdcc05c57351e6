//! `sifon sign`: vouching for a SIF.

use std::path::PathBuf;
use std::process::ExitCode;

use super::compact::time_of_change;
use crate::setting::Error;
use crate::signature::{PrivateKey, Selection, sign};

/// Sign a SIF with a key
///
/// Adds a signature for each group of objects, as `apptainer sign --key` does; `apptainer verify --key` and `verify` check it. A
/// copy is signed and takes the file's place, so that containers that run from the file go on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file
    file: PathBuf,
    /// The private key: RSA, ECDSA on P-256 or Ed25519, in PEM, without a password; `openssl genpkey -algorithm ed25519` makes one.
    /// Also $APPTAINER_SIGN_KEY
    #[arg(long, value_name = "FILE", env = "APPTAINER_SIGN_KEY")]
    key: Option<PathBuf>,
    /// Sign this group of objects only
    #[arg(short, long, value_name = "NUMBER", conflicts_with = "sif_id")]
    group_id: Option<u32>,
    /// Sign this object only
    #[arg(short = 'i', long, value_name = "NUMBER")]
    sif_id: Option<u32>,
    /// PGP keys do not sign here
    #[arg(short, long, value_name = "INDEX", hide = true)]
    keyidx: Option<String>,
}

/// Signs.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let path = match &args.key {
        Some(path) if args.keyidx.is_none() => path,
        _ => {
            return Err("--key FILE: a key in PEM is needed; with PGP keys `apptainer sign` signs, and `verify` here checks".into());
        }
    };
    let key = PrivateKey::open(path)?;
    tracing::info!("Signing image with key material from '{}'", path.display());
    let selection = Selection {
        groups: args.group_id.into_iter().collect(),
        objects: args.sif_id.into_iter().collect(),
    };
    let now = time_of_change()?;
    let file = args.file.display();
    sign(&args.file, &selection, &key, now)
        .map_err(|err| Failure(format!("{file}: not signed"), err))?;
    tracing::info!("Signature created and applied to image '{file}'");
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failure(String, #[source] crate::signature::SignError);
