//! The rules of merging, reading and resolving, one by one.

use super::*;
use crate::layer::table::ChunkIndex;

#[test]
fn a_whiteout_hides_lower_layers_only_wherever_it_stands() {
    let lower = vec![dir("a"), file("a/x"), file("a/y"), file("b")];
    let upper = vec![file("a/x"), whiteout("a/x"), whiteout("b"), whiteout("a/y")];
    assert_eq!(names(&[lower, upper]), ["a/", "a/x"]);
}

#[test]
fn a_whiteout_hides_a_directory_with_all_it_has_but_not_what_its_own_layer_puts_there() {
    let lower = vec![dir("a"), dir("a/b"), file("a/b/x"), file("a/y")];
    let upper = vec![file("a/b/z"), whiteout("a")];
    let layers = [lower, upper];
    assert_eq!(names(&layers), ["a/", "a/b/", "a/b/z"]);
    assert_eq!(node_at(&tree(&layers), "a").uid, 0, "implied anew");
}

#[test]
fn an_opaque_directory_hides_what_lower_layers_put_in_it_and_keeps_its_own_attributes() {
    let lower = vec![dir("a"), dir("a/b"), file("a/b/x"), file("a/y"), file("c")];
    let upper = vec![file("a/z"), opaque("a")];
    let layers = [lower, upper];
    assert_eq!(names(&layers), ["a/", "a/z", "c"]);
    assert_eq!(node_at(&tree(&layers), "a").uid, 5);
    assert_eq!(
        names(&[vec![file("x")], vec![opaque(""), file("y")]]),
        ["y"]
    );
}

#[test]
fn hiding_what_is_not_there_is_no_error_and_creates_nothing() {
    let lower = vec![file("f"), symlink("loop", "loop")];
    let upper = ["a/b", "f/x", "loop/x", "g"];
    let upper = upper.iter().flat_map(|path| [whiteout(path), opaque(path)]);
    assert_eq!(
        names(&[lower, upper.collect()]),
        ["f", "loop -> loop"],
        "an opaque file hides nothing"
    );
}

#[test]
fn what_is_hidden_in_a_directory_that_replaces_a_link_is_not_sought_where_the_link_led() {
    let lower = vec![
        dir("usr"),
        dir("usr/lib"),
        file("usr/lib/libc.so"),
        symlink("lib", "usr/lib"),
        hard_link("lib64", "lib"),
    ];
    let upper = vec![dir("lib"), opaque("lib"), whiteout("lib/libc.so")];
    assert_eq!(
        names(&[lower.clone(), upper]),
        [
            "lib/",
            "lib64 -> usr/lib",
            "usr/",
            "usr/lib/",
            "usr/lib/libc.so"
        ]
    );
    assert_eq!(
        names(&[lower, vec![dir("lib"), whiteout("lib64/libc.so")]]),
        ["lib/", "lib64 -> usr/lib", "usr/", "usr/lib/"],
        "other links are followed"
    );
}

#[test]
fn what_is_hidden_behind_a_hidden_link_stays_wherever_the_two_stand() {
    let lower = vec![
        dir("d"),
        file("d/f"),
        symlink("l", "d"),
        dir("e"),
        symlink("e/l", "/d"),
    ];
    let hiding = [
        whiteout("l"),
        opaque("l"),
        opaque("e"),
        opaque("e/l"),
        whiteout("e/l/f"),
    ];
    for start in 0..hiding.len() {
        let mut upper = hiding.to_vec();
        upper.rotate_left(start);
        let shown = names(&[lower.clone(), upper.clone()]);
        assert_eq!(
            shown,
            ["d/", "e/"],
            "whiteouts go first: through `e/l` one takes `d/f`"
        );
        upper.retain(|entry| *entry != whiteout("e/l/f"));
        assert_eq!(names(&[lower.clone(), upper]), ["d/", "d/f", "e/"]);
    }
}

#[test]
fn of_names_that_a_layer_has_twice_the_last_wins() {
    let layers = [vec![
        owned_by(1, file("f")),
        dir("d"),
        file("d/x"),
        dir("e"),
        file("e/x"),
        owned_by(2, file("f")),
        owned_by(3, dir("d")),
        file("e"),
    ]];
    let tree = tree(&layers);
    assert_eq!(names(&layers), ["d/", "d/x", "e", "f"]);
    assert_eq!(node_at(&tree, "f").uid, 2);
    assert_eq!(node_at(&tree, "d").uid, 3);
}

