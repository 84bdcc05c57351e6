//! Statements that are clear-signed by PGP keys (RFC 9580, section 7), and the keyrings that know these keys.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::KeyDetails;

use super::pem::{self, KeyError};
use super::statement::hex;

/// More than keyrings take.
const KEYRING_BYTES_LIMIT: u64 = 64 << 20;

/// What Apptainer's administrators trust for all.
const GLOBAL: &str = "/etc/apptainer/global-pgp-public";

const ARMOR: &[u8] = b"-----BEGIN PGP PUBLIC KEY BLOCK-----";

/// How a statement of before 2020 begins.
const LEGACY: &str = "SIFHASH:";

/// Public keys.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
    /// Where they are from, for those who miss one.
    places: Vec<PathBuf>,
}

/// Why a file is no keyring.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// It cannot be read.
    #[error("keyring {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It can, and is something else.
    #[error("keyring {}: {problem}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file with one key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// One who signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signatory {
    /// Name and address, as the key says them; they are the key's owner's words.
    pub name: String,
    /// Of the primary key.
    pub fingerprint: Vec<u8>,
}

/// Why a clear-signed text is not believed.
#[derive(Debug)]
pub(super) enum Refusal {
    /// No keyring has the key; its number.
    Unknown(String),
    /// Anything else.
    Wrong(String),
}

impl Keyring {
    /// The user's own keys and those of all of this machine: where Apptainer keeps them. A keyring that is not there is empty.
    pub fn of_user(directory: Option<&Path>) -> Result<Self, KeyringError> {
        let mut keyring = Self::default();
        let own = directory.map(|directory| directory.join("pgp-public"));
        for path in own.into_iter().chain([PathBuf::from(GLOBAL)]) {
            keyring.add(path)?;
        }
        Ok(keyring)
    }

    /// The keys in one file, armored.
    pub fn open(path: &Path) -> Result<Self, KeyringError> {
        let mut keyring = Self::default();
        keyring.add(path.to_owned())?;
        Ok(keyring)
    }

    /// Whether a file begins as an armored key does.
    pub fn is_armored(path: &Path) -> Result<bool, KeyringError> {
        let bytes = pem::read(path)?;
        Ok(bytes.trim_ascii_start().starts_with(ARMOR))
    }

    fn add(&mut self, path: PathBuf) -> Result<(), KeyringError> {
        let mut bytes = Vec::new();
        let read = File::open(&path)
            .and_then(|file| file.take(KEYRING_BYTES_LIMIT + 1).read_to_end(&mut bytes));
        match read {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(KeyringError::Io { path, source }),
            Ok(_) => {
                let keys = keys(&bytes).map_err(|problem| KeyringError::Wrong {
                    path: path.clone(),
                    problem,
                })?;
                self.keys.extend(keys);
            }
        }
        self.places.push(path);
        Ok(())
    }

    /// Where keys were looked for.
    pub fn places(&self) -> &[PathBuf] {
        &self.places
    }

