//! SIF files on other machines: in registries and at web servers, read bit by bit, copied, and put there.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sifon_mount::digest::Digest;
use sifon_mount::source::sif::{
    MAGIC, RawDescriptor, RawHeader, TYPE_OCI_BLOB, TYPE_OCI_INDEX, VERSION,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::layers::{directory, file, noise};
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{Place, can_mount, complaint};
use crate::server::before;
use crate::support::faulty::{Faulty, Reply};
use crate::support::http::Message;
use crate::support::real::{PASSWORD, RealRegistry, USERNAME};
use crate::view::View;

/// Makes `x.sif` of about six megabytes: blocks that shrink, blocks that do not, one that is stored as it is and begins with
/// zeros, tails.
fn sif(place: &Place) {
    let mut zeros_first = vec![0; 4000];
    zeros_first.extend(noise(400_000, 3));
    let members = vec![
        directory("data").mode(0o755),
        file("data/noise", noise(3_000_000, 1)).mode(0o644),
        file("data/other", noise(2_000_000, 2)).mode(0o600),
        file("data/zeros-first", zeros_first).mode(0o644),
        file("data/text", "again and again\n".repeat(50_000)).mode(0o644),
        file("said", "from a SIF\n").mode(0o644),
    ];
    let mut layout = Layout::new(place.path("layout"));
    layout.add("1", &all(&[Layer::new(members)], Packing::Gzip));
    place.says(["build", "x.sif", &layout.reference("1")]);
}

/// A server that has `content` at every path, in the version that `version` tells, as a good one answers.
fn good(request: &Message, content: &[u8], version: &str) -> Reply {
    let reply = match request.range() {
        Some((first, last)) if first < content.len() => {
            let last = last.min(content.len() - 1);
            Reply::status(206)
                .header(
                    "Content-Range",
                    format!("bytes {first}-{last}/{}", content.len()),
                )
                .body(&content[first..=last])
        }
        Some(_) => Reply::status(416),
        None => Reply::ok(content),
    };
    reply.header("ETag", version)
}

fn url(server: &Faulty) -> String {
    format!("http://{}/some/x.sif", server.address())
}

/// How many bytes were asked for in ranges.
fn asked_for(server: &Faulty) -> usize {
    let seen = server.seen();
    let ranges = seen.iter().filter_map(Message::range);
    ranges.map(|(first, last)| last - first + 1).sum()
}

/// A server program, until it is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody has, and what serves a place's directory there; `None`, with a word, where the program is missing.
fn serving(
    place: &Place,
    program: &str,
    words: &dyn Fn(&str) -> Vec<String>,
) -> Option<(Program, String)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let started = Command::new(program)
        .args(words(&address.port().to_string()))
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = started else {
        eprintln!("skipped: no {program}");
        return None;
    };
    while std::net::TcpStream::connect(address).is_err() {
        if child.try_wait().unwrap().is_some() {
            eprintln!("skipped: {program} cannot serve");
            return None;
        }
        std::thread::yield_now();
    }
    Some((Program(child), format!("http://{address}/x.sif")))
}

