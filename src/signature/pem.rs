//! Keys in PEM files: RSA, ECDSA and Ed25519, with SHA-256 where a signature needs a hash.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA256_ASN1,
    ECDSA_P521_SHA256_ASN1, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, VerificationAlgorithm,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};

/// More than a key takes.
const KEY_BYTES_LIMIT: u64 = 1 << 20;

/// Why a file is no key.
#[derive(Debug, thiserror::Error)]
#[error("key {path}: {problem}")]
pub struct KeyError {
    path: String,
    problem: String,
}

impl KeyError {
    fn new(path: &Path, problem: impl ToString) -> Self {
        Self {
            path: path.display().to_string(),
            problem: problem.to_string(),
        }
    }
}

/// The bytes of a file that is to be a key.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(KEY_BYTES_LIMIT + 1).read_to_end(&mut bytes))
        .map_err(|err| KeyError::new(path, err))?;
    match bytes.len() as u64 > KEY_BYTES_LIMIT {
        true => Err(KeyError::new(path, "too large for a key")),
        false => Ok(bytes),
    }
}

/// A key that checks signatures.
#[derive(Debug)]
pub struct PublicKey(ParsedPublicKey);

impl PublicKey {
    /// Reads a `PUBLIC KEY`.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let wrong = |problem: &str| KeyError::new(path, problem);
        let der = SubjectPublicKeyInfoDer::from_pem_slice(&read(path)?)
            .map_err(|_| wrong("it has no PEM block PUBLIC KEY"))?;
        let algorithms: [&'static dyn VerificationAlgorithm; 5] = [
            &ED25519,
            &ECDSA_P256_SHA256_ASN1,
            &ECDSA_P384_SHA256_ASN1,
            &ECDSA_P521_SHA256_ASN1,
            &RSA_PKCS1_2048_8192_SHA256,
        ];
        // A key tells what it is, and is refused by all algorithms but its own.
        algorithms
            .into_iter()
            .find_map(|algorithm| ParsedPublicKey::new(algorithm, &der).ok())
            .map(Self)
            .ok_or_else(|| wrong("not RSA of 2048 bits or more, ECDSA on a NIST curve or Ed25519"))
    }

    pub(super) fn accepts(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify_sig(message, signature).is_ok()
    }
}

/// A key that makes signatures.
pub struct PrivateKey(Pair);

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl PrivateKey {
    /// Reads a `PRIVATE KEY`, an `EC PRIVATE KEY` or an `RSA PRIVATE KEY` without a password.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let wrong = |problem: &str| KeyError::new(path, problem);
        let bytes = read(path)?;
        let is_encrypted = bytes.windows(10).any(|text| text == b"ENCRYPTED ");
        let der = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
            wrong(match is_encrypted {
                true => "it has a password: take that off first, as `openssl pkey` does",
                false => "it has no PEM block PRIVATE KEY",
            })
        })?;
        let p256 = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair = match &der {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der())
                .ok()
                .map(Pair::Rsa),
            PrivateKeyDer::Sec1(der) => {
                EcdsaKeyPair::from_private_key_der(p256, der.secret_sec1_der())
                    .ok()
                    .map(Pair::P256)
            }
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                let ed25519 = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der);
                ed25519
                    .ok()
                    .map(Pair::Ed25519)
                    .or_else(|| EcdsaKeyPair::from_pkcs8(p256, der).ok().map(Pair::P256))
                    .or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(Pair::Rsa))
            }
            _ => None,
        };
        pair.map(Self)
            .ok_or_else(|| wrong("not RSA of 2048 bits or more, ECDSA on P-256 or Ed25519"))
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, aws_lc_rs::error::Unspecified> {
        let random = SystemRandom::new();
        Ok(match &self.0 {
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::P256(pair) => pair.sign(&random, message)?.as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                signature
            }
        })
    }

    /// What the key is called in an envelope: the fingerprint of the public key as SSH writes both (RFC 4253, 6.6; RFC 5656, 3.1).
    pub(super) fn name(&self) -> String {
        let wire = match &self.0 {
            Pair::Ed25519(pair) => strings(&[b"ssh-ed25519", pair.public_key().as_ref()]),
            Pair::P256(pair) => strings(&[
                b"ecdsa-sha2-nistp256",
                b"nistp256",
                pair.public_key().as_ref(),
            ]),
            Pair::Rsa(pair) => match rsa_numbers(pair.public_key().as_ref()) {
                Some((modulus, exponent)) => strings(&[b"ssh-rsa", exponent, modulus]),
                None => return String::new(),
            },
        };
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &wire);
        format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(digest))
    }
}

/// Strings after each other, each with its length.
fn strings(all: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in all {
        bytes.extend((one.len() as u32).to_be_bytes());
        bytes.extend(*one);
    }
    bytes
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017, A.1.1), as integers with a sign, which is how SSH writes them, too.
fn rsa_numbers(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (numbers, _) = element(der, 0x30)?;
    let (modulus, rest) = element(numbers, 0x02)?;
    let (exponent, _) = element(rest, 0x02)?;
    Some((modulus, exponent))
}

/// The contents of the first element, which must have this tag, and what follows.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let len = digits
                .iter()
                .fold(0, |len, &digit| len << 8 | usize::from(digit));
            (len, rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(len))?
}
