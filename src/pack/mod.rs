//! What an image becomes: one file for machines without a network.
//!
//! ```text
//! Source (an image) + Config ─→ Texts ─→ additions ─→ Contents ─→ squashfs ─→ SIF
//! ```

mod check;
pub mod contents;
pub mod date;
pub mod directory;
mod hidden;
pub mod image;
pub mod layer;
pub mod layout;
pub mod node;
pub mod path;
mod place;
#[cfg(test)]
mod sample;
pub mod sandbox;
pub mod shell;
pub mod sif;
pub mod singularity;
pub mod squashfs;
pub mod touched;
pub mod upload;
pub mod verbatim;
pub mod without;
pub mod zstd_chunked;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sifon_mount::digest::{Digest, Hasher};
use sifon_mount::image::Image;
use sifon_mount::layer::entry::Timestamp;
use sifon_mount::source::config::ImageConfig;

pub use check::{CheckError, Checked};
pub use place::PlaceError;
pub use sandbox::{SandboxError, Withheld};
pub use squashfs::{Compression, Lost, ParseCompressionError};

use contents::Contents;
use directory::DirectorySource;
use image::TreeSource;
use node::Source;
use place::NewFile;
use singularity::{Config, Origin, Texts};
use squashfs::SquashfsError;
use touched::{Kept, Summary};
use without::{LeftOut, Patterns, Without};

/// Rises whenever the same image and options give other bytes than before.
const FORMAT_VERSION: u32 = 2;

/// How a SIF is made.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Whether a file that has the name is replaced.
    pub overwrite: bool,
    /// How the root file system is compressed.
    pub compression: Compression,
    /// Seconds since 1970 instead of the time at which the image was made: `SOURCE_DATE_EPOCH`.
    pub created: Option<i64>,
    /// Whether the result is read back and compared before it appears.
    pub check: bool,
    /// What to leave out.
    pub exclude: Option<&'a Patterns>,
    /// Of the files with bytes in them keep these only, and what starts a program.
    pub touched: Option<&'a HashSet<Vec<u8>>>,
    /// How long to wait for bytes of the image before giving up.
    pub timeout: Duration,
    /// Told how many more bytes of files have been read.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            overwrite: false,
            compression: Compression::default(),
            created: None,
            check: false,
            exclude: None,
            touched: None,
            timeout: Duration::from_secs(60),
            progress: &|_| {},
        }
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Length of the file.
    pub bytes: u64,
    /// What the image has and the file has not.
    pub lost: Lost,
    /// What the file was to have not.
    pub left_out: LeftOut,
    /// Why part of that is not there: nobody had read it.
    pub untouched: Option<Summary>,
    /// What was compared, if that was asked for.
    pub checked: Option<Checked>,
}

/// Why there is no SIF. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The file cannot be where it should be.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The directory cannot be written.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The words are the system's; scripts look for them.
    #[error("{out:?}: no space left on device")]
    Full {
        /// The file.
        out: PathBuf,
    },
    /// The root file system cannot be written.
    #[error("{out:?}: packing failed")]
    Squashfs {
        /// The file.
        out: PathBuf,
        /// Why.
        #[source]
        source: SquashfsError,
    },
    /// The result is not what it should be.
    #[error("{out:?}: not written")]
    Check {
        /// The file.
        out: PathBuf,
        /// What is wrong.
        #[source]
        source: CheckError,
    },
    /// Something else cannot be read or written.
    #[error("{out:?}: packing failed")]
    Io {
        /// The file.
        out: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What happens inside, before it is known whose fault it is.
#[derive(Debug)]
enum Failure {
    Io(io::Error),
    Squashfs(SquashfsError),
    Check(CheckError),
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        Self::Io(err)
    }
}

