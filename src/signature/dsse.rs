//! Statements in envelopes: DSSE 1.0 (github.com/secure-systems-lab/dsse), as sigstore's libraries write it.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use serde::{Deserialize, Serialize};

use super::pem::{PrivateKey, PublicKey};

/// What a statement about a SIF is.
const PAYLOAD_TYPE: &str = "application/vnd.sylabs.sif-metadata+json";

#[derive(Serialize, Deserialize)]
struct Envelope {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    #[serde(default)]
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// Whether a signature's bytes are an envelope; others are clear-signed by PGP.
pub fn is_envelope(bytes: &[u8]) -> bool {
    let envelope: Result<Envelope, _> = serde_json::from_slice(bytes);
    envelope.is_ok_and(|envelope| envelope.payload_type == PAYLOAD_TYPE)
}

/// The bytes that are signed, which say what they are and how long ("pre-authentication encoding").
fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {PAYLOAD_TYPE} {} ",
        PAYLOAD_TYPE.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let decoded = BASE64_STANDARD.decode(text);
    decoded.or_else(|_| BASE64_URL_SAFE.decode(text)).ok()
}

/// An envelope around `payload`.
pub(super) fn sealed(
    payload: &[u8],
    key: &PrivateKey,
) -> Result<Vec<u8>, aws_lc_rs::error::Unspecified> {
    let envelope = Envelope {
        payload_type: PAYLOAD_TYPE.into(),
        payload: BASE64_STANDARD.encode(payload),
        signatures: vec![Signature {
            keyid: key.name(),
            sig: BASE64_STANDARD.encode(key.sign(&signed_bytes(payload))?),
        }],
    };
    Ok(serde_json::to_vec(&envelope).expect("texts are JSON"))
}

/// What is in an envelope, if one of its signatures is `key`'s.
pub(super) fn opened(bytes: &[u8], key: &PublicKey) -> Result<Vec<u8>, String> {
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|err| format!("dsse: not an envelope: {err}"))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err("dsse: the envelope has something else in it".into());
    }
    let payload = decoded(&envelope.payload).ok_or("dsse: the payload is not base64")?;
    let message = signed_bytes(&payload);
    let is_accepted = envelope
        .signatures
        .iter()
        .filter_map(|signature| decoded(&signature.sig))
        .any(|signature| key.accepts(&message, &signature));
    match is_accepted {
        true => Ok(payload),
        false => Err("dsse: none of the envelope's signatures was made by this key".into()),
    }
}
