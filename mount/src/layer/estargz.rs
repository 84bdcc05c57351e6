//! eStargz layers, through the table of contents (TOC) that they carry (stargz-snapshotter `docs/estargz.md`).
//!
//! A blob is gzip members that together are a compressed tar; the chunks of files begin at known places in them. The last
//! two members are the TOC, a tar of one file, and an empty one whose extra field says where the TOC begins. Only the
//! digest of the TOC stands in the descriptor's annotations; the footer that leads to it is a hint.

use std::collections::BTreeMap;
use std::io;

use super::entry::Kind;
use super::table::{Codec, TableWriter};
use super::tar::{Content, TarError, TarReader};
use super::toc::{self, Layout, PACKED_LIMIT, PLAIN_LIMIT, TocError, Unpacked};
use crate::digest::Digest;
use crate::extent::PackedOffset;

/// Where the digest of the TOC's JSON stands.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// The longest footer.
pub const FOOTER_BYTES: u64 = 51;

/// The digest of the TOC that a layer's annotations promise; `None` if they speak of none.
pub fn promised(annotations: &BTreeMap<String, String>) -> Result<Option<Digest>, PromiseError> {
    let digest = annotations.get(TOC_DIGEST).map(|digest| digest.parse());
    digest.transpose().map_err(|_| PromiseError)
}

/// Why annotations promise no TOC that we can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("annotation {TOC_DIGEST}: not a SHA-256 digest")]
pub struct PromiseError;

/// What the last bytes of a blob say about where its TOC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Footer {
    /// eStargz: the TOC begins here, and ends where the footer begins.
    Toc(PackedOffset),
    /// The same in the format before eStargz (CRFS), whose TOC has no digests of chunks.
    Legacy,
    /// eStargz whose TOC is in another image.
    External,
    /// zstd:chunked of stargz-snapshotter.
    ZstdChunked {
        /// Where the compressed TOC begins.
        at: PackedOffset,
        /// How many bytes it has as it is stored.
        packed_len: u64,
        /// How many bytes of JSON it becomes.
        plain_len: u64,
    },
}

/// The header of an empty gzip member with an extra field, up to the field's length (RFC 1952, 2.3).
const MEMBER: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];

/// What such a member ends with: an empty stored block, and no bytes.
const EMPTY: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];

/// The footer of a blob that ends with `tail`, if it is one of ours to know.
pub fn footer(tail: &[u8]) -> Option<Footer> {
    let position = |hex: &[u8]| u64::from_str_radix(str::from_utf8(hex).ok()?, 16).ok();
    if let Some([b'S', b'G', 22, 0, rest @ ..]) = extra_field(tail, 26)
        && let Some(at) = rest.strip_suffix(b"STARGZ").and_then(position)
    {
        return Some(Footer::Toc(PackedOffset(at)));
    }
    if let Some(field) = extra_field(tail, 22)
        && field.strip_suffix(b"STARGZ").and_then(position).is_some()
    {
        return Some(Footer::Legacy);
    }
    if extra_field(tail, 21).is_some_and(|field| field == b"SG\x11\0STARGZEXTERNALTOC") {
        return Some(Footer::External);
    }
    zstd_footer(tail)
}

/// The extra field of `len` bytes in the empty gzip member that ends `tail`.
fn extra_field(tail: &[u8], len: u8) -> Option<&[u8]> {
    let (_, member) = tail.split_at_checked(tail.len().checked_sub(25 + usize::from(len))?)?;
    let field = member.strip_prefix(&MEMBER)?.strip_prefix(&[len, 0])?;
    field.strip_suffix(&EMPTY)
}