    /// The text that is clear-signed, and by whom.
    pub(super) fn opened(&self, bytes: &[u8]) -> Result<(Vec<u8>, Signatory), Refusal> {
        let wrong = |text: &str| Refusal::Wrong(format!("openpgp: {text}"));
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("no text"))?;
        let (message, _) = CleartextSignedMessage::from_string(text)
            .map_err(|err| wrong(&format!("clearsigned message not found: {err}")))?;
        let signed = message.signed_text();
        if signed.starts_with(LEGACY) {
            return Err(wrong(
                "a legacy signature, which covers neither header nor descriptors",
            ));
        }
        let signature = message.signatures().first();
        let signature = signature.ok_or_else(|| wrong("no signature follows the text"))?;
        let signatory = self.signatory(signature, signed.as_bytes())?;
        Ok((signed.into_bytes(), signatory))
    }

    /// Whose signature of `signed` it is.
    fn signatory(&self, signature: &Signature, signed: &[u8]) -> Result<Signatory, Refusal> {
        let wrong = |text: &str| Refusal::Wrong(format!("openpgp: {text}"));
        // What else a key signs, its owner's name for one, says nothing about this text, or about its first letter only.
        if !matches!(
            signature.typ(),
            Some(SignatureType::Text | SignatureType::Binary)
        ) {
            return Err(wrong("the signature is not one of a text"));
        }
        if !is_strong(signature) {
            return Err(wrong("the signature's hash is not accepted any more"));
        }
        let is_expired = signature
            .signature_expiration_time()
            .filter(|life| life.as_secs() > 0)
            .zip(signature.created())
            .is_some_and(|(life, created)| is_over(created.as_secs(), life.as_secs()));
        for key in &self.keys {
            let by_primary = signature.verify(&key.primary_key, signed).is_ok();
            let is_by = by_primary
                || key.public_subkeys.iter().any(|subkey| {
                    signature.verify(&subkey.key, signed).is_ok()
                        && may_sign(subkey.signatures.iter())
                        && subkey.verify_bindings(&key.primary_key).is_ok()
                });
            if !is_by {
                continue;
            }
            if is_expired {
                return Err(wrong("the signature has expired"));
            }
            usable(key).map_err(wrong)?;
            return Ok(Signatory {
                name: name(key),
                fingerprint: key.primary_key.fingerprint().as_bytes().to_vec(),
            });
        }
        if self.knows(signature) {
            return Err(wrong("invalid signature"));
        }
        Err(Refusal::Unknown(issuer(signature)))
    }

    /// Whether the key that a signature names is here.
    fn knows(&self, signature: &Signature) -> bool {
        let ids = signature.issuer_key_id();
        let fingerprints = signature.issuer_fingerprint();
        self.keys.iter().any(|key| {
            let is_named = |details: &dyn KeyDetails| {
                ids.iter().any(|id| **id == details.legacy_key_id())
                    || fingerprints
                        .iter()
                        .any(|fingerprint| **fingerprint == details.fingerprint())
            };
            is_named(&key.primary_key)
                || key
                    .public_subkeys
                    .iter()
                    .any(|subkey| is_named(&subkey.key))
        })
    }
}

/// All keys in a file, armored or not. Those of kinds that we do not know are passed over.
fn keys(bytes: &[u8]) -> Result<Vec<SignedPublicKey>, String> {
    if bytes.len() as u64 > KEYRING_BYTES_LIMIT {
        return Err("larger than 64 MiB".into());
    }
    if bytes.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let (found, _) = SignedPublicKey::from_reader_many(bytes)
        .map_err(|err| format!("no public keys of PGP: {err}"))?;
    Ok(found
        .filter_map(|key| {
            key.inspect_err(|err| tracing::debug!(error = %err, "a key is passed over"))
                .ok()
        })
        .collect())
}

/// The hashes that Apptainer takes.
fn is_strong(signature: &Signature) -> bool {
    matches!(
        signature.hash_alg(),
        Some(
            HashAlgorithm::Sha224
                | HashAlgorithm::Sha256
                | HashAlgorithm::Sha384
                | HashAlgorithm::Sha512
        )
    )
}

/// Whether a binding that says what a key is for says that it signs.
fn may_sign<'a>(bindings: impl Iterator<Item = &'a Signature>) -> bool {
    let newest = bindings.max_by_key(|binding| binding.created().map(|at| at.as_secs()));
    newest.is_some_and(|binding| binding.key_flags().sign())
}

/// Whether a key is neither revoked nor too old.
fn usable(key: &SignedPublicKey) -> Result<(), &'static str> {
    let primary = &key.primary_key;
    let details = &key.details;
    if details
        .revocation_signatures
        .iter()
        .any(|revocation| revocation.verify_key(primary).is_ok())
    {
        return Err("the key was revoked by its owner");
    }
    let users = details.users.iter().filter(|user| {
        // Others may have signed the name too; only the owner says how long the key lives.
        user.verify_bindings(primary).is_ok()
    });
    let statements = users
        .flat_map(|user| &user.signatures)
        .filter(|statement| {
            statement
                .issuer_key_id()
                .contains(&&primary.legacy_key_id())
        })
        .chain(
            details
                .direct_signatures
                .iter()
                .filter(|statement| statement.verify_key(primary).is_ok()),
        );
    let newest = statements.max_by_key(|statement| statement.created().map(|at| at.as_secs()));
    let life = newest.and_then(Signature::key_expiration_time);
    match life.filter(|life| life.as_secs() > 0) {
        Some(life) if is_over(primary.created_at().as_secs(), life.as_secs()) => {
            Err("the key has expired")
        }
        _ => Ok(()),
    }
}

