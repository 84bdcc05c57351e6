//! A small image, made on the spot from what the machine has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sifon_mount::digest::{Digest, Hasher};
use sifon_mount::layer::entry::{Entry, Kind, Timestamp};

use super::libraries::{self, LibraryError};
use super::program::Lines;
use super::registry::{Body, Repository};
use crate::pack::zstd_chunked::{LayerWriter, MEDIA_TYPE, WriteError};

/// The repository's name and the tag in it.
pub const NAME: (&str, &str) = ("demo", "latest");

/// Where the running binary lies in the image.
pub const PROGRAM: &str = "/bin/sifon";

/// The file that the program reads.
pub const DATA: &str = "/data/lines";

/// Bytes in the data file of the real demonstration: enough that fetching all of it would be noticed.
pub const DATA_BYTES: u64 = 64_000_000;

/// An image, ready to be served.
pub struct DemoImage {
    /// It, under [`NAME`].
    pub repository: Repository,
    /// Bytes in its layers as a registry keeps them.
    pub packed_bytes: u64,
    /// Bytes in its files.
    pub plain_bytes: u64,
}

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// What the program needs is not known.
    #[error(transparent)]
    Libraries(#[from] LibraryError),
    /// A file of this machine cannot be read.
    #[error("{}: cannot be read", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry cannot be written.
    #[error("the demonstration's layer")]
    Layer(#[from] WriteError),
    /// The layers cannot be written.
    #[error("{}: the demonstration's image cannot be written", directory.display())]
    Write {
        /// Where they should have gone.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An image for `architecture` (as OCI names it) of this program, what it needs to run, some text and
/// `data_bytes` of data. Layers are kept in unnamed files in `scratch`, which go with the image.
pub fn made(scratch: &Path, architecture: &str, data_bytes: u64) -> Result<DemoImage, ImageError> {
    // Not current_exe(): the file may have been replaced since it was started.
    let program = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    let libraries = libraries::needed_by(&program)?;
    let write = |source| ImageError::Write {
        directory: scratch.to_owned(),
        source,
    };
    let text = text_layer(tempfile::tempfile_in(scratch).map_err(write)?).map_err(write)?;
    let files = Files {
        program: &program,
        libraries: &libraries,
        data_bytes,
    };
    let big = files.layer(tempfile::tempfile_in(scratch).map_err(write)?)?;
    Ok(image([text, big], configuration(architecture, &libraries)))
}

/// A layer that is written.
struct Layer {
    file: File,
    descriptor: Value,
    digest: Digest,
    size: u64,
    diff_id: Digest,
    plain_bytes: u64,
}

fn image(layers: [Layer; 2], mut config: Value) -> DemoImage {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    let config = config.to_string().into_bytes();
    let descriptors: Vec<_> = layers.iter().map(|layer| &layer.descriptor).collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config),
            "size": config.len(),
        },
        "layers": descriptors,
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = Digest::of(&manifest);
    let sum = |bytes: fn(&Layer) -> u64| layers.iter().map(bytes).sum();
    let (packed_bytes, plain_bytes) = (sum(|layer| layer.size), sum(|layer| layer.plain_bytes));
    let mut blobs = BTreeMap::from([(Digest::of(&config), Body::Bytes(config))]);
    blobs.extend(layers.map(|layer| (layer.digest, Body::File(layer.file, layer.size))));
    DemoImage {
        repository: Repository {
            name: NAME.0.into(),
            manifests: BTreeMap::from([(digest, (media_type, manifest))]),
            tags: BTreeMap::from([(NAME.1.into(), digest)]),
            blobs,
        },
        packed_bytes,
        plain_bytes,
    }
}

/// Where a library lies in the image: where it lies here, unless a name cannot say that.
fn in_image(library: &Path) -> PathBuf {
    let goes_up = library
        .components()
        .any(|part| part == Component::ParentDir);
    match library.file_name() {
        Some(name) if goes_up => Path::new("/lib").join(name),
        _ => library.to_owned(),
    }
}

/// The interpreter may have found libraries here through a cache or a variable that the image does not
/// have: there, a variable names all their directories.
fn configuration(architecture: &str, libraries: &[PathBuf]) -> Value {
    let places = libraries.iter().map(|library| in_image(library));
    let directories: BTreeSet<_> = places
        .filter_map(|place| place.parent().map(Path::to_owned))
        .collect();
    let directories: Vec<_> = directories
        .iter()
        .map(|path| path.to_string_lossy())
        .collect();
    let mut environment = vec!["PATH=/bin".to_owned()];
    if !directories.is_empty() {
        environment.push(format!("LD_LIBRARY_PATH={}", directories.join(":")));
    }
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": [PROGRAM],
            "Env": environment,
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.title": "sifon demonstration"},
        },
    })
}

