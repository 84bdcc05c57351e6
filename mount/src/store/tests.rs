use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn store_in(directory: &Path) -> Store {
    Store::open(&Settings {
        directory: directory.join("store"),
        ..Settings::default()
    })
}

fn sealed(store: &Store, name: Name, bytes: &[u8]) {
    let mut draft = store.draft().unwrap();
    draft.write_all(bytes).unwrap();
    store.seal(draft, name).unwrap();
}

fn text(mut file: File) -> String {
    let mut text = String::new();
    io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

fn record(reference: &str, layers: &[Digest]) -> ImageRecord {
    ImageRecord {
        reference: reference.into(),
        manifest: Digest::of(reference.as_bytes()),
        documents: vec![],
        layers: layers.to_vec(),
        tables: layers.to_vec(),
        tree: tree_key(layers),
        tree_below: None,
        top: None,
    }
}

#[test]
fn a_sealed_file_is_read_only_and_replaces_an_older_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    let layer = Digest::of(b"layer");
    sealed(&store, Name::Native(layer), b"first");
    sealed(&store, Name::Native(layer), b"second");
    let file = store.native(layer).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o444);
    assert_eq!(text(file), "second");
}

#[test]
fn a_draft_that_is_not_sealed_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    store.draft().unwrap().write_all(b"half").unwrap();
    assert_eq!(files_below(store.directory()), Vec::<PathBuf>::new());
}

#[test]
fn drafts_of_dead_processes_are_removed_and_those_of_living_ones_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    let alive = directory::Owner::this_process().to_string();
    let (host, _) = alive.rsplit_once('-').unwrap();
    let tmp = store.directory().join("tmp");
    let dead = tmp.join(format!("{host}-{}-0", i32::MAX));
    let alive = tmp.join(format!("{host}-{}-0", std::process::id()));
    let elsewhere = tmp.join("another-host-1-0");
    for path in [&dead, &alive, &elsewhere] {
        std::fs::write(path, b"half").unwrap();
    }
    store_in(directory.path());
    assert_eq!(
        (dead.exists(), alive.exists(), elsewhere.exists()),
        (false, true, true)
    );
}

#[test]
fn a_manifest_that_was_changed_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    let digest = Digest::of(b"manifest");
    store.keep_manifest(digest, b"manifest");
    assert_eq!(store.manifest(digest).unwrap(), b"manifest");
    sealed(&store, Name::Manifest(digest), b"another");
    assert_eq!(store.manifest(digest), None);
}

#[test]
fn a_store_that_was_deleted_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    std::fs::remove_dir_all(directory.path().join("store")).unwrap();
    let digest = Digest::of(b"manifest");
    store.keep_manifest(digest, b"manifest");
    assert_eq!(store.manifest(digest).unwrap(), b"manifest");
    assert!(store.packed(digest, 100).is_ok());
}

#[test]
fn where_the_store_cannot_be_files_without_names_serve() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("store"), b"a file is in the way").unwrap();
    let store = store_in(directory.path());
    let mut draft = store.draft().unwrap();
    draft.write_all(b"kept for now").unwrap();
    let file = store
        .seal(draft, Name::Native(Digest::of(b"layer")))
        .unwrap();
    assert_eq!(text(file), "kept for now");
    assert!(store.native(Digest::of(b"layer")).is_none());
    assert!(store.packed(Digest::of(b"layer"), 10).is_ok());
    assert!(store.lease(&record("image", &[])).is_none());
}

#[test]
fn tables_are_not_taken_from_a_directory_that_others_can_write_to() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    let layer = Digest::of(b"layer");
    let writer = || crate::layer::table::TableWriter::in_directory(directory.path());
    store
        .sealed_with(Name::Table(layer), |to| writer().finish(layer, to))
        .unwrap();
    assert!(store_in(directory.path()).table(layer).is_some());
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(store.directory().join("layers"), open).unwrap();
    assert!(store_in(directory.path()).table(layer).is_none());
    // A table of another layer under this name is a stranger's mistake, whoever made it.
    let own = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(store.directory().join("layers"), own).unwrap();
    store
        .sealed_with(Name::Table(layer), |to| {
            writer().finish(Digest::of(b"x"), to)
        })
        .unwrap();
    assert!(store_in(directory.path()).table(layer).is_none());
}

#[test]
fn a_site_store_is_asked_after_the_own_one_and_never_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let site = Store::open(&Settings {
        directory: directory.path().join("site"),
        ..Settings::default()
    });
    let digest = Digest::of(b"manifest");
    site.keep_manifest(digest, b"manifest");
    let before = files_below(site.directory());
    let store = Store::open(&Settings {
        directory: directory.path().join("own"),
        site_directories: vec![directory.path().join("site")],
        ..Settings::default()
    });
    assert_eq!(store.manifest(digest).unwrap(), b"manifest");
    store.keep_manifest(Digest::of(b"own"), b"own");
    assert_eq!(files_below(site.directory()), before);
}

#[test]
fn what_a_loss_of_power_left_empty_is_as_if_it_were_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    let (day, digest) = (Duration::from_secs(24 * 3600), Digest::of(b"image"));
    let record = record("docker://example.org/a", &[digest]);
    let kept = || {
        store.remember_tag("docker://example.org/a", digest);
        drop(store.lease(&record).expect("the store can be written to"));
    };
    kept();
    for part in ["tags", "images"] {
        for file in files_below(&directory.path().join("store/v1").join(part)) {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
            std::fs::write(file, "").unwrap();
        }
    }
    assert_eq!(store.tag("docker://example.org/a", day), None);
    assert!(store.images().is_empty());
    kept();
    assert_eq!(store.tag("docker://example.org/a", day), Some(digest));
    assert_eq!(store.images().len(), 1);
}

