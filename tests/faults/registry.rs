//! Registries that answer wrongly, or not at all.

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use sifon::pack::zstd_chunked::{LayerWriter, MEDIA_TYPE};
use sifon_mount::layer::entry::{Entry, Kind, Timestamp};

use crate::faulty::{Faulty, Reply};
use crate::http::Message;
use crate::layout::{Layer, Layout, ZSTD};
use crate::sandbox::Sandbox;
use crate::tar_stream::{archive, file, noise};

/// An image with a layer that is fetched as several ranges.
fn image() -> Layout {
    Layout::of(&[Layer::plain(archive(&[file("a", &noise(9 << 20))]))])
}

/// An image whose layer is read by its table of contents.
fn lazy_image() -> Layout {
    let mut writer = LayerWriter::new(Vec::new(), 1).unwrap();
    let content = noise(9 << 20);
    let entry = Entry {
        path: b"a".to_vec(),
        kind: Kind::Regular {
            size: content.len() as u64,
        },
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        xattrs: Vec::new(),
    };
    writer.append(&entry, &mut &content[..]).unwrap();
    let (blob, written) = writer.finish().unwrap();
    assert_eq!(MEDIA_TYPE, ZSTD);
    Layout::of(&[Layer {
        packed: blob,
        diff_id: written.diff_id,
        media_type: ZSTD,
        annotations: written.annotations,
    }])
}

/// What is asked for: by its kind in the words of error messages.
fn kind_of(layout: &Layout, request: &Message) -> &'static str {
    let path = request.second();
    let named = |digest: sifon_mount::digest::Digest| path.contains(&digest.hex());
    match path {
        _ if named(layout.config) => "configuration",
        _ if layout.layers.iter().any(|&layer| named(layer)) => "layer",
        _ if path.contains("/manifests/v1") => "tag",
        _ => "manifest",
    }
}