#[test]
fn a_file_replaces_a_directory_and_a_directory_a_file() {
    let lower = vec![dir("a"), file("a/x"), file("b"), symlink("c", "a")];
    let upper = vec![file("a"), dir("b"), file("b/y"), dir("c")];
    assert_eq!(names(&[lower, upper]), ["a", "b/", "b/y", "c/"]);
}

#[test]
fn missing_directories_are_implied_and_existing_ones_keep_their_attributes() {
    let tree = tree(&[vec![dir("a")], vec![file("a/b/x")]]);
    let (kept, implied) = (node_at(&tree, "a"), node_at(&tree, "a/b"));
    assert_eq!(
        (kept.mode, kept.uid, kept.gid, kept.mtime.secs),
        (0o644, 5, 6, 7)
    );
    let root = tree.node(NodeId::ROOT).unwrap();
    for node in [implied, root] {
        assert_eq!((node.mode, node.uid, node.gid), (0o755, 0, 0));
        assert_eq!(node.mtime, Timestamp::default());
    }
}

#[test]
fn an_entry_for_the_root_sets_its_attributes_and_must_be_a_directory() {
    let with_root = tree(&[vec![file("x"), owned_by(9, dir(""))]]);
    assert_eq!(with_root.node(NodeId::ROOT).unwrap().uid, 9);
    for entry in [file(""), symlink("", "x"), hard_link("", "x"), whiteout("")] {
        let message = refusal(&[vec![file("x"), entry]]);
        assert!(message.ends_with("entry \"\": the root of an image can only be a directory"));
    }
}

