//! What compresses blocks: which algorithms there are, how they are named, and one context for each thread.

use std::fmt;
use std::str::FromStr;

use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};
use lz4::block::CompressionMode;
use sifon_mount::layer::native;

use super::BLOCK_BYTES;

/// How blocks are compressed. Prints and parses as `zstd:3`, `gzip`, `lz4:12`, `none`; what does not shrink is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Read by Linux since 4.14 and by current squashfuse; level 1 to 22.
    Zstd(u8),
    /// Read everywhere; level 1 to 9.
    Gzip(u8),
    /// The smallest, and slow to read; preset 0 to 9.
    Xz(u8),
    /// The largest, and quick to read; 0 is quick to write, 3 to 12 are smaller.
    Lz4(u8),
    /// Everything is stored as it is.
    None,
}

/// Of 1.33 GB in 76,670 files, zlib's level 6 made 372 MB in 17 CPU seconds, level 9 took more than twice that.
const GZIP_LEVEL: u8 = 6;
/// What `xz` and mksquashfs take.
const XZ_PRESET: u8 = 6;

impl Default for Compression {
    /// The native layers' own, so that their chunks are copied.
    fn default() -> Self {
        Self::Zstd(native::LEVEL as u8)
    }
}

/// Why a text names no compression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCompressionError {
    /// No such algorithm.
    #[error("compression {0:?}: expected zstd, gzip, xz, lz4 or none")]
    Algorithm(String),
    /// It has other levels.
    #[error("compression {text:?}: expected a level {levels}")]
    Level {
        /// What was said.
        text: String,
        /// What could have been.
        levels: &'static str,
    },
}