#[test]
fn a_sif_is_pushed_to_a_registry_shown_from_there_and_pulled_as_it_was() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let place = Place::new();
    sif(&place);
    let name = format!("oras://{}/owner/thing:1", registry.address());
    let said = complaint(&place.sifon(["push", "x.sif", &name]).output().unwrap());
    assert!(said.contains("Upload complete"), "{said}");
    let said = complaint(&place.sifon(["push", "x.sif", &name]).output().unwrap());
    assert!(said.contains("already"), "{said}");
    place.says(["pull", &name]);
    assert_eq!(
        fs::read(place.path("thing_1.sif")).unwrap(),
        fs::read(place.path("x.sif")).unwrap()
    );
    let said = place.refusal(&mut place.sifon(["pull", &name]));
    assert!(said.contains("Image file already exists"), "{said}");
    let said = place.refusal(&mut place.sifon(["inspect", &name.replace(":1", ":2")]));
    assert!(said.contains("manifest oras://"), "{said}");
    let said = place.refusal(&mut place.sifon(["pull", "--arch", "riscv64", "z.sif", &name]));
    assert!(said.contains("not for riscv64"), "{said}");
    let told = place.says(["inspect", &name]);
    assert!(
        told.contains("the manifest names the digest of the whole"),
        "{told}"
    );
    for (words, hint) in [
        (["inspect", &name.replace("oras:", "docker:")], "oras://"),
        (["pull", &name.replace(":1", ":2")], "404"),
    ] {
        let said = place.refusal(&mut place.sifon(words));
        assert!(said.contains(hint), "{said}");
    }
    let said = place.refusal(&mut place.sifon(["push", "layout/index.json", &name]));
    assert!(said.contains("only SIF files are pushed"), "{said}");
    registry.push_layout("owner/image", Path::new(&place.path("layout")));
    let image = format!("oras://{}/owner/image:1", registry.address());
    let said = place.refusal(&mut place.sifon(["pull", &image]));
    assert!(
        said.contains("not a SIF") && said.contains("docker://"),
        "{said}"
    );
}

#[test]
fn a_sif_in_a_registry_is_read_bit_by_bit() {
    if !can_mount() {
        return;
    }
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let place = Place::new();
    sif(&place);
    let name = format!("{}/owner/thing:1", registry.address());
    place.says(["push", "x.sif", &format!("oras://{name}")]);
    let seeing = before(&registry);
    let reference = format!("oras://{}/owner/thing:1", seeing.address());
    let local = place.mount("x.sif");
    let mounted = place.mount_with(&reference, |command| {
        command.arg("--no-profile");
    });
    assert_eq!(mounted.read("said").unwrap(), b"from a SIF\n");
    let size = fs::metadata(place.path("x.sif")).unwrap().len() as usize;
    assert!(
        asked_for(&seeing) < size * 2 / 3,
        "{} of {size}",
        asked_for(&seeing)
    );
    View::of(mounted.path()).assert_is(&View::of(local.path()));
    drop(mounted);
    // All of it is in the store now, checked by what is kept with it.
    let before = seeing.seen().len();
    let mounted = place.mount_with(&reference, |command| {
        command.arg("--offline");
    });
    View::of(mounted.path()).assert_is(&View::of(local.path()));
    assert_eq!(seeing.seen().len(), before);
}

#[test]
fn what_was_damaged_in_the_store_is_fetched_again() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    sif(&place);
    let content = fs::read(place.path("x.sif")).unwrap();
    let server = Faulty::start(move |request, _| good(request, &content, "\"1\""));
    let local = place.mount("x.sif");
    drop(place.mount(&url(&server)).read("data/noise").unwrap());
    let [packed] = &place.stored("packed")[..] else {
        panic!("one layer is elsewhere");
    };
    let kept = fs::File::options().write(true).open(packed).unwrap();
    for at in (0..6_000_000).step_by(100_000) {
        kept.write_all_at(&[0x5a; 7], at).unwrap();
    }
    let mounted = place.mount(&url(&server));
    View::of(mounted.path()).assert_is(&View::of(local.path()));
}