/// `estargz/zstdchunked`, `zstdFooterBytes`: four numbers and a magic in a skippable frame.
fn zstd_footer(tail: &[u8]) -> Option<Footer> {
    let (_, footer) = tail.split_at_checked(tail.len().checked_sub(48)?)?;
    let footer = footer.strip_prefix(&[0x50, 0x2a, 0x4d, 0x18, 40, 0, 0, 0])?;
    let numbers = footer.strip_suffix(b"GnUlInUx")?;
    let number = |at: usize| {
        let bytes = numbers[at * 8..][..8].try_into();
        u64::from_le_bytes(bytes.expect("eight bytes"))
    };
    (number(3) == 1).then(|| Footer::ZstdChunked {
        at: PackedOffset(number(0)),
        packed_len: number(1),
        plain_len: number(2),
    })
}

/// How many bytes at the end of a blob of `blob_size` to fetch, so that the TOC is nearly always among them: it takes
/// about 40 packed bytes for each file, and less than a hundredth of most layers.
pub fn tail_bytes(blob_size: u64) -> u64 {
    (blob_size / 64).clamp(128 << 10, 4 << 20).min(blob_size)
}

/// Where in a blob of `blob_size` the packed TOC is that `footer` tells of; `None` if that cannot be, or if it is no TOC
/// that we can use.
pub fn place(footer: Footer, blob_size: u64) -> Option<std::ops::Range<u64>> {
    let (at, end) = match footer {
        Footer::Toc(at) => (at.0, blob_size.checked_sub(FOOTER_BYTES)?),
        Footer::ZstdChunked { at, packed_len, .. } => (at.0, at.0.checked_add(packed_len)?),
        Footer::Legacy | Footer::External => return None,
    };
    let is_sound = at < end && end <= blob_size && end - at <= PACKED_LIMIT;
    is_sound.then_some(at..end)
}

