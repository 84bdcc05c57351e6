//! An image of what readers of layers get wrong.

use std::collections::BTreeMap;

use sifon_mount::layer::entry::Kind;

use crate::layers::archive::Dialect;
use crate::layers::model::Model;
use crate::layers::{Member, directory, file, hard_link, noise, opaque, symlink, text, whiteout};
use crate::layout::Layer;

/// Its layers, bottom first.
pub fn layers() -> Vec<Layer> {
    let all_with = |members: Vec<Member>, prefix| {
        let prefixed = members.into_iter().map(|member| member.prefix(prefix));
        prefixed.collect()
    };
    vec![
        Layer {
            members: all_with(bottom(), "./"),
            dialect: Dialect::Pax,
        },
        Layer {
            members: middle(),
            dialect: Dialect::Gnu,
        },
        Layer {
            members: all_with(top(), "/"),
            dialect: Dialect::Pax,
        },
    ]
}

/// The same without what zstd:chunked cannot say: names that are not UTF-8, and a name twice.
pub fn chunkable_layers() -> Vec<Layer> {
    let mut layers = layers();
    for layer in &mut layers {
        let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
        layer.members.retain(|member| {
            let target = match &member.entry.kind {
                Kind::Symlink { target } | Kind::Hardlink { target } => &target[..],
                _ => b"",
            };
            is_text(&member.entry.path) && is_text(target)
        });
        let places = layer.members.iter().enumerate();
        let last: BTreeMap<_, _> = places
            .map(|(place, member)| ((member.entry.path.clone(), hides(member)), place))
            .collect();
        let mut place = 0;
        layer.members.retain(|member| {
            place += 1;
            last[&(member.entry.path.clone(), hides(member))] == place - 1
        });
    }
    layers
}

fn hides(member: &Member) -> bool {
    matches!(member.entry.kind, Kind::Whiteout | Kind::Opaque)
}

/// What they leave.
pub fn model(layers: &[Layer]) -> Model {
    Model::of(layers.iter().map(|layer| &layer.members[..]))
}

/// `cap_net_bind_service` in a capability set of version 2 (linux/capability.h).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// 1 MiB that does not shrink, 6 MiB of zeros, 2 MiB that does.
fn big() -> Vec<u8> {
    [noise(1 << 20, 1), vec![0; 6 << 20], text(2 << 20)].concat()
}

/// Data at the start and near the end of 4 MiB.
fn with_holes() -> Vec<u8> {
    let mut bytes = vec![0; (4 << 20) + 100];
    bytes[..5000].copy_from_slice(&noise(5000, 2));
    bytes[3 << 20..(3 << 20) + 200_000].copy_from_slice(&text(200_000));
    bytes
}

fn deep(letter: &str) -> String {
    let directories = vec![letter.repeat(60); 5].join("/");
    format!("deep/{directories}/{}", "f".repeat(200))
}

