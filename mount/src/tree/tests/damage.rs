//! Files that are not what we wrote.

use super::*;
use crate::tree::format::{Header, NameRecord, NodeRecord};

fn sample() -> Vec<u8> {
    let mut lower = vec![
        dir("d"),
        file("d/f"),
        dir("d/e"),
        file("d/e/g"),
        hard_link("h", "d/f"),
        entry("null", Kind::CharDevice { major: 1, minor: 3 }),
    ];
    lower[1].xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())];
    merged(&[
        lower,
        vec![
            symlink("l", "d/e/../f"),
            symlink("d/up", ".."),
            file("d/e/z"),
        ],
    ])
    .unwrap()
}

/// The seed of the fuzz target, so that it stays one, and the format, so that nobody changes it unawares:
/// if this fails, raise [`VERSION`] and write `sample()` to the seed's file.
#[test]
fn a_tree_file_is_byte_for_byte_what_its_version_says() {
    let seed = include_bytes!("../../../fuzz/seeds/tree/sample");
    assert!(sample() == seed, "the format has changed");
}

/// Asks everything that can be asked; only that it returns matters.
fn ask_everything(tree: &Tree) {
    let _ = tree.layers();
    for id in (0..=tree.node_count().min(1000) + 1).map(NodeId) {
        let _ = (
            tree.node(id),
            tree.parent(id),
            tree.link_target(id),
            tree.xattrs(id),
        );
        let _ = (tree.lookup(id, b"f"), tree.lookup(id, b""));
        if let Ok(children) = tree.children(id, 0) {
            let _ = children.count();
        }
    }
    assert!(tree.walk().count() as u64 <= tree.name_count() + 2);
    for path in ["l", "d/up/d/up/h", "d/e/../../../l/x", "h/..", "d/e/g"] {
        let _ = tree.resolve(path.as_bytes());
    }
}

#[test]
fn a_truncated_tree_does_not_open() {
    let bytes = sample();
    ask_everything(&Tree::open(Sealed::in_memory(bytes.clone())).unwrap());
    for len in 0..bytes.len() {
        assert!(
            Tree::open(Sealed::in_memory(bytes[..len].to_vec())).is_err(),
            "{len}"
        );
    }
}

#[test]
fn a_damaged_tree_is_an_error_and_never_a_crash_or_a_hang() {
    let bytes = sample();
    for at in 0..bytes.len() {
        for damage in [0x01, 0x02, 0x04, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= damage;
            if let Ok(tree) = Tree::open(Sealed::in_memory(damaged)) {
                ask_everything(&tree);
            }
        }
    }
}

#[test]
fn a_directory_that_contains_itself_ends_the_walk() {
    let mut bytes = merged(&[vec![dir("a"), dir("a/b"), dir("c")]]).unwrap();
    let names_at = size_of::<Header>() + size_of::<Digest>() + 4 * size_of::<NodeRecord>();
    let node_of_b = names_at + 2 * size_of::<NameRecord>() + 8;
    assert_eq!(bytes[node_of_b], 4);
    bytes[node_of_b] = 2;
    let tree = Tree::open(Sealed::in_memory(bytes)).unwrap();
    let last = tree.walk().last().unwrap().unwrap_err();
    assert_eq!(last.to_string(), "tree file, node 2: its names occur twice");
}