/// Why a layer cannot be read through its TOC. The layer may still be read as one stream.
#[derive(Debug, thiserror::Error)]
pub enum EstargzError {
    /// There is no TOC where the footer says.
    #[error("table of contents: cannot be unpacked")]
    Packed(#[source] Option<io::Error>),
    /// Not the tar of one file that it should be.
    #[error("table of contents: not in an archive")]
    Tar(#[from] TarError),
    /// Not the bytes that the descriptor promises.
    #[error("table of contents: the digest of its {has} bytes is not the promised {promised}")]
    Digest {
        /// How many bytes there were.
        has: usize,
        /// What they should hash to.
        promised: Digest,
    },
    /// What it says makes no sense.
    #[error(transparent)]
    Toc(#[from] TocError),
}

/// Checks `packed`, the TOC's bytes where [`place`] says, against the promised digest, parses it and adds the layer's
/// entries, pieces and chunks to `writer`. Chunks carry SHA-256 digests of their plain bytes. Holds the TOC's JSON in
/// memory until it returns. On an error the writer has a part of the layer and can only be dropped.
pub fn table(
    promised: Digest,
    footer: Footer,
    packed: &[u8],
    unpacked: &mut Unpacked,
    writer: &mut TableWriter,
) -> Result<(), EstargzError> {
    let (json, layout) = match footer {
        Footer::Toc(end) => {
            let codec = Codec::Gzip;
            (gzipped(packed, unpacked)?, Layout { end, codec })
        }
        Footer::ZstdChunked {
            at: end, plain_len, ..
        } => {
            let codec = Codec::Zstd;
            let json = unpacked.frame(packed, plain_len);
            let json = json.ok_or(EstargzError::Packed(None))?;
            (json, Layout { end, codec })
        }
        Footer::Legacy | Footer::External => return Err(EstargzError::Packed(None)),
    };
    if Digest::of(json) != promised {
        let has = json.len();
        return Err(EstargzError::Digest { has, promised });
    }
    Ok(toc::read(json, layout, writer)?)
}

/// Headers and padding of one member take less than a mebibyte.
const ARCHIVE_LIMIT: u64 = PLAIN_LIMIT + (1 << 20);

/// The file in the archive in the gzip member `packed`.
fn gzipped<'a>(packed: &[u8], unpacked: &'a mut Unpacked) -> Result<&'a [u8], EstargzError> {
    let archive = unpacked.member(packed, ARCHIVE_LIMIT);
    let archive = archive.map_err(|err| EstargzError::Packed(Some(err)))?;
    let mut tar = TarReader::new(archive);
    let size = match tar.next_entry()?.map(|entry| (entry.path, entry.kind)) {
        Some((path, Kind::Regular { size }))
            if path == b"stargz.index.json" && size <= PLAIN_LIMIT =>
        {
            size
        }
        _ => return Err(EstargzError::Packed(None)),
    };
    let at = tar.at().0 as usize;
    while let Some(content) = tar.next_content()? {
        if let Content::Hole(_) = content {
            return Err(EstargzError::Packed(None));
        }
    }
    Ok(&archive[at..at + size as usize])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::layer::table::{ChunkIndex, Table, from_reader};

    fn golden(hex: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn archived(name: &str, json: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(json.len() as u64);
        builder.append_data(&mut header, name, json).unwrap();
        gzip(&builder.into_inner().unwrap())
    }

    fn read(promised: Digest, footer: Footer, packed: &[u8]) -> Result<Table, EstargzError> {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = TableWriter::in_directory(directory.path());
        table(
            promised,
            footer,
            packed,
            &mut Unpacked::default(),
            &mut writer,
        )?;
        let mut bytes = Vec::new();
        writer.finish(Digest::of(b"blob"), &mut bytes).unwrap();
        Ok(from_reader(&bytes[..]).unwrap())
    }

    #[test]
    fn footers_are_those_that_the_original_tools_write() {
        let estargz = "1f8b08040000000000ff1a00534716003030303030303030303031613262336353544152475a010000ffff0000000000000000";
        let external = "1f8b08040000000000ff15005347110053544152475a45585445524e414c544f43010000ffff0000000000000000";
        let legacy = "1f8b08040000000000ff16003030303030303030303031613262336353544152475a010000ffff0000000000000000";
        let zstd = [
            &golden("502a4d1828000000")[..],
            &[7u64, 8, 9, 1].map(u64::to_le_bytes).concat(),
            b"GnUlInUx",
        ]
        .concat();
        for (tail, expected) in [
            (golden(estargz), Footer::Toc(PackedOffset(0x1a2b3c))),
            (golden(external), Footer::External),
            (golden(legacy), Footer::Legacy),
            (
                zstd,
                Footer::ZstdChunked {
                    at: PackedOffset(7),
                    packed_len: 8,
                    plain_len: 9,
                },
            ),
        ] {
            assert_eq!(footer(&tail), Some(expected));
            assert_eq!(footer(&[b"before", &tail[..]].concat()), Some(expected));
            assert_eq!(footer(&tail[1..]), None);
            assert_eq!(footer(&tail[..tail.len() - 1]), None);
        }
        assert_eq!(footer(b""), None);
        let mut damaged = golden(estargz);
        damaged[20] = b'x';
        assert_eq!(footer(&damaged), None);
    }

    #[test]
    fn a_place_outside_the_blob_is_none() {
        let toc = |at| Footer::Toc(PackedOffset(at));
        assert_eq!(place(toc(10), 100), Some(10..49));
        for (footer, size) in [
            (toc(49), 100),
            (toc(u64::MAX), 100),
            (toc(0), 50),
            (toc(0), PACKED_LIMIT + 100),
            (Footer::Legacy, 100),
            (Footer::External, 100),
        ] {
            assert_eq!(place(footer, size), None, "{footer:?}");
        }
        let zstd = |at, packed_len| Footer::ZstdChunked {
            at: PackedOffset(at),
            packed_len,
            plain_len: 1,
        };
        assert_eq!(place(zstd(10, 20), 100), Some(10..30));
        assert_eq!(place(zstd(10, 91), 100), None);
        assert_eq!(place(zstd(u64::MAX, 2), 100), None);
        assert_eq!(tail_bytes(1000), 1000);
        assert_eq!(tail_bytes(1 << 40), 4 << 20);
    }

    #[test]
    fn chunks_that_share_a_member_know_what_to_skip() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"bb"));
        let json = format!(
            r#"{{"version":1,"entries":[
                {{"name":".no.prefetch.landmark","type":"reg","size":1,"offset":10,"chunkDigest":"{a}"}},
                {{"name":"a","type":"reg","size":1,"offset":10,"innerOffset":1536,"chunkDigest":"{a}"}},
                {{"name":"b","type":"reg","size":2,"offset":10,"innerOffset":3072,"chunkDigest":"{b}"}},
                {{"name":"c","type":"reg","size":1,"offset":40,"chunkDigest":"{a}"}}]}}"#
        );
        let (digest, end) = (Digest::of(json.as_bytes()), Footer::Toc(PackedOffset(100)));
        let table = read(digest, end, &archived("stargz.index.json", json.as_bytes())).unwrap();
        assert_eq!(table.entry_count(), 3);
        let chunks: Vec<_> = (0..4)
            .map(|index| table.chunk(ChunkIndex(index)).unwrap())
            .map(|chunk| {
                (
                    chunk.packed_at.0,
                    chunk.packed_len,
                    chunk.skip,
                    chunk.plain_len,
                )
            })
            .collect();
        assert_eq!(
            chunks,
            [
                (10, 30, 0, 1),
                (10, 30, 1536, 1),
                (10, 30, 3072, 2),
                (40, 60, 0, 1)
            ]
        );
        assert!(matches!(
            table.chunk(ChunkIndex(0)).unwrap().codec,
            Codec::Gzip
        ));
    }

    #[test]
    fn a_toc_packed_with_zstd_is_known_by_its_plain_digest() {
        let json = br#"{"version":1,"entries":[{"name":"a","type":"fifo"}]}"#;
        let packed = zstd::bulk::compress(json, 1).unwrap();
        let footer = Footer::ZstdChunked {
            at: PackedOffset(10),
            packed_len: packed.len() as u64,
            plain_len: json.len() as u64,
        };
        assert_eq!(
            read(Digest::of(json), footer, &packed)
                .unwrap()
                .entry_count(),
            1
        );
        assert!(matches!(
            read(Digest::of(b""), footer, &packed),
            Err(EstargzError::Digest { .. })
        ));
    }

    #[test]
    fn bytes_that_are_not_the_promised_toc_are_refused() {
        let json = br#"{"version":1,"entries":[]}"#;
        let (digest, footer) = (Digest::of(json), Footer::Toc(PackedOffset(100)));
        let problem = |digest, packed: &[u8]| {
            let err = read(digest, footer, packed).err().unwrap();
            err.to_string()
        };
        assert!(read(digest, footer, &archived("stargz.index.json", json)).is_ok());
        assert!(problem(Digest::of(b""), &archived("stargz.index.json", json)).contains("digest"));
        assert!(problem(digest, &archived("other", json)).contains("cannot be unpacked"));
        assert!(problem(digest, b"no gzip").contains("cannot be unpacked"));
        assert!(problem(digest, &gzip(b"no tar")).contains("not in an archive"));
        let other = b"{}";
        let packed = archived("stargz.index.json", other);
        assert!(problem(Digest::of(other), &packed).contains("not valid"));
    }

    #[test]
    fn annotations_that_are_no_digest_promise_nothing() {
        let annotated = |value: &str| BTreeMap::from([(TOC_DIGEST.to_owned(), value.to_owned())]);
        let digest = Digest::of(b"");
        assert_eq!(promised(&annotated(&digest.to_string())), Ok(Some(digest)));
        assert_eq!(promised(&annotated("sha512:00")), Err(PromiseError));
        assert_eq!(promised(&BTreeMap::new()), Ok(None));
    }
}
