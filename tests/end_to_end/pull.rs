//! SIF files from a real registry and from directories, and credentials that stay.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use sifon_mount::source::sif::architecture_code;

use crate::layers::{directory, file, noise};
use crate::layout::{Layer, Layout, Packing, all, architecture};
use crate::place::{Place, can_mount, complaint};
use crate::support::real::{PASSWORD, RealRegistry, USERNAME};

/// Pushes an image of some size; its name without the scheme.
fn pushed(registry: &RealRegistry, place: &Place) -> String {
    let mut layout = Layout::new(place.path("layout"));
    let layers = [
        Layer::new(vec![
            file("small", "said\n"),
            file("noise", noise(500_000, 1)),
        ]),
        Layer::new(vec![file("more", noise(300_000, 2))]),
    ];
    layout.add("1.2", &all(&layers, Packing::Gzip));
    registry.push_layout("owner/thing", layout.path());
    format!("{}/owner/thing:1.2", registry.address())
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn is_sif(file: &Path) -> bool {
    fs::read(file).unwrap()[32..41] == *b"SIF_MAGIC"
}

#[test]
fn a_pulled_image_is_a_file_with_singularitys_name() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let place = Place::new();
    let image = format!("docker://{}", pushed(&registry, &place));
    place.says(["pull", &image]);
    let sif = place.path("thing_1.2.sif");
    assert!(is_sif(&sif));
    let mode = fs::metadata(&sif).unwrap().permissions().mode();
    assert_eq!(mode & 0o700, 0o700);

    let said = place.refusal(&mut place.sifon(["pull", &image]));
    let exists = "Image file already exists: \"thing_1.2.sif\" - will not overwrite";
    assert!(said.contains(exists), "{said}");
    let before = fs::read(&sif).unwrap();
    place.says(["pull", "-F", &image]);
    assert!(fs::read(&sif).unwrap() == before);
    let mut forced = place.sifon(["pull", &image]);
    assert!(
        forced
            .env("APPTAINER_FORCE", "true")
            .status()
            .unwrap()
            .success()
    );

    fs::create_dir(place.path("d")).unwrap();
    place.says(["pull", "--dir", "d", "other.sif", &image]);
    let mut pull = place.sifon(["pull", "--name", "named.sif", &image]);
    assert!(
        pull.env("SINGULARITY_PULLDIR", "d")
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(names(&place.path("d")), ["named.sif", "other.sif"]);
    place.says(["build", "built.sif", &image]);
    assert!(fs::read(place.path("built.sif")).unwrap() == before);
}

#[test]
fn without_the_cache_the_same_file_comes_and_nothing_else_stays() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let place = Place::new();
    let image = format!("docker://{}", pushed(&registry, &place));
    fs::create_dir(place.path("out")).unwrap();
    place.says(["pull", "--disable-cache", "out/x.sif", &image]);
    assert_eq!(names(&place.path("out")), ["x.sif"]);
    assert!(!place.store("").exists());
    place.says(["pull", "y.sif", &image]);
    assert!(place.store("layers").exists());
    assert!(fs::read(place.path("y.sif")).unwrap() == fs::read(place.path("out/x.sif")).unwrap());
}