/// A registry that does everything right, but for what `fault` says of a request for a kind of object.
fn registry(
    layout: Layout,
    fault: impl Fn(&Message, &str, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> Faulty {
    Faulty::start(move |request, _| {
        let kind = kind_of(&layout, request);
        let digest = match kind {
            "tag" | "manifest" => layout.manifest,
            "configuration" => layout.config,
            _ => layout.layers[0],
        };
        let content = layout.bytes(digest);
        fault(request, kind, &content).unwrap_or_else(|| {
            let reply = Reply::content(request, &content);
            reply.header("Docker-Content-Digest", digest.to_string())
        })
    })
}

fn reference(address: &str) -> String {
    format!("docker://{address}/app:v1")
}

/// The same image by its digest, for which a manifest is asked that has it.
fn reference_by_digest(address: &str, manifest: &str) -> String {
    format!("docker://{address}/app@{manifest}")
}

/// The image cannot be packed, for which the whole of it is read.
fn refuses(what: &str, server: &Faulty, words: &[&str]) {
    refuses_image(what, &reference(server.address()), server, words);
}

fn refuses_image(what: &str, image: &str, server: &Faulty, words: &[&str]) {
    let place = server.address().to_owned();
    let words: Vec<_> = words.iter().copied().chain([&*place, "INFO"]).collect();
    Sandbox::new().refuses_to_pack(what, image, &words);
}

#[test]
fn a_status_that_means_no_is_told_with_the_object_and_what_to_do() {
    for (status, words) in [
        (401, &["401 Unauthorized", "--docker-username"][..]),
        (403, &["403 Forbidden", "if the image is private"]),
        (404, &["404 Not Found", "check the name and the tag"]),
        (429, &["429 Too Many Requests", "wait a while"]),
        (500, &["500 Internal Server Error", "try again later"]),
    ] {
        for kind in ["tag", "manifest", "configuration", "layer"] {
            let layout = image();
            let object = match kind {
                "tag" => "manifest docker://".to_owned(),
                "manifest" => layout.manifest.to_string(),
                "configuration" => layout.config.to_string(),
                _ => layout.layers[0].to_string(),
            };
            let server = registry(layout, move |_, asked, _| {
                let body = r#"{"errors":[{"code":"X","message":"said \u001b[2Jno"}]}"#;
                (asked == kind).then(|| Reply::status(status).body(body))
            });
            let words: Vec<_> = words.iter().copied().chain([&*object]).collect();
            let image = match kind {
                "manifest" => reference_by_digest(server.address(), &object),
                _ => reference(server.address()),
            };
            refuses_image(&format!("{status} for the {kind}"), &image, &server, &words);
        }
    }
}

type Fault = fn(&Message, &[u8]) -> Reply;

#[test]
fn an_answer_that_does_not_fit_the_question_is_told() {
    let cases: [(&str, Fault, &[&str]); 8] = [
        (
            "another range",
            |request, content| {
                let (first, last) = request.range().unwrap();
                let range = format!("bytes {}-{}/{}", first + 1, last + 1, content.len());
                Reply::status(206)
                    .header("Content-Range", range)
                    .body(&content[first..=last])
            },
            &["was asked for bytes"],
        ),
        (
            "no range named",
            |request, content| {
                let (first, last) = request.range().unwrap();
                Reply::status(206).body(&content[first..=last])
            },
            &["was asked for bytes", "sent nothing"],
        ),
        (
            "a blob of another length",
            |request, content| {
                let (first, last) = request.range().unwrap();
                Reply::status(206)
                    .header("Content-Range", format!("bytes {first}-{last}/7"))
                    .body(&content[first..=last])
            },
            &["has 7 bytes of it"],
        ),
        (
            "too many bytes",
            |request, content| {
                let (first, last) = request.range().unwrap();
                let body = [&content[first..=last], b"more"].concat();
                Reply::status(206)
                    .header(
                        "Content-Range",
                        format!("bytes {first}-{last}/{}", content.len()),
                    )
                    .body(body)
            },
            &["sent more than was asked for"],
        ),
        (
            "too few bytes, time and again",
            |request, content| Reply::content(request, content).cut_after(0),
            &["no answer"],
        ),
        (
            "nothing after the first bytes",
            |request, content| Reply::content(request, content).stall_after(100),
            &["no answer", "within 2"],
        ),
        (
            "other bytes",
            |request, content| Reply::content(request, &vec![b'x'; content.len()]),
            &["the bytes that came have digest"],
        ),
        (
            "a redirect to nowhere",
            |_, _| Reply::status(307).header("Location", "file:///etc/passwd"),
            &["redirects to something that is not HTTP"],
        ),
    ];
    for (what, fault, words) in cases {
        let layout = image();
        let layer = layout.layers[0].to_string();
        let server = registry(layout, move |request, kind, content| {
            (kind == "layer").then(|| fault(request, content))
        });
        let place = server.address().to_owned();
        let words: Vec<_> = words.iter().copied().chain([&*layer, "INFO"]).collect();
        // Whose bytes they were is not known when they turn out to be wrong.
        let words: Vec<_> = match what {
            "other bytes" => words,
            _ => words.into_iter().chain([&*place]).collect(),
        };
        Sandbox::new().refuses_to_pack(what, &reference(&place), &words);
    }
}

#[test]
fn a_whole_blob_instead_of_a_range_serves_where_all_of_it_is_wanted() {
    let layout = image();
    let expected = Sandbox::new().packed(&layout.reference());
    let server = registry(layout, |_, kind, content| {
        (kind == "layer").then(|| Reply::ok(content))
    });
    let packed = Sandbox::new().packed(&reference(server.address()));
    // The reference stands in the SIF: what follows the header and its texts is the same.
    assert_eq!(packed.len(), expected.len());
    let server = registry(lazy_image(), |_, kind, content| {
        (kind == "layer").then(|| Reply::ok(content))
    });
    let words = ["sends the whole blob when asked for a range of it"];
    refuses("a whole blob instead of a range", &server, &words);
}

#[test]
fn another_manifest_or_configuration_than_was_asked_for_is_told() {
    for kind in ["manifest", "configuration"] {
        let layout = image();
        let digest = match kind {
            "manifest" => layout.manifest.to_string(),
            _ => layout.config.to_string(),
        };
        let server = registry(layout, move |_, asked, content| {
            let other = content.iter().rev().copied().collect::<Vec<_>>();
            (asked == kind).then(|| Reply::ok(other))
        });
        let words = [&*digest, "INFO"];
        let what = format!("another {kind}");
        let image = match kind {
            "manifest" => reference_by_digest(server.address(), &digest),
            _ => reference(server.address()),
        };
        Sandbox::new().refuses_to_pack(&what, &image, &words);
    }
}

#[test]
fn a_chunk_that_is_not_what_the_table_says_is_told_and_a_table_that_is_damaged_is_not_needed() {
    let wrong_in = |range: fn(usize, usize) -> bool| {
        registry(lazy_image(), move |request, kind, content| {
            let (first, _) = request.range().filter(|_| kind == "layer")?;
            range(first, content.len()).then(|| Reply::content(request, &vec![b'x'; content.len()]))
        })
    };
    let server = wrong_in(|first, len| first < len / 2);
    let words = ["the chunk's digest does not match", "/a:", "INFO"];
    let reference_to = |server: &Faulty| reference(server.address());
    Sandbox::new().refuses_to_pack("wrong chunks", &reference_to(&server), &words);
    // Then the layer is read as the tar stream that it is, by ranges that begin elsewhere.
    let server = wrong_in(|first, len| first > len - 100_000);
    let sandbox = Sandbox::new();
    let output = sandbox.run(&["compact", &reference_to(&server), "out.sif"]);
    let said = crate::sandbox::complaint(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("the layer is read whole"), "{said}");
}

#[test]
fn a_server_that_says_nothing_or_speaks_another_language_ends_the_wait() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed_at = closed.local_addr().unwrap().to_string();
    drop(closed);
    let rude = TcpListener::bind("127.0.0.1:0").unwrap();
    let rude_at = rude.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in rude.incoming().flatten() {
            let _ = (&stream).write_all(b"SSH-2.0-OpenSSH_9.9\r\n");
        }
    });
    let silent_at = silent.local_addr().unwrap().to_string();
    for (what, address, words) in [
        ("silent", &silent_at, &["no answer"][..]),
        ("closed", &closed_at, &["no answer", "Connection refused"]),
        ("rude", &rude_at, &["no answer"]),
    ] {
        let words: Vec<_> = words.iter().copied().chain([&**address, "INFO"]).collect();
        let began = Instant::now();
        Sandbox::new().refuses_to_pack(what, &reference(address), &words);
        // One deadline for the name, one for what follows from it.
        assert!(began.elapsed() < Duration::from_secs(15), "{what}");
    }
}

#[test]
fn a_registry_that_fails_leaves_no_mount_and_no_server() {
    let layout = image();
    let layer = layout.layers[0].to_string();
    let server = registry(layout, |_, kind, _| {
        (kind == "layer").then(|| Reply::status(404))
    });
    let words = [&*layer, "404 Not Found"];
    Sandbox::new().refuses("404 for the layer", &reference(server.address()), &words);
}