impl FromStr for Compression {
    type Err = ParseCompressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, level) = match text.split_once([':', '=']) {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        let level = |default: u8, allowed: &[u8], levels| match level {
            None => Ok(default),
            Some(level) => level
                .parse()
                .ok()
                .filter(|level| allowed.contains(level))
                .ok_or_else(|| ParseCompressionError::Level {
                    text: text.into(),
                    levels,
                }),
        };
        const TO_22: [u8; 23] = {
            let mut levels = [0; 23];
            let mut at = 0;
            while at < levels.len() {
                levels[at] = at as u8;
                at += 1;
            }
            levels
        };
        Ok(match name {
            "zstd" => Self::Zstd(level(native::LEVEL as u8, &TO_22[1..], "from 1 to 22")?),
            "gzip" => Self::Gzip(level(GZIP_LEVEL, &TO_22[1..10], "from 1 to 9")?),
            "xz" => Self::Xz(level(XZ_PRESET, &TO_22[..10], "from 0 to 9")?),
            "lz4" => Self::Lz4(level(
                0,
                &[0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
                "0 or from 3 to 12",
            )?),
            "none" => {
                level(0, &[], "of none")?;
                Self::None
            }
            _ => return Err(ParseCompressionError::Algorithm(text.into())),
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::Gzip(level) => write!(f, "gzip:{level}"),
            Self::Xz(preset) => write!(f, "xz:{preset}"),
            Self::Lz4(level) => write!(f, "lz4:{level}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl Compression {
    /// Whether a chunk of a native layer is what this would make of a block.
    pub(super) fn is_native(self) -> bool {
        self == Self::default()
    }

    /// The number in the superblock. There is none for no compression: nothing then needs the one it names.
    pub(super) fn number(self) -> u16 {
        match self {
            Self::Gzip(_) | Self::None => 1,
            Self::Xz(_) => 4,
            Self::Lz4(_) => 5,
            Self::Zstd(_) => 6,
        }
    }

    /// What the superblock is followed by, where the defaults of mksquashfs do not say it all.
    pub(super) fn options(self) -> Option<Vec<u8>> {
        let numbers = |numbers: [u32; 2]| numbers.map(u32::to_le_bytes).concat();
        match self {
            Self::Zstd(level) => Some(u32::from(level).to_le_bytes().into()),
            // Window and, in the upper half, no strategies.
            Self::Gzip(level) if level != 9 => Some(numbers([level.into(), 15])),
            // The version of the block format, and whether the high compression mode made it.
            Self::Lz4(level) => Some(numbers([1, (level > 0).into()])),
            Self::Gzip(_) | Self::Xz(_) | Self::None => None,
        }
    }
}

/// Compresses block after block.
pub(super) enum Compressor {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(libdeflater::Compressor),
    Xz(u8),
    Lz4(CompressionMode),
    None,
}

impl Compressor {
    pub fn new(compression: Compression) -> Self {
        match compression {
            Compression::Zstd(level) => Self::Zstd(
                zstd::bulk::Compressor::new(level.into()).expect("the level is one that zstd has"),
            ),
            Compression::Gzip(level) => {
                let level = libdeflater::CompressionLvl::new(level.into());
                Self::Gzip(libdeflater::Compressor::new(
                    level.expect("libdeflate has all of zlib's levels"),
                ))
            }
            Compression::Xz(preset) => Self::Xz(preset),
            Compression::Lz4(0) => Self::Lz4(CompressionMode::FAST(1)),
            Compression::Lz4(level) => Self::Lz4(CompressionMode::HIGHCOMPRESSION(level.into())),
            Compression::None => Self::None,
        }
    }

    /// The packed bytes, if they are fewer.
    pub fn packed(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        let packed = match self {
            Self::Zstd(context) => context.compress(plain).ok()?,
            Self::Gzip(context) => {
                let mut packed = vec![0; plain.len().saturating_sub(1)];
                let len = context.zlib_compress(plain, &mut packed).ok()?;
                packed.truncate(len);
                packed
            }
            Self::Xz(preset) => xz(*preset, plain)?,
            Self::Lz4(mode) => lz4::block::compress(plain, Some(*mode), false).ok()?,
            Self::None => return None,
        };
        (packed.len() < plain.len()).then_some(packed)
    }
}

/// As the kernel's decoder wants it (lib/xz): LZMA2 alone, CRC32 or no check, and a dictionary no larger than a block.
fn xz(preset: u8, plain: &[u8]) -> Option<Vec<u8>> {
    let mut options = LzmaOptions::new_preset(preset.into()).ok()?;
    options.dict_size(BLOCK_BYTES as u32);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let mut stream = Stream::new_stream_encoder(&filters, Check::Crc32).ok()?;
    let mut packed = Vec::with_capacity(plain.len());
    loop {
        let taken = usize::try_from(stream.total_in()).ok()?;
        let status = stream.process_vec(&plain[taken..], &mut packed, Action::Finish);
        match status.ok()? {
            Status::StreamEnd => return Some(packed),
            // What does not fit is not smaller.
            _ if packed.len() == packed.capacity() => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_a_level() {
        for (text, expected) in [
            ("zstd", Compression::default()),
            ("zstd:19", Compression::Zstd(19)),
            ("zstd=3", Compression::Zstd(3)),
            ("gzip", Compression::Gzip(6)),
            ("gzip:9", Compression::Gzip(9)),
            ("xz", Compression::Xz(6)),
            ("lz4", Compression::Lz4(0)),
            ("lz4:12", Compression::Lz4(12)),
            ("none", Compression::None),
        ] {
            let parsed: Compression = text.parse().unwrap();
            assert_eq!(parsed, expected);
            assert_eq!(parsed.to_string().parse(), Ok(expected));
        }
        for text in [
            "", "lzo", "zstd:0", "zstd:23", "gzip:10", "lz4:1", "none:1", "zstd:x",
        ] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_shrink_is_not_packed() {
        let noise: Vec<u8> = blake3::hash(b"noise").as_bytes().to_vec();
        let text = b"the same words ".repeat(500);
        for name in ["zstd", "gzip", "xz", "lz4", "lz4:9"] {
            let mut compressor = Compressor::new(name.parse().unwrap());
            assert_eq!(compressor.packed(&noise), None, "{name}");
            let packed = compressor.packed(&text).unwrap();
            assert!(packed.len() < text.len() / 5, "{name}: {}", packed.len());
        }
        assert_eq!(Compressor::new(Compression::None).packed(&text), None);
    }
}
