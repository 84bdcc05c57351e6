//! An image that other programs packed, with what a correct reader shows of it: where it is beside the checkout, or where
//! `SIFON_FIXTURES` says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use serde_json::{Value, json};

use crate::view::{Shown, View};

/// Its tags whose layers have tables of contents.
pub const LAZY: [&str; 4] = [
    "zstd-chunked-podman",
    "zstd-chunked-stargz",
    "estargz",
    "estargz-minchunk",
];

/// The fixture of other implementations' traps.
pub struct Fixture {
    path: PathBuf,
    expected: BTreeMap<String, Value>,
}

impl Fixture {
    /// `None`, with a word about it, if it is not there.
    pub fn beside() -> Option<Self> {
        let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
        let fixtures = std::env::var_os("SIFON_FIXTURES").map_or_else(beside, PathBuf::from);
        let Ok(path) = fixtures.join("tricky").canonicalize() else {
            eprintln!("skipped: no fixture beside the checkout");
            return None;
        };
        let expected = fs::read(path.join("expected.json")).unwrap();
        Some(Self {
            path,
            expected: serde_json::from_slice(&expected).unwrap(),
        })
    }

    /// Its OCI layout.
    pub fn layout(&self) -> PathBuf {
        self.path.join("layout")
    }

    /// Compares all of the image with this tag, as a directory shows it, with what is expected.
    #[track_caller]
    pub fn assert_is_shown(&self, tag: &str, directory: &Path) {
        let mut seen = View::of(directory).0;
        seen.remove(&b""[..]);
        let names = |path: &Vec<u8>| format!("/{}", String::from_utf8_lossy(path));
        let names: Vec<_> = seen.keys().map(names).collect();
        assert!(names.iter().eq(self.expected.keys()), "{tag}: {names:?}");
        for (shown, (path, expected)) in seen.values().zip(&self.expected) {
            let mut expected = expected.clone();
            if tag.contains("stargz") || tag.contains("minchunk") {
                // Its tables of contents have whole seconds.
                if let Some(mtime) = expected["mtime"].as_f64() {
                    expected["mtime"] = json!(mtime.round() as i64);
                }
            }
            assert_expected(shown, &expected, &format!("{tag}: {path}"));
        }
    }
}

/// Compares what the fixture tells of a file, in its own words.
fn assert_expected(shown: &Shown, expected: &Value, name: &str) {
    let kind = match shown.kind {
        FileType::Directory => "dir",
        FileType::RegularFile => "reg",
        FileType::Symlink => "symlink",
        FileType::CharacterDevice => "char",
        FileType::BlockDevice => "block",
        FileType::Fifo => "fifo",
        other => panic!("{name}: {other:?}"),
    };
    let mut told = json!({"type": kind, "uid": shown.owner.0, "gid": shown.owner.1});
    let mut tell = |key: &str, value: Value| {
        if !expected[key].is_null() {
            told[key] = value;
        }
    };
    let is_symlink = shown.kind == FileType::Symlink;
    // Linux shows a symlink's mode as 0777, whatever an archive says.
    let mode = if is_symlink {
        expected["mode"].clone()
    } else {
        shown.mode.into()
    };
    tell("mode", mode);
    tell("nlink", json!(shown.nlink));
    tell("size", json!(shown.content.map(|(size, _)| size)));
    tell(
        "sha256",
        json!(shown.content.map(|(_, digest)| digest.hex())),
    );
    tell("link", json!(String::from_utf8_lossy(&shown.target)));
    tell("dev", json!([shown.device.0, shown.device.1]));
    tell("implied", json!(true));
    let (secs, nanos) = shown.mtime.unwrap();
    tell(
        "mtime",
        if nanos == 0 {
            json!(secs)
        } else {
            json!(secs as f64 + nanos as f64 / 1e9)
        },
    );
    let xattrs: BTreeMap<_, _> = shown
        .xattrs
        .iter()
        .map(|(key, value)| {
            (
                String::from_utf8_lossy(key).into_owned(),
                data_encoding::HEXLOWER.encode(value),
            )
        })
        .collect();
    if !xattrs.is_empty() {
        told["xattrs"] = json!(xattrs);
    }
    assert_eq!(told, *expected, "{name}");
}