/// Whether so many seconds after `from` are over; both count from 1970.
fn is_over(from: u32, life: u32) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.is_ok_and(|now| now.as_secs() > u64::from(from) + u64::from(life))
}

fn name(key: &SignedPublicKey) -> String {
    let user = key.details.users.first();
    user.map_or_else(
        || "unknown".into(),
        |user| String::from_utf8_lossy(user.id.id()).into_owned(),
    )
}

/// The number of the key that a signature says it was made with.
fn issuer(signature: &Signature) -> String {
    let fingerprint = signature.issuer_fingerprint();
    let fingerprint = fingerprint.first().map(|print| hex(print.as_bytes()));
    let id = || signature.issuer_key_id().first().map(|id| id.to_string());
    fingerprint
        .or_else(id)
        .unwrap_or_else(|| "that it does not name".into())
        .to_uppercase()
}

#[cfg(test)]
mod tests {
    use pgp::composed::{KeyType, SecretKeyParamsBuilder, SignedSecretKey};
    use pgp::packet::{SignatureConfig, Subpacket, SubpacketData};
    use pgp::types::{Password, SigningKey, Timestamp};

    use super::*;

    fn key() -> SignedSecretKey {
        let parameters = SecretKeyParamsBuilder::default()
            .key_type(KeyType::Ed25519Legacy)
            .can_certify(true)
            .can_sign(true)
            .primary_user_id("ada".into())
            .build()
            .unwrap();
        parameters.generate(rand::thread_rng()).unwrap()
    }

    /// `text`, with a signature of `signed`.
    fn clear_signed(
        key: &SignedSecretKey,
        kind: SignatureType,
        signed: &[u8],
        text: &str,
    ) -> Vec<u8> {
        let signer = &key.primary_key;
        let mut config = SignatureConfig::v4(kind, signer.algorithm(), HashAlgorithm::Sha256);
        config.hashed_subpackets = [
            SubpacketData::SignatureCreationTime(Timestamp::now()),
            SubpacketData::IssuerFingerprint(signer.fingerprint()),
        ]
        .map(|data| Subpacket::regular(data).unwrap())
        .into();
        let mut hasher = config.hash_alg.new_hasher().unwrap();
        config.hash_data_to_sign(&mut hasher, signed).unwrap();
        let len = config.hash_signature_data(&mut hasher).unwrap();
        hasher.update(&config.trailer(len).unwrap());
        let hash = hasher.finalize();
        let made = signer.sign(&Password::empty(), config.hash_alg, &hash);
        let signature = Signature::from_config(config, [hash[0], hash[1]], made.unwrap()).unwrap();
        let message = CleartextSignedMessage::new_many(text, |_| Ok(vec![signature])).unwrap();
        message
            .to_armored_string(Default::default())
            .unwrap()
            .into_bytes()
    }

    /// Of a signature that stands by itself, the library hashes one byte, which all statements have.
    #[test]
    fn a_signature_of_something_else_is_none_of_a_text() {
        let key = key();
        let keyring = Keyring {
            keys: vec![key.to_public_key()],
            places: Vec::new(),
        };
        let text = "{\"version\":1}";
        let right = clear_signed(&key, SignatureType::Text, text.as_bytes(), text);
        assert_eq!(keyring.opened(&right).unwrap().0, text.as_bytes());
        for kind in [SignatureType::Standalone, SignatureType::Timestamp] {
            let wrong = clear_signed(&key, kind, b"{", text);
            let refusal = keyring.opened(&wrong).unwrap_err();
            assert!(
                matches!(&refusal, Refusal::Wrong(text) if text.contains("not one of a text")),
                "{refusal:?}"
            );
        }
    }
}