#[test]
fn links_in_an_entry_s_directory_are_followed_inside_the_tree() {
    let lower = vec![
        dir("usr"),
        dir("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("usr/up", "../../../usr/./lib/"),
        symlink("abs", "/lib/new"),
        symlink("gone", "no/../such/dir"),
    ];
    let upper = vec![
        file("lib/a"),
        file("usr/up/b"),
        file("abs/c"),
        file("gone/d"),
        symlink("here", "usr"),
        file("here/e"),
    ];
    assert_eq!(
        names(&[lower, upper]),
        [
            "abs -> /lib/new",
            "gone -> no/../such/dir",
            "here -> usr",
            "lib -> usr/lib",
            "such/",
            "such/dir/",
            "such/dir/d",
            "usr/",
            "usr/e",
            "usr/lib/",
            "usr/lib/a",
            "usr/lib/b",
            "usr/lib/new/",
            "usr/lib/new/c",
            "usr/up -> ../../../usr/./lib/",
        ]
    );
}

#[test]
fn a_link_through_a_missing_name_is_followed_anew_for_each_entry() {
    let layers = [vec![
        dir("d"),
        symlink("l", "d/no/.."),
        file("l/a"),
        symlink("l/no", "/e/f"),
        file("l/b"),
    ]];
    assert_eq!(
        names(&layers),
        ["d/", "d/a", "d/no -> /e/f", "e/", "e/b", "l -> d/no/.."]
    );
}

#[test]
fn paths_that_only_lead_through_links_again_and_again_are_refused_before_they_take_hours() {
    let mut layer = vec![dir("d")];
    // Each link goes through the one before, by a detour of 1,800 names: 70,000 names for each file.
    let detour = "/d/..".repeat(900);
    layer.push(symlink("l0", &format!("{detour}/d")));
    for link in 1..39 {
        layer.push(symlink(
            &format!("l{link}"),
            &format!("{detour}/l{}", link - 1),
        ));
    }
    layer.extend((0..2000).map(|number| file(&format!("l38/{number}"))));
    let message = refusal(&[layer]);
    assert!(message.contains("too many times"), "{message}");
}

#[test]
fn an_entry_that_no_file_system_could_hold_is_named_with_its_layer() {
    let layer = digest("layer 1");
    let lower = vec![file("f"), dir("d"), symlink("l", "l"), symlink("to-f", "f")];
    for (entry, problem) in [
        (file("f/x"), "an entry below a file"),
        (file("f/x/y"), "an entry below a file"),
        (file("to-f/x"), "an entry below a file"),
        (file("l/x"), "an entry below a loop of symbolic links"),
        (hard_link("h", "nothing"), "a hard link to nothing"),
        (hard_link("h", "f/x"), "a hard link to nothing"),
        (hard_link("h", "l/x"), "a hard link to nothing"),
        (hard_link("h", "d"), "a hard link to a directory"),
        (hard_link("h", ""), "a hard link to a directory"),
        (
            entry("big", Kind::Regular { size: 1 << 63 }),
            "larger than a file can be",
        ),
        (
            dir(&"x".repeat(256)),
            "a component of its name is longer than 255 bytes",
        ),
        (
            file("d/.."),
            "a component of its name is empty, `.`, `..` or has a NUL byte",
        ),
    ] {
        let path = crate::layer::entry::shown(&entry.path);
        let message = refusal(&[lower.clone(), vec![entry]]);
        assert_eq!(message, format!("layer {layer}, entry {path:?}: {problem}"));
    }
}

#[test]
fn a_hard_link_shares_the_node_as_it_is_at_that_moment() {
    let lower = vec![owned_by(1, file("f")), symlink("s", "f"), symlink("l", "d")];
    let upper = vec![
        hard_link("d/h", "f"),
        hard_link("i", "l/h"),
        hard_link("t", "s"),
        owned_by(2, file("f")),
        hard_link("j", "f"),
    ];
    let layers = [lower, upper];
    let tree = tree(&layers);
    assert_eq!(at(&tree, "d/h"), at(&tree, "i"));
    assert_eq!(at(&tree, "f"), at(&tree, "j"));
    assert_eq!((node_at(&tree, "i").uid, node_at(&tree, "i").nlink), (1, 2));
    assert_eq!((node_at(&tree, "j").uid, node_at(&tree, "j").nlink), (2, 2));
    let links = ["s", "t"].map(|name| tree.lookup(NodeId::ROOT, name.as_bytes()).unwrap().unwrap());
    assert_eq!(links[0], links[1], "a link itself can have two names");
    assert_eq!(tree.node(links[0]).unwrap().nlink, 2);
}

#[test]
fn a_hidden_or_replaced_name_leaves_the_other_names_of_its_file() {
    let lower = vec![
        dir("d"),
        owned_by(1, file("d/f")),
        hard_link("g", "d/f"),
        hard_link("h", "d/f"),
    ];
    let layers = [
        lower,
        vec![whiteout("d"), owned_by(2, file("g"))],
        vec![hard_link("h", "h")],
    ];
    let tree = tree(&layers);
    assert_eq!(names(&layers), ["g", "h"]);
    assert_eq!((node_at(&tree, "h").uid, node_at(&tree, "h").nlink), (1, 1));
    assert_eq!((node_at(&tree, "g").uid, node_at(&tree, "g").nlink), (2, 1));
    assert_eq!(tree.node_count(), 3);
}

#[test]
fn a_hard_link_may_take_the_place_of_the_directory_that_its_file_was_in() {
    let layers = [vec![dir("d"), file("d/f"), hard_link("d", "d/f")]];
    assert_eq!(names(&layers), ["d"]);
    assert_eq!(node_at(&tree(&layers), "d").nlink, 1);
}

#[test]
fn directories_inside_each_other_have_a_limit() {
    let deep = vec!["d"; 4096].join("/");
    assert_eq!(names(&[vec![dir(&deep)]]).len(), 4096);
    let deeper = refusal(&[vec![dir(&deep), symlink("l", &deep)], vec![file("l/x/y")]]);
    assert!(deeper.ends_with("\"l/x/y\": more than 4096 directories inside each other"));
}

#[test]
fn attributes_are_kept_exactly() {
    let xattrs = vec![
        (b"user.b".to_vec(), vec![0, 255]),
        (b"user.a".to_vec(), vec![]),
    ];
    let attributes = |entry: Entry| Entry {
        mode: 0o7751,
        uid: 4_000_000_000,
        gid: u32::MAX,
        mtime: Timestamp {
            secs: -5_000_000_000,
            nanos: 999_999_999,
        },
        xattrs: xattrs.clone(),
        ..entry
    };
    let (major, minor) = (300, 70_000);
    let kinds = [
        (
            "c",
            Kind::CharDevice { major, minor },
            NodeKind::CharDevice { major, minor },
        ),
        (
            "b",
            Kind::BlockDevice { major, minor },
            NodeKind::BlockDevice { major, minor },
        ),
        ("d", Kind::Directory, NodeKind::Directory),
        ("p", Kind::Fifo, NodeKind::Fifo),
        ("s", Kind::Socket, NodeKind::Socket),
        ("l", symlink("", "nowhere").kind, NodeKind::Symlink),
    ];
    let entries = kinds
        .iter()
        .map(|(path, kind, _)| attributes(entry(path, kind.clone())));
    let tree = tree(&[entries.collect()]);
    for (path, _, kind) in kinds {
        let id = tree.lookup(NodeId::ROOT, path.as_bytes()).unwrap().unwrap();
        let node = tree.node(id).unwrap();
        assert_eq!(node.kind, kind);
        assert_eq!(
            (node.mode, node.uid, node.gid),
            (0o7751, 4_000_000_000, u32::MAX)
        );
        let (secs, nanos) = (-5_000_000_000, 999_999_999);
        assert_eq!(node.mtime, Timestamp { secs, nanos });
        let expected: [(&[u8], &[u8]); 2] = [(b"user.b", &[0, 255]), (b"user.a", &[])];
        assert_eq!(tree.xattrs(id).unwrap(), expected);
    }
    assert!(tree.has_xattrs());
    assert!(!self::tree(&[vec![file("x")]]).has_xattrs());
}

#[test]
fn a_file_knows_its_layer_its_pieces_and_what_is_not_in_holes() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(directory.path());
    let chunk = writer.chunk(&chunk(10)).unwrap();
    let first = writer.pieces(&[Piece::hole(0)]).unwrap();
    let sparse = [
        Piece::hole(0),
        Piece::in_chunk(1000, chunk, 0),
        Piece::hole(1010),
        Piece::in_chunk(5000, ChunkIndex(0), 3),
    ];
    let second = writer.pieces(&sparse).unwrap();
    let sized = |path, size| entry(path, Kind::Regular { size });
    writer.entry(&sized("hole", 1 << 40), first).unwrap();
    writer.entry(&sized("sparse", 5007), second).unwrap();
    let mut bytes = Vec::new();
    writer.finish(digest("sparse"), &mut bytes).unwrap();
    let upper = table::from_reader(&bytes[..]).unwrap();
    let lower = table("lower", &[file("f")]);

    let mut bytes = Vec::new();
    merge(&[&lower, &upper], &mut bytes).unwrap();
    let tree = Tree::open(Sealed::in_memory(bytes)).unwrap();
    let hole = node_at(&tree, "hole");
    let layer = 1;
    assert_eq!(
        hole.kind,
        NodeKind::Regular {
            layer,
            pieces: first
        }
    );
    assert_eq!((hole.size, hole.allocated), (1 << 40, 0));
    let sparse = node_at(&tree, "sparse");
    assert_eq!(
        sparse.kind,
        NodeKind::Regular {
            layer,
            pieces: second
        }
    );
    assert_eq!((sparse.size, sparse.allocated), (5007, 17));
    assert_eq!(node_at(&tree, "f").allocated, 1);
    assert_eq!(tree.file_bytes(), (1 << 40) + 5007 + 1);
    assert_eq!(tree.layers().unwrap(), [digest("lower"), digest("sparse")]);
}