/// When everything in the image was changed last: a constant, so that the same machine makes the same image.
const MTIME: u64 = 1_600_000_000;

/// A layer as most are, tar and gzip: what a system has at least.
fn text_layer(file: File) -> io::Result<Layer> {
    let counted = Hashed::new(file);
    let gzip = GzEncoder::new(counted, Compression::default());
    let mut tar = tar::Builder::new(Hashed::new(gzip));
    let mut plain_bytes = 0;
    for (path, mode) in [
        ("etc/", 0o755),
        ("root/", 0o700),
        ("tmp/", 0o1777),
        ("usr/share/doc/sifon/", 0o755),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        append(&mut tar, header, path, mode, b"")?;
    }
    let os_release = std::fs::read_to_string("/etc/os-release")
        .unwrap_or_else(|_| "PRETTY_NAME=\"sifon demonstration\"\n".into());
    for (path, text) in [
        ("etc/os-release", &*os_release),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sifon\n"),
        ("etc/group", "root:x:0:\n"),
        (
            "usr/share/doc/sifon/LICENSE-MIT",
            include_str!("../../LICENSE-MIT"),
        ),
        (
            "usr/share/doc/sifon/LICENSE-APACHE",
            include_str!("../../LICENSE-APACHE"),
        ),
    ] {
        append(
            &mut tar,
            tar::Header::new_ustar(),
            path,
            0o644,
            text.as_bytes(),
        )?;
        plain_bytes += text.len() as u64;
    }
    let (gzip, diff_id, _) = tar.into_inner()?.finish();
    let (file, digest, size) = gzip.finish()?.finish();
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    Ok(Layer {
        file,
        descriptor: json!({"mediaType": media_type, "digest": digest, "size": size}),
        digest,
        size,
        diff_id,
        plain_bytes,
    })
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    mut header: tar::Header,
    path: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    header.set_mode(mode);
    header.set_mtime(MTIME);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
}

/// Counts and hashes what is written through it.
struct Hashed<W> {
    to: W,
    hasher: Hasher,
    count: u64,
}

impl<W> Hashed<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            hasher: Hasher::default(),
            count: 0,
        }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.to, self.hasher.finish(), self.count)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.to.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        self.count += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// What the layer that is worth reading lazily consists of.
struct Files<'a> {
    program: &'a Path,
    libraries: &'a [PathBuf],
    data_bytes: u64,
}

/// zstd's own default; the demonstration waits for it.
const LEVEL: i32 = 3;

impl Files<'_> {
    /// Writes them as zstd:chunked to `file`.
    fn layer(&self, file: File) -> Result<Layer, ImageError> {
        let mut tree = TreeWriter {
            layer: LayerWriter::new(BufWriter::new(file), LEVEL).map_err(WriteError::Io)?,
            directories: BTreeSet::new(),
            plain_bytes: 0,
        };
        tree.copy(PROGRAM.as_ref(), self.program)?;
        for library in self.libraries {
            tree.copy(&in_image(library), library)?;
        }
        tree.file(DATA.as_ref(), 0o644, self.data_bytes, &mut Lines::default())?;
        let (file, written) = tree.layer.finish()?;
        let file = file
            .into_inner()
            .map_err(|err| WriteError::Io(err.into_error()))?;
        Ok(Layer {
            file,
            descriptor: json!({
                "mediaType": MEDIA_TYPE,
                "digest": written.digest,
                "size": written.size,
                "annotations": written.annotations,
            }),
            digest: written.digest,
            size: written.size,
            diff_id: written.diff_id,
            plain_bytes: tree.plain_bytes,
        })
    }
}

/// A layer with the directories that its files need.
struct TreeWriter<W> {
    layer: LayerWriter<W>,
    directories: BTreeSet<PathBuf>,
    plain_bytes: u64,
}

impl<W: Write> TreeWriter<W> {
    /// Adds the file that this machine has at `source`, through links, as `path`.
    fn copy(&mut self, path: &Path, source: &Path) -> Result<(), ImageError> {
        let unreadable = |err| ImageError::Source {
            path: source.to_owned(),
            source: err,
        };
        let mut file = File::open(source).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        self.file(path, 0o755, size, &mut file)
    }

