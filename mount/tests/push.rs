//! Writing to registries, against ones that misbehave.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use sifon_mount::digest::Digest;
use sifon_mount::reference::RegistryReference;
use sifon_mount::registry::{Destination, Settings};
use support::faulty::{Faulty, Reply};
use support::http::Message;
use support::real::RealRegistry;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn destination(address: &str) -> Destination {
    let reference: RegistryReference = format!("{address}/some/image:latest").parse().unwrap();
    let settings = Settings {
        backoff: Duration::from_millis(1),
        timeout: Duration::from_secs(20),
        stall_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    Destination::new(&reference, &settings)
}

/// A registry that takes blobs, but for what `fault` says of a request, of which there were so many before.
fn registry(
    fault: impl Fn(&Message, usize) -> Option<Reply> + Send + Sync + 'static,
) -> (Faulty, Arc<Mutex<Vec<Vec<u8>>>>) {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let taking = taken.clone();
    let server = Faulty::start(move |request, count| {
        if let Some(reply) = fault(request, count) {
            return reply;
        }
        match request.method() {
            "HEAD" => Reply::status(404),
            "POST" => Reply::status(202).header("Location", "/uploads/1?state=x%2By"),
            _ => {
                taking.lock().unwrap().push(request.body.clone());
                Reply::status(201)
            }
        }
    });
    (server, taken)
}

#[test]
fn an_upload_is_begun_again_after_faults_and_goes_where_the_registry_says() {
    type Fault = (&'static str, &'static str, fn() -> Reply);
    let faults: [Fault; 4] = [
        ("asking fails", "HEAD", || Reply::status(503)),
        ("beginning fails", "POST", || Reply::status(500)),
        ("sending fails", "PUT", || Reply::status(502)),
        ("the answer stalls", "PUT", || {
            Reply::status(500).body("x").stall_after(0)
        }),
    ];
    for (what, method, fault) in faults {
        let (server, taken) =
            registry(move |request, count| (request.method() == method && count == 0).then(fault));
        let blob = Bytes::from_static(b"some bytes");
        let digest = destination(server.address()).blob(&blob).unwrap();
        assert_eq!(digest, Digest::of(&blob), "{what}");
        assert_eq!(*taken.lock().unwrap(), [blob.to_vec()], "{what}");
        let seen = server.seen();
        let put = seen.last().unwrap().second();
        let hex = digest.hex();
        assert_eq!(
            put,
            format!("/uploads/1?state=x%2By&digest=sha256%3A{hex}"),
            "{what}"
        );
    }
}

#[test]
fn what_a_registry_makes_of_bytes_is_compared_with_what_they_are() {
    let (server, _) = registry(|request, _| {
        let other = Digest::of(b"other bytes").to_string();
        let is_put = request.method() == "PUT";
        is_put.then(|| Reply::status(201).header("Docker-Content-Digest", other))
    });
    let destination = destination(server.address());
    let bytes = Bytes::from_static(b"{}");
    let refused = destination.blob(&bytes).unwrap_err().to_string();
    assert!(refused.contains("took it for"), "{refused}");
    let refused = destination
        .manifest(Some("tag"), INDEX, &bytes)
        .unwrap_err();
    assert!(refused.to_string().contains("took it for"), "{refused}");
}

#[test]
fn a_registry_that_refuses_is_quoted() {
    let (server, _) = registry(|request, _| {
        let errors = json!({"errors": [{"code": "UNSUPPORTED", "message": "read only"}]});
        (request.method() == "POST").then(|| Reply::status(405).body(errors.to_string()))
    });
    let refused = destination(server.address())
        .blob(&Bytes::from_static(b"x"))
        .unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("405") && refused.contains("read only"),
        "{refused}"
    );
    assert_eq!(
        server.count("uploads"),
        1,
        "what is refused is not tried again"
    );
}

#[test]
fn an_upload_is_not_turned_into_a_question() {
    let (server, taken) = registry(|request, _| {
        let is_post = request.method() == "POST";
        is_post.then(|| Reply::status(302).header("Location", "/login"))
    });
    let refused = destination(server.address())
        .blob(&Bytes::from_static(b"x"))
        .unwrap_err();
    assert!(refused.to_string().contains("redirects"), "{refused}");
    assert!(taken.lock().unwrap().is_empty());
    assert_eq!(server.count("login"), 0);
}

/// GHCR answers a token for reading with a 403, which asks for no better one.
#[test]
fn the_first_token_is_one_for_writing() {
    let address = Arc::new(Mutex::new(String::new()));
    let known = address.clone();
    let (server, taken) = registry(move |request, _| {
        if request.second().starts_with("/token") {
            let is_for_writing = request.second().contains("pull%2Cpush");
            let token = if is_for_writing { "write" } else { "read" };
            return Some(Reply::ok(json!({"token": token}).to_string()));
        }
        match request.header("authorization") {
            Some("Bearer write") => None,
            Some(_) => Some(Reply::status(403)),
            None => {
                let realm = known.lock().unwrap().clone();
                let scope = "repository:some/image:pull";
                let wanted = format!("Bearer realm=\"http://{realm}/token\",scope=\"{scope}\"");
                Some(Reply::status(401).header("WWW-Authenticate", wanted))
            }
        }
    });
    *address.lock().unwrap() = server.address().to_owned();
    destination(server.address())
        .blob(&Bytes::from_static(b"x"))
        .unwrap();
    assert_eq!(taken.lock().unwrap().len(), 1);
    assert_eq!(server.count("token"), 1);
}

