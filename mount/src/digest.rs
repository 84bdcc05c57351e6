//! Names of bytes: SHA-256 digests as OCI writes them, and what a chunk is checked against.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a blob, a manifest or a tar stream; prints as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A digest that was kept as its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the algorithm, as directories of blobs name them.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no digest of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {0:?}: expected sha256: and 64 hexadecimal digits in lower case")]
pub struct ParseDigestError(String);

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseDigestError(text.chars().take(100).collect());
        let digits = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return Err(wrong());
        }
        // Tables of contents are full of digests: without a branch for each digit it takes a fifth of the time.
        let mut are_digits = true;
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().as_chunks::<2>().0) {
            let [high, low] = pair.map(|digit| {
                let is_letter = matches!(digit, b'a'..=b'f');
                are_digits &= is_letter | digit.is_ascii_digit();
                (digit & 0xf) + 9 * u8::from(is_letter)
            });
            *byte = high << 4 | low;
        }
        are_digits.then_some(Self(bytes)).ok_or_else(wrong)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a [`Digest`] of bytes that pass by.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Counts `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything counted in.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// What one chunk must hash to: its plain bytes, unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkDigest {
    /// Written by others: zstd:chunked and eStargz tables.
    Sha256([u8; 32]),
    /// Of the packed bytes, all of them: SOCI's indexes, and ours of the same kind.
    PackedSha256([u8; 32]),
    /// The same, of native layers: four times as fast to check, and there are fewer packed bytes than plain ones.
    PackedBlake3([u8; 32]),
    /// Nobody told: of a file system image that the user names as a file, which is believed as any of the user's files is.
    Unknown,
}

impl ChunkDigest {
    /// The BLAKE3 digest of a chunk's packed bytes.
    pub fn blake3_of(packed: &[u8]) -> Self {
        Self::PackedBlake3(blake3::hash(packed).into())
    }

    /// The SHA-256 digest of a chunk's plain bytes.
    pub fn sha256_of(plain: &[u8]) -> Self {
        Self::Sha256(*Digest::of(plain).as_bytes())
    }

    /// Whether `plain` is what was promised; true where nothing was promised of the plain bytes.
    pub fn matches(&self, plain: &[u8]) -> bool {
        match self {
            Self::Sha256(_) => *self == Self::sha256_of(plain),
            Self::PackedSha256(_) | Self::PackedBlake3(_) | Self::Unknown => true,
        }
    }

    /// Whether `packed` is what was promised; true where nothing was promised of the packed bytes.
    pub fn matches_packed(&self, packed: &[u8]) -> bool {
        match self {
            Self::PackedSha256(digest) => digest == Digest::of(packed).as_bytes(),
            Self::PackedBlake3(_) => *self == Self::blake3_of(packed),
            Self::Sha256(_) | Self::Unknown => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_as_it_prints() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
    }

    #[test]
    fn other_spellings_are_refused() {
        let upper = format!("sha256:{}", "AB".repeat(32));
        for text in [
            "",
            "sha256:",
            "sha256:00",
            "sha512:00",
            "md5:00",
            &upper,
            "sha256:../../etc",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        let right = Digest::of(b"").to_string();
        for at in "sha256:".len()..right.len() {
            for wrong in ["/", ":", "@", "A", "F", "`", "g", "\0", "\x7f"] {
                let text = [&right[..at], wrong, &right[at + 1..]].concat();
                assert!(text.parse::<Digest>().is_err(), "{text}");
            }
        }
        let text = right.replacen("e3", "é", 1);
        assert!(text.parse::<Digest>().is_err(), "{text}");
    }

    #[test]
    fn a_chunk_digest_matches_its_bytes_only() {
        let packed = ChunkDigest::PackedSha256(*Digest::of(b"right").as_bytes());
        for (digest, is_of_packed) in [
            (ChunkDigest::sha256_of(b"right"), false),
            (ChunkDigest::blake3_of(b"right"), true),
            (packed, true),
        ] {
            assert!(digest.matches(b"right") && digest.matches_packed(b"right"));
            let wrong = (digest.matches(b"wrong"), digest.matches_packed(b"wrong"));
            assert_eq!(wrong, (is_of_packed, !is_of_packed), "{digest:?}");
        }
    }
}
