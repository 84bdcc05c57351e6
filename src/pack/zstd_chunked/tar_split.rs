//! tar-split: the tar without its files' contents, so that containers/storage can rebuild it byte by
//! byte (github.com/vbatts/tar-split, `tar/storage`). Lines of JSON: segments of the tar in base64, and
//! between them the files whose contents stand there.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use super::{Packed, Packer};

/// Writes a tar-split as the tar itself is written.
pub struct TarSplit {
    packer: Packer,
    /// Tar bytes since the last file's content. Its padding belongs to the next segment
    /// (`tar/asm/iterate.go`).
    segment: Vec<u8>,
    position: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    r#type: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    payload: Option<String>,
    position: u64,
}

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

impl TarSplit {
    /// Without lines so far.
    pub fn new(level: i32) -> io::Result<Self> {
        Ok(Self {
            packer: Packer::new(level)?,
            segment: Vec::new(),
            position: 0,
        })
    }

    /// Tar bytes that are no file's content.
    pub fn literal(&mut self, bytes: &[u8]) {
        self.segment.extend_from_slice(bytes);
    }

    /// A member's content stands here, also if it has none. `crc` is that of its bytes.
    pub fn file(&mut self, name: &str, size: u64, crc: Option<u64>) -> io::Result<()> {
        self.end_segment()?;
        self.line(Line {
            r#type: FILE,
            name: Some(name),
            size: Some(size).filter(|&size| size > 0),
            payload: crc.map(|crc| BASE64.encode(crc.to_be_bytes())),
            position: self.position,
        })
    }

    /// All lines, compressed.
    pub fn finish(mut self) -> io::Result<Packed> {
        self.end_segment()?;
        self.packer.finish()
    }

    fn end_segment(&mut self) -> io::Result<()> {
        let payload = BASE64.encode(&self.segment);
        self.segment.clear();
        self.line(Line {
            r#type: SEGMENT,
            name: None,
            size: None,
            payload: Some(payload),
            position: self.position,
        })
    }

    fn line(&mut self, line: Line<'_>) -> io::Result<()> {
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.position += 1;
        self.packer.write(&text)
    }
}

/// The polynomial of ISO 3309, bits reversed; Go's `hash/crc64` calls it ISO.
const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;

/// For each byte, and for it with up to seven zero bytes after: what it does to the sum.
static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 255) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The checksum of a file's content in a tar-split.
pub struct Crc64(u64);

impl Default for Crc64 {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc64 {
    /// Counts `bytes` in, eight at a time.
    pub fn update(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let mixed = (self.0 ^ u64::from_le_bytes(*word)).to_le_bytes();
            self.0 = mixed
                .iter()
                .zip(TABLES.iter().rev())
                .fold(0, |crc, (&byte, table)| crc ^ table[usize::from(byte)]);
        }
        for byte in rest {
            self.0 = (self.0 >> 8) ^ TABLES[0][usize::from(self.0 as u8 ^ byte)];
        }
    }

    /// The checksum of everything counted in.
    pub fn finish(self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc(bytes: &[u8]) -> u64 {
        let mut crc = Crc64::default();
        crc.update(bytes);
        crc.finish()
    }

    #[test]
    fn the_checksum_is_the_one_that_go_calls_iso() {
        // The check value of CRC-64/GO-ISO in the catalogue of parametrised CRC algorithms.
        assert_eq!(crc(b"123456789"), 0xb909_56c7_75a4_1001);
        assert_eq!(crc(b""), 0);
        let bytes: Vec<u8> = (0..=255).collect();
        let mut parts = Crc64::default();
        bytes.chunks(7).for_each(|part| parts.update(part));
        assert_eq!(parts.finish(), crc(&bytes));
    }
}
