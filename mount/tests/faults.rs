//! What the registry client does when the other side fails: one clear error, or none at all.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sifon_mount::blob::{Blob, BlobError};
use sifon_mount::digest::Digest;
use sifon_mount::extent::PackedOffset;
use sifon_mount::reference::RegistryReference;
use sifon_mount::registry::{Credentials, Registry, Secret, Settings};
use support::faulty::{Faulty, Reply};
use support::http::Message;

/// Larger than what is cut to ranges on our side, smaller than two parts of a stream.
const LARGE: usize = 9 << 20;

fn noise(len: usize) -> Vec<u8> {
    let byte = |at: usize| (at.wrapping_mul(2_654_435_761) >> 16) as u8;
    (0..len).map(byte).collect()
}

/// Quick to lose patience.
fn settings() -> Settings {
    Settings {
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(20),
        backoff: Duration::from_millis(2),
        ..Settings::default()
    }
}

fn impatient() -> Settings {
    Settings {
        connect_timeout: Duration::from_millis(20),
        stall_timeout: Duration::from_millis(60),
        timeout: Duration::from_millis(300),
        ..settings()
    }
}

fn with_password(password: &str) -> Settings {
    Settings {
        credentials: Some(Credentials {
            username: "me".into(),
            password: Secret(password.into()),
        }),
        ..settings()
    }
}

fn registry(server: &Faulty, settings: &Settings) -> Registry {
    let reference: RegistryReference = format!("{}/app:v1", server.address()).parse().unwrap();
    Registry::new(&reference, settings)
}

fn blob(server: &Faulty, settings: &Settings, content: &[u8]) -> Arc<dyn Blob> {
    registry(server, settings).blob(Digest::of(content), content.len() as u64)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn read(blob: &dyn Blob, at: u64, len: usize) -> Result<Vec<u8>, BlobError> {
    Ok(blob.read(PackedOffset(at), len, soon())?.to_vec())
}

fn streamed(blob: &dyn Blob) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    blob.stream().unwrap().read_to_end(&mut content)?;
    Ok(content)
}

/// A registry whose only manifest is `body`, and which serves `content` as every blob.
fn plain(content: Vec<u8>) -> impl Fn(&Message, usize) -> Reply + Send + Sync {
    move |request, _| Reply::content(request, &content)
}

const BEARER: &str = r#"Bearer realm="http://HOST/token",service="s",scope="repository:app:pull""#;

/// Lets in who has the token `good`, and gives it to who asks.
fn guarded(request: &Message, inside: impl FnOnce() -> Reply) -> Reply {
    if request.second().starts_with("/token") {
        return Reply::ok(json!({"token": "good", "expires_in": 300}).to_string());
    }
    match request.header("authorization") {
        Some("Bearer good") => inside(),
        _ => {
            let host = request.header("host").unwrap();
            Reply::status(401).header("WWW-Authenticate", BEARER.replace("HOST", host))
        }
    }
}

#[test]
fn a_token_is_fetched_once_for_all_who_need_one() {
    let content = noise(LARGE);
    let served = content.clone();
    let server =
        Faulty::start(move |request, _| guarded(request, || Reply::content(request, &served)));
    let blob = blob(&server, &with_password("pw"), &content);
    std::thread::scope(|scope| {
        for reader in 0..8u64 {
            let (blob, content) = (&blob, &content);
            scope.spawn(move || {
                let at = reader * 1000;
                let expected = &content[at as usize..at as usize + 100];
                assert_eq!(read(blob.as_ref(), at, 100).unwrap(), expected);
            });
        }
    });
    assert_eq!(server.count("/token"), 1);
    let token = server
        .seen()
        .into_iter()
        .find(|seen| seen.second().starts_with("/token"))
        .unwrap();
    assert!(
        token.second().contains("scope=repository%3Aapp%3Apull"),
        "{token:?}"
    );
    assert!(token.second().contains("service=s") && token.second().contains("account=me"));
    // me:pw
    assert_eq!(token.header("authorization"), Some("Basic bWU6cHc="));
}