#[test]
fn numbers_are_dense_and_breadth_first_so_that_the_children_of_a_directory_are_adjacent() {
    let layers = [vec![
        file("b/y"),
        file("b/x"),
        file("a/z"),
        file("c"),
        file("a.b"),
    ]];
    let tree = tree(&layers);
    let numbers = ["", "a", "a.b", "b", "c", "a/z", "b/x", "b/y"].map(|path| at(&tree, path).0);
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(tree.node_count(), 8);
}

#[test]
fn children_come_sorted_from_any_place_on() {
    let tree = tree(&[vec![file("b"), file("a.b"), file("a/x"), file("\u{e6}")]]);
    let children = |from| -> Vec<_> {
        let children = tree.children(NodeId::ROOT, from).unwrap();
        children.map(|child| text(child.unwrap().0)).collect()
    };
    assert_eq!(children(0), ["a", "a.b", "b", "\u{e6}"]);
    assert_eq!(children(3), ["\u{e6}"]);
    assert!(children(4).is_empty() && children(u64::MAX).is_empty());
    assert!(tree.children(at(&tree, "b"), 0).is_err());
    assert!(tree.children(NodeId(0), 0).is_err());
}

#[test]
fn a_path_is_resolved_as_a_process_inside_would() {
    let tree = tree(&[vec![
        file("d/f"),
        symlink("up", "../../d"),
        symlink("abs", "/up/./f"),
        symlink("d/new", "../made/here"),
        symlink("x", "y"),
        symlink("y", "/x"),
        symlink("self", "."),
    ]]);
    let f = at(&tree, "d/f");
    for path in [
        "up/f",
        "/abs",
        "../../abs",
        "d//f",
        "./d/../d/f",
        "self/self/abs",
        "no/../abs",
    ] {
        assert_eq!(
            tree.resolve(path.as_bytes()).unwrap(),
            Resolved::Found(f),
            "{path}"
        );
    }
    assert_eq!(tree.resolve(b"").unwrap(), Resolved::Found(NodeId::ROOT));
    for (path, deepest, rest) in [
        ("d/new", "", "made/here"),
        ("up/a/./b/../c/", "d", "a/c"),
        ("none", "", "none"),
    ] {
        let (at, rest) = (at(&tree, deepest), rest.into());
        assert_eq!(
            tree.resolve(path.as_bytes()).unwrap(),
            Resolved::Missing { at, rest }
        );
    }
    assert_eq!(
        tree.resolve(b"x/z").unwrap(),
        Resolved::Blocked(Blocked::Loop)
    );
    for path in ["abs/x", "d/f/", "d/f/.", "d/f/.."] {
        assert_eq!(
            tree.resolve(path.as_bytes()).unwrap(),
            Resolved::Blocked(Blocked::NotADirectory),
            "{path}"
        );
    }
}

