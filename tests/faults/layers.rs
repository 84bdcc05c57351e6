//! Layers that are no tar streams, or tar streams that no image can be.

use std::time::Duration;

use crate::layout::{GZIP, Layer, Layout, ZSTD};
use crate::sandbox::Sandbox;
use crate::tar_stream::{archive, directory, extended, file, header, link, sized};

/// The layer is refused, alone and on top of one that is sound.
fn refused(what: &str, layer: Layer, words: &[&str]) {
    let sound = Layer::plain(archive(&[file("sound", b"sound")]));
    let sandbox = Sandbox::new();
    for layers in [vec![layer.clone()], vec![sound, layer.clone()]] {
        let layout = Layout::of(&layers);
        let digest = layout.layers.last().unwrap().to_string();
        let words: Vec<_> = words.iter().copied().chain([&*digest, "INFO"]).collect();
        sandbox.refuses(what, &layout.reference(), &words);
    }
}

#[test]
fn a_member_that_no_image_can_have_is_refused_by_its_name() {
    let bytes_of = |number: u64| number.to_be_bytes();
    let base_256 = |size: u64| [&[0x80, 0, 0, 0][..], &bytes_of(size)].concat();
    for (what, members, words) in [
        (
            "a size field of 2^63",
            vec![header(b'0', b"large", &base_256(1 << 63))],
            &["large", "size"][..],
        ),
        (
            "a size of 2^63 - 1",
            vec![header(b'0', b"large", &base_256((1 << 63) - 1))],
            &["byte"],
        ),
        (
            "an extended header of 4 GB",
            vec![sized(b'x', "pax", 4_000_000_000)],
            &["extended header of 4000000000 bytes"],
        ),
        (
            "a long name of 4 GB",
            vec![sized(b'L', "long", 4_000_000_000)],
            &["long name of 4000000000 bytes"],
        ),
        (
            "a name with `..`",
            vec![file("a/../../etc/passwd", b"x")],
            &["a/../../etc/passwd", "`..`"],
        ),
        (
            "a hard link with `..`",
            vec![link(b'1', "link", "../etc/passwd")],
            &["../etc/passwd", "`..`"],
        ),
        (
            "a hard link to nothing",
            vec![link(b'1', "here", "nowhere")],
            &["here", "a hard link to nothing"],
        ),
        (
            "a hard link to a directory",
            vec![directory("there"), link(b'1', "here", "there")],
            &["here", "a hard link to a directory"],
        ),
        (
            "a loop of symbolic links on the way",
            vec![
                link(b'2', "one", "two"),
                link(b'2', "two", "one"),
                file("one/file", b""),
            ],
            &["one/file", "loop of symbolic links"],
        ),
        (
            "an entry below a file",
            vec![file("file", b""), file("file/below", b"")],
            &["file/below", "below a file"],
        ),
        (
            "a file in place of the root directory",
            vec![file("./", b"x")],
            &["root"],
        ),
        (
            "an attribute of 9 MiB",
            vec![
                extended(&[("SCHILY.xattr.user.large", &vec![b'x'; 9 << 20])]),
                file("file", b""),
            ],
            &["extended header"],
        ),
        (
            "a thousand attributes",
            {
                let names: Vec<_> = (0..1000)
                    .map(|n| format!("SCHILY.xattr.user.{n}"))
                    .collect();
                let records: Vec<_> = names
                    .iter()
                    .map(|name| (name.as_str(), &b"x"[..]))
                    .collect();
                vec![extended(&records), file("file", b"")]
            },
            &["more than 512 attributes"],
        ),
        (
            "a name that a terminal would obey",
            vec![link(b'1', "here\x1b]0;owned\x07\n", "no\x1b[2Jwhere")],
            &["a hard link to nothing"],
        ),
    ] {
        refused(what, Layer::plain(archive(&members)), words);
    }
}

#[test]
fn a_tar_stream_that_ends_early_or_is_none_is_refused_with_its_place() {
    let whole = archive(&[file("a", &[b'x'; 5000]), file("b", b"y")]);
    let noise: Vec<u8> = (0..4096u32).map(|at| ((at * at) >> 7) as u8 | 1).collect();
    for (what, tar, words) in [
        (
            "cut in a header",
            whole[..300].to_vec(),
            &["ends inside"][..],
        ),
        (
            "cut in a file",
            whole[..3000].to_vec(),
            &["byte 3000", "ends inside"],
        ),
        ("noise", noise, &["no tar archive"]),
    ] {
        refused(what, Layer::plain(tar), words);
    }
}

#[test]
fn packed_bytes_that_are_damaged_are_refused() {
    let tar = archive(&[file("a", &[b'x'; 50_000])]);
    let gzip = Layer::gzip(&tar);
    let zstd = zstd::bulk::compress(&tar, 1).unwrap();
    let cut = |bytes: &[u8]| bytes[..bytes.len() - 9].to_vec();
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        bytes
    };
    let trailed = [&gzip.packed[..], b"and more"].concat();
    let huge_window = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 31 << 3][..], &[1, 0, 0]].concat();
    for (what, packed, kind, words) in [
        (
            "gzip that ends early",
            cut(&gzip.packed),
            GZIP,
            &["ends before"][..],
        ),
        (
            "gzip with a flipped bit",
            flipped(&gzip.packed),
            GZIP,
            &["gzip stream"],
        ),
        ("gzip with something behind it", trailed, GZIP, &["gzip"]),
        ("zstd that ends early", cut(&zstd), ZSTD, &["ends before"]),
        ("zstd with a flipped bit", flipped(&zstd), ZSTD, &["byte 0"]),
        (
            "zstd with a window of 2 TiB",
            huge_window,
            ZSTD,
            &["memory"],
        ),
    ] {
        refused(what, Layer::packed(packed, kind), words);
    }
    let other = Layer {
        diff_id: sifon_mount::digest::Digest::of(b"another"),
        ..gzip
    };
    refused(
        "a tar stream that is not the configuration's",
        other,
        &["config says"],
    );
}

fn bomb(what: &str, layer: Layer, words: &[&str]) {
    let layout = Layout::of(&[layer]);
    let digest = layout.layers[0].to_string();
    let words: Vec<_> = words.iter().copied().chain([&*digest, "INFO"]).collect();
    let patience = Duration::from_secs(600);
    Sandbox::new().refuses_to_pack_within(patience, what, &layout.reference(), &words);
}

/// One gzip member or zstd frame again and again, which takes no time to make.
#[test]
fn a_decompression_bomb_ends_by_the_limit() {
    let zeros = vec![0; 64 << 20];
    let start = sized(b'0', "zeros", 1 << 36);
    let gzip = [
        Layer::gzip(&start).packed,
        Layer::gzip(&zeros).packed.repeat(70),
    ]
    .concat();
    bomb(
        "a gzip bomb",
        Layer::packed(gzip, GZIP),
        &["decompression bomb"],
    );
    let zstd = |plain: &[u8]| zstd::bulk::compress(plain, 1).unwrap();
    let zstd = [zstd(&start), zstd(&zeros).repeat(70)].concat();
    bomb(
        "a zstd bomb",
        Layer::packed(zstd, ZSTD),
        &["decompression bomb"],
    );
}

#[test]
#[ignore = "takes minutes without optimisation"]
fn ten_million_entries_end_by_the_limit() {
    let block = sized(b'5', "again", 0).repeat(1 << 17);
    let zstd = zstd::bulk::compress(&block, 1).unwrap().repeat(77);
    bomb(
        "ten million entries",
        Layer::packed(zstd, ZSTD),
        &["more than 4 million entries"],
    );
}