    fn file(
        &mut self,
        path: &Path,
        mode: u16,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), ImageError> {
        let parents: Vec<_> = path.ancestors().skip(1).collect();
        for parent in parents.into_iter().rev() {
            if parent != Path::new("/") && self.directories.insert(parent.to_owned()) {
                let entry = entry(parent, Kind::Directory, 0o755);
                self.layer.append(&entry, &mut io::empty())?;
            }
        }
        self.plain_bytes += size;
        let entry = entry(path, Kind::Regular { size }, mode);
        Ok(self.layer.append(&entry, content)?)
    }
}

fn entry(path: &Path, kind: Kind, mode: u16) -> Entry {
    let path = path.as_os_str().as_bytes();
    Entry {
        path: path.strip_prefix(b"/").unwrap_or(path).to_vec(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp {
            secs: MTIME as i64,
            nanos: 0,
        },
        xattrs: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use super::*;

    fn plain(image: &DemoImage, layer: usize) -> (Vec<u8>, Value) {
        let (_, manifest) = image.repository.manifests.first_key_value().unwrap().1;
        let manifest: Value = serde_json::from_slice(manifest).unwrap();
        let descriptor = manifest["layers"][layer].clone();
        let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
        let Body::File(file, size) = &image.repository.blobs[&digest] else {
            panic!("layers are files");
        };
        let mut file = file;
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut packed = Vec::new();
        file.read_to_end(&mut packed).unwrap();
        assert_eq!((packed.len() as u64, Digest::of(&packed)), (*size, digest));
        let mut plain = Vec::new();
        if layer == 0 {
            flate2::read::GzDecoder::new(&packed[..])
                .read_to_end(&mut plain)
                .unwrap();
        } else {
            plain = zstd::decode_all(&packed[..]).unwrap();
        }
        (plain, descriptor)
    }

    fn names(tar: &[u8]) -> Vec<PathBuf> {
        let mut archive = tar::Archive::new(tar);
        let members = archive.entries().unwrap();
        members
            .map(|member| member.unwrap().path().unwrap().into_owned())
            .collect()
    }

    #[test]
    fn the_image_has_what_the_program_needs() {
        let scratch = tempfile::tempdir().unwrap();
        let image = made(scratch.path(), "amd64", 100_000).unwrap();
        let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let (_, manifest) = image.repository.manifests.first_key_value().unwrap().1;
        let manifest: Value = serde_json::from_slice(manifest).unwrap();
        let digest: Digest = manifest["config"]["digest"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let Body::Bytes(config) = &image.repository.blobs[&digest] else {
            panic!("the configuration is in memory");
        };
        let config: Value = serde_json::from_slice(config).unwrap();
        for layer in 0..2 {
            let (tar, _) = plain(&image, layer);
            let diff_id = Digest::of(&tar).to_string();
            assert_eq!(config["rootfs"]["diff_ids"][layer], diff_id);
        }
        let (tar, descriptor) = plain(&image, 1);
        let names = names(&tar);
        let needed = libraries::needed_by(&std::env::current_exe().unwrap()).unwrap();
        for path in needed
            .iter()
            .map(|path| &**path)
            .chain([PROGRAM.as_ref(), DATA.as_ref()])
        {
            let path = path.strip_prefix("/").unwrap();
            assert!(names.contains(&path.to_owned()), "{path:?}");
        }
        let annotations = serde_json::from_value(descriptor["annotations"].clone()).unwrap();
        let toc = sifon_mount::layer::zstd_chunked::promised(&annotations);
        assert!(toc.unwrap().is_some());
    }

    #[test]
    fn libraries_keep_their_places_where_names_can_say_them() {
        for (library, place) in [
            ("/lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
            ("/opt/x/bin/../lib/libx.so.1", "/lib/libx.so.1"),
        ] {
            assert_eq!(in_image(library.as_ref()), Path::new(place));
        }
        let libraries = ["/lib/a.so".into(), "/x/../b.so".into(), "/y/c.so".into()];
        let config = configuration("amd64", &libraries);
        assert_eq!(config["config"]["Env"][1], "LD_LIBRARY_PATH=/lib:/y");
    }

    #[test]
    fn the_text_layer_is_an_ordinary_one() {
        let layer = text_layer(tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(layer.descriptor["size"], layer.size);
        assert!(layer.plain_bytes > 10_000);
        let image = image(
            [layer, text_layer(tempfile::tempfile().unwrap()).unwrap()],
            json!({}),
        );
        let (tar, _) = plain(&image, 0);
        assert!(names(&tar).contains(&"etc/os-release".into()));
    }
}
