//! SIF and squashfs files of every make as images: what Apptainer runs we run, what it refuses we refuse. As uid 1000, when
//! `SIFON_ORACLE` names the root directory of a system on which Apptainer is installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::image::ImageBuilder;
use crate::pulls::Pulled;

/// A SIF, byte by byte, around the file system of one that we wrote. What is not named is as Apptainer writes it.
struct Variation {
    launch: &'static [u8],
    arch: &'static [u8],
    partition_arch: &'static [u8],
    /// 1 is squashfs.
    file_system: i32,
    /// 2 is the primary one.
    partition_kind: i32,
    group: u32,
    descriptors_at: usize,
    descriptors: usize,
    /// Where the partition may begin.
    data_at: usize,
    alignment: usize,
    /// An object more, of JSON.
    note: Option<&'static [u8]>,
}

const DESCRIPTOR_BYTES: usize = 585;
const HOST: &[u8] = if cfg!(target_arch = "aarch64") {
    b"04"
} else {
    b"02"
};
const OTHER: &[u8] = if cfg!(target_arch = "aarch64") {
    b"02"
} else {
    b"04"
};

impl Default for Variation {
    fn default() -> Self {
        Self {
            launch: b"#!/usr/bin/env run-singularity\n",
            arch: HOST,
            partition_arch: HOST,
            file_system: 1,
            partition_kind: 2,
            group: 0xf000_0001,
            descriptors_at: 4096,
            descriptors: 48,
            data_at: 4096 + 48 * DESCRIPTOR_BYTES,
            alignment: 4096,
            note: None,
        }
    }
}

impl Variation {
    fn written(&self, squashfs: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; self.data_at];
        let mut descriptors = Vec::new();
        let mut object =
            |kind: i32, name: &[u8], content: &[u8], extra: &[u8], alignment: usize| {
                let end = bytes.len();
                bytes.resize(end.next_multiple_of(alignment), 0);
                let (at, padded) = (bytes.len(), bytes.len() - end + content.len());
                bytes.extend_from_slice(content);
                let mut descriptor = kind.to_le_bytes().to_vec();
                descriptor.push(1);
                descriptor.extend((descriptors.len() as u32 + 1).to_le_bytes());
                descriptor.extend(self.group.to_le_bytes());
                descriptor.extend(0u32.to_le_bytes());
                for number in [at, content.len(), padded] {
                    descriptor.extend((number as i64).to_le_bytes());
                }
                descriptor.resize(73, 0);
                descriptor.extend_from_slice(name);
                descriptor.resize(73 + 128, 0);
                descriptor.extend_from_slice(extra);
                descriptor.resize(DESCRIPTOR_BYTES, 0);
                descriptors.push(descriptor);
            };
        if let Some(note) = self.note {
            object(0x4006, b"note.json", note, b"", 1);
        }
        let kinds = [self.file_system, self.partition_kind].map(i32::to_le_bytes);
        let extra = [&kinds.concat(), self.partition_arch].concat();
        object(0x4004, b"", squashfs, &extra, self.alignment);
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, self.launch);
        put(32, b"SIF_MAGIC\0");
        put(42, b"01\0");
        put(45, self.arch);
        let used = descriptors.len();
        for (at, number) in [
            (80, self.descriptors - used),
            (88, self.descriptors),
            (96, self.descriptors_at),
            (104, self.descriptors * DESCRIPTOR_BYTES),
            (112, self.data_at),
        ] {
            put(at, &(number as i64).to_le_bytes());
        }
        put(self.descriptors_at, &descriptors.concat());
        let len = bytes.len() - self.data_at;
        bytes[120..128].copy_from_slice(&(len as i64).to_le_bytes());
        bytes
    }
}

/// An image of busybox, and its file system alone.
fn pulled() -> Option<(Pulled, Vec<u8>)> {
    let pulled = Pulled::new(ImageBuilder::new())?;
    let (list, status) = pulled.original(&["apptainer", "sif", "list", "ours/x.sif"]);
    assert_eq!(status, 0, "{list}");
    let line = list
        .lines()
        .find(|line| line.contains("FS (Squashfs/"))
        .unwrap();
    let id = line.split('|').next().unwrap().trim();
    let dump = format!("apptainer sif dump {id} ours/x.sif > ours/fs.squashfs");
    assert_eq!(pulled.original(&["sh", "-c", &dump]).1, 0);
    let squashfs = fs::read(pulled.path("ours/fs.squashfs")).unwrap();
    Some((pulled, squashfs))
}

/// Puts a file where both programs find it.
fn put(pulled: &Pulled, name: &str, bytes: &[u8]) {
    fs::create_dir_all(pulled.path(name)).unwrap();
    let file = pulled.path(name).join("x.sif");
    fs::write(&file, bytes).unwrap();
    for path in [pulled.path(name), file] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
}

/// Whether both programs run a file, which they agree on.
#[track_caller]
fn runs(pulled: &Pulled, name: &str) -> bool {
    let words = ["/bin/echo", "ran"];
    let theirs = pulled.by_apptainer(name, "exec", &words);
    let ours = pulled.by_us(name, "exec", &words);
    assert_eq!(ours, theirs, "{name}");
    match theirs.1 {
        0 => assert_eq!(theirs.0, "ran\n"),
        status => assert_eq!(status, 255, "{name}"),
    }
    theirs.1 == 0
}