#[test]
fn what_a_login_keeps_lets_a_pull_in_until_the_logout() {
    let Some(registry) = RealRegistry::with_users() else {
        return;
    };
    let place = Place::new();
    let image = format!("docker://{}", pushed(&registry, &place));
    let host = format!("docker://{}", registry.address());
    let login = |password: &str| {
        let words = [
            "registry",
            "login",
            "-u",
            USERNAME,
            "--password-stdin",
            &host,
        ];
        let mut login = place.sifon(words);
        let mut child = login
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        { stdin }
            .write_all(format!("{password}\n").as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    let kept = place.path("home/.apptainer/docker-config.json");
    let wrong = login("wrong");
    assert_eq!(wrong.status.code(), Some(255));
    assert!(
        complaint(&wrong).contains(registry.address()) && !kept.exists(),
        "{wrong:?}"
    );
    place.refusal(&mut place.sifon(["pull", &image]));

    let right = login(PASSWORD);
    assert!(right.status.success(), "{right:?}");
    assert!(!complaint(&right).contains(PASSWORD));
    assert_eq!(
        place.says(["registry", "list"]),
        format!("{}\n", registry.address())
    );
    place.says(["pull", &image]);

    place.says(["registry", "logout", &host]);
    assert_eq!(place.says(["registry", "list"]), "");
    place.refusal(&mut place.sifon(["pull", "--disable-cache", "again.sif", &image]));
}

#[test]
fn a_directory_becomes_a_sif_and_keeps_the_scripts_it_has() {
    let place = Place::new();
    let root = place.own_directory("root");
    fs::create_dir_all(root.join(".singularity.d/env")).unwrap();
    fs::write(
        root.join(".singularity.d/runscript"),
        "#!/bin/sh\necho mine\n",
    )
    .unwrap();
    fs::write(root.join("file"), noise(200_000, 1)).unwrap();
    place.says(["build", "x.sif", "root"]);
    let bytes = fs::read(place.path("x.sif")).unwrap();
    let has = |text: &str| {
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(has(r##""runscript":"#!/bin/sh\necho mine\n""##));
    fs::remove_dir_all(root.join(".singularity.d")).unwrap();
    place.says(["build", "-F", "x.sif", "root"]);
    let bytes = fs::read(place.path("x.sif")).unwrap();
    let has = |text: &str| {
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(has("OCI_ENTRYPOINT"));
    fs::write(place.path("x.def"), "bootstrap: docker\n").unwrap();
    let said = place.refusal(&mut place.sifon(["build", "y.sif", "x.def"]));
    assert!(said.contains("definition files cannot be built"), "{said}");
}

#[test]
fn a_sandbox_of_an_image_builds_again() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let place = Place::new();
    let image = format!("docker://{}", pushed(&registry, &place));
    place.says(["pull", "--sandbox", "box", &image]);
    let small = place.path("box/small");
    assert_eq!(fs::read_to_string(small).unwrap(), "said\n");
    assert!(place.path("box/.singularity.d/runscript").exists());
    let said = place.refusal(&mut place.sifon(["pull", "--sandbox", "box", &image]));
    assert!(said.contains("already exists"), "{said}");
    place.says(["build", "x.sif", "box"]);
    assert!(is_sif(&place.path("x.sif")));
    place.says(["build", "--force", "--sandbox", "box", &image]);
    assert_eq!(fs::read(place.path("box/noise")).unwrap().len(), 500_000);
}

#[test]
fn a_slim_file_is_checked_and_says_what_it_is_without() {
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let files = vec![
        file("keep", "kept\n"),
        file("noise", noise(400_000, 1)),
        file("small", "little\n"),
    ];
    layout.add("latest", &all(&[Layer::new(files)], Packing::Gzip));
    let image = layout.reference("latest");
    let compact = |words: &[&str]| {
        let words = [&["compact", "--check"], words].concat();
        let output = place.sifon(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        complaint(&output)
    };
    let said = compact(&[&image, "whole.sif"]);
    assert!(said.contains("names are as in the image"), "{said}");
    let said = compact(&[
        "--exclude",
        "/no*",
        "--exclude",
        "small",
        &image,
        "slim.sif",
    ]);
    assert!(said.contains("without 2 names"), "{said}");
    let slim = fs::read(place.path("slim.sif")).unwrap();
    let whole = fs::read(place.path("whole.sif")).unwrap();
    assert!(slim.len() + 300_000 < whole.len());
    let has = |text: &str| {
        slim.windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(has(r#""without":["/no*","small"]"#));
    let words = ["compact", "--exclude", "/", &image, "x.sif"];
    let said = place.refusal(&mut place.sifon(words));
    assert!(said.contains("leave out everything"), "{said}");
}

#[test]
fn the_flag_for_the_architecture_wins_over_the_variable_also_when_it_names_this_machines() {
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let here = all(&[Layer::new(vec![file("said", "here")])], Packing::Gzip);
    let other = all(&[Layer::new(vec![file("said", "other")])], Packing::Gzip);
    layout.add_index("several", &[("riscv64", &other), (architecture(), &here)]);
    let image = layout.reference("several");
    let code = |flags: &[&str]| {
        let mut command = place.sifon([&["pull", "-F"], flags, &["x.sif", &image]].concat());
        let output = command.env("APPTAINER_PULL_ARCH", "riscv64").output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::read(place.path("x.sif")).unwrap()[45..47].to_vec()
    };
    let own = architecture_code(architecture())[..2].to_vec();
    assert_eq!(code(&[]), b"12");
    assert_eq!(code(&["--arch", architecture()]), own);
    assert_eq!(code(&["--arch", "riscv64"]), b"12");
}

#[test]
fn an_image_for_another_machine_is_pulled_with_a_warning() {
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add(
        "one",
        &all(&[Layer::new(vec![file("a", "a")])], Packing::Gzip),
    );
    let image = layout.reference("one");
    let said = |words: &[&str]| {
        let output = place.sifon(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        complaint(&output)
    };
    let told = "is for ".to_owned() + architecture() + ", not for riscv64";
    let other = said(&["pull", "--arch", "riscv64", "x.sif", &image]);
    assert!(other.contains(&told), "{other}");
    let own = said(&["pull", "-F", "x.sif", &image]);
    assert!(!own.contains("WARNING"), "{own}");
}

#[test]
fn an_image_where_the_file_should_be_named_is_told_and_closed_files_are_said_to_be_closed() {
    let place = Place::new();
    let said = place.refusal(&mut place.sifon(["pull", "docker://a/b:1", "x.sif"]));
    assert!(said.contains("sifon pull x.sif docker://a/b:1"), "{said}");
    let usage = place.says(["pull", "--help"]);
    assert!(usage.contains("[FILE] IMAGE"), "{usage}");
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let place = Place::of_plain_user();
    fs::write(place.path("closed.sif"), "x").unwrap();
    fs::set_permissions(place.path("closed.sif"), fs::Permissions::from_mode(0o600)).unwrap();
    let said = place.refusal(&mut place.sifon(["pull", "x.sif", "./closed.sif"]));
    assert!(
        said.contains("Permission denied") && said.contains("closed to you"),
        "{said}"
    );
}

#[test]
fn a_file_of_what_was_read_has_that_and_says_what_it_lacks() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let files = vec![
        directory("etc"),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        directory("lib"),
        file("lib/read", noise(200_000, 1)),
        file("lib/unread", noise(300_000, 2)),
        file("excluded", noise(100_000, 3)),
        file("empty", ""),
    ];
    layout.add("latest", &all(&[Layer::new(files)], Packing::Gzip));
    let image = layout.reference("latest");
    let words = ["compact", "--only-touched", &image, "slim.sif"];
    let said = place.refusal(&mut place.sifon(words));
    assert!(said.contains("does not know what is read of it"), "{said}");
    assert!(!place.path("slim.sif").exists());

    let mounted = place.mount(&image);
    for name in ["lib/read", "excluded"] {
        mounted.read(name).unwrap();
    }
    drop(mounted);
    let words = [
        "compact",
        "--check",
        "--only-touched",
        "--exclude",
        "excluded",
    ];
    let output = place.sifon(words).args([&*image, "slim.sif"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = complaint(&output);
    assert!(said.contains("1 files, 292.97 KiB, are missing"), "{said}");
    assert!(said.contains("without 292.97 KiB below /lib"), "{said}");

    let slim = place.path("slim.sif");
    let mounted = place.mount(slim.to_str().unwrap());
    assert_eq!(mounted.read("lib/read").unwrap(), noise(200_000, 1));
    assert_eq!(mounted.read("empty").unwrap(), b"");
    assert!(mounted.read("etc/passwd").is_ok());
    for name in ["lib/unread", "excluded"] {
        assert!(mounted.read(name).is_err(), "{name}");
    }
    drop(mounted);
    let listed = place.says(["sif", "list", "slim.sif"]);
    let mut objects = listed.lines().filter(|line| line.contains("JSON.Generic"));
    let id = objects
        .next_back()
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let told = place.says(["sif", "dump", &id, "slim.sif"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["only_touched"]["missing_files"], 1);
    assert_eq!(told["without"][0], "excluded");
}

/// Killed while it writes; what is left then is removed by the next one, and by nothing that ends well before.
#[test]
fn what_a_killed_unpacking_leaves_goes_with_the_next() {
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let mut files = vec![directory("closed")];
    files.extend((0..40).map(|seed| file(format!("closed/{seed}"), noise(2 << 20, seed))));
    layout.add("latest", &all(&[Layer::new(files)], Packing::Tar));
    let image = layout.reference("latest");
    fs::create_dir(place.path("out")).unwrap();
    let mut unpacking = place
        .sifon(["build", "--sandbox", "out/box", &image])
        .spawn()
        .unwrap();
    let began = Instant::now();
    while names(&place.path("out")).is_empty() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "nothing is written"
        );
        assert!(unpacking.try_wait().unwrap().is_none(), "it has ended");
        std::thread::yield_now();
    }
    unpacking.kill().unwrap();
    unpacking.wait().unwrap();
    let left = names(&place.path("out"));
    assert!(left[0].starts_with(".box.sifon-sandbox-"), "{left:?}");
    place.says(["build", "--sandbox", "out/box", &image]);
    assert_eq!(names(&place.path("out")), ["box"]);
    assert_eq!(names(&place.path("out/box/closed")).len(), 40);
}