#[test]
fn a_registry_that_wants_to_know_who_asks_is_told() {
    let Some(registry) = RealRegistry::with_users() else {
        return;
    };
    let place = Place::new();
    sif(&place);
    let name = format!("oras://{}/owner/thing:1", registry.address());
    let said = place.refusal(&mut place.sifon(["push", "x.sif", &name]));
    assert!(said.contains("registry login"), "{said}");
    let known = |words: &[&str]| {
        let mut command = place.sifon(words);
        command.env("APPTAINER_DOCKER_USERNAME", USERNAME);
        command.env("APPTAINER_DOCKER_PASSWORD", PASSWORD);
        command
    };
    let output = known(&["push", "x.sif", &name]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    place.refusal(&mut place.sifon(["pull", "y.sif", &name]));
    let output = known(&["pull", "y.sif", &name]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        fs::read(place.path("y.sif")).unwrap(),
        fs::read(place.path("x.sif")).unwrap()
    );
}

#[test]
fn a_file_at_a_web_server_is_shown_and_copied() {
    let place = Place::new();
    sif(&place);
    let words = |port: &str| {
        vec![
            "httpd".into(),
            "-f".into(),
            "-p".into(),
            format!("127.0.0.1:{port}"),
        ]
    };
    let Some((_program, url)) = serving(&place, "busybox", &words) else {
        return;
    };
    place.says(["pull", "y.sif", &url]);
    assert_eq!(
        fs::read(place.path("y.sif")).unwrap(),
        fs::read(place.path("x.sif")).unwrap()
    );
    let told = place.says(["inspect", &url]);
    assert!(told.contains("the server is believed"), "{told}");
    if !can_mount() {
        return;
    }
    let local = place.mount("x.sif");
    let signed = format!("{url}?signature=s3cret");
    let mounted = place.mount(&signed);
    View::of(mounted.path()).assert_is(&View::of(local.path()));
    let told = [
        fs::read_to_string("/proc/self/mounts").unwrap(),
        place.says(["cache", "list"]),
        place.says(["inspect", &signed]),
        place.says(["stats", mounted.path().to_str().unwrap()]),
    ];
    for told in told {
        assert!(
            told.contains("?hidden-") && !told.contains("s3cret"),
            "{told}"
        );
    }
    let shown = format!("{url}?hidden-0123456789abcdef");
    let said = place.refusal(&mut place.sifon(["inspect", &shown]));
    assert!(said.contains("write the whole address"), "{said}");
}

#[test]
fn a_server_that_sends_no_parts_gets_a_pull_and_nothing_else() {
    let place = Place::new();
    sif(&place);
    let words = |port: &str| {
        ["-m", "http.server", "--bind", "127.0.0.1", port]
            .map(Into::into)
            .to_vec()
    };
    let Some((_program, url)) = serving(&place, "python3", &words) else {
        return;
    };
    let said = place.refusal(&mut place.sifon(["inspect", &url]));
    assert!(
        said.contains("sends the whole file") && said.contains("sifon pull"),
        "{said}"
    );
    place.says(["pull", "y.sif", &url]);
    assert_eq!(
        fs::read(place.path("y.sif")).unwrap(),
        fs::read(place.path("x.sif")).unwrap()
    );
    // A page that says something else is not kept as a SIF.
    fs::write(place.path("page.html"), "<html>").unwrap();
    let said =
        place.refusal(&mut place.sifon(["pull", "z.sif", &url.replace("x.sif", "page.html")]));
    assert!(said.contains("neither a SIF nor a squashfs"), "{said}");
    let said = place.refusal(&mut place.sifon(["pull", &url.replace("x.sif", "none.sif")]));
    assert!(
        said.contains("404") && said.contains("check the address"),
        "{said}"
    );
    let said = place.refusal(&mut place.sifon(["pull", "z.sif", &url.replace("http:", "https:")]));
    assert!(said.contains("write http://"), "{said}");
    assert!(!place.path("z.sif").exists() && !place.path("none.sif").exists());
}

#[test]
fn reads_fail_once_the_file_has_changed_and_a_new_mount_has_the_new_one() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    sif(&place);
    let first = fs::read(place.path("x.sif")).unwrap();
    let mut second = first.clone();
    let at = second.len() - 5000;
    second.truncate(at);
    for (name, changed, version) in [
        ("another tag", first.clone(), "\"2\""),
        ("shorter", second, "\"1\""),
    ] {
        let is_changed = Arc::new(AtomicBool::new(false));
        let now = Arc::clone(&is_changed);
        let before = first.clone();
        let server = Faulty::start(move |request, _| match now.load(Ordering::Relaxed) {
            false => good(request, &before, "\"1\""),
            true => good(request, &changed, version),
        });
        let address = format!("{}?{}", url(&server), name.len());
        let mounted = place.mount_with(&address, |command| {
            command.arg("--no-profile");
        });
        assert_eq!(mounted.read("said").unwrap(), b"from a SIF\n");
        is_changed.store(true, Ordering::Relaxed);
        let read = mounted.read("data/noise");
        assert_eq!(read.unwrap_err().raw_os_error(), Some(5), "{name}");
        drop(mounted);
        if name == "another tag" {
            let again = place.mount(&address);
            assert_eq!(again.read("data/noise").unwrap(), noise(3_000_000, 1));
        }
    }
}

