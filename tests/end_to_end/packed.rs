//! What other implementations of squashfs find in our SIF of an image: what its layers say, and what Singularity needs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use sifon_mount::source::sif::Sif;

use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{Place, can_mount, complaint};
use crate::tricky;
use crate::view::View;

/// What a SIF has beside the image, or instead of what the image has there.
const SINGULARITYS: &[&str] = &[
    ".exec",
    ".run",
    ".shell",
    ".singularity.d",
    ".test",
    "environment",
    "etc/hosts",
    "etc/resolv.conf",
    "home",
    "proc",
    "root",
    "singularity",
    "sys",
    "var",
];

/// Every way in which this machine can read a squashfs without us.
const READERS: &[Reader] = &[
    Reader {
        name: "Linux",
        command: |at, file, root| {
            let mut command = Command::new("mount");
            command.args(["-t", "squashfs", "-o", &format!("loop,ro,offset={at}")]);
            command.args([file, root]);
            command
        },
        is_mount: true,
        mistakes_families: false,
    },
    Reader {
        name: "squashfuse_ll",
        command: |at, file, root| {
            let mut command = Command::new("squashfuse_ll");
            command.args(["-o", &format!("ro,offset={at}")]);
            command.args([file, root]);
            command
        },
        is_mount: true,
        // 0.1 takes attributes of the families security and trusted for each other's.
        mistakes_families: true,
    },
    Reader {
        name: "unsquashfs",
        command: |at, file, root| {
            let mut command = Command::new("unsquashfs");
            command.args(["-quiet", "-no-progress", "-force", "-offset"]);
            command.arg(at.to_string()).arg("-dest").args([root, file]);
            command
        },
        is_mount: false,
        mistakes_families: false,
    },
];

struct Reader {
    name: &'static str,
    /// Shows the file system at a byte of a file in a directory.
    command: fn(u64, &Path, &Path) -> Command,
    is_mount: bool,
    mistakes_families: bool,
}

impl Reader {
    /// What it finds; `None` where it is not installed, or cannot work here.
    fn view(&self, place: &Place, sif: &Path) -> Option<View> {
        let at = Sif::open(File::open(sif).unwrap()).unwrap();
        let at = at.primary_partition().unwrap().at;
        let shown = Shown::new(place.own_directory(&format!("by-{}", self.name)), self);
        let Ok(output) = (self.command)(at, sif, &shown.root).output() else {
            eprintln!("skipped: no {}", self.name);
            return None;
        };
        let said = complaint(&output);
        let is_unable = ["loop", "unknown filesystem", "permitted"];
        if self.is_mount && is_unable.iter().any(|word| said.contains(word)) {
            eprintln!("skipped: {}: {said}", self.name);
            return None;
        }
        assert!(output.status.success(), "{}: {said}", self.name);
        Some(View::of(&shown.root))
    }
}

/// A directory that a reader filled, until this is dropped.
struct Shown<'a> {
    root: PathBuf,
    reader: &'a Reader,
}

impl<'a> Shown<'a> {
    fn new(root: PathBuf, reader: &'a Reader) -> Self {
        Self { root, reader }
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if self.reader.is_mount {
            let _ = Command::new("umount").arg(&self.root).output();
        }
    }
}

fn is_singularitys(path: &[u8]) -> bool {
    SINGULARITYS.iter().any(|added| {
        let rest = path.strip_prefix(added.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    })
}

/// What a squashfs can say of an image: whole seconds since 1970 in 32 bits. Of a directory into which something was added
/// the links count that, too.
fn in_squashfs(mut view: View) -> View {
    view.0.retain(|path, _| !is_singularitys(path));
    for (path, shown) in &mut view.0 {
        shown.mtime = shown
            .mtime
            .map(|(secs, _)| (secs.clamp(0, u32::MAX.into()), 0));
        if path.is_empty() {
            shown.nlink = None;
        }
    }
    view
}

fn without_families(mut view: View) -> View {
    for shown in view.0.values_mut() {
        shown.xattrs = std::mem::take(&mut shown.xattrs)
            .into_iter()
            .map(|(name, value)| {
                let dot = name.iter().position(|&byte| byte == b'.').unwrap();
                (name[dot..].to_vec(), value)
            })
            .collect();
    }
    view
}

fn layout_of(place: &Place, layers: &[Layer]) -> Layout {
    let mut layout = Layout::new(place.path("layout"));
    layout.add("tricky", &all(layers, Packing::Gzip));
    layout
}

#[test]
fn linux_squashfuse_and_unsquashfs_find_in_a_sif_what_the_layers_say() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let layers = tricky::layers();
    let layout = layout_of(&place, &layers);
    let expected = in_squashfs(View::expected(&tricky::model(&layers)));
    // Chunks that are copied, and chunks that are compressed again.
    for compression in ["zstd", "zstd:3", "gzip"] {
        let option = format!("--compression={compression}");
        let name = format!("{compression}.sif");
        place.says(["pull", &option, &name, &layout.reference("tricky")]);
        for reader in READERS {
            let Some(seen) = reader.view(&place, &place.path(&name)) else {
                continue;
            };
            for added in [&b".singularity.d/runscript"[..], b"etc/resolv.conf"] {
                assert_eq!(seen.0[added].kind, rustix::fs::FileType::RegularFile);
            }
            let mut seen = in_squashfs(seen);
            let mut expected = expected.clone();
            if !reader.is_mount {
                (seen, expected) = (seen.on_disk(), expected.on_disk());
                std::fs::remove_dir_all(place.path(format!("by-{}", reader.name))).unwrap();
            } else {
                std::fs::remove_dir(place.path(format!("by-{}", reader.name))).unwrap();
            }
            if reader.mistakes_families {
                (seen, expected) = (without_families(seen), without_families(expected));
            }
            eprintln!("{compression}, {}", reader.name);
            seen.assert_is(&expected);
        }
    }
}

#[test]
fn backhand_finds_in_a_sif_what_the_layers_say() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut layers = tricky::layers();
    // It panics on longer targets.
    for layer in &mut layers {
        layer
            .members
            .retain(|member| member.entry.path != b"long-link");
    }
    let layout = layout_of(&place, &layers);
    let names = View::expected(&tricky::model(&layers)).0.len();
    for compression in ["zstd", "gzip", "xz", "lz4", "none"] {
        let option = format!("--compression={compression}");
        let mut command = place.sifon(["compact", "--check", "--force", &option]);
        command.arg(layout.reference("tricky")).arg("x.sif");
        let output = command.output().unwrap();
        let said = complaint(&output);
        assert!(output.status.success(), "{said}");
        let compared = said.split(" names").next().unwrap();
        let compared = compared.rsplit(' ').next().unwrap().parse::<usize>();
        assert!(compared.unwrap() > names, "{said}");
    }
}