/// Between our look at the tag and our writing to it somebody else writes: to a registry that knows conditions, and to one
/// that does not, where our own entry is overwritten.
#[test]
fn entries_that_are_written_at_once_are_all_kept() {
    for knows_conditions in [true, false] {
        let entry = |name: &str| json!({"digest": Digest::of(name.as_bytes()), "name": name});
        let of = |entries: Value| json!({"schemaVersion": 2, "manifests": entries});
        let state = Arc::new(Mutex::new(of(json!([entry("theirs")]))));
        let kept = state.clone();
        let server = Faulty::start(move |request, count| {
            let mut state = kept.lock().unwrap();
            let version = Digest::of(state.to_string().as_bytes()).to_string();
            if request.method() == "GET" {
                let reply = Reply::ok(state.to_string());
                if count == 0 {
                    // Right after our look.
                    *state = of(json!([entry("theirs"), entry("late")]));
                }
                return reply.header("ETag", version);
            }
            if knows_conditions && request.header("if-match") != Some(version.as_str()) {
                return Reply::status(412);
            }
            *state = serde_json::from_slice(&request.body).unwrap();
            if !knows_conditions && count == 0 {
                *state = of(json!([entry("theirs"), entry("late")]));
            }
            Reply::status(201)
        });
        let subject = Digest::of(b"image");
        let tag = destination(server.address())
            .refer(subject, &entry("ours"))
            .unwrap();
        assert_eq!(tag, subject.to_string().replace(':', "-"));
        let all = of(json!([entry("theirs"), entry("late"), entry("ours")]));
        assert_eq!(state.lock().unwrap()["manifests"], all["manifests"]);
    }
}

#[test]
fn a_real_registry_gives_back_what_was_pushed_and_is_sent_a_blob_once() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let destination = destination(registry.address());
    let blob = Bytes::from(vec![7; 3 << 20]);
    let digest = destination.blob(&blob).unwrap();
    assert_eq!(destination.blob(&blob).unwrap(), digest);
    let reference: RegistryReference = format!("{}/some/image:latest", registry.address())
        .parse()
        .unwrap();
    let source = sifon_mount::registry::Registry::new(&reference, &Settings::default());
    let stored = source.blob(digest, blob.len() as u64);
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut stored.stream().unwrap(), &mut content).unwrap();
    assert!(content == blob);
    let index =
        Bytes::from(json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string());
    assert!(!destination.manifest(Some("latest"), INDEX, &index).unwrap());
    assert_eq!(source.resolve().unwrap(), Digest::of(&index));
    assert_eq!(source.manifest(Digest::of(&index)).unwrap(), index);
}

/// A file of this content, as it is sent.
fn sent(
    destination: &Destination,
    content: &[u8],
) -> (Result<bool, sifon_mount::blob::BlobError>, i64) {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, content).unwrap();
    let told = Arc::new(AtomicI64::new(0));
    let counted = told.clone();
    let counting = Arc::new(move |more| {
        counted.fetch_add(more, Ordering::Relaxed);
    });
    let (digest, size) = (Digest::of(content), content.len() as u64);
    let outcome = destination.file(digest, size, Arc::new(file), counting);
    (outcome, told.load(Ordering::Relaxed))
}

#[test]
fn a_file_is_sent_as_it_is_read_and_once_more_after_faults() {
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at / 7) as u8).collect();
    for fault in ["none", "POST", "PUT"] {
        let (server, taken) = registry(move |request, before| {
            (request.method() == fault && before == 0).then(|| Reply::status(503))
        });
        let (outcome, told) = sent(&destination(server.address()), &content);
        assert!(outcome.unwrap(), "{fault}");
        assert!(taken.lock().unwrap().last().unwrap() == &content, "{fault}");
        assert!(told >= content.len() as i64, "{fault}: {told}");
    }
}

#[test]
fn a_file_that_is_there_is_not_sent_and_one_that_shrinks_is_an_error() {
    let (server, taken) =
        registry(|request, _| (request.method() == "HEAD").then(|| Reply::status(200)));
    let (outcome, told) = sent(&destination(server.address()), b"there");
    assert!(!outcome.unwrap());
    assert_eq!(told, 0);
    assert!(taken.lock().unwrap().is_empty());

    let (server, taken) = registry(|_, _| None);
    let file = tempfile::tempfile().unwrap();
    file.set_len(1000).unwrap();
    let shrunk = destination(server.address()).file(
        Digest::of(b"longer"),
        100_000,
        Arc::new(file),
        Arc::new(|_| {}),
    );
    assert!(shrunk.is_err());
    assert!(taken.lock().unwrap().is_empty());
}
