//! A tar stream is an error, or members whose content has the size that was promised and which,
//! with the literal, are the stream again.

use sifon_mount::layer::entry::Kind;
use sifon_mount::layer::tar::{Content, TarError, TarReader};

pub fn run(bytes: &[u8]) {
    read(bytes);
    read(&repaired(bytes));
}

fn read(stream: &[u8]) {
    let mut rebuilt = Vec::with_capacity(stream.len());
    if members(stream, &mut rebuilt).is_ok() {
        assert!(rebuilt == stream);
    }
}

fn members(stream: &[u8], rebuilt: &mut Vec<u8>) -> Result<(), TarError> {
    let mut reader = TarReader::new(stream);
    while let Some(entry) = reader.next_entry()? {
        rebuilt.extend(reader.take_literal());
        let mut read = 0;
        while let Some(content) = reader.next_content()? {
            match content {
                Content::Data(data) => {
                    rebuilt.extend_from_slice(data);
                    read += data.len() as u64;
                }
                Content::Hole(len) => read += len,
            }
        }
        rebuilt.extend(reader.take_literal());
        let size = match entry.kind {
            Kind::Regular { size } => size,
            _ => 0,
        };
        assert_eq!(read, size);
    }
    rebuilt.extend(reader.take_literal());
    Ok(())
}

/// With right checksums, which would stop most damage at the door.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        if block[257..].starts_with(b"ustar") {
            let mut header = tar::Header::from_byte_slice(block).clone();
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
    bytes
}
