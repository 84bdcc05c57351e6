//! zstd:chunked layers, in both dialects, through the table of contents (TOC) that they carry.
//!
//! A blob is zstd frames that together are a compressed tar; every chunk of a file begins a frame. The
//! TOC follows the last of them. Where it lies and what it must hash to stand in the descriptor's
//! annotations. The footer at the blob's end says the same, but nothing vouches for it.

use std::collections::BTreeMap;

use super::estargz;
use super::table::{Codec, TableWriter};
use super::toc::{self, Layout, PACKED_LIMIT, PLAIN_LIMIT, TocError, Unpacked};
use crate::digest::Digest;
use crate::extent::PackedOffset;

/// Who defined what a layer's annotations mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Podman, Buildah and skopeo (containers/storage, `pkg/chunked`).
    Containers,
    /// nerdctl and ctr-remote (stargz-snapshotter, `estargz/zstdchunked`); and Podman until 2022.
    Stargz,
}

/// What a zstd:chunked layer's descriptor promises about its TOC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toc {
    /// Whose annotations they are.
    pub dialect: Dialect,
    /// Where in the blob the compressed TOC begins.
    pub position: PackedOffset,
    /// How many bytes it has as it is stored; at most 64 MiB.
    pub packed_len: u64,
    /// How many bytes of JSON it becomes; at most 150 MiB.
    pub plain_len: u64,
    /// What the compressed bytes hash to.
    pub digest: Digest,
    /// What the JSON hashes to, where that is promised too.
    pub plain_digest: Option<Digest>,
}

impl Toc {
    /// Where in the blob it lies.
    pub fn place(&self) -> std::ops::Range<u64> {
        self.position.0..self.position.0.saturating_add(self.packed_len)
    }
}

/// Why annotations promise no TOC that we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}: {problem}")]
pub struct PromiseError {
    key: String,
    problem: &'static str,
}

/// The TOC that a layer's annotations promise; `None` if they speak of none.
pub fn promised(annotations: &BTreeMap<String, String>) -> Result<Option<Toc>, PromiseError> {
    for (dialect, prefix) in [
        (Dialect::Containers, "io.github.containers.zstd-chunked"),
        (Dialect::Stargz, "io.containers.zstd-chunked"),
    ] {
        let checksum = format!("{prefix}.manifest-checksum");
        let position = format!("{prefix}.manifest-position");
        let Some(digest) = annotations.get(&checksum) else {
            continue;
        };
        let wrong = |key: &str, problem| PromiseError {
            key: key.to_owned(),
            problem,
        };
        let plain_digest = estargz::promised(annotations)
            .map_err(|_| wrong(estargz::TOC_DIGEST, "not a SHA-256 digest"))?;
        // containers/storage refuses such a layer too: the two could show different files.
        if dialect == Dialect::Containers && plain_digest.is_some() {
            return Err(wrong(estargz::TOC_DIGEST, "a second table of contents"));
        }
        let digest = digest
            .parse()
            .map_err(|_| wrong(&checksum, "not a SHA-256 digest"))?;
        let place = annotations
            .get(&position)
            .ok_or_else(|| wrong(&position, "missing"))?;
        let [at, packed_len, plain_len] =
            parsed_position(place).map_err(|problem| wrong(&position, problem))?;
        return Ok(Some(Toc {
            dialect,
            position: PackedOffset(at),
            packed_len,
            plain_len,
            digest,
            plain_digest,
        }));
    }
    Ok(None)
}

/// `offset:packed length:plain length:type`.
fn parsed_position(text: &str) -> Result<[u64; 3], &'static str> {
    let numbers: Option<Vec<u64>> = text
        .split(':')
        .map(|number| {
            let digits = number.bytes().all(|digit| digit.is_ascii_digit());
            number.parse().ok().filter(|_| digits)
        })
        .collect();
    match numbers.as_deref() {
        Some(&[_, packed_len, plain_len, 1])
            if packed_len > PACKED_LIMIT || plain_len > PLAIN_LIMIT =>
        {
            Err("the table of contents is larger than we read")
        }
        Some(&[at, packed_len, plain_len, 1]) => Ok([at, packed_len, plain_len]),
        Some([_, _, _, _]) => Err("a type of table of contents that is not known"),
        _ => Err("not four numbers with colons between"),
    }
}

