//! Where chunks begin and end: at places that the content chooses, so that the same bytes in another
//! image, or shifted in another version of a file, become the same chunks.

/// Bytes in a chunk of data at most. The original has no limit; readers hold a chunk in memory whole.
pub const LONGEST_CHUNK: usize = 1 << 20;

/// As many zeros are a chunk that nobody fetches (`compressor.go`, `holesThreshold`).
const ZEROS_MIN: usize = 1 << 10;

/// Chunks have 2^16 bytes on average (`compressor.go`, `RollsumBits`).
const AVERAGE_BITS: u32 = 16;

/// One chunk of the bytes at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How many bytes it has, never 0.
    pub len: usize,
    /// Whether all of them are zero.
    pub is_zeros: bool,
}

/// Cuts a file's bytes in their order, with the rolling checksum of the original.
#[derive(Default)]
pub struct Cutter(RollingSum);

impl Cutter {
    /// The chunk that `bytes` begin with. They must not be empty, and [`LONGEST_CHUNK`] or more unless
    /// the file ends with them.
    pub fn cut(&mut self, bytes: &[u8]) -> Cut {
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        if zeros >= ZEROS_MIN {
            self.0 = RollingSum::default();
            return Cut {
                len: zeros,
                is_zeros: true,
            };
        }
        Cut {
            len: self.data_len(&bytes[..bytes.len().min(LONGEST_CHUNK)]),
            is_zeros: false,
        }
    }

    /// Up to a place that the sum chooses, or to a stretch of zeros, or all.
    fn data_len(&mut self, bytes: &[u8]) -> usize {
        let mut zeros = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            if zeros == ZEROS_MIN && at >= ZEROS_MIN {
                return at + 1 - ZEROS_MIN;
            }
            self.0.roll(byte);
            if self.0.is_boundary() {
                return at + 1;
            }
        }
        bytes.len()
    }
}

const WINDOW: usize = 64;

/// A checksum of the last 64 bytes: rsync's, as bup uses it (`compressor/rollsum.go`).
struct RollingSum {
    sum: u32,
    weighted: u32,
    window: [u8; WINDOW],
    at: usize,
}

/// Added to every byte, so that runs of zeros count.
const OFFSET: u32 = 31;

impl Default for RollingSum {
    fn default() -> Self {
        Self {
            sum: WINDOW as u32 * OFFSET,
            weighted: WINDOW as u32 * (WINDOW as u32 - 1) * OFFSET,
            window: [0; WINDOW],
            at: 0,
        }
    }
}

impl RollingSum {
    fn roll(&mut self, byte: u8) {
        let gone = std::mem::replace(&mut self.window[self.at], byte);
        let (added, gone) = (u32::from(byte), u32::from(gone));
        self.sum = self.sum.wrapping_add(added).wrapping_sub(gone);
        let weight = (WINDOW as u32) * (gone + OFFSET);
        self.weighted = self.weighted.wrapping_add(self.sum).wrapping_sub(weight);
        self.at = (self.at + 1) % WINDOW;
    }

    fn is_boundary(&self) -> bool {
        let mask = (1 << AVERAGE_BITS) - 1;
        self.weighted & mask == mask
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(len: usize, mut state: u64) -> Vec<u8> {
        (0..len)
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect()
    }

    fn cuts(bytes: &[u8]) -> Vec<Cut> {
        let mut cutter = Cutter::default();
        let (mut cuts, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            cuts.push(cutter.cut(&bytes[at..]));
            at += cuts.last().unwrap().len;
        }
        cuts
    }

    #[test]
    fn chunks_have_64_kib_on_average() {
        let count = cuts(&noise(4 << 20, 1)).len();
        assert!((32..128).contains(&count), "{count}");
    }

    #[test]
    fn shifted_content_becomes_the_same_chunks_again() {
        let bytes = noise(1 << 20, 2);
        let ends = |bytes: &[u8], from_end: usize| -> Vec<usize> {
            let mut at = 0;
            let ends = cuts(bytes).into_iter().map(move |cut| {
                at += cut.len;
                at
            });
            ends.map(|end| bytes.len() - end)
                .filter(|&end| end < from_end)
                .collect()
        };
        let shifted = [b"inserted", &bytes[..]].concat();
        let tail = bytes.len() - 64;
        assert_eq!(ends(&bytes, tail), ends(&shifted, tail));
    }

    #[test]
    fn zeros_are_chunks_of_their_own_from_1024_on() {
        let some = |len: usize, is_zeros| Cut { len, is_zeros };
        let bytes = [&[1; 10][..], &[0; 1024], &[2; 5], &[0; 1023]].concat();
        assert_eq!(
            cuts(&bytes),
            [some(10, false), some(1024, true), some(1028, false)]
        );
        assert_eq!(cuts(&[0; 5000]), [some(5000, true)]);
        assert_eq!(cuts(&[0; 1023]), [some(1023, false)]);
    }

    #[test]
    fn content_without_a_boundary_is_cut_at_the_longest_chunk() {
        let lens: Vec<_> = cuts(&vec![255; 5 << 19])
            .iter()
            .map(|cut| cut.len)
            .collect();
        assert_eq!(lens, [1 << 20, 1 << 20, 1 << 19]);
    }

    proptest! {
        #[test]
        fn chunks_together_are_the_content_and_zeros_are_zeros(
            parts in prop::collection::vec((any::<u8>(), 1usize..5000), 0..20)
        ) {
            let bytes: Vec<u8> = parts.iter().flat_map(|&(byte, len)| vec![byte & 3; len]).collect();
            let mut at = 0;
            for cut in cuts(&bytes) {
                prop_assert!(cut.len > 0 && cut.len <= bytes.len() - at);
                let is_zeros = bytes[at..at + cut.len].iter().all(|&byte| byte == 0);
                prop_assert!(is_zeros || !cut.is_zeros);
                at += cut.len;
            }
            prop_assert_eq!(at, bytes.len());
        }
    }
}