#[test]
fn up_to_40_links_are_followed() {
    let mut links: Vec<_> = (1..=41)
        .map(|n| symlink(&format!("l{n}"), &format!("l{}", n - 1)))
        .collect();
    links.push(file("l0"));
    let tree = tree(&[links]);
    assert_eq!(
        tree.resolve(b"l40").unwrap(),
        Resolved::Found(at(&tree, "l0"))
    );
    assert_eq!(
        tree.resolve(b"l41").unwrap(),
        Resolved::Blocked(Blocked::Loop)
    );
}

#[test]
fn no_layer_at_all_is_an_empty_root() {
    let tree = tree(&[]);
    assert_eq!(tree.node_count(), 1);
    assert_eq!(tree.walk().count(), 1);
    assert_eq!(tree.parent(NodeId::ROOT).unwrap(), NodeId::ROOT);
}

#[test]
fn what_is_merged_so_far_tells_what_stands_where_without_following_links() {
    let layers = [
        vec![
            dir(""),
            dir("a"),
            file("a/x"),
            symlink("l", "a"),
            file("gone"),
        ],
        vec![whiteout("gone"), file("b/c")],
    ];
    let tables: Vec<Table> = layers.iter().map(|layer| table("layer", layer)).collect();
    let mut merger = Merger::default();
    for table in &tables {
        merger.add(table).unwrap();
    }
    let standing = |path: &[u8]| match merger.standing(path).unwrap() {
        None => "nothing".into(),
        Some(Step::Directory) => "directory".into(),
        Some(Step::Symlink(target)) => format!("link to {}", String::from_utf8_lossy(&target)),
        Some(Step::Other) => String::from("file"),
    };
    for (path, expected) in [
        (&b""[..], "directory"),
        (b"a", "directory"),
        (b"a/x", "file"),
        (b"a/x/y", "nothing"),
        (b"l", "link to a"),
        (b"l/x", "nothing"),
        (b"gone", "nothing"),
        (b"b", "directory"),
        (b"b/c", "file"),
    ] {
        assert_eq!(standing(path), expected, "{path:?}");
    }
    assert_eq!(merger.root_owner().unwrap(), (5, 6));
    assert_eq!(Merger::<&Table>::default().root_owner().unwrap(), (0, 0));
}
