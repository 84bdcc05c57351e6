//! Files of the store that were damaged since they were written, and stores that cannot be written to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::layout::{Layer, Layout};
use crate::sandbox::{MEMORY_BYTES, Sandbox, complaint};
use crate::tar_stream::{archive, directory, file, link, noise};

fn image() -> Layout {
    let text: Vec<u8> = (0..400_000u32)
        .map(|at| (at.wrapping_mul(at) >> 9) as u8 & 15 | b'a')
        .collect();
    Layout::of(&[
        Layer::gzip(&archive(&[
            directory("d"),
            file("d/large", &text),
            file("small", b"small"),
            link(b'2', "link", "d/large"),
        ])),
        Layer::gzip(&archive(&[
            file("d/.wh.nothing", b""),
            file("top", &text[..50_000]),
        ])),
    ])
}

/// Changes a sealed file, as a disk does that fails.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn a_file_of_the_store_that_is_cut_missing_or_another_one_is_made_again() {
    let layout = image();
    let sandbox = Sandbox::new();
    let expected = sandbox.packed(&layout.reference());
    for part in ["manifests", "layers", "trees"] {
        let files = sandbox.stored(part);
        assert!(!files.is_empty(), "{part}");
        for (index, path) in files.iter().enumerate() {
            let what = path.display();
            let again = || sandbox.packed(&layout.reference()) == expected;
            for keep in [0, 1, 70] {
                damage(path, |bytes| bytes.truncate(bytes.len() * keep / 100));
                assert!(again(), "{what} cut to {keep} %");
            }
            fs::remove_file(path).unwrap();
            assert!(again(), "{what} removed");
            let other = fs::read(&files[(index + 1) % files.len()]).unwrap();
            damage(path, |bytes| *bytes = other);
            assert!(again(), "{what} replaced by another");
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
            assert!(again(), "{what} replaced by a device");
            let _ = fs::remove_file(path);
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
            assert!(again(), "{what} replaced by a pipe");
        }
    }
}

#[test]
fn bytes_of_a_native_layer_that_changed_are_never_shown() {
    let layout = image();
    let sandbox = Sandbox::new();
    let expected = sandbox.packed(&layout.reference());
    let natives = |sandbox: &Sandbox| -> Vec<_> {
        let files = sandbox.stored("layers").into_iter();
        files
            .filter(|path| path.extension().is_some_and(|is| is == "native"))
            .collect()
    };
    for path in natives(&sandbox) {
        let len = fs::metadata(&path).unwrap().len() as usize;
        for at in (0..len).step_by(len / 7) {
            damage(&path, |bytes| bytes[at] ^= 0x10);
            let seen = sandbox.packed(&layout.reference());
            assert!(seen == expected, "{} at {at}", path.display());
        }
    }
    // Where there is nothing to stream it from again, that is an error, and it names the layer.
    let path = natives(&sandbox).remove(0);
    damage(&path, |bytes| bytes[100] ^= 0x10);
    let layer = path.file_stem().unwrap().to_str().unwrap().to_owned();
    fs::remove_file(layout.directory.path().join("blobs/sha256").join(&layer)).unwrap();
    let words = [&*layer, "digest does not match"];
    let output = sandbox.run(&["-q", "compact", &layout.reference(), "out.sif"]);
    sandbox.one_error("a damaged layer without its blob", &output, &words);
}

#[test]
fn a_bit_that_changed_in_a_table_or_a_tree_is_no_crash() {
    let layout = image();
    let sandbox = Sandbox::new();
    sandbox.packed(&layout.reference());
    let tables = sandbox.stored("layers").into_iter();
    let tables = tables.filter(|path| path.extension().is_some_and(|is| is == "table"));
    for path in tables.chain(sandbox.stored("trees")).collect::<Vec<_>>() {
        let original = fs::read(&path).unwrap();
        for at in (0..original.len()).step_by(original.len() / 40) {
            damage(&path, |bytes| {
                bytes.clone_from(&original);
                bytes[at] ^= 0x80;
            });
            let output = sandbox.run(&["compact", "-F", &layout.reference(), "out.sif"]);
            let said = complaint(&output);
            let what = format!("{} at {at}: {said}", path.display());
            assert!(matches!(output.status.code(), Some(0 | 255)), "{what}");
            assert!(!said.contains("panicked"), "{what}");
        }
        damage(&path, |bytes| *bytes = original);
    }
}

#[test]
fn records_leases_and_tags_that_others_left_hold_nobody_up_and_lead_nowhere() {
    let layout = image();
    let sandbox = Sandbox::new();
    let expected = sandbox.packed(&layout.reference());
    let victim = sandbox.path("victim");
    fs::write(&victim, "dear").unwrap();
    let store = sandbox.store();
    let pipe = |path: &Path| {
        let _ = fs::remove_file(path);
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    for part in ["images", "tags", "leases", "tmp"] {
        pipe(&store.join(part).join("0".repeat(64)));
        std::os::unix::fs::symlink("/dev/zero", store.join(part).join("1".repeat(64))).unwrap();
    }
    for path in sandbox.stored("images") {
        pipe(&path);
    }
    assert!(sandbox.packed(&layout.reference()) == expected);
    let output = sandbox.run(&["cache", "list"]);
    assert!(output.status.success(), "{}", complaint(&output));
    // Every name that a lease of the next processes could have.
    let manifest = layout.manifest.hex();
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    for number in 1..1 << 15 {
        let lease = store
            .join("leases")
            .join(format!("{manifest}-{host}-{number}"));
        std::os::unix::fs::symlink(&victim, lease).unwrap();
    }
    assert!(sandbox.packed(&layout.reference()) == expected);
    assert_eq!(fs::read(&victim).unwrap(), b"dear");
}

#[test]
fn a_store_that_is_full_or_read_only_serves_all_the_same() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can mount a small file system");
    }
    let layout = Layout::of(&[Layer::plain(archive(&[file("large", &noise(3_000_000))]))]);
    let expected = Sandbox::new().packed(&layout.reference());
    let sizes = [64, 1024].into_iter().chain((2900..3040).step_by(10));
    let mut options: Vec<_> = sizes.map(|kib| format!("size={kib}k")).collect();
    options.extend((1..40).step_by(3).map(|count| format!("nr_inodes={count}")));
    options.push("ro".into());
    let mut warned = 0;
    for options in options {
        let sandbox = Sandbox::new();
        fs::create_dir(sandbox.path("store")).unwrap();
        let script = r#"mount -t tmpfs -o $1 none "$2" && shift 2 && exec "$@""#;
        let sifon = sandbox.command(&["compact", &layout.reference(), "out.sif"], MEMORY_BYTES);
        let output = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh", &options])
            .arg(sandbox.path("store"))
            .arg(sifon.get_program())
            .args(sifon.get_args())
            .current_dir(sandbox.path("."))
            .output()
            .unwrap();
        let said = complaint(&output);
        assert!(output.status.success(), "{options}: {said}");
        warned += usize::from(said.contains("WARNING: "));
        let packed = fs::read(sandbox.path("out.sif")).unwrap();
        assert!(packed == expected, "{options}: {said}");
        println!("{options}\n{said}");
    }
    assert!(warned > 10, "{warned}");
}