#[test]
fn an_interrupted_download_goes_on_where_it_stood() {
    let place = Place::new();
    sif(&place);
    let content = fs::read(place.path("x.sif")).unwrap();
    let (size, expected) = (content.len(), content.clone());
    let sent = Arc::new(AtomicU64::new(0));
    let is_well = Arc::new(AtomicBool::new(false));
    let (counted, healed) = (Arc::clone(&sent), Arc::clone(&is_well));
    let server = Faulty::start(move |request, _| {
        let reply = good(request, &content, "\"1\"");
        let len = request.range().map_or(0, |(first, last)| last - first + 1) as u64;
        let before = counted.fetch_add(len, Ordering::Relaxed);
        match before < 4_200_000 || healed.load(Ordering::Relaxed) {
            true => reply,
            false => Reply::status(500),
        }
    });
    let said = place.refusal(&mut place.sifon([
        "--timeout",
        "2",
        "--connections",
        "1",
        "pull",
        "out.sif",
        &url(&server),
    ]));
    assert!(said.contains("500"), "{said}");
    let output = place.path("out.sif");
    assert!(!output.exists());
    is_well.store(true, Ordering::Relaxed);
    let before = asked_for(&server);
    let mut again = place.sifon(["pull", "out.sif", &url(&server)]);
    let said = complaint(&again.output().unwrap());
    assert!(said.contains("are here already"), "{said}");
    assert_eq!(fs::read(output).unwrap(), expected);
    assert!(
        asked_for(&server) - before < size,
        "{} of {size}",
        asked_for(&server) - before
    );
}

#[test]
fn a_registry_that_sends_other_bytes_than_it_promises_leaves_no_file() {
    let place = Place::new();
    sif(&place);
    let mut content = fs::read(place.path("x.sif")).unwrap();
    let (digest, size) = (Digest::of(&content), content.len());
    content[size / 2] ^= 1;
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.sylabs.sif.config.v1+json", "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/vnd.sylabs.sif.layer.v1.sif", "digest": digest, "size": size}],
    })
    .to_string();
    let server = Faulty::start(move |request, _| {
        if request.second().contains("/manifests/") {
            return Reply::ok(manifest.as_bytes());
        }
        good(request, &content, "\"1\"")
    });
    let name = format!("oras://{}/owner/thing:1", server.address());
    let said = place.refusal(&mut place.sifon(["pull", "y.sif", &name]));
    assert!(said.contains("does not match"), "{said}");
    assert!(!place.path("y.sif").exists());
}

