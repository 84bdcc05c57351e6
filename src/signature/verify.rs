//! Checking signatures.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use sifon_mount::source::sif::{Object, RawSignature, Sif};
use zerocopy::FromBytes;

use super::dsse;
use super::pem::PublicKey;
use super::pgp::{Keyring, Refusal};
use super::statement::{Mismatch, Part, Selection, Statement};

pub use super::pgp::Signatory;

/// More than a statement about all objects that fit into a table.
const SIGNATURE_BYTES_LIMIT: u64 = 4 << 20;

/// What checks signatures.
#[derive(Debug)]
pub enum Material {
    /// The keys that the user trusts.
    Pgp(Keyring),
    /// One key.
    Pem(PublicKey),
}

/// Who made a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signer {
    /// The owner of a PGP key.
    Pgp(Signatory),
    /// The owner of the key that was given.
    Key,
}

/// A signature that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The signature's number.
    pub signature: u32,
    /// Who made it.
    pub signer: Signer,
    /// The objects that were checked against it.
    pub objects: Vec<u32>,
}

/// Why a file is not what was signed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Nobody signed it.
    #[error("signature not found for object group {0}")]
    Unsigned(u32),
    /// There is a signature that needs material of the other kind.
    #[error("signature object {id}: key material not provided for {kind}")]
    NoMaterial {
        /// The signature.
        id: u32,
        /// What it is.
        kind: &'static str,
    },
    /// Somebody signed it whom the user does not know.
    #[error(
        "signature object {id} not valid: openpgp: signature made by unknown entity, key {key}"
    )]
    Unknown {
        /// The signature.
        id: u32,
        /// The key's number.
        key: String,
        /// Where it was looked for.
        places: Vec<PathBuf>,
    },
    /// A signature is not one, or of something else.
    #[error("signature object {id} not valid: {problem}")]
    Invalid {
        /// The signature.
        id: u32,
        /// Why.
        problem: String,
    },
    /// The signature is right, and the file is another one.
    #[error("signature object {id}: {problem}")]
    Mismatch {
        /// The signature.
        id: u32,
        /// What was changed.
        problem: String,
    },
    /// What was asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// The file cannot be read.
    #[error("reading failed")]
    Io(#[from] io::Error),
}

/// Checks every signature of the objects that are meant; each that holds is told at once. All must hold, and there must be one for each
/// group, as with Apptainer.
pub fn verify(
    file: &File,
    sif: &Sif,
    selection: &Selection,
    material: &Material,
    mut held: impl FnMut(&Verified),
) -> Result<(), VerifyError> {
    let parts = selection.parts(sif).map_err(VerifyError::Missing)?;
    for part in &parts {
        let mut is_signed = false;
        for signature in part.signatures(sif) {
            is_signed = true;
            held(&verified(file, sif, part, signature, material)?);
        }
        if !is_signed {
            return Err(VerifyError::Unsigned(part.group));
        }
    }
    Ok(())
}

fn verified(
    file: &File,
    sif: &Sif,
    part: &Part<'_>,
    signature: &Object,
    material: &Material,
) -> Result<Verified, VerifyError> {
    let id = signature.id;
    let invalid = |problem: String| VerifyError::Invalid { id, problem };
    if signature.len > SIGNATURE_BYTES_LIMIT {
        return Err(invalid("larger than 4 MiB".into()));
    }
    let mut bytes = vec![0; signature.len as usize];
    file.read_exact_at(&mut bytes, signature.at)?;
    let (payload, signer) = opened(&bytes, id, material)?;
    if let Signer::Pgp(signatory) = &signer {
        let (raw, _) = RawSignature::read_from_prefix(&signature.raw.extra)
            .expect("a signature's part fits into the extra bytes");
        if signatory.fingerprint.get(..20) != Some(&raw.entity[..20]) {
            let problem = "fingerprint in descriptor does not correspond to signing entity";
            return Err(invalid(problem.into()));
        }
    }
    let statement = Statement::parse(&payload).map_err(invalid)?;
    statement
        .check(file, sif, part)
        .map_err(|mismatch| match mismatch {
            Mismatch::Wrong(problem) => VerifyError::Mismatch { id, problem },
            Mismatch::Io(err) => err.into(),
        })?;
    Ok(Verified {
        signature: id,
        signer,
        objects: part.objects.iter().map(|object| object.id).collect(),
    })
}

/// What was signed, and by whom.
fn opened(bytes: &[u8], id: u32, material: &Material) -> Result<(Vec<u8>, Signer), VerifyError> {
    let no_material = |kind| VerifyError::NoMaterial { id, kind };
    match (material, dsse::is_envelope(bytes)) {
        (Material::Pem(key), true) => {
            let payload = dsse::opened(bytes, key);
            let payload = payload.map_err(|problem| VerifyError::Invalid { id, problem })?;
            Ok((payload, Signer::Key))
        }
        (Material::Pgp(_), true) => Err(no_material("DSSE envelope signature")),
        (Material::Pem(_), false) => Err(no_material("PGP clear-sign signature")),
        (Material::Pgp(keyring), false) => match keyring.opened(bytes) {
            Ok((payload, signatory)) => Ok((payload, Signer::Pgp(signatory))),
            Err(Refusal::Wrong(problem)) => Err(VerifyError::Invalid { id, problem }),
            Err(Refusal::Unknown(key)) => Err(VerifyError::Unknown {
                id,
                key,
                places: keyring.places().to_vec(),
            }),
        },
    }
}
