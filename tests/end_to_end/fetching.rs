//! What is fetched of a lazy image besides what programs wait for: what was read before, the rest, nothing without a network.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use sifon_mount::layer::soci::Version;

use crate::estargz::prefetch_landmark;
use crate::layers::{Member, directory, file, noise, symlink};
use crate::layout::{Layer, Layout, Packing, all, ztoc};
use crate::place::{PATIENCE, Place, can_mount};
use crate::server::{before, reference};
use crate::support::faulty::Faulty;
use crate::support::real::RealRegistry;

const FILES: u64 = 30;
const FILE_BYTES: usize = 400_000;

/// A lazy image of one layer with many files, in a real registry behind a server that counts.
struct Lazy {
    place: Place,
    server: Faulty,
    image: String,
    _registry: RealRegistry,
}

impl Lazy {
    fn new() -> Option<Self> {
        Self::with(Vec::new())
    }

    fn with(more: Vec<Member>) -> Option<Self> {
        let files = (0..FILES).map(|seed| file(name(seed), content(seed)).mode(0o644));
        Self::of(files.chain(more).collect(), Packing::ZstdChunked)
    }

    fn of(members: Vec<Member>, packing: Packing) -> Option<Self> {
        let layers = all(&[Layer::new(members)], packing);
        Self::added(|layout| _ = layout.add("latest", &layers))
    }

    /// The image that `add` adds to a layout under the tag `latest`.
    fn added(add: impl FnOnce(&mut Layout)) -> Option<Self> {
        let registry = RealRegistry::open().filter(|_| can_mount())?;
        let place = Place::new();
        let mut layout = Layout::new(place.path("layout"));
        add(&mut layout);
        registry.push_layout("some/image", layout.path());
        let server = before(&registry);
        let image = reference(&server, "latest");
        Some(Self {
            place,
            server,
            image,
            _registry: registry,
        })
    }

    fn ranges(&self) -> Vec<(usize, usize)> {
        let seen = self.server.seen();
        seen.iter().filter_map(|request| request.range()).collect()
    }

    /// Makes the store forget the layer's bytes, but not its table.
    fn forget_bytes(&self) {
        for copy in self.place.stored("packed") {
            fs::remove_file(copy).unwrap();
        }
    }

    fn stats(&self, what: impl AsRef<std::ffi::OsStr>) -> Value {
        let words = ["stats".as_ref(), what.as_ref(), "--json".as_ref()];
        serde_json::from_str(&self.place.says(words)).unwrap()
    }