impl Failure {
    fn at(self, out: &Path) -> PackError {
        let out = out.to_owned();
        let is_full = |err: &io::Error| {
            matches!(
                err.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        match self {
            Self::Io(err) if is_full(&err) => PackError::Full { out },
            Self::Squashfs(SquashfsError::Write(err)) if is_full(&err) => PackError::Full { out },
            Self::Check(source) => PackError::Check { out, source },
            Self::Io(source) => PackError::Io { out, source },
            Self::Squashfs(source) => PackError::Squashfs { out, source },
        }
    }
}

/// Packs an opened image, whose configuration is `config`, into the SIF `out`.
pub fn compact(
    image: &Image,
    config: &ImageConfig,
    origin: &Origin,
    out: &Path,
    options: Options<'_>,
) -> Result<Report, PackError> {
    let failed = |source| Failure::Io(source).at(out);
    let source = TreeSource::new(image, options.timeout);
    let layers = image
        .tree()
        .layers()
        .map_err(|err| failed(io::Error::other(err)))?;
    let config = Config::of(config).map_err(failed)?;
    let kept = kept(&source, origin).map_err(failed)?;
    packed(&source, &layers, &config, origin, kept, out, options)
}

/// The scripts and labels that an image from a SIF keeps.
fn kept(source: &TreeSource<'_>, origin: &Origin) -> io::Result<Option<Texts>> {
    match origin.is_file() {
        true => Texts::kept(|path| source.text(path)),
        false => Ok(None),
    }
}

/// The texts that a SIF of an opened image has: its own, if it comes from a file that Singularity made.
pub fn texts(
    image: &Image,
    config: &ImageConfig,
    origin: &Origin,
    timeout: Duration,
) -> io::Result<Texts> {
    let source = TreeSource::new(image, timeout);
    match kept(&source, origin)? {
        Some(texts) => Ok(texts),
        None => Texts::new(&Config::of(config)?, origin),
    }
}

/// Unpacks an opened image, whose configuration is `config`, with all that Singularity needs into the directory `out`.
pub fn unpack(
    image: &Image,
    config: &ImageConfig,
    origin: &Origin,
    out: &Path,
    options: Options<'_>,
) -> Result<Withheld, PackError> {
    let failed = |source| Failure::Io(source).at(out);
    let source = TreeSource::new(image, options.timeout);
    let config = Config::of(config).map_err(failed)?;
    let kept = kept(&source, origin).map_err(failed)?;
    unpacked(&source, &config, origin, kept, out, options)
}

/// Copies a directory of this machine into the directory `out`, with all that Singularity needs; see [`pack_directory`].
pub fn copy_directory(
    source: &DirectorySource,
    config: &Config,
    origin: &Origin,
    out: &Path,
    options: Options<'_>,
) -> Result<Withheld, PackError> {
    let (config, kept) = about_directory(source, config, out)?;
    unpacked(source, &config, origin, kept, out, options)
}

fn unpacked(
    source: &dyn Source,
    config: &Config,
    origin: &Origin,
    kept: Option<Texts>,
    out: &Path,
    options: Options<'_>,
) -> Result<Withheld, PackError> {
    let failed = |source| Failure::Io(source).at(out);
    let additions = match kept {
        Some(_) => Ok(Vec::new()),
        None => Texts::new(config, origin)
            .and_then(|texts| texts.additions(&|path| source.standing(path))),
    };
    let created = Timestamp {
        secs: options.created.unwrap_or(config.created),
        nanos: 0,
    };
    let contents = Contents::new(source, additions.map_err(failed)?, created);
    Ok(sandbox::unpack(
        &contents,
        out,
        options.overwrite,
        &options.progress,
    )?)
}

/// Packs a directory of this machine into the SIF `out`. One that Singularity made, and perhaps somebody changed, keeps its
/// scripts, variables and labels; any other gets what a root file system without a configuration gets.
pub fn pack_directory(
    source: &DirectorySource,
    config: &Config,
    origin: &Origin,
    out: &Path,
    options: Options<'_>,
) -> Result<Report, PackError> {
    let (config, kept) = about_directory(source, config, out)?;
    let new = NewFile::beside(out, options.overwrite)?;
    let identity = [source.identity()];
    let report = write(
        source,
        &identity,
        &config,
        origin,
        kept,
        new.file(),
        options,
    )
    .map_err(|failure| failure.at(out))?;
    new.publish()?;
    Ok(report)
}

/// When what is added to a directory's files is dated, and what Singularity needs that is in it already.
fn about_directory(
    source: &DirectorySource,
    config: &Config,
    out: &Path,
) -> Result<(Config, Option<Texts>), PackError> {
    let config = Config {
        created: source.changed(),
        ..config.clone()
    };
    let kept = Texts::kept(|path| source.text(path)).map_err(|err| Failure::Io(err).at(out))?;
    Ok((config, kept))
}

/// Whether a file could be written as `out`, before work is done that would be for nothing.
pub fn check_place(out: &Path, overwrite: bool) -> Result<(), PackError> {
    NewFile::beside(out, overwrite)?;
    Ok(())
}

/// Changes a file by `change`, which gets a copy of it; that takes the file's place, with its permissions, when it is whole.
pub fn with_copy<E: From<PlaceError> + From<io::Error>>(
    path: &Path,
    change: impl FnOnce(&File) -> Result<(), E>,
) -> Result<(), E> {
    let mut original = File::open(path)?;
    let permissions = original.metadata()?.permissions();
    let new = NewFile::beside(path, true)?;
    let mut copy = new.file();
    io::copy(&mut original, &mut copy)?;
    change(copy)?;
    copy.set_permissions(permissions)?;
    Ok(new.publish()?)
}

/// Packs `source` into the SIF `out`. The bytes depend on the image (its files, configuration, origin and
/// `identity`), the options and our format's version. The file appears under its name when it is whole.
pub fn pack(
    source: &dyn Source,
    identity: &[Digest],
    config: &Config,
    origin: &Origin,
    out: &Path,
    options: Options<'_>,
) -> Result<Report, PackError> {
    packed(source, identity, config, origin, None, out, options)
}

fn packed(
    source: &dyn Source,
    identity: &[Digest],
    config: &Config,
    origin: &Origin,
    kept: Option<Texts>,
    out: &Path,
    options: Options<'_>,
) -> Result<Report, PackError> {
    let new = NewFile::beside(out, options.overwrite)?;
    let report = write(source, identity, config, origin, kept, new.file(), options)
        .map_err(|failure| failure.at(out))?;
    new.publish()?;
    Ok(report)
}

fn write(
    source: &dyn Source,
    identity: &[Digest],
    config: &Config,
    origin: &Origin,
    kept: Option<Texts>,
    file: &File,
    options: Options<'_>,
) -> Result<Report, Failure> {
    let config = Config {
        created: options.created.unwrap_or(config.created),
        ..config.clone()
    };
    let nothing = Patterns::default();
    let excluded = options.exclude.unwrap_or(&nothing);
    let mut without = Without::new(source, excluded);
    if let Some(touched) = options.touched {
        let kept = Kept::of(&without, touched, &config)?;
        without = without.only(kept);
    }
    let untouched = without.kept().map(|kept| kept.summary.clone());
    let source: &dyn Source = match (options.exclude, options.touched) {
        (None, None) => source,
        _ => &without,
    };
    let (texts, additions) = match kept {
        Some(texts) => (texts, Vec::new()),
        None => {
            let texts = Texts::new(&config, origin)?;
            let additions = texts.additions(&|path| source.standing(path))?;
            (texts, additions)
        }
    };
    let metadata = texts.inspect_metadata();
    let oci_config = config.oci_config.to_string().into_bytes();
    let provenance = origin.provenance(options.compression, options.exclude, untouched.as_ref());
    let created = Timestamp {
        secs: config.created,
        nanos: 0,
    };
    let mut sif = sif::Writer::new(
        file,
        sif::Identity {
            uuid: uuid(
                identity,
                options.compression,
                &[&metadata, &oci_config, &provenance],
            ),
            created: config.created,
            architecture: config.architecture.clone(),
        },
    );
    sif.deffile(&texts.deffile)?;
    sif.json("inspect-metadata.json", &metadata)?;
    sif.json("oci-config.json", &oci_config)?;
    sif.json("sifon.json", &provenance)?;
    let (mut lost, mut begins_at) = (Lost::default(), 0);
    let contents = Contents::new(source, additions, created);
    sif.partition(|file, at| {
        let settings = squashfs::Settings {
            compression: options.compression,
            created: config.created,
            progress: options.progress,
        };
        let written = squashfs::write(&contents, file, at, settings).map_err(Failure::Squashfs)?;
        (lost, begins_at) = (written.lost, at);
        Ok::<_, Failure>(written.len)
    })?;
    let bytes = sif.finish()?;
    let left_out = without.left_out();
    let checked = options
        .check
        .then(|| check::check(&contents, file, begins_at))
        .transpose()
        .map_err(Failure::Check)?;
    Ok(Report {
        bytes,
        lost,
        left_out,
        untouched,
        checked,
    })
}

/// A name for what is packed: a hash of everything it is made from, as a UUID of version 8 (RFC 9562, 5.8).
fn uuid(identity: &[Digest], compression: Compression, texts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = Hasher::default();
    hasher.update(&FORMAT_VERSION.to_le_bytes());
    hasher.update(compression.to_string().as_bytes());
    for digest in identity {
        hasher.update(digest.as_bytes());
    }
    for text in texts {
        hasher.update(Digest::of(text).as_bytes());
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hasher.finish().as_bytes()[..16]);
    uuid[6] = 0x80 | uuid[6] & 0x0f;
    uuid[8] = 0x80 | uuid[8] & 0x3f;
    uuid
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::BufReader;

    use serde_json::json;

    use super::node::PackKind;
    use super::sample::Sample;
    use super::*;

    fn config() -> Config {
        Config {
            architecture: "amd64".into(),
            created: 1_700_000_000,
            cmd: vec!["/bin/sh".into()],
            oci_config: json!({"Cmd": ["/bin/sh"]}),
            ..Config::default()
        }
    }

    fn origin() -> Origin {
        Origin {
            bootstrap: "docker".into(),
            from: "busybox".into(),
            manifest: None,
        }
    }

    fn packed(source: &Sample, out: &Path, options: Options<'_>) -> Result<Report, PackError> {
        pack(
            source,
            &[Digest::of(b"layer")],
            &config(),
            &origin(),
            out,
            options,
        )
    }

    fn image() -> Sample {
        Sample::new().directory("bin").file("bin/sh", b"\x7fELF")
    }

    #[test]
    fn a_packed_image_is_a_sif_with_everything_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("x.sif");
        let report = packed(&image(), &out, Options::default()).unwrap();
        let bytes = fs::read(&out).unwrap();
        assert_eq!(report.bytes, bytes.len() as u64);

        let sif = sif::Sif::open(File::open(&out).unwrap()).unwrap();
        assert_eq!((sif.created, sif.objects.len()), (1_700_000_000, 5));
        let object = sif.named(sif::ObjectKind::GenericJson, "oci-config.json");
        let object = object.unwrap();
        let text = &bytes[object.at as usize..(object.at + object.len) as usize];
        assert_eq!(text, br#"{"Cmd":["/bin/sh"]}"#);

        let partition = sif.primary_partition().unwrap();
        let file = BufReader::new(File::open(&out).unwrap());
        let reader = backhand::FilesystemReader::from_reader_with_offset(file, partition.at);
        let reader = reader.unwrap();
        let paths: Vec<_> = reader.files().map(|node| node.fullpath.clone()).collect();
        for path in ["/bin/sh", "/.singularity.d/runscript", "/etc/resolv.conf"] {
            assert!(paths.contains(&path.into()), "{path}");
        }
    }

    #[test]
    fn the_same_image_and_options_give_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = |name, options| {
            let out = directory.path().join(name);
            packed(&image(), &out, options).unwrap();
            fs::read(out).unwrap()
        };
        let first = bytes("1", Options::default());
        assert!(first == bytes("2", Options::default()));
        let dated = Options {
            created: Some(5),
            ..Options::default()
        };
        assert!(first != bytes("3", dated));
        assert!(bytes("4", dated) == bytes("5", dated));
        let gzip = Options {
            compression: Compression::Gzip(6),
            ..Options::default()
        };
        assert!(first[48..64] != bytes("6", gzip)[48..64]);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let content = node::Content::InImage(99);
        let broken = image().with("broken", PackKind::Regular { size: 9, content });
        let out = directory.path().join("x.sif");
        let err = packed(&broken, &out, Options::default()).unwrap_err();
        assert_eq!(err.to_string(), format!("{out:?}: packing failed"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_is_said_to_be_full() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let options = Options::default();
        let failure = write(&image(), &[], &config(), &origin(), None, &full, options).unwrap_err();
        let err = failure.at(Path::new("x.sif"));
        assert_eq!(err.to_string(), "\"x.sif\": no space left on device");
    }

    #[test]
    fn a_uuid_has_its_version() {
        let uuid = uuid(&[], Compression::default(), &[]);
        assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2));
    }
}
