//! `sifon verify`: whether a SIF is what somebody signed.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::output::{as_go_writes, plain};
use crate::pack::sif::{Sif, listing};
use crate::setting::{Error, environment};
use crate::signature::{
    Keyring, Material, PublicKey, Selection, Signer, Verified, VerifyError, verify,
};

/// Check the signatures of a SIF
///
/// All objects are read and compared with what was signed. Keys are those that `apptainer key import` has put into
/// ~/.apptainer/keys/pgp-public ($APPTAINER_KEYSDIR), and of all users in /etc/apptainer/global-pgp-public, or the one that
/// --key names. No key server is asked. Exits with 255 if anything is unsigned or was changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file
    file: PathBuf,
    /// Check with this public key, in PEM or an armored PGP key; also $APPTAINER_VERIFY_KEY
    #[arg(long, value_name = "FILE", env = "APPTAINER_VERIFY_KEY")]
    key: Option<PathBuf>,
    /// Check this group of objects only
    #[arg(short, long, value_name = "NUMBER")]
    group_id: Option<u32>,
    /// Check this object only
    #[arg(short = 'i', long, value_name = "NUMBER")]
    sif_id: Option<u32>,
    /// All objects that are signed: always so
    #[arg(short, long)]
    all: bool,
    /// Print JSON
    #[arg(short, long)]
    json: bool,
    /// Keys of this machine only: always so
    #[arg(short, long, hide = true)]
    local: bool,
    /// Signatures of before 2020, which are refused: they do not say what they cover
    #[arg(long, hide = true)]
    legacy_insecure: bool,
    /// Certificates are not checked here
    #[arg(long, value_name = "FILE", hide = true)]
    certificate: Option<PathBuf>,
    /// Key servers are not asked here
    #[arg(short, long, value_name = "URL", hide = true)]
    url: Option<String>,
}

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
#[error("{file}: failed to verify container")]
struct Failure {
    file: String,
    #[source]
    source: VerifyError,
}

/// Checks.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    if args.legacy_insecure {
        return Err("--legacy-insecure: legacy signatures cover neither header nor descriptors and are not checked here: `apptainer verify --legacy-insecure` does".into());
    }
    if args.certificate.is_some() {
        return Err("--certificate: certificates are not checked here: take the key out with `openssl x509 -pubkey -noout`, and use --key".into());
    }
    if args.url.is_some() {
        return Err("--url: key servers are not asked: import the key, or use --key".into());
    }
    let material = material(args.key.as_deref())?;
    let path = args.file.display().to_string();
    let file = File::open(&args.file).map_err(|err| format!("{path}: {err}"))?;
    let sif = Sif::open(&file).map_err(|err| format!("{path}: {err}"))?;
    let selection = Selection {
        groups: args.group_id.into_iter().collect(),
        objects: args.sif_id.into_iter().collect(),
    };
    let mut held = Vec::new();
    let done = verify(&file, &sif, &selection, &material, |verified| {
        held.push(verified.clone());
    });
    let mut stdout = io::stdout().lock();
    match args.json {
        true => writeln!(stdout, "{}", as_json(&sif, &held)?)?,
        false => held
            .iter()
            .try_for_each(|verified| write!(stdout, "{}", Shown(&sif, verified)))?,
    }
    done.map_err(|source| Failure {
        file: path.clone(),
        source,
    })?;
    if !args.json {
        tracing::info!("Verified signature(s) from image '{path}'");
    }
    Ok(ExitCode::SUCCESS)
}

fn material(key: Option<&Path>) -> Result<Material, Error> {
    let Some(key) = key else {
        tracing::info!("Verifying image with PGP key material");
        return Ok(Material::Pgp(Keyring::of_user(
            keys_directory().as_deref(),
        )?));
    };
    tracing::info!("Verifying image with key material from '{}'", key.display());
    Ok(match Keyring::is_armored(key)? {
        true => Material::Pgp(Keyring::open(key)?),
        false => Material::Pem(PublicKey::open(key)?),
    })
}

