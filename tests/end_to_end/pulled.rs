//! Images from a real registry: how they are named, who may have them, and what if the registry goes away.

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::json;

use crate::layers::{file, noise, text};
use crate::layout::{Layer, Layout, Packed, Packing, all, architecture};
use crate::openssl::openssl;
use crate::place::{PATIENCE, Place, can_mount};
use crate::support::faulty::{Faulty, Reply};
use crate::support::http::Message;
use crate::support::real::{PASSWORD, RealRegistry, USERNAME};
use crate::view::View;

fn saying(what: &str) -> Vec<Packed> {
    all(
        &[Layer::new(vec![file("said", what.to_owned())])],
        Packing::Gzip,
    )
}

#[test]
fn an_image_is_found_by_tag_by_digest_and_by_platform() {
    let Some(registry) = RealRegistry::open().filter(|_| can_mount()) else {
        return;
    };
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let one = layout.add("one", &saying("one"));
    let (here, other) = (saying("here"), saying("other"));
    let index = layout.add_index("several", &[("riscv64", &other), (architecture(), &here)]);
    registry.push_layout("a/b/c", layout.path());
    let name = format!("docker://{}/a/b/c", registry.address());
    let said = |reference: String, flags: &[&str]| {
        let mounted = place.mount_with(&reference, |command| _ = command.args(flags));
        String::from_utf8(mounted.read("said").unwrap()).unwrap()
    };
    assert_eq!(said(format!("{name}:one"), &[]), "one");
    assert_eq!(said(format!("{name}@{one}"), &[]), "one");
    // As Docker reads it: with a digest the tag is only a word.
    assert_eq!(said(format!("{name}:several@{one}"), &[]), "one");
    assert_eq!(said(format!("{name}:several"), &[]), "here");
    assert_eq!(
        said(format!("{name}@{index}"), &["--arch", "riscv64"]),
        "other"
    );
    let mut command = place.sifon(["mount", "--arch", "s390x", &format!("{name}:several")]);
    let refusal = place.refusal(command.arg(place.target()));
    assert!(
        refusal.contains("s390x") && refusal.contains("riscv64"),
        "{refusal}"
    );
    let mut command = place.sifon(["mount", &format!("{name}:missing")]);
    let refusal = place.refusal(command.arg(place.target()));
    assert!(refusal.contains("a/b/c:missing"), "{refusal}");
}

/// A place for credentials: puts a user's name and password there.
type Put = fn(&Place, &mut Command, &str, &str);

const PLACES: [(&str, Put); 12] = [
    ("flags", |_, command, _, password| {
        command.args(["--docker-username", USERNAME, "--docker-password", password]);
    }),
    ("SIFON_ variables", |_, command, _, password| {
        variables(command, "SIFON_", password)
    }),
    ("APPTAINER_ variables", |_, command, _, password| {
        variables(command, "APPTAINER_", password)
    }),
    ("SINGULARITY_ variables", |_, command, _, password| {
        variables(command, "SINGULARITY_", password);
    }),
    ("DOCKER_ variables", |_, command, _, password| {
        variables(command, "", password)
    }),
    ("--authfile", |place, command, host, password| {
        let file = place.path("auth.json");
        auths(&file, host, password);
        command.arg("--authfile").arg(file);
    }),
    ("REGISTRY_AUTH_FILE", |place, command, host, password| {
        let file = place.path("auth.json");
        auths(&file, host, password);
        command.env("REGISTRY_AUTH_FILE", file);
    }),
    ("~/.apptainer", |place, _, host, password| {
        auths(
            &place.path("home/.apptainer/docker-config.json"),
            host,
            password,
        );
    }),
    ("APPTAINER_CONFIGDIR", |place, command, host, password| {
        auths(&place.path("conf/docker-config.json"), host, password);
        command.env("APPTAINER_CONFIGDIR", place.path("conf"));
    }),
    ("~/.docker", |place, _, host, password| {
        auths(&place.path("home/.docker/config.json"), host, password);
    }),
    ("credHelpers", |place, command, host, password| {
        helper(place, command, host, password);
        let config = json!({"credHelpers": {host: "test"}});
        written(&place.path("home/.docker/config.json"), &config.to_string());
    }),
    ("credsStore", |place, command, host, password| {
        helper(place, command, host, password);
        let config = json!({"credsStore": "test"});
        written(&place.path("home/.docker/config.json"), &config.to_string());
    }),
];