/// Makes an OCI-SIF as SingularityCE writes it: a blob for each layer, the configuration and the manifest, then the index.
fn oci_sif(path: &Path, blobs: &[Vec<u8>], index: &[u8]) {
    let objects: Vec<(i32, &[u8])> = blobs
        .iter()
        .map(|blob| (TYPE_OCI_BLOB, &blob[..]))
        .chain([(TYPE_OCI_INDEX, index)])
        .collect();
    let count = objects.len();
    let descriptors_len = count * size_of::<RawDescriptor>();
    let mut header = RawHeader::new_zeroed();
    header.magic = MAGIC;
    header.version = VERSION;
    header.architecture = *b"00\0";
    header.descriptors_total = (count as i64).into();
    header.descriptors_at = 128.into();
    header.descriptors_len = (descriptors_len as i64).into();
    header.data_at = (128 + descriptors_len as i64).into();
    let mut at = 128 + descriptors_len;
    let (mut written, mut data) = (header.as_bytes().to_vec(), Vec::new());
    for (number, (kind, bytes)) in objects.into_iter().enumerate() {
        let mut descriptor = RawDescriptor::new_zeroed();
        descriptor.object_type = kind.into();
        descriptor.used = 1;
        descriptor.id = (number as u32 + 1).into();
        descriptor.at = (at as i64).into();
        descriptor.len = (bytes.len() as i64).into();
        let digest = Digest::of(bytes).to_string();
        descriptor.extra[..digest.len()].copy_from_slice(digest.as_bytes());
        written.extend_from_slice(descriptor.as_bytes());
        data.extend_from_slice(bytes);
        at += bytes.len();
    }
    written.extend_from_slice(&data);
    fs::write(path, written).unwrap();
}

/// A squashfs of the files that a shell's commands make.
fn squashfs(place: &Place, name: &str, commands: &str) -> Option<Vec<u8>> {
    let script = format!(
        "set -e; mkdir {name}; cd {name}; {commands}; cd ..; mksquashfs {name} {name}.squashfs -quiet -no-progress >/dev/null"
    );
    let output = place.program("sh").args(["-c", &script]).output().unwrap();
    if !output.status.success() {
        eprintln!(
            "skipped: no squashfs with such files here: {}",
            complaint(&output)
        );
        return None;
    }
    fs::read(place.path(format!("{name}.squashfs"))).ok()
}

#[test]
fn images_whose_layers_are_squashfs_hide_what_they_say_in_a_registry_and_in_a_file() {
    if !can_mount() {
        return;
    }
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let place = Place::new();
    let lower = "mkdir kept opaque; echo low > kept/both; echo low > kept/low; echo low > opaque/low; echo gone > gone";
    let upper = "mkdir kept opaque; echo high > kept/both; echo high > opaque/high; mknod gone c 0 0; \
                 mknod device c 1 3; setfattr -n trusted.overlay.opaque -v y opaque";
    let (Some(lower), Some(upper)) = (
        squashfs(&place, "lower", lower),
        squashfs(&place, "upper", upper),
    ) else {
        return;
    };
    let kind = "application/vnd.sylabs.image.layer.v1.squashfs";
    let config = serde_json::json!({
        "os": "linux",
        "architecture": crate::layout::architecture(),
        "config": {"Env": ["SAID=by the configuration"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&lower), Digest::of(&upper)]},
    })
    .to_string()
    .into_bytes();
    registry.push_image(
        "owner/oci-sif",
        "1",
        &config,
        &[(&lower, kind), (&upper, kind)],
    );
    let described = |bytes: &[u8], kind: &str| serde_json::json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
    let manifest_kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": manifest_kind,
        "config": described(&config, "application/vnd.oci.image.config.v1+json"),
        "layers": [described(&lower, kind), described(&upper, kind)],
    })
    .to_string()
    .into_bytes();
    let index =
        serde_json::json!({"schemaVersion": 2, "manifests": [described(&manifest, manifest_kind)]});
    let file = place.path("oci.sif");
    oci_sif(
        &file,
        &[lower, upper, config, manifest],
        index.to_string().as_bytes(),
    );
    let reference = format!("docker://{}/owner/oci-sif:1", registry.address());
    for image in [&reference, file.to_str().unwrap()] {
        let mounted = place.mount(image);
        for (name, content) in [
            ("kept/both", "high\n"),
            ("kept/low", "low\n"),
            ("opaque/high", "high\n"),
        ] {
            assert_eq!(
                mounted.read(name).unwrap(),
                content.as_bytes(),
                "{image} {name}"
            );
        }
        for name in ["gone", "opaque/low"] {
            assert!(!mounted.path().join(name).exists(), "{image} {name}");
        }
        assert!(mounted.path().join("device").exists());
        let told = place.says(["inspect", image]);
        assert!(
            told.contains("SAID=by the configuration") && told.contains(kind),
            "{told}"
        );
    }
}