#[test]
fn a_token_that_is_refused_later_is_renewed_once() {
    let content = noise(1000);
    let served = content.clone();
    let server = Faulty::start(move |request, before| {
        if request.second().starts_with("/token") {
            return Reply::ok(json!({"access_token": format!("t{before}")}).to_string());
        }
        let good = if before < 3 { "Bearer t0" } else { "Bearer t1" };
        match request.header("authorization") == Some(good) {
            true => Reply::content(request, &served),
            false => {
                let host = request.header("host").unwrap();
                Reply::status(401).header("WWW-Authenticate", BEARER.replace("HOST", host))
            }
        }
    });
    let blob = blob(&server, &settings(), &content);
    for _ in 0..4 {
        assert_eq!(read(blob.as_ref(), 0, 10).unwrap(), content[..10]);
    }
    assert_eq!(server.count("/token"), 2);
}

#[test]
fn a_token_that_never_helps_ends_in_a_clear_error() {
    let server = Faulty::start(|request, _| match request.second().starts_with("/token") {
        true => Reply::ok(r#"{"token":"useless"}"#),
        false => {
            let host = request.header("host").unwrap();
            let challenge = BEARER.replace("HOST", host);
            let body =
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            Reply::status(401)
                .header("WWW-Authenticate", challenge)
                .body(body)
        }
    });
    let error = registry(&server, &with_password("pw"))
        .resolve()
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("401 Unauthorized"), "{text}");
    assert!(
        text.contains("with the user name and password that were given"),
        "{text}"
    );
    assert!(!text.contains("pw"), "{text}");
    assert_eq!(server.count("/v2/"), 2);
}

#[test]
fn a_token_servers_refusal_is_the_error() {
    let server = Faulty::start(|request, _| match request.second().starts_with("/token") {
        true => Reply::status(401).body(r#"{"details":"incorrect username or password"}"#),
        false => guarded(request, || unreachable!()),
    });
    let error = registry(&server, &with_password("wrong"))
        .resolve()
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("incorrect username or password"), "{text}");
    assert_eq!(server.count("/token"), 1);
}

#[test]
fn an_identity_token_is_exchanged_by_post() {
    let authfile = tempfile::NamedTempFile::new().unwrap();
    let content = noise(100);
    let served = content.clone();
    let server =
        Faulty::start(move |request, _| guarded(request, || Reply::content(request, &served)));
    let auths = json!({"auths": {server.address(): {"identitytoken": "refresh me"}}});
    std::fs::write(authfile.path(), auths.to_string()).unwrap();
    let settings = Settings {
        authfile: Some(authfile.path().into()),
        ..settings()
    };
    assert_eq!(
        read(blob(&server, &settings, &content).as_ref(), 0, 100).unwrap(),
        content
    );
    let token = server
        .seen()
        .into_iter()
        .find(|seen| seen.method() == "POST")
        .unwrap();
    let body = String::from_utf8(token.body).unwrap();
    assert!(body.contains("refresh_token=refresh+me") && body.contains("grant_type=refresh_token"));
}

#[test]
fn basic_authentication_is_sent_when_asked_for_and_only_then() {
    let content = noise(100);
    let served = content.clone();
    let server = Faulty::start(move |request, _| match request.header("authorization") {
        Some("Basic bWU6cHc=") => Reply::content(request, &served),
        _ => Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""),
    });
    let good = blob(&server, &with_password("pw"), &content);
    assert_eq!(read(good.as_ref(), 0, 100).unwrap(), content);
    assert_eq!(read(good.as_ref(), 0, 100).unwrap(), content);
    assert_eq!(server.seen().len(), 3);
    assert_eq!(server.seen()[0].header("authorization"), None);
    let bad = blob(&server, &with_password("no"), &content);
    let error = read(bad.as_ref(), 0, 100).unwrap_err();
    assert!(
        matches!(
            error,
            BlobError::Refused {
                status: Some(401),
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(server.seen().len(), 5);
}

#[test]
fn what_does_not_exist_is_named_and_asked_for_once() {
    let body = r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
    let server = Faulty::start(move |_, _| Reply::status(404).body(body));
    let content = noise(100);
    let error = read(blob(&server, &settings(), &content).as_ref(), 0, 100).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&Digest::of(&content).to_string()), "{text}");
    assert!(
        text.contains("404 Not Found: blob unknown to registry"),
        "{text}"
    );
    assert!(text.contains(server.address()), "{text}");
    assert_eq!(server.seen().len(), 1);
    let error = registry(&server, &settings()).resolve().unwrap_err();
    assert!(error.to_string().contains("/app:v1"), "{error}");
}