#[test]
fn what_apptainer_accepts_of_a_sif_we_accept_and_refuse_what_is_none() {
    let Some((pulled, squashfs)) = pulled() else {
        return;
    };
    let usual = Variation::default;
    let accepted = [
        ("usual", usual()),
        (
            "empty-launch",
            Variation {
                launch: b"",
                ..usual()
            },
        ),
        (
            "no-group",
            Variation {
                group: 0xf000_0000,
                ..usual()
            },
        ),
        (
            "header-without-arch",
            Variation {
                arch: b"00",
                ..usual()
            },
        ),
        (
            "partition-without-arch",
            Variation {
                partition_arch: b"00",
                ..usual()
            },
        ),
        (
            "two-descriptors",
            Variation {
                descriptors: 2,
                data_at: 4096 + 2 * DESCRIPTOR_BYTES,
                ..usual()
            },
        ),
        (
            "early-descriptors",
            Variation {
                descriptors_at: 128,
                data_at: 128 + 48 * DESCRIPTOR_BYTES,
                ..usual()
            },
        ),
        (
            "not-aligned",
            Variation {
                alignment: 1,
                ..usual()
            },
        ),
        (
            "old-layout",
            Variation {
                data_at: 32768,
                note: Some(b"{\"a\": 1}"),
                ..usual()
            },
        ),
        (
            "with-a-note",
            Variation {
                note: Some(b"{\"a\": 1}"),
                ..usual()
            },
        ),
    ];
    for (name, variation) in &accepted {
        put(&pulled, name, &variation.written(&squashfs));
        assert!(runs(&pulled, name), "{name}");
    }
    let refused = [(
        "unknown-file-system",
        Variation {
            file_system: 9,
            ..usual()
        },
    )];
    for (name, variation) in &refused {
        put(&pulled, name, &variation.written(&squashfs));
        assert!(!runs(&pulled, name), "{name}");
    }
    // Files that belong to no system Apptainer binds, and runs none of them. Here they are an image like any other: a mount shows them.
    let data = Variation {
        partition_kind: 3,
        ..usual()
    };
    put(&pulled, "data", &data.written(&squashfs));
    let words = ["/bin/echo", "ran"];
    assert_eq!(pulled.by_apptainer("data", "exec", &words).1, 255);
    assert_eq!(pulled.by_us("data", "exec", &words).0, "ran\n");
    // What is said to be for another machine Apptainer refuses. We leave that to the kernel, which may have an emulator.
    let other = Variation {
        arch: OTHER,
        partition_arch: OTHER,
        ..usual()
    };
    put(&pulled, "other-machine", &other.written(&squashfs));
    assert_eq!(pulled.by_apptainer("other-machine", "exec", &words).1, 255);
    assert_eq!(pulled.by_us("other-machine", "exec", &words).0, "ran\n");
}

#[test]
fn images_without_what_singularity_adds_run_whoever_packed_them_and_however() {
    let Some(pulled) = Pulled::new(ImageBuilder::new()) else {
        return;
    };
    let (version, _) = pulled.original(&["mksquashfs", "-version"]);
    let root = pulled.path("ours/root");
    // Neither /tmp nor /etc/passwd, about which Apptainer only warns.
    for name in ["bin", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["echo", "sh"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    for compression in ["gzip", "xz", "lz4", "zstd", "lzo"] {
        let pack = format!(
            "rm -f ours/fs && mksquashfs ours/root ours/fs -quiet -no-progress -all-root -comp {compression}"
        );
        let (said, status) = pulled.original(&["sh", "-c", &pack]);
        assert_eq!(status, 0, "{version}: {said}");
        let squashfs = fs::read(pulled.path("ours/fs")).unwrap();
        // As a file of its own, in a SIF of ours, and in one that Apptainer put together.
        put(&pulled, "alone", &squashfs);
        put(&pulled, "wrapped", &Variation::default().written(&squashfs));
        let added = "mkdir -p added; chmod 777 added; rm -f added/x.sif; apptainer sif new added/x.sif && \
                     apptainer sif add --datatype 4 --parttype 2 --partfs 1 --partarch ARCH --groupid 1 added/x.sif ours/fs";
        let arch = if cfg!(target_arch = "aarch64") {
            "4"
        } else {
            "2"
        };
        fs::create_dir_all(pulled.path("added")).unwrap();
        fs::set_permissions(pulled.path("added"), fs::Permissions::from_mode(0o777)).unwrap();
        let (said, status) = pulled.original(&["sh", "-c", &added.replace("ARCH", arch)]);
        assert_eq!(status, 0, "{said}");
        for name in ["alone", "wrapped", "added"] {
            match compression {
                // Which we name and refuse.
                "lzo" => assert_eq!(pulled.by_us(name, "exec", &["/bin/echo", "ran"]).1, 255),
                _ => assert!(runs(&pulled, name), "{name}, {compression}"),
            }
        }
    }
}

#[test]
fn a_signed_file_runs_and_its_file_system_can_be_taken_out() {
    let Some((pulled, squashfs)) = pulled() else {
        return;
    };
    let sign = "cd ours && openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem && \
                apptainer sign --key key.pem x.sif && apptainer verify --key public.pem x.sif && \
                apptainer sif dump $(apptainer sif list x.sif | sed -n '/FS (Squashfs/s/ .*//p') x.sif > signed.squashfs && \
                unsquashfs -s signed.squashfs && cmp fs.squashfs signed.squashfs";
    let (said, status) = pulled.original(&["sh", "-c", sign]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("Compression zstd"), "{said}");
    assert!(runs(&pulled, "ours"));
    assert!(runs(&pulled, "theirs"));
    // Signing has changed nothing of it.
    let file = fs::read(pulled.path("ours/x.sif")).unwrap();
    let is_in = file
        .windows(64)
        .step_by(1)
        .position(|window| window == &squashfs[..64]);
    let at = is_in.unwrap();
    assert!(file[at..at + squashfs.len()] == squashfs[..]);
}
