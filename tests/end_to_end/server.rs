//! Registries that see what they are asked: one before a real one, one that serves a layout.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::layout::Layout;
use crate::support::faulty::{Faulty, Reply};
use crate::support::http::{Message, asked};
use crate::support::real::RealRegistry;

/// Passes requests on to a real registry, and remembers them.
pub fn before(registry: &RealRegistry) -> Faulty {
    let address = registry.address().to_owned();
    Faulty::start(move |request, _| {
        let headers: Vec<_> = request
            .headers
            .iter()
            .filter(|(name, _)| ["accept", "authorization", "range"].contains(&&**name))
            .map(|(name, value)| (&**name, &**value))
            .collect();
        // The answer to GET has everything that the one to HEAD needs.
        let answer = asked(&address, "GET", request.second(), &headers, b"").unwrap();
        let mut reply = Reply::status(answer.second().parse().unwrap()).body(answer.body);
        for (name, value) in answer.headers {
            if ["content-type", "content-range", "docker-content-digest"].contains(&&*name) {
                reply = reply.header(&name, value);
            }
        }
        reply
    })
}

/// What a registry answers that has the images of a layout, by tag and by digest.
pub fn answer(layout: &Path, request: &Message) -> Reply {
    let Some((kind, name)) = parts(request) else {
        return Reply::status(200);
    };
    let index: Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let tagged = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == *name);
    let digest = tagged.map_or(name, |entry| entry["digest"].as_str().unwrap());
    let Ok(bytes) = fs::read(layout.join("blobs").join(digest.replace(':', "/"))) else {
        return Reply::status(404);
    };
    match kind {
        "manifests" => Reply::ok(bytes).header("Docker-Content-Digest", digest),
        _ => Reply::content(request, &bytes),
    }
}

/// `manifests` or `blobs`, and what is asked for.
fn parts(request: &Message) -> Option<(&str, &str)> {
    let mut parts = request.second().rsplit('/');
    let name = parts.next()?;
    Some((
        parts
            .next()
            .filter(|kind| ["manifests", "blobs"].contains(kind))?,
        name,
    ))
}

/// A registry with the images of a layout.
pub fn serving(layout: &Layout) -> Faulty {
    let path: PathBuf = layout.path().to_owned();
    Faulty::start(move |request, _| answer(&path, request))
}

/// An image there.
pub fn reference(server: &Faulty, tag: &str) -> String {
    format!("docker://{}/some/image:{tag}", server.address())
}

/// `METHOD path` of all requests since `before` of them, sorted.
pub fn requests_since(server: &Faulty, before: usize) -> Vec<String> {
    let seen = server.seen();
    let text = |request: &Message| format!("{} {}", request.method(), request.second());
    let mut requests: Vec<_> = seen[before..].iter().map(text).collect();
    requests.sort();
    requests
}

/// Bytes of the blob `digest`, which has `size` of them, that were asked for since `before` requests.
pub fn bytes_asked(server: &Faulty, before: usize, digest: &str, size: usize) -> usize {
    let ranges = ranges_asked(server, before, digest, size);
    ranges.iter().map(|range| range.len()).sum()
}

/// The same as ranges, each for a request.
pub fn ranges_asked(
    server: &Faulty,
    before: usize,
    digest: &str,
    size: usize,
) -> Vec<Range<usize>> {
    let seen = server.seen();
    let of_blob = seen[before..].iter().filter(|request| {
        request.method() == "GET" && request.second().ends_with(&format!("/blobs/{digest}"))
    });
    let ranges = of_blob.map(|request| match request.range() {
        Some((first, last)) => first..last + 1,
        None => 0..size,
    });
    ranges.collect()
}