fn variables(command: &mut Command, prefix: &str, password: &str) {
    command
        .env(format!("{prefix}DOCKER_USERNAME"), USERNAME)
        .env(format!("{prefix}DOCKER_PASSWORD"), password);
}

fn written(file: &Path, content: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, content).unwrap();
}

/// As `docker login` writes it.
fn auths(file: &Path, host: &str, password: &str) {
    let auth = STANDARD.encode(format!("{USERNAME}:{password}"));
    written(file, &json!({"auths": {host: {"auth": auth}}}).to_string());
}

/// A credential helper that knows one host.
fn helper(place: &Place, command: &mut Command, host: &str, password: &str) {
    let answer = json!({"ServerURL": host, "Username": USERNAME, "Secret": password});
    let missing = "echo credentials not found in native keychain; exit 1";
    let script = format!(
        "#!/bin/sh\nread host\ntest \"$1 $host\" = 'get {host}' || {{ {missing}; }}\necho '{answer}'\n"
    );
    let file = place.path("helpers/docker-credential-test");
    written(&file, &script);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    command.env(
        "PATH",
        format!("{}:{path}", place.path("helpers").display()),
    );
}

#[test]
fn credentials_are_taken_from_every_place_and_wrong_ones_are_told() {
    let Some(registry) = RealRegistry::with_users() else {
        return;
    };
    let source = Place::new();
    let mut layout = Layout::new(source.path("layout"));
    let digest = layout.add("latest", &saying("secret"));
    registry.push_layout("private/image", layout.path());
    let host = registry.address();
    let reference = format!("docker://{host}/private/image:latest");
    for (name, put) in PLACES {
        let place = Place::new();
        let mut command = place.sifon(["inspect", &reference]);
        put(&place, &mut command, host, "wrong-password");
        let refusal = place.refusal(&mut command);
        assert!(refusal.contains("private/image"), "{name}: {refusal}");
        assert!(!refusal.contains("wrong-password"), "{name}: {refusal}");
        let mut command = place.sifon(["inspect", "--json", &reference]);
        put(&place, &mut command, host, PASSWORD);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(&digest.to_string()), "{name}: {said}");
    }
    let place = Place::new();
    let refusal = place.refusal(&mut place.sifon(["inspect", &reference]));
    assert!(refusal.contains("without credentials"), "{refusal}");
}

#[test]
fn a_password_reaches_the_daemon_and_is_seen_by_nobody() {
    let Some(registry) = RealRegistry::with_users().filter(|_| can_mount()) else {
        return;
    };
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add("latest", &saying("secret"));
    registry.push_layout("private/image", layout.path());
    let reference = format!("docker://{}/private/image", registry.address());
    let mounted = place.mount_with(&reference, |command| {
        command.args([
            "-d",
            "--docker-username",
            USERNAME,
            "--docker-password",
            PASSWORD,
        ]);
    });
    assert_eq!(mounted.read("said").unwrap(), b"secret");
    let auth = STANDARD.encode(format!("{USERNAME}:{PASSWORD}"));
    for hidden in [PASSWORD, &auth] {
        assert!(!mounted.said.contains(hidden), "{}", mounted.said);
        for process in place.processes() {
            assert!(!process.command().contains(hidden), "{}", process.command());
        }
    }
}

/// Signs what a registry believes, with a key that openssl makes.
struct Signer {
    directory: tempfile::TempDir,
    certificate: String,
}

const ISSUER: &str = "tester";
const SERVICE: &str = "test-registry";

impl Signer {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        openssl(
            directory.path(),
            "req -x509 -newkey rsa:2048 -nodes -subj /CN=tester -days 2 -keyout key.pem -out cert.pem",
        )?;
        let pem = fs::read_to_string(directory.path().join("cert.pem")).unwrap();
        let lines = pem.lines().filter(|line| !line.starts_with("-----"));
        Some(Self {
            certificate: lines.collect(),
            directory,
        })
    }

    /// A token (RFC 7519) that lets one pull, or nothing.
    fn token(&self, repository: &str, may_pull: bool) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let access = json!([{"type": "repository", "name": repository, "actions": ["pull"]}]);
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": ISSUER, "sub": USERNAME, "aud": SERVICE, "jti": "1",
            "iat": now, "nbf": now - 60, "exp": now + 300,
            "access": if may_pull { access } else { json!([]) },
        });
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        fs::write(self.directory.path().join("signed"), &signed).unwrap();
        let sign = "dgst -sha256 -sign key.pem signed";
        let signature = openssl(self.directory.path(), sign).expect("it made the key");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[test]