/// Why a layer cannot be read through its TOC. The layer may still be read as one zstd stream.
#[derive(Debug, thiserror::Error)]
pub enum ZstdChunkedError {
    /// The TOC's place is not in the blob.
    #[error("table of contents at byte {} to {end}: the blob has {blob_size}", at.0)]
    Outside {
        /// Where it should begin.
        at: PackedOffset,
        /// Where it should end.
        end: u64,
        /// Where the blob ends.
        blob_size: u64,
    },
    /// Not the bytes that the descriptor promises.
    #[error("table of contents: the digest of {has} bytes is not the promised {promised}")]
    Digest {
        /// How many bytes there were.
        has: usize,
        /// What they should hash to.
        promised: Digest,
    },
    /// The promised bytes do not decompress to the promised length.
    #[error("table of contents: does not decompress to {plain_len} bytes")]
    Packed {
        /// How many it should have.
        plain_len: u64,
    },
    /// What it says makes no sense.
    #[error(transparent)]
    Toc(#[from] TocError),
}

/// Checks `packed`, the TOC's bytes as fetched, against the promise, parses it and adds the layer's
/// entries, pieces and chunks to `writer`. Chunks carry SHA-256 digests of their plain bytes; those of
/// zeros are holes. The TOC's JSON stays in `unpacked`. On an error the writer has a part
/// of the layer and can only be dropped.
pub fn table(
    toc: &Toc,
    packed: &[u8],
    blob_size: u64,
    unpacked: &mut Unpacked,
    writer: &mut TableWriter,
) -> Result<(), ZstdChunkedError> {
    let (at, end) = (toc.position, toc.position.0.checked_add(toc.packed_len));
    if end.is_none_or(|end| end > blob_size) {
        let end = end.unwrap_or(u64::MAX);
        return Err(ZstdChunkedError::Outside { at, end, blob_size });
    }
    if packed.len() as u64 != toc.packed_len || Digest::of(packed) != toc.digest {
        return Err(ZstdChunkedError::Digest {
            has: packed.len(),
            promised: toc.digest,
        });
    }
    let plain_len = toc.plain_len;
    let json = unpacked.frame(packed, plain_len);
    let json = json.ok_or(ZstdChunkedError::Packed { plain_len })?;
    if let Some(promised) = toc.plain_digest
        && Digest::of(json) != promised
    {
        let has = json.len();
        return Err(ZstdChunkedError::Digest { has, promised });
    }
    let layout = Layout {
        end: toc.position,
        codec: Codec::Zstd,
    };
    Ok(toc::read(json, layout, writer)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry::Kind;
    use crate::layer::table::{Table, from_reader};

    const PREFIX: &str = "io.github.containers.zstd-chunked";

    fn annotations(prefix: &str, checksum: &str, position: &str) -> BTreeMap<String, String> {
        BTreeMap::from([
            (format!("{prefix}.manifest-checksum"), checksum.to_owned()),
            (format!("{prefix}.manifest-position"), position.to_owned()),
        ])
    }

    fn read(toc: &Toc, packed: &[u8], blob_size: u64) -> Result<Table, ZstdChunkedError> {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = TableWriter::in_directory(directory.path());
        table(
            toc,
            packed,
            blob_size,
            &mut Unpacked::default(),
            &mut writer,
        )?;
        let mut bytes = Vec::new();
        writer.finish(Digest::of(b"blob"), &mut bytes).unwrap();
        Ok(from_reader(&bytes[..]).unwrap())
    }

    fn toc_of(json: &[u8]) -> (Toc, Vec<u8>) {
        let packed = zstd::bulk::compress(json, 3).unwrap();
        let toc = Toc {
            dialect: Dialect::Containers,
            position: PackedOffset(1000),
            packed_len: packed.len() as u64,
            plain_len: json.len() as u64,
            digest: Digest::of(&packed),
            plain_digest: None,
        };
        (toc, packed)
    }

    #[test]
    fn tocs_that_podman_and_nerdctl_wrote_are_read() {
        for (packed, prefix, checksum, position, blob_size, chunks) in [
            (
                &include_bytes!("../../tests/toc/podman.json.zst")[..],
                PREFIX,
                "sha256:2799823ddddb850112df63f7f00dfba68b5576716e58ceb85463f15ef46c52c5",
                "2242392:6235:25044:1",
                2_251_337,
                105,
            ),
            (
                &include_bytes!("../../tests/toc/stargz.json.zst")[..],
                "io.containers.zstd-chunked",
                "sha256:681a7e6eabd2acd5a6117e9ec4847efcc183319a9a42e438c7e6e511dd317265",
                "2276330:2130:13856:1",
                2_278_508,
                28,
            ),
        ] {
            let toc = promised(&annotations(prefix, checksum, position)).unwrap();
            let table = read(&toc.unwrap(), packed, blob_size).unwrap();
            let entries: Vec<_> = table.entries().map(|entry| entry.unwrap().0).collect();
            assert_eq!(entries.len(), 59, "both have all files, and no landmarks");
            let named = |name: &[u8]| entries.iter().find(|entry| entry.path == name).unwrap();
            assert_eq!(named(b"suid").mode, 0o4755);
            assert_eq!(named(b"big").kind, Kind::Regular { size: 9 << 20 });
            assert_eq!(
                named(b"hl3").kind,
                Kind::Hardlink {
                    target: &b"hl1"[..]
                }
            );
            assert_eq!(
                named(b"dev/sdx").kind,
                Kind::BlockDevice { major: 8, minor: 0 }
            );
            assert_eq!(named(b"ux").xattrs[..], [(&b"user.foo"[..], &b"bar"[..])]);
            assert_eq!((named(b"app").uid, named(b"app").mode), (1001, 0o700));
            assert_eq!(table.chunk_count(), chunks);
        }
    }

    #[test]
    fn other_annotations_promise_nothing() {
        let other = BTreeMap::from([("org.example".to_owned(), "x".to_owned())]);
        assert_eq!(promised(&other), Ok(None));
        assert_eq!(promised(&BTreeMap::new()), Ok(None));
    }

    #[test]
    fn a_broken_promise_is_refused() {
        let digest = Digest::of(b"").to_string();
        for (checksum, position, problem) in [
            ("md5:0", "1:2:3:1", "not a SHA-256 digest"),
            (&*digest, "1:2:3:2", "not known"),
            (&*digest, "1:2:3", "not four numbers"),
            (&*digest, "1:2:3:1:1", "not four numbers"),
            (&*digest, "1:+2:3:1", "not four numbers"),
            (&*digest, "1:2:99999999999999999999:1", "not four numbers"),
            (&*digest, "1:67108865:3:1", "larger than we read"),
            (&*digest, "1:2:157286401:1", "larger than we read"),
        ] {
            let err = promised(&annotations(PREFIX, checksum, position)).unwrap_err();
            assert!(err.to_string().contains(problem), "{position}: {err}");
        }
        let mut two = annotations(PREFIX, &digest, "1:2:3:1");
        two.insert(estargz::TOC_DIGEST.into(), digest.clone());
        assert!(promised(&two).unwrap_err().to_string().contains("second"));
        let mut half = annotations(PREFIX, &digest, "");
        half.remove("io.github.containers.zstd-chunked.manifest-position");
        assert!(promised(&half).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn bytes_that_are_not_the_promised_toc_are_refused() {
        let json = br#"{"version":1,"entries":null}"#;
        let (toc, packed) = toc_of(json);
        let blob_size = 1000 + toc.packed_len;
        assert_eq!(read(&toc, &packed, blob_size).unwrap().entry_count(), 0);
        let problem = |toc: &Toc, packed: &[u8], blob_size| {
            read(toc, packed, blob_size).err().unwrap().to_string()
        };
        assert!(problem(&toc, &packed, blob_size - 1).contains("the blob has"));
        assert!(problem(&toc, &packed[1..], blob_size).contains("digest"));
        let far = Toc {
            position: PackedOffset(u64::MAX),
            ..toc
        };
        assert!(problem(&far, &packed, blob_size).contains("the blob has"));
        for plain_len in [0, toc.plain_len - 1, toc.plain_len + 1, u64::MAX] {
            let other = Toc { plain_len, ..toc };
            assert!(problem(&other, &packed, blob_size).contains("does not decompress"));
        }
        let other = Toc {
            plain_digest: Some(Digest::of(b"")),
            ..toc
        };
        assert!(problem(&other, &packed, blob_size).contains("not the promised"));
        let (toc, packed) = toc_of(b"{}");
        assert!(problem(&toc, &packed, 5000).contains("not valid"));
    }
}