/// Where Apptainer keeps the user's keyrings; none where nobody says where the user's files are. A keyring in the current directory
/// may have come with the file that is to be checked.
fn keys_directory() -> Option<PathBuf> {
    if let Some(keys) = environment(&["APPTAINER_KEYSDIR"]) {
        return Some(keys.into());
    }
    let configuration = environment(&["APPTAINER_CONFIGDIR"]).map(PathBuf::from);
    let home = || Some(PathBuf::from(environment(&["HOME"])?).join(".apptainer"));
    Some(configuration.or_else(home)?.join("keys"))
}

/// A signature that holds, as Apptainer prints it.
struct Shown<'a>(&'a Sif, &'a Verified);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(sif, verified) = self;
        if let Signer::Pgp(signatory) = &verified.signer {
            let fingerprint = hex(&signatory.fingerprint).to_uppercase();
            let name = plain(&signatory.name);
            writeln!(f, "{:<18} Signing entity: {name}", "[LOCAL]")?;
            writeln!(f, "{:<18} Fingerprint: {fingerprint}", "[LOCAL]")?;
        }
        writeln!(f, "Objects verified:")?;
        writeln!(f, "{:<4}|{:<8}|{:<8}|TYPE", "ID", "GROUP", "LINK")?;
        writeln!(f, "{}", "-".repeat(48))?;
        for object in verified.objects.iter().filter_map(|&id| sif.by_id(id)) {
            let (group, link) = (listing::group(object), listing::link(object, 0));
            let kind = listing::type_name(object);
            writeln!(f, "{:<4}|{group:<8}|{link:<8}|{kind}", object.id)?;
        }
        Ok(())
    }
}

/// The same in JSON. The names of the fields, and their order, are Apptainer's.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Report<'a> {
    signatures: usize,
    signer_keys: Option<Vec<SignerKey<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SignerKey<'a> {
    signer: Checked<'a>,
}

/// One object, and who signed it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Checked<'a> {
    partition: &'static str,
    name: &'a str,
    fingerprint: String,
    key_local: bool,
    key_check: bool,
    data_check: bool,
}

fn as_json(sif: &Sif, held: &[Verified]) -> Result<String, Error> {
    let mut keys = Vec::new();
    for verified in held {
        let (name, fingerprint, is_pgp) = match &verified.signer {
            Signer::Pgp(signatory) => (&*signatory.name, hex(&signatory.fingerprint), true),
            Signer::Key => ("unknown", String::new(), false),
        };
        for object in verified.objects.iter().filter_map(|&id| sif.by_id(id)) {
            let signer = Checked {
                partition: listing::type_name(object),
                name,
                fingerprint: fingerprint.clone(),
                key_local: is_pgp,
                key_check: is_pgp,
                data_check: true,
            };
            keys.push(SignerKey { signer });
        }
    }
    let report = Report {
        signatures: held.len(),
        signer_keys: Some(keys).filter(|keys| !keys.is_empty()),
    };
    Ok(as_go_writes(&serde_json::to_string_pretty(&report)?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the user can do.
pub fn hint(error: &Error) -> Option<String> {
    match &error.downcast_ref::<Failure>()?.source {
        VerifyError::Unsigned(_) => Some(
            "nobody has signed it, which is usual of images from registries; `sign --key KEY.pem FILE` does"
                .into(),
        ),
        VerifyError::NoMaterial { kind, .. } if kind.starts_with("DSSE") => {
            Some("it was signed with a PEM key: give the public one with --key FILE".into())
        }
        VerifyError::NoMaterial { .. } => Some("it was signed with a PGP key: leave --key out".into()),
        VerifyError::Unknown { key, places, .. } => {
            let place = places.first()?.display();
            Some(format!(
                "get the key from the signer and import it: `apptainer key import KEY.asc`, or `gpg --export {key} >> {place}`; or give it with --key"
            ))
        }
        VerifyError::Mismatch { .. } => {
            Some("the file was changed after it was signed: get it anew".into())
        }
        _ => None,
    }
}