fn bottom() -> Vec<Member> {
    let block = |major, minor| Kind::BlockDevice { major, minor };
    let character = |major, minor| Kind::CharDevice { major, minor };
    let mut members = vec![
        directory(""),
        directory("etc"),
        file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n").mode(0o644),
        symlink("etc/resolv.conf", "../run/nowhere/stub.conf"),
        symlink("etc/hosts", "/nonexistent/hosts"),
        symlink("etc/loop", "loop"),
        directory("app").owner(1001, 1001).mode(0o700),
        file("app/secret", "s").owner(1001, 1001).mode(0o600),
        file("app/none", "n").mode(0),
        file("suid", "s").mode(0o4755),
        file("sgid", "s").mode(0o2755),
        file("far", "far").owner(70_000, 3_000_000_000),
        directory("dev"),
        Member::new("dev/sdx", block(8, 0)).mode(0o660),
        Member::new("dev/ttyx", character(300, 70_000)).mode(0o620),
        Member::new("fifo", Kind::Fifo).mode(0o644),
        file("hard1", "hard"),
        hard_link("hard2", "hard1"),
        hard_link("hard3", "hard1"),
        directory("del"),
        file("del/a", "a"),
        file("del/b", "b"),
        directory("opaque"),
        file("opaque/a", "a"),
        directory("opaque/sub"),
        file("opaque/sub/x", "x"),
        directory("turns"),
        directory("turns/into-file"),
        file("turns/into-file/x", "x"),
        file("turns/into-directory", "f"),
        symlink("turns/into-other", "into-file"),
        directory("gone"),
        file("gone/x", "x"),
        directory("gone/sub"),
        file("capability", "c").xattr("security.capability", &CAPABILITY),
        file("attributes", "x")
            .xattr("user.binary", b"\0\xff\n=")
            .xattr("user.text", b"bar"),
        directory("tmp")
            .mode(0o1777)
            .xattr("user.directory", b"too"),
        directory("ro").mode(0o555),
        file("ro/f", "r").mode(0o444),
        file("big", big()),
        file("four-mebibytes", noise(4 << 20, 3)),
        file("holes", with_holes()).sparse(),
        file("empty", ""),
        file(deep("d"), "long"),
        symlink("long-link", "x".repeat(300)),
        file("uni-æøå", "blåbær"),
        file(b"latin-\xe6", "l"),
        symlink(b"latin-link-\xff", b"latin-\xe6"),
        directory(b"dir-\xfe"),
        file(b"dir-\xfe/\x01\n\x7f", "control characters"),
        file("mtime-old", "o").mtime(0, 0),
        file("mtime-before", "o").mtime(-2, 750_000_000),
        file("mtime-new", "n").mtime(4_102_444_800, 0),
        file("mtime-fraction", "f").mtime(1_600_000_000, 123_456_789),
        directory("sizes"),
    ];
    for (seed, len) in [
        1, 511, 512, 4095, 131_071, 131_072, 131_073, 393_216, 1_000_000,
    ]
    .into_iter()
    .enumerate()
    {
        members.push(file(
            format!("sizes/noise-{len}"),
            noise(len, seed as u64 + 10),
        ));
        members.push(file(format!("sizes/text-{len}"), text(len)));
        members.push(file(format!("sizes/zeros-{len}"), vec![0; len]));
    }
    members.push(directory("many"));
    for number in 0..300 {
        members.push(file(
            format!("many/{number}"),
            noise(number * 3, number as u64),
        ));
    }
    members
}

fn middle() -> Vec<Member> {
    vec![
        file("opaque/b", "b"),
        opaque("opaque"),
        whiteout("del/a"),
        whiteout("hard1"),
        whiteout("gone"),
        // Hides the lower layer's only, though it stands before the file in this one.
        whiteout("etc/passwd"),
        file("etc/passwd", "app:x:1001:1001::/app:/bin/sh\n").mode(0o644),
        file("turns/into-file", "now a file"),
        directory("turns/into-directory"),
        file("turns/into-directory/y", "y"),
        file("turns/into-other", "no longer a link"),
        file("implied/parent/file", "no directory entries for my parents"),
        directory("app").owner(1001, 1001).mode(0o750),
        hard_link("linked", "four-mebibytes"),
        file("old-holes", with_holes()).sparse(),
        file(deep("e"), "long"),
        symlink("other-long-link", "y".repeat(200)),
        file("twice", "first").mode(0o600),
        file("twice", "the last wins").mode(0o640),
        file(b"gnu-\xf8", "g"),
    ]
}

fn top() -> Vec<Member> {
    vec![
        directory("gone"),
        file("gone/back", "back"),
        file("del/a", "a again"),
        hard_link("linked-again", "linked"),
        hard_link("implied/other-parent/hard", "hard3"),
        file("etc/motd", "hello\n").mode(0o644),
        directory("nothing-in-it").mode(0o711),
    ]
}