/// A daemon that has one image, which it hands out as Docker does: over HTTP at a Unix socket, in chunks.
fn daemon(socket: &Path, name: &'static str, archive: Vec<u8>) -> Arc<AtomicU64> {
    let exported = Arc::new(AtomicU64::new(0));
    let exports = Arc::clone(&exported);
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
            let Ok(Some(request)) = crate::support::http::received(&mut reader) else {
                continue;
            };
            let asked = request.second().strip_prefix(&format!("/images/{name}/"));
            let _ = match asked {
                Some("json") => {
                    let body = format!("{{\"Id\": \"{}\"}}", Digest::of(&archive));
                    let len = body.len();
                    write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
                    )
                }
                Some("get") => {
                    exports.fetch_add(1, Ordering::Relaxed);
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n";
                    stream.write_all(head.as_bytes()).and_then(|()| {
                        for piece in archive.chunks(30_000) {
                            write!(stream, "{:x}\r\n", piece.len())?;
                            stream.write_all(piece)?;
                            stream.write_all(b"\r\n")?;
                        }
                        stream.write_all(b"0\r\n\r\n")
                    })
                }
                _ => {
                    let body = "{\"message\":\"No such image: it\"}";
                    let len = body.len();
                    write!(
                        stream,
                        "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
                    )
                }
            };
        }
    });
    exported
}

#[test]
fn an_image_of_the_docker_daemon_is_taken_from_its_socket() {
    let place = Place::new();
    let layer = Layer::new(vec![
        file("said", "by a daemon\n"),
        file("noise", noise(200_000, 5)),
    ]);
    let mut layout = Layout::new(place.path("layout"));
    layout.add("1", &all(&[layer], Packing::Gzip));
    // As skopeo writes it, which is as `docker save` does.
    let archive = place.path("saved.tar");
    let copied = Command::new("skopeo")
        .args([
            "copy",
            "-q",
            "--insecure-policy",
            &format!("oci:{}:1", layout.path().display()),
        ])
        .arg(format!(
            "docker-archive:{}:h.x:5000/owner/thing:1",
            archive.display()
        ))
        .output();
    let Ok(copied) = copied else {
        eprintln!("skipped: no skopeo");
        return;
    };
    assert!(copied.status.success(), "{copied:?}");
    let socket = place.path("docker.sock");
    let exports = daemon(
        &socket,
        "h.x:5000/owner/thing:1",
        fs::read(archive).unwrap(),
    );
    let with = |words: &[&str]| {
        let mut command = place.sifon(words);
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        command
    };
    let image = "docker-daemon:h.x:5000/owner/thing:1";
    let output = with(&["pull", image]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        fs::read(place.path("thing_1.sif")).unwrap()[32..41],
        *b"SIF_MAGIC"
    );
    let said = place.refusal(&mut with(&["pull", "docker-daemon:other:1"]));
    assert!(
        said.contains("no such image") && said.contains("docker images"),
        "{said}"
    );
    assert_eq!(said.matches("other:1").count(), 1, "{said}");
    let mut command = place.sifon(["pull", "z.sif", image]);
    let said = place.refusal(command.env("DOCKER_HOST", "unix:///nowhere/docker.sock"));
    assert!(said.contains("/nowhere/docker.sock"), "{said}");
    assert_eq!(said.matches("thing:1").count(), 1, "{said}");
    let said = place.refusal(command.env("DOCKER_HOST", "tcp://127.0.0.1:1"));
    assert!(said.contains("only a daemon on this machine"), "{said}");
    if can_mount() {
        let mounted = place.mount_with(image, |command| {
            command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        });
        assert_eq!(mounted.read("said").unwrap(), b"by a daemon\n");
    }
    // The store has all of it, and the daemon says that it is still the same.
    assert_eq!(exports.load(Ordering::Relaxed), 1);
}