fn a_real_registry_that_trusts_a_token_server_is_read_with_its_tokens() {
    let Some(mut registry) = RealRegistry::open() else {
        return;
    };
    let Some(signer) = Signer::new() else {
        return;
    };
    let source = Place::new();
    let mut layout = Layout::new(source.path("layout"));
    let digest = layout.add("latest", &saying("by token"));
    registry.push_layout("private/image", layout.path());
    let certificate = signer.directory.path().join("cert.pem");
    let basic = format!(
        "Basic {}",
        STANDARD.encode(format!("{USERNAME}:{PASSWORD}"))
    );
    let signer = std::sync::Mutex::new(signer);
    let tokens = Faulty::start(move |request: &Message, _| {
        let may_pull = match request.header("authorization") {
            Some(given) if given == basic => true,
            Some(_) => return Reply::status(401).body(r#"{"details":"wrong password"}"#),
            None => false,
        };
        let path = request.second();
        assert!(path.contains("service=test-registry"), "{path}");
        let token = signer.lock().unwrap().token("private/image", may_pull);
        Reply::ok(json!({"token": token, "expires_in": 300}).to_string())
    });
    registry.restart_with(format!(
        "auth: {{token: {{realm: \"http://{}/token\", service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}}}\n",
        tokens.address(),
        certificate.display()
    ));
    let reference = format!("docker://{}/private/image:latest", registry.address());
    let inspect = |password: Option<&str>| {
        let place = Place::new();
        let mut command = place.sifon(["inspect", "--json", &reference]);
        if let Some(password) = password {
            variables(&mut command, "SIFON_", password);
        }
        (command.output().unwrap(), place)
    };
    let (right, _place) = inspect(Some(PASSWORD));
    assert!(right.status.success(), "{right:?}");
    assert!(
        String::from_utf8(right.stdout)
            .unwrap()
            .contains(&digest.to_string())
    );
    for password in [Some("wrong"), None] {
        let (refused, _place) = inspect(password);
        assert_eq!(refused.status.code(), Some(255), "{refused:?}");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains("private/image"), "{said}");
    }
}

/// Waits for somebody to connect.
fn connected_to(listener: &TcpListener) {
    let mut polled = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    let limit = Timespec::try_from(PATIENCE).unwrap();
    assert!(
        rustix::event::poll(&mut polled, Some(&limit)).unwrap() > 0,
        "nobody came"
    );
    drop(listener.accept().unwrap());
}

#[test]
fn reads_wait_for_a_registry_that_restarts_and_what_was_fetched_is_there_meanwhile() {
    let Some(mut registry) = RealRegistry::open().filter(|_| can_mount()) else {
        return;
    };
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let large = noise(6 << 20, 1);
    let layer = Layer::new(vec![
        file("first", text(20_000)),
        file("beside", text(30_000)),
        file("large", large.clone()),
    ]);
    layout.add("latest", &all(&[layer], Packing::ZstdChunked));
    registry.push_layout("lazy/image", layout.path());
    let mounted = place.mount(&format!("docker://{}/lazy/image", registry.address()));
    assert_eq!(mounted.read("first").unwrap(), text(20_000));
    registry.stop();
    // It came with its neighbour.
    assert_eq!(mounted.read("beside").unwrap(), text(30_000));
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 3);
    let instead = TcpListener::bind(registry.address()).unwrap();
    let readers: Vec<_> = [3 << 20, 5 << 20]
        .into_iter()
        .map(|at: usize| {
            let path = mounted.path().join("large");
            thread::spawn(move || {
                let mut bytes = vec![0; 500_000];
                let file = fs::File::open(path)?;
                file.read_exact_at(&mut bytes, at as u64)
                    .map(|()| (at, bytes))
            })
        })
        .collect();
    connected_to(&instead);
    drop(instead);
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    assert!(registry.resume());
    for reader in readers {
        let (at, bytes) = reader.join().unwrap().unwrap();
        assert!(bytes == large[at..at + bytes.len()]);
    }
    let seen = View::of(mounted.path());
    assert_eq!(
        seen.0[&b"large"[..]].content,
        Some((6 << 20, sifon_mount::digest::Digest::of(&large)))
    );
}