    fn profile(&self) -> Vec<String> {
        let shown = self.place.says(["profile", "show", &self.image, "--json"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let parts = shown["parts"].as_array().unwrap();
        parts
            .iter()
            .map(|part| part["path"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn name(seed: u64) -> String {
    format!("file-{seed:02}")
}

fn content(seed: u64) -> Vec<u8> {
    noise(FILE_BYTES, seed)
}

/// What a mount says it fetched of layers, tables not counted.
#[track_caller]
pub fn fetched(place: &Place, mounted: &Path) -> u64 {
    let stats = place.says(["stats".as_ref(), mounted.as_os_str(), "--json".as_ref()]);
    let stats: Value = serde_json::from_str(&stats).unwrap();
    let counts = stats["moved"]["fetched"].as_array().unwrap();
    counts
        .iter()
        .map(|count| count["bytes"].as_u64().unwrap())
        .sum()
}

/// Asks until the answer is yes. Each question runs a program, so this is no busy loop.
#[track_caller]
pub fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come to that");
    }
}

#[test]
fn what_one_mount_reads_the_next_one_fetches_at_once_and_before_it_is_asked() {
    let Some(lazy) = Lazy::new() else { return };
    let order = [21, 3, 17, 12];
    let mounted = lazy.place.mount(&lazy.image);
    for seed in order {
        assert!(mounted.read(&name(seed)).unwrap() == content(seed));
    }
    drop(mounted);
    let read: Vec<String> = order.into_iter().map(name).collect();
    assert_eq!(lazy.profile(), read);

    lazy.forget_bytes();
    let before = lazy.ranges().len();
    let mounted = lazy.place.mount(&lazy.image);
    until(|| {
        let fetched = &lazy.stats(mounted.path())["moved"]["fetched"];
        fetched[2]["bytes"].as_u64() >= Some(4 * FILE_BYTES as u64)
    });
    let requests = lazy.ranges().len() - before;
    assert!(requests <= 4, "{requests} requests for four files");
    for seed in order {
        assert!(mounted.read(&name(seed)).unwrap() == content(seed));
    }
    let fetched = lazy.stats(mounted.path());
    let fetched = &fetched["moved"]["fetched"];
    assert_eq!(fetched[0]["requests"], 0, "a reader waited: {fetched}");
    drop(mounted);

    lazy.forget_bytes();
    let mounted = lazy
        .place
        .mount_with(&lazy.image, |command| _ = command.arg("--no-profile"));
    assert!(mounted.read(&name(5)).unwrap() == content(5));
    let fetched = lazy.stats(mounted.path());
    assert_eq!(fetched["moved"]["fetched"][2]["requests"], 0, "{fetched}");
    drop(mounted);
    assert_eq!(lazy.profile(), read, "--no-profile records nothing");
}

#[test]
fn what_the_builder_of_an_image_nobody_has_read_thought_of_is_fetched_before_it_is_asked() {
    let member = |seed| file(name(seed), content(seed)).mode(0o644);
    let mut members: Vec<_> = (0..FILES).map(member).collect();
    members.insert(3, prefetch_landmark());
    let Some(lazy) = Lazy::of(members, Packing::Estargz) else {
        return;
    };
    let mounted = lazy.place.mount(&lazy.image);
    let fetched = |number: usize| {
        lazy.stats(mounted.path())["moved"]["fetched"][number]["bytes"]
            .as_u64()
            .unwrap()
    };
    until(|| fetched(2) >= 3 * FILE_BYTES as u64);
    for seed in 0..3 {
        assert!(mounted.read(&name(seed)).unwrap() == content(seed));
    }
    assert_eq!(fetched(0), 0, "a reader waited");
    assert!(mounted.read(&name(20)).unwrap() == content(20));
    assert!(fetched(0) > 0);
}

/// The list names the spans that have the first file, and some that are not there.
#[test]
fn what_a_soci_index_lists_for_prefetching_is_fetched_before_it_is_asked_and_a_list_that_is_none_is_passed_over()
 {
    let list = r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":6,"priority":1},{"start_span":5000,"end_span":4000000000}]}"#;
    let files = (0..FILES).map(|seed| file(name(seed), content(seed)).mode(0o644));
    let layers = all(&[Layer::new(files.collect())], Packing::GzipMembers);
    for (list, waits) in [(list, false), ("no list", true)] {
        let added = Lazy::added(|layout| {
            let part = |layer: &_| (ztoc(layer), Some(list));
            layout.add_soci_with("latest", &layers, Version::V2, part);
        });
        let Some(lazy) = added else { return };
        let mounted = lazy.place.mount(&lazy.image);
        let fetched = |number: usize| {
            lazy.stats(mounted.path())["moved"]["fetched"][number]["bytes"]
                .as_u64()
                .unwrap()
        };
        if !waits {
            until(|| fetched(2) >= FILE_BYTES as u64);
        }
        assert!(mounted.read(&name(0)).unwrap() == content(0));
        assert_eq!(fetched(0) > 0, waits, "a reader waited, or not: {list}");
        assert!(mounted.read(&name(15)).unwrap() == content(15));
        assert!(fetched(0) > 0);
    }
}

/// An image of which nobody knows a profile. What is not read lies between, so that ranges do not close the gaps.
#[test]
fn a_program_that_is_going_to_run_is_fetched_before_it_asks_with_what_its_interpreter_reads() {
    let read = [
        "usr/bin/python3.11",
        "usr/lib/python3.11/encodings/__pycache__/aliases.cpython-311.pyc",
        "usr/lib/python3/dist-packages/some.pth",
        "etc/passwd",
    ];
    let mut members = vec![directory("bin"), symlink("usr/bin/python3", "python3.11")];
    for (seed, path) in (0..).zip(read) {
        members.push(file(path, content(seed)).mode(0o755));
        members.push(file(format!("other-{seed}"), noise(3 << 20, seed)));
    }
    let Some(lazy) = Lazy::of(members, Packing::ZstdChunked) else {
        return;
    };
    // It is none, but until that is known it has been asked for.
    let ran = lazy.place.sifon(["exec", &lazy.image, "python3"]).output();
    assert!(!ran.unwrap().status.success());
    let fetched = || {
        let fetched = &lazy.stats(&lazy.image)["moved"]["fetched"];
        let counts = fetched.as_array().unwrap().iter();
        let bytes = counts.map(|count| count["bytes"].as_u64().unwrap());
        bytes.sum::<u64>() as usize
    };
    let wanted = read.len() * FILE_BYTES;
    until(|| fetched() >= wanted);
    assert!(fetched() < wanted + (3 << 20));
    lazy.place.says(["stop", "--all"]);
}

#[test]
fn a_killed_mount_has_recorded_what_was_read() {
    let Some(lazy) = Lazy::new() else { return };
    let mounted = lazy.place.mount(&lazy.image);
    mounted.read(&name(7)).unwrap();
    until(|| {
        let shown = lazy.place.sifon(["profile", "show", &lazy.image]).output();
        shown.unwrap().status.success()
    });
    let pid = sifon_mount::daemon::mounted_at(mounted.path())
        .unwrap()
        .unwrap()
        .pid;
    let process = crate::place::Process::open(pid.unwrap().try_into().unwrap()).unwrap();
    process.kill();
    process.wait();
    std::mem::forget(mounted);
    assert_eq!(lazy.profile(), [name(7)]);
}

#[test]
fn a_profile_travels_as_a_file_and_a_hostile_one_does_no_harm() {
    let Some(lazy) = Lazy::new() else { return };
    let mounted = lazy.place.mount(&lazy.image);
    mounted.read(&name(1)).unwrap();
    drop(mounted);
    let file = lazy.place.path("exported");
    let export = ["profile", "export", &lazy.image, "exported"];
    assert_eq!(lazy.place.says(export), "");
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.ends_with(&format!("0 0 {FILE_BYTES} file-01\n")),
        "{text}"
    );
    let hostile = format!(
        "{}0 0 18446744073709551615 file-02\n0 {} 1 file-03\n0 0 9 ../../etc/passwd\n0 5 5 no/such/file\n",
        text,
        u64::MAX - 1
    );
    fs::write(&file, hostile).unwrap();
    fs::remove_dir_all(lazy.place.store("profiles")).unwrap();
    lazy.forget_bytes();
    let import = ["profile", "import", &lazy.image, "exported"];
    assert_eq!(lazy.place.says(import), "5 parts imported\n");
    let mounted = lazy.place.mount(&lazy.image);
    until(|| {
        let fetched = &lazy.stats(mounted.path())["moved"]["fetched"];
        fetched[2]["bytes"].as_u64() >= Some(2 * FILE_BYTES as u64)
    });
    assert!(mounted.read(&name(2)).unwrap() == content(2));
    drop(mounted);

    fs::write(&file, "sifon profile 1\nmanifest nonsense\n").unwrap();
    let said = lazy.place.refusal(&mut lazy.place.sifon(import));
    assert!(said.contains("line 2"), "{said}");
}

#[test]
fn packing_a_mount_and_packing_its_reference_give_the_same_bytes() {
    let Some(lazy) = Lazy::new() else { return };
    let mounted = lazy.place.mount(&lazy.image);
    let directory = mounted.path().to_str().unwrap();
    lazy.place.says(["compact", directory, "mounted.sif"]);
    lazy.place.says(["compact", &lazy.image, "named.sif"]);
    let [mounted, named] =
        ["mounted.sif", "named.sif"].map(|name| fs::read(lazy.place.path(name)).unwrap());
    assert!(mounted == named);
}

#[test]
fn a_completed_image_needs_no_registry() {
    let Some(mut lazy) = Lazy::new() else { return };
    let mounted = lazy.place.mount(&lazy.image);
    mounted.read(&name(4)).unwrap();
    drop(mounted);
    let fetched = |lazy: &Lazy| {
        lazy.ranges()
            .iter()
            .map(|(first, last)| last - first + 1)
            .sum::<usize>()
    };
    let said = lazy.place.says(["complete", &lazy.image]);
    assert!(said.contains("complete, "), "{said}");
    let (_, whole) = (0, fetched(&lazy));
    assert!(
        whole < (FILES as usize + 1) * FILE_BYTES,
        "nothing is fetched twice: {whole}"
    );
    let again = lazy.place.says(["complete", &lazy.image]);
    assert!(again.ends_with("complete\n"), "{again}");
    assert_eq!(fetched(&lazy), whole);

    lazy._registry.stop();
    let seen = lazy.server.seen().len();
    let offline = |command: &mut std::process::Command| _ = command.arg("--offline");
    let mounted = lazy.place.mount_with(&lazy.image, offline);
    assert!(
        !mounted.said.contains("not in the store"),
        "{}",
        mounted.said
    );
    for seed in 0..FILES {
        assert!(mounted.read(&name(seed)).unwrap() == content(seed));
    }
    drop(mounted);
    assert_eq!(lazy.server.seen().len(), seen);
}

#[test]
fn wrong_bytes_in_the_store_are_found_and_fetched_again_when_an_image_is_completed() {
    let Some(lazy) = Lazy::new() else { return };
    lazy.place.says(["complete", &lazy.image]);
    let copy = &lazy.place.stored("packed")[0];
    let mut bytes = fs::read(copy).unwrap();
    let right = bytes.clone();
    bytes[1_000_000] ^= 1;
    fs::write(copy, &bytes).unwrap();
    lazy.place.says(["complete", &lazy.image]);
    assert!(fs::read(copy).unwrap() == right);
}

#[test]
fn a_mount_completes_its_image_in_the_background() {
    let Some(lazy) = Lazy::new() else { return };
    let mounted = lazy
        .place
        .mount_with(&lazy.image, |command| _ = command.arg("--background"));
    mounted.read(&name(9)).unwrap();
    until(|| {
        let layers = &lazy.stats(mounted.path())["layers"];
        layers[0]["kept_bytes"] == layers[0]["bytes"]
    });
    drop(mounted);
    let again = lazy.place.says(["complete", &lazy.image]);
    assert!(again.ends_with("complete\n"), "{again}");
}

#[test]
fn offline_tells_at_mount_what_is_missing() {
    let Some(lazy) = Lazy::new() else { return };
    let mounted = lazy.place.mount(&lazy.image);
    mounted.read(&name(4)).unwrap();
    drop(mounted);
    let offline = |command: &mut std::process::Command| _ = command.arg("--offline");
    let mounted = lazy.place.mount_with(&lazy.image, offline);
    assert!(
        mounted.said.contains("are not in the store"),
        "{}",
        mounted.said
    );
    assert!(mounted.said.contains("sifon complete"), "{}", mounted.said);
}

#[test]
fn stats_tell_what_was_fetched_and_for_which_files_programs_waited() {
    let odd = "<script>alert(1)</script>&\"'";
    let Some(lazy) = Lazy::with(vec![file(odd.replace('/', "|"), content(99)).mode(0o644)]) else {
        return;
    };
    let odd = odd.replace('/', "|");
    let mounted = lazy.place.mount(&lazy.image);
    mounted.read(&odd).unwrap();
    mounted.read(&name(3)).unwrap();
    // Read-ahead may still be on its way. The first ranges are the configuration and the table of contents.
    until(|| {
        let fetched = &lazy.stats(mounted.path())["moved"]["fetched"];
        let bytes: u64 = (0..4)
            .filter_map(|why| fetched[why]["bytes"].as_u64())
            .sum();
        let ranges = lazy.ranges();
        let asked = ranges.iter().skip(2).map(|(first, last)| last - first + 1);
        bytes == asked.sum::<usize>() as u64
    });
    let stats = lazy.stats(mounted.path());
    assert_eq!(stats["share"]["read_files"], 2);
    assert_eq!(stats["share"]["files"], FILES + 1);
    assert_eq!(stats["share"]["read_bytes"], 2 * FILE_BYTES as u64);
    let costly = stats["costly"].as_array().unwrap();
    let paths: Vec<_> = costly
        .iter()
        .filter_map(|file| file["path"].as_str())
        .collect();
    assert!(
        paths.contains(&&*odd) && paths.contains(&"file-03"),
        "{paths:?}"
    );
    let path = mounted.path().to_str().unwrap();
    let text = lazy.place.says(["stats", path]);
    for part in ["FETCHED", "EVER READ", "file-03", "2 of 31 files"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let numbers = lazy.place.says(["stats", path, "--prometheus"]);
    assert!(numbers.contains("sifon_reads_total{image="), "{numbers}");
    lazy.place.says(["stats", path, "--html", "page.html"]);
    let page = fs::read_to_string(lazy.place.path("page.html")).unwrap();
    assert!(!page.contains("<script"), "a name became a tag");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;|script&gt;&amp;&quot;&#39;"));
    drop(mounted);
    let kept = lazy.stats(&lazy.image);
    assert_eq!(kept["share"], stats["share"]);
}

#[test]
fn prometheus_finds_its_numbers_on_a_loopback_port() {
    let Some(lazy) = Lazy::new() else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mounted = lazy.place.mount_with(&lazy.image, |command| {
        command.args(["--metrics", &port.to_string()]);
    });
    mounted.read(&name(3)).unwrap();
    let address = format!("127.0.0.1:{port}");
    let text = || {
        let page = crate::support::http::asked(&address, "GET", "/metrics", &[], b"").unwrap();
        assert_eq!(page.second(), "200");
        String::from_utf8(page.body).unwrap()
    };
    assert!(text().contains("sifon_fetch_requests_total{image="));
    // A request is counted when all of it has come; the reader has its part before.
    until(|| text().contains("why=\"read\"} 1\n"));
}

#[test]
fn a_mount_survives_an_outage_and_recovers() {
    let Some(mut lazy) = Lazy::new() else { return };
    let mounted = lazy
        .place
        .mount_with(&lazy.image, |command| _ = command.args(["--timeout", "2"]));
    mounted.read(&name(1)).unwrap();
    lazy._registry.stop();
    assert!(
        mounted.read(&name(1)).unwrap() == content(1),
        "the store has it"
    );
    let began = Instant::now();
    let failed = mounted.read(&name(29)).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(libc::EIO));
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert!(lazy._registry.resume());
    assert!(mounted.read(&name(29)).unwrap() == content(29));
}