#[test]
fn a_tag_is_remembered_for_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    let digest = Digest::of(b"manifest");
    let reference = "docker://localhost/tag:1";
    store.remember_tag(reference, digest);
    assert_eq!(store.tag(reference, Duration::from_secs(600)), Some(digest));
    assert_eq!(
        store.tag("docker://localhost/tag:2", Duration::from_secs(600)),
        None
    );
}

#[test]
fn eviction_takes_a_streamed_layer_before_the_index_that_replaces_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    let [indexed, plain] = [b"with", b"none"].map(|name| Digest::of(name));
    for layer in [indexed, plain] {
        sealed(&store, Name::Native(layer), &vec![7; 64 << 10]);
    }
    sealed(&store, Name::Index(indexed), &[7; 100]);
    let record = record("image", &[indexed, plain]);
    let lease = store.lease(&record).unwrap();
    store.evict(store.used_bytes() - 1, false);
    assert!(store.has(Name::Native(indexed)), "the image is mounted");
    drop(lease);
    let evicted = store.evict(store.used_bytes() - 1, false);
    assert_eq!(evicted.images, 0);
    assert!(!store.has(Name::Native(indexed)) && store.has(Name::Index(indexed)));
    assert!(store.has(Name::Native(plain)));
    assert_eq!(store.evict(0, false).images, 1);
    assert!(!store.has(Name::Index(indexed)));
}

#[test]
fn eviction_takes_the_images_unused_longest_and_spares_mounted_and_shared_ones() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    let [old, new, shared] = [b"old", b"new", b"all"].map(|name| Digest::of(name));
    for layer in [old, new, shared] {
        sealed(&store, Name::Native(layer), &vec![7; 64 << 10]);
    }
    let used = |image: &str, at: u64| {
        let path = store
            .directory()
            .join("images")
            .join(Digest::of(image.as_bytes()).hex());
        let at = std::time::UNIX_EPOCH + Duration::from_secs(at);
        File::options()
            .append(true)
            .open(path)
            .unwrap()
            .set_modified(at)
            .unwrap();
    };
    drop(store.lease(&record("old", &[shared, old])).unwrap());
    drop(store.lease(&record("new", &[shared, new])).unwrap());
    let lease = store.lease(&record("mounted", &[])).unwrap();
    used("old", 1000);
    used("new", 2000);
    used("mounted", 500);

    let expected = Evicted {
        images: 1,
        bytes: 64 << 10,
    };
    assert_eq!(store.evict(150 << 10, true), expected);
    assert!(store.native(old).is_some(), "a dry run removes nothing");
    assert_eq!(store.evict(150 << 10, false), expected);
    assert!(store.native(old).is_none());
    assert!(store.native(shared).is_some(), "another image needs it");

    store.evict(0, false);
    let left: Vec<_> = store
        .images()
        .into_iter()
        .map(|image| image.record.reference)
        .collect();
    assert_eq!(left, ["mounted"]);
    drop(lease);
    store.evict(0, false);
    assert!(store.native(shared).is_none());
}

#[test]
fn images_that_nobody_used_for_some_days_go_whatever_size_the_store_has() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    for (image, days) in [("today", 0), ("week", 7), ("month", 30), ("mounted", 40)] {
        let layer = Digest::of(image.as_bytes());
        sealed(&store, Name::Native(layer), &[7; 64 << 10]);
        let lease = store.lease(&record(image, &[layer])).unwrap();
        // Ending a lease is a use, too.
        match image {
            "mounted" => std::mem::forget(lease),
            _ => drop(lease),
        }
        let path = store.directory().join("images").join(layer.hex());
        let record = File::options().append(true).open(path).unwrap();
        let at = std::time::SystemTime::now() - DAY * days;
        record.set_modified(at).unwrap();
    }
    let left = || -> Vec<String> {
        let images = store.images().into_iter();
        images.map(|image| image.record.reference).collect()
    };
    let expected = |images| Evicted {
        images,
        bytes: images * (64 << 10),
    };
    assert_eq!(store.evict_unused(DAY * 31, false), expected(0));
    assert_eq!(store.evict_unused(DAY * 7, true), expected(2));
    assert_eq!(left().len(), 4, "a dry run removes nothing");
    assert_eq!(store.evict_unused(DAY * 10, false), expected(1));
    assert_eq!(left(), ["today", "week", "mounted"]);
    assert_eq!(store.evict_unused(Duration::ZERO, false), expected(2));
    assert_eq!(left(), ["mounted"]);
}

#[test]
fn a_table_with_one_bit_flipped_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(directory.path());
    let layer = Digest::of(b"layer");
    let mut writer = crate::layer::table::TableWriter::in_directory(directory.path());
    store
        .sealed_with(Name::Table(layer), |to| writer.finish(layer, to))
        .unwrap();
    let path = store.directory().join(Name::Table(layer).path());
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, damaged).unwrap();
        assert!(store.table(layer).is_none(), "byte {at}");
    }
    std::fs::write(&path, bytes).unwrap();
    assert!(store.table(layer).is_some());
}
