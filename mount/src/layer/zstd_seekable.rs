//! zstd's seekable format: a blob of frames with a table of them at its end (zstd, `contrib/seekable_format`,
//! `zstd_seekable_compression_format.md`, version 0.1.1).
//!
//! No digest that a manifest names covers the table, so it is a hint of how a layer was made, and nothing is read by it.

/// Length of the footer: how many frames, a descriptor, a magic number.
pub const FOOTER_BYTES: u64 = 9;

/// The last four bytes of a blob in this format.
const MAGIC: u32 = 0x8f92_eab1;

/// The first four bytes of the skippable frame that the table is.
const FRAME_MAGIC: u32 = 0x184d_2a5e;

/// Length of what the table begins with: magic number and length of a skippable frame.
pub const HEADER_BYTES: u64 = 8;

/// The format's own limit.
const FRAMES_LIMIT: u32 = 0x800_0000;

/// What a blob's end says of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeekTable {
    /// How many frames it lists.
    pub frames: u32,
    /// Whether it has a checksum of each.
    pub has_checksums: bool,
}

impl SeekTable {
    /// Reads the footer at the end of `tail`, the end of a blob. `None` if it is no such blob.
    pub fn at_end_of(tail: &[u8]) -> Option<Self> {
        let (_, footer) = tail.split_last_chunk::<{ FOOTER_BYTES as usize }>()?;
        let [frames @ .., descriptor, m0, m1, m2, m3] = *footer;
        let frames = u32::from_le_bytes(frames);
        // Bits 6 to 2 are reserved and zero, 1 and 0 unused.
        let is_known = descriptor & 0b0111_1100 == 0;
        let is_footer = u32::from_le_bytes([m0, m1, m2, m3]) == MAGIC;
        (is_footer && is_known && frames <= FRAMES_LIMIT).then_some(Self {
            frames,
            has_checksums: descriptor & 0x80 != 0,
        })
    }

    /// Length of the frame's content: entries and footer.
    fn content_len(self) -> u64 {
        let entry_bytes = if self.has_checksums { 12 } else { 8 };
        u64::from(self.frames) * entry_bytes + FOOTER_BYTES
    }

    /// Where the skippable frame begins in a blob of `size` bytes; `None` if the blob is too short to have it.
    pub fn start(self, size: u64) -> Option<u64> {
        size.checked_sub(self.content_len() + HEADER_BYTES)
    }

    /// Whether `header` is what this table begins with.
    pub fn is_begun_by(self, header: [u8; HEADER_BYTES as usize]) -> bool {
        let [m0, m1, m2, m3, len @ ..] = header;
        u32::from_le_bytes([m0, m1, m2, m3]) == FRAME_MAGIC
            && u64::from(u32::from_le_bytes(len)) == self.content_len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of `frames` entries, as the specification draws it.
    fn table(frames: u32, descriptor: u8) -> Vec<u8> {
        let entry_bytes = if descriptor & 0x80 != 0 { 12 } else { 8 };
        let entries = vec![1; frames as usize * entry_bytes];
        let content_len = entries.len() as u32 + 9;
        let parts: [&[u8]; 6] = [
            &FRAME_MAGIC.to_le_bytes(),
            &content_len.to_le_bytes(),
            &entries,
            &frames.to_le_bytes(),
            &[descriptor],
            &[0xb1, 0xea, 0x92, 0x8f],
        ];
        parts.concat()
    }

    #[test]
    fn a_table_is_known_by_both_of_its_ends() {
        for (frames, descriptor, has_checksums) in [
            (0, 0, false),
            (3, 0, false),
            (3, 0x80, true),
            (3, 0x83, true),
        ] {
            let blob = [vec![7; 100], table(frames, descriptor)].concat();
            let found = SeekTable::at_end_of(&blob).unwrap();
            assert_eq!(
                found,
                SeekTable {
                    frames,
                    has_checksums
                }
            );
            let start = found.start(blob.len() as u64).unwrap();
            assert_eq!(start, 100);
            let header = blob[100..108].try_into().unwrap();
            assert!(found.is_begun_by(header));
            assert!(!found.is_begun_by([7; 8]));
            assert_eq!(found.start(blob.len() as u64 - 101), None);
        }
    }

    #[test]
    fn what_only_ends_like_a_table_is_none() {
        let good = table(3, 0);
        let reserved = table(3, 0x04);
        let mut other_magic = good.clone();
        *other_magic.last_mut().unwrap() = 0;
        let many = [&u32::MAX.to_le_bytes()[..], &[0], &good[good.len() - 4..]].concat();
        for tail in [
            &b""[..],
            &good[good.len() - 8..],
            &reserved,
            &other_magic,
            &many,
        ] {
            assert_eq!(SeekTable::at_end_of(tail), None, "{tail:?}");
        }
    }
}
