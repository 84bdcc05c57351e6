//! Files at the root of a layer by which eStargz builders speak to snapshotters, and which no image shows
//! (stargz-snapshotter `estargz/types.go`, `docs/estargz.md`).

use super::entry::{Entry, Kind};

/// A file of one byte: everything before it is to be fetched ahead.
const PREFETCH: &[u8] = b".prefetch.landmark";

/// Files of one byte: the layer's builder has thought of what is to be fetched ahead.
const LANDMARKS: [&[u8]; 2] = [PREFETCH, b".no.prefetch.landmark"];

/// The table of contents; it is the last file of its layer.
const TOC: &[u8] = b"stargz.index.json";

/// Tells such files from others, in the order of a layer. The names alone could be anybody's: a landmark has its name and
/// one byte, a table of contents follows a landmark.
#[derive(Debug, Default)]
pub struct Landmarks {
    has_passed: bool,
}

impl Landmarks {
    /// Whether `entry`, the layer's next, is not to be shown.
    pub fn hide(&mut self, entry: &Entry) -> bool {
        let Kind::Regular { size } = entry.kind else {
            return false;
        };
        let is_landmark = size == 1 && LANDMARKS.contains(&&*entry.path);
        self.has_passed |= is_landmark;
        is_landmark || (self.has_passed && entry.path == TOC)
    }

    /// Whether all before `entry`, which is hidden, is to be fetched ahead.
    pub fn ends_lead(entry: &Entry) -> bool {
        entry.path == PREFETCH
    }

    /// Makes `entry`, the layer's next, a hidden one if it is not to be shown.
    pub fn hide_in_place(&mut self, entry: &mut Entry) {
        if let Kind::Regular { size } = entry.kind
            && self.hide(entry)
        {
            entry.kind = Kind::Hidden { size };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry::Timestamp;

    fn hidden(files: &[(&str, u64)]) -> Vec<bool> {
        let mut landmarks = Landmarks::default();
        let entry = |&(path, size): &(&str, u64)| Entry {
            path: path.into(),
            kind: Kind::Regular { size },
            mode: 0o444,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
        };
        files
            .iter()
            .map(|file| landmarks.hide(&entry(file)))
            .collect()
    }

    #[test]
    fn landmarks_and_the_toc_after_them_are_hidden_and_nothing_else() {
        let toc = ("stargz.index.json", 5000);
        for (files, expected) in [
            (
                vec![(".no.prefetch.landmark", 1), ("a", 1), toc],
                vec![true, false, true],
            ),
            (
                vec![("a", 1), (".prefetch.landmark", 1), toc],
                vec![false, true, true],
            ),
            (
                vec![(".prefetch.landmark", 2), ("d/.prefetch.landmark", 1), toc],
                vec![false; 3],
            ),
            (vec![toc], vec![false]),
        ] {
            assert_eq!(hidden(&files), expected, "{files:?}");
        }
    }
}