#[test]
fn a_busy_registry_is_asked_again_when_it_says() {
    let manifest = b"{}".to_vec();
    let server = Faulty::start(move |request, before| match before {
        0 => Reply::status(429).header("Retry-After", "0"),
        1 => Reply::status(503),
        2 => Reply::status(500),
        _ => Reply::content(request, &manifest),
    });
    let bytes = registry(&server, &settings())
        .manifest(Digest::of(b"{}"))
        .unwrap();
    assert_eq!(&bytes[..], b"{}");
    assert_eq!(server.seen().len(), 4);
}

#[test]
fn a_pause_beyond_the_deadline_is_not_waited_for() {
    let server = Faulty::start(|_, _| {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}"#;
        Reply::status(429).header("Retry-After", "3600").body(body)
    });
    let error = registry(&server, &settings()).resolve().unwrap_err();
    assert!(
        matches!(
            error,
            BlobError::Refused {
                status: Some(429),
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_registry_that_stays_broken_is_given_up() {
    let server = Faulty::start(|_, _| Reply::status(500).body("out of order"));
    let error = registry(&server, &settings()).resolve().unwrap_err();
    assert!(
        error.to_string().contains("500 Internal Server Error"),
        "{error}"
    );
    assert!(server.seen().len() > 2);
}

#[test]
fn nobody_listening_is_an_error_that_names_the_place() {
    let server = Faulty::start(|_, _| Reply::status(500));
    let address = server.address().to_owned();
    let registry = registry(&server, &settings());
    drop(server);
    let error = registry.resolve().unwrap_err();
    assert!(matches!(error, BlobError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&address), "{error}");
}

#[test]
fn silence_ends_at_the_deadline() {
    let content = noise(LARGE);
    let server = Faulty::start(|_, _| Reply::ok("x").stall_after(0));
    let error = registry(&server, &impatient())
        .manifest(Digest::of(b"x"))
        .unwrap_err();
    assert!(matches!(error, BlobError::Unreachable { .. }), "{error}");

    let blob = blob(
        &server,
        &Settings {
            timeout: Duration::from_secs(600),
            ..impatient()
        },
        &content,
    );
    let deadline = Instant::now() + Duration::from_millis(300);
    let error = blob.read(PackedOffset(0), 100, deadline).unwrap_err();
    assert!(
        matches!(
            error,
            BlobError::Unreachable { .. } | BlobError::Wrong { .. }
        ),
        "{error}"
    );
    assert!(deadline.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_stalled_body_is_asked_for_again_from_the_byte_reached() {
    let content = noise(LARGE);
    let served = content.clone();
    let server = Faulty::start(move |request, _| {
        let reply = Reply::content(request, &served);
        match request.range() {
            Some((500, _)) => reply,
            _ => reply.stall_after(500),
        }
    });
    let settings = Settings {
        timeout: Duration::from_secs(20),
        ..impatient()
    };
    let got = read(blob(&server, &settings, &content).as_ref(), 0, 2000).unwrap();
    assert!(got == content[..2000]);
    assert_eq!(server.seen()[1].range(), Some((500, 1999)));
}

#[test]
fn a_registry_without_ranges_serves_small_blobs_and_whole_streams() {
    let content = noise(LARGE);
    let served = content.clone();
    let server = Faulty::start(move |_, _| Reply::ok(&served[..]));
    let large = blob(&server, &settings(), &content);
    let error = read(large.as_ref(), 10, 10).unwrap_err();
    assert!(
        error.to_string().contains("sends the whole blob"),
        "{error}"
    );
    assert!(read(large.as_ref(), 0, LARGE).unwrap() == content);
    assert!(streamed(large.as_ref()).unwrap() == content);

    let small = noise(1000);
    let served = small.clone();
    let server = Faulty::start(move |_, _| Reply::ok(&served[..]));
    let got = read(blob(&server, &settings(), &small).as_ref(), 10, 10).unwrap();
    assert_eq!(got, small[10..20]);
}

#[test]
fn a_whole_answer_that_breaks_off_goes_on_after_what_was_delivered() {
    let content = noise(LARGE);
    let served = content.clone();
    let server = Faulty::start(move |_, before| match before {
        0 => Reply::ok(&served[..]).cut_after(3_000_000),
        1 => Reply::ok(&served[..]).cut_after(1_000_000),
        _ => Reply::ok(&served[..]),
    });
    let got = streamed(blob(&server, &settings(), &content).as_ref()).unwrap();
    assert!(got == content);
}

#[test]
fn other_bytes_than_those_asked_for_are_refused() {
    let content = noise(LARGE);
    for (range, problem) in [
        (
            "bytes 1-100/9437184",
            "was asked for bytes 0-99 and sent bytes 1-100",
        ),
        (
            "bytes 0-98/9437184",
            "was asked for bytes 0-99 and sent bytes 0-98",
        ),
        (
            "bytes 0-99/77",
            "has 77 bytes of it, but the manifest says 9437184",
        ),
        ("items 0-99/*", "was asked for bytes 0-99 and sent items"),
    ] {
        let server = Faulty::start(move |_, _| {
            Reply::status(206)
                .header("Content-Range", range)
                .body([0; 100])
        });
        let error = read(blob(&server, &settings(), &content).as_ref(), 0, 100).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
        assert_eq!(server.seen().len(), 1);
    }
    let server = Faulty::start(|_, _| Reply::status(206).body([0; 100]));
    let error = read(blob(&server, &settings(), &content).as_ref(), 0, 100).unwrap_err();
    assert!(error.to_string().contains("sent nothing"), "{error}");
    let server = Faulty::start(|_, _| Reply::ok([0; 100]));
    let error = read(blob(&server, &settings(), &content).as_ref(), 0, 100).unwrap_err();
    assert!(error.to_string().contains("has 100 bytes of it"), "{error}");
    let server = Faulty::start(|_, _| Reply::status(204));
    let error = read(blob(&server, &settings(), &content).as_ref(), 0, 100).unwrap_err();
    assert!(error.to_string().contains("204"), "{error}");
}

#[test]
fn more_bytes_than_asked_for_are_refused_and_fewer_are_asked_for_again() {
    let content = noise(LARGE);
    let whole = "bytes 0-99/9437184";
    let server = Faulty::start(move |_, _| {
        Reply::status(206)
            .header("Content-Range", whole)
            .body([0; 101])
    });
    let error = read(blob(&server, &settings(), &content).as_ref(), 0, 100).unwrap_err();
    assert!(
        error.to_string().contains("more than was asked for"),
        "{error}"
    );

    let server =
        Faulty::start(move |_, _| Reply::status(206).header("Content-Range", whole).body([]));
    let error = read(blob(&server, &settings(), &content).as_ref(), 0, 100).unwrap_err();
    assert!(matches!(error, BlobError::Unreachable { .. }), "{error}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("100 bytes early"), "{cause}");
    assert!(server.seen().len() > 2);
}

#[test]
fn a_range_outside_the_blob_is_never_asked_for() {
    let content = noise(100);
    let server = Faulty::start(plain(content.clone()));
    let blob = blob(&server, &settings(), &content);
    assert!(read(blob.as_ref(), 1, 100).is_err());
    assert!(read(blob.as_ref(), u64::MAX, 2).is_err());
    assert_eq!(read(blob.as_ref(), 100, 0).unwrap(), b"");
    assert_eq!(server.seen().len(), 0);
}

/// A registry that redirects to `storage` under a path that counts its redirects.
fn redirecting(storage: &Faulty) -> Faulty {
    let address = storage.address().to_owned();
    Faulty::start(move |request, before| {
        guarded(request, || {
            Reply::status(307).header(
                "Location",
                format!("http://{address}/signed/{before}?sig=s"),
            )
        })
    })
}

#[test]
fn a_redirect_is_followed_without_our_authorization_and_remembered() {
    let content = noise(LARGE);
    let storage = Faulty::start(plain(content.clone()));
    let server = redirecting(&storage);
    let blob = blob(&server, &with_password("pw"), &content);
    for at in [0, 7, 4_000_000] {
        let expected = &content[at as usize..at as usize + 1000];
        assert_eq!(read(blob.as_ref(), at, 1000).unwrap(), expected);
    }
    assert!(streamed(blob.as_ref()).unwrap() == content);
    // 401, token, redirect.
    assert_eq!(server.seen().len(), 3);
    let seen = storage.seen();
    assert!(
        seen.iter()
            .all(|request| request.header("authorization").is_none())
    );
    assert_eq!(seen.len(), 5);
}

#[test]
fn an_expired_url_is_renewed_once_for_all_readers() {
    for refusal in [401, 403, 404, 410, 400] {
        let content = noise(LARGE);
        let served = content.clone();
        let storage = Faulty::start(move |request, _| {
            let is_first = request.second().contains("/signed/1?");
            match is_first && request.range() != Some((0, 9)) {
                true => Reply::status(refusal).body("<Error><Code>ExpiredToken</Code></Error>"),
                false => Reply::content(request, &served),
            }
        });
        let server = redirecting(&storage);
        let blob = blob(&server, &settings(), &content);
        assert_eq!(read(blob.as_ref(), 0, 10).unwrap(), content[..10]);
        std::thread::scope(|scope| {
            for reader in 1..7usize {
                let (blob, content) = (&blob, &content);
                scope.spawn(move || {
                    let got = read(blob.as_ref(), reader as u64, 100).unwrap();
                    assert_eq!(got, content[reader..reader + 100]);
                });
            }
        });
        assert_eq!(server.count("/blobs/"), 3, "{refusal}");
    }
}

#[test]
fn a_place_that_refuses_at_once_is_an_error() {
    let storage =
        Faulty::start(|_, _| Reply::status(403).body("<Error><Code>AccessDenied</Code></Error>"));
    let server = redirecting(&storage);
    let content = noise(100);
    let error = read(blob(&server, &settings(), &content).as_ref(), 0, 100).unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert!(error.to_string().contains(storage.address()), "{error}");
    assert!(!error.to_string().contains("sig="), "{error}");
}

#[test]
fn redirects_that_lead_nowhere_are_errors() {
    for location in [
        Some("/v2/app/blobs/again"),
        Some("ftp://x/y"),
        Some("http://"),
        None,
    ] {
        let server = Faulty::start(move |_, _| match location {
            Some(location) => Reply::status(307).header("Location", location),
            None => Reply::status(307),
        });
        let content = noise(100);
        let error = read(blob(&server, &settings(), &content).as_ref(), 0, 100).unwrap_err();
        assert!(error.to_string().contains("redirects"), "{error}");
        assert!(server.seen().len() < 10);
    }
}

#[test]
fn a_stream_goes_on_after_every_dropped_connection() {
    let content = noise(3 * LARGE + 17);
    let served = content.clone();
    let server = Faulty::start(move |request, _| {
        let reply = Reply::content(request, &served);
        match request.range() {
            Some((first, last)) if last - first > 1_200_000 => reply.cut_after(1_000_000),
            _ => reply,
        }
    });
    assert!(streamed(blob(&server, &settings(), &content).as_ref()).unwrap() == content);
}

#[test]
fn a_stream_that_fails_says_why_and_stays_failed() {
    let content = noise(LARGE);
    let server = Faulty::start(|_, _| Reply::status(403).body("no"));
    let mut stream = blob(&server, &settings(), &content).stream().unwrap();
    let error = stream.read(&mut [0; 10]).unwrap_err();
    let cause = error
        .get_ref()
        .unwrap()
        .downcast_ref::<BlobError>()
        .unwrap();
    assert!(
        matches!(
            cause,
            BlobError::Refused {
                status: Some(403),
                ..
            }
        ),
        "{cause}"
    );
    assert!(stream.read(&mut [0; 10]).is_err());
}

#[test]
fn streams_read_one_after_the_other_do_not_wait_for_each_other() {
    let content = noise(65 << 20);
    let server = Faulty::start(plain(content.clone()));
    let registry = registry(&server, &settings());
    let blob = registry.blob(Digest::of(&content), content.len() as u64);
    let mut streams: Vec<_> = (0..5).map(|_| blob.stream().unwrap()).collect();
    for stream in &mut streams {
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(first[0], content[0]);
    }
    for mut stream in streams {
        let mut got = vec![content[0]];
        stream.read_to_end(&mut got).unwrap();
        assert!(got == content);
    }
}

#[test]
fn a_stream_outlives_the_registry_it_came_from() {
    let content = noise(LARGE);
    let server = Faulty::start(plain(content.clone()));
    let blob = blob(&server, &settings(), &content);
    let mut stream = blob.stream().unwrap();
    drop(blob);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got == content);
}

#[test]
fn an_empty_blob_needs_no_request() {
    let server = Faulty::start(|_, _| Reply::status(500));
    assert_eq!(
        streamed(blob(&server, &settings(), b"").as_ref()).unwrap(),
        b""
    );
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn a_tag_is_resolved_by_one_head_request() {
    let digest = Digest::of(b"manifest");
    let server = Faulty::start(move |_, _| {
        Reply::ok("manifest").header("Docker-Content-Digest", digest.to_string())
    });
    assert_eq!(registry(&server, &settings()).resolve().unwrap(), digest);
    let seen = server.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].method(), "HEAD");
    assert_eq!(seen[0].second(), "/v2/app/manifests/v1");
    assert!(seen[0].header("user-agent").unwrap().starts_with("sifon/"));
    assert!(
        seen[0]
            .header("accept")
            .unwrap()
            .contains("oci.image.index")
    );
}

#[test]
fn a_registry_whose_head_tells_nothing_is_asked_for_the_manifest_once() {
    for status in [200, 405] {
        let server = Faulty::start(move |request, _| match request.method() {
            "HEAD" => Reply::status(status).body("manifest"),
            _ => Reply::ok("manifest"),
        });
        let registry = registry(&server, &settings());
        let digest = registry.resolve().unwrap();
        assert_eq!(digest, Digest::of(b"manifest"));
        assert_eq!(&registry.manifest(digest).unwrap()[..], b"manifest");
        assert_eq!(server.seen().len(), 2);
    }
}

#[test]
fn a_manifest_is_checked_against_its_digest_and_bounded() {
    let server = Faulty::start(|_, _| Reply::ok("something else"));
    let error = registry(&server, &settings())
        .manifest(Digest::of(b"x"))
        .unwrap_err();
    assert!(
        error.to_string().contains("other bytes than this digest's"),
        "{error}"
    );
    let server = Faulty::start(|_, _| Reply::ok(vec![b' '; (4 << 20) + 1]));
    let error = registry(&server, &settings())
        .manifest(Digest::of(b"x"))
        .unwrap_err();
    assert!(
        error.to_string().contains("more than 4194304 bytes"),
        "{error}"
    );
}

#[test]
fn a_loopback_server_that_wants_tls_is_asked_with_tls() {
    let server = Faulty::start(|_, _| {
        Reply::status(400).body("Client sent an HTTP request to an HTTPS server.\n")
    });
    let error = registry(&server, &settings()).resolve().unwrap_err();
    assert!(matches!(error, BlobError::Unreachable { .. }), "{error}");
    let is_tls_hello = |seen: &Message| seen.start.as_bytes().first() == Some(&0x16);
    assert!(server.seen().iter().any(is_tls_hello));
}

#[test]
fn a_part_of_a_blob_is_streamed_also_where_whole_blobs_are_sent() {
    let content = noise(2 * LARGE + 17);
    for does_ranges in [true, false] {
        let served = content.clone();
        let server = Faulty::start(move |request, _| match does_ranges {
            true => Reply::content(request, &served),
            false => Reply::ok(served.clone()),
        });
        let blob = blob(&server, &settings(), &content);
        for range in [LARGE + 5..2 * LARGE + 1, 7..content.len(), 3..3] {
            let mut part = Vec::new();
            let mut stream = blob
                .stream_of(range.start as u64..range.end as u64)
                .unwrap();
            stream.read_to_end(&mut part).unwrap();
            assert!(part == content[range.clone()], "{range:?} {does_ranges}");
        }
    }
}
