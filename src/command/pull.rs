//! `sifon pull`: an image as a SIF file under the name that Singularity gives it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sifon_mount::blob::BlobError;
use sifon_mount::reference::Reference;
use sifon_mount::registry::Platform;
use sifon_mount::source::elsewhere::remote_file;

use super::compact::{Packing, packed, unpacked};
use crate::output::bytes;
use crate::pack::verbatim::{CopyOptions, copy};
use crate::pack::{Compression, check_place};
use crate::setting::{Context, Error, Settings, environment, flag, parsed};

/// Download an image as a SIF file
///
/// What is a file already, at oras:// or https://, is copied as it is. Without a name the file is called NAME_TAG.sif, as in python_3.11.sif. It appears when it is whole. What was
/// downloaded is kept in the store, so that a pull that was interrupted goes on where it stood.
/// Options may also come as $APPTAINER_… or $SINGULARITY_… variables, as Singularity reads them.
#[derive(Debug, clap::Args)]
#[command(override_usage = "sifon pull [OPTIONS] [FILE] IMAGE")]
pub struct Args {
    /// The file to write, which may be left out, and the image, such as docker://python:3.11
    #[arg(required = true, num_args = 1..=2, value_name = "FILE> <IMAGE")]
    file_and_image: Vec<OsString>,
    /// Replace the file if it exists
    #[arg(short = 'F', long)]
    force: bool,
    /// Where to put the file
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// What to call the file
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    name: Option<PathBuf>,
    /// Keep nothing but the file, and take nothing from the store
    #[arg(long)]
    disable_cache: bool,
    /// Where to put what --disable-cache needs meanwhile [default: beside the file]
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    tmpdir: Option<PathBuf>,
    /// How to compress: zstd, gzip, xz, lz4 or none, with a level as in zstd:19
    #[arg(long, value_name = "NAME[:LEVEL]", default_value_t)]
    compression: Compression,
    /// Unpack into a directory instead, which `exec` takes as an image
    #[arg(long)]
    sandbox: bool,
    /// Taken for Singularity's sake: nothing here is refused for want of a signature
    #[arg(short = 'U', long, alias = "allow-unauthenticated", hide = true)]
    allow_unsigned: bool,
}

/// The first of Singularity's variables with one of these names that is set, whatever prefix it has.
fn variable(suffixes: &[&str]) -> Option<OsString> {
    ["SIFON", "APPTAINER", "SINGULARITY"]
        .iter()
        .find_map(|prefix| {
            let mut names = suffixes.iter().map(|suffix| format!("{prefix}_{suffix}"));
            names.find_map(|name| environment(&[&name]))
        })
}

/// Whether one of these variables says yes, in one of the ways in which Go reads that.
pub(super) fn is_set(suffixes: &[&str]) -> bool {
    variable(suffixes).is_some_and(|value| flag(&value).unwrap_or(false))
}

impl Args {
    /// What this command's options, and variables, say about the settings of all. `has_arch` tells that --arch was given: then
    /// the variable for it says nothing.
    pub fn amend(&self, settings: &mut Settings, has_arch: bool) {
        let text = |name| variable(&[name]).and_then(|text| text.into_string().ok());
        if let Some(architecture) = text("PULL_ARCH").filter(|_| !has_arch) {
            let variant = text("PULL_ARCH_VARIANT");
            settings.open.registry.platform = Platform::linux(&architecture, variant.as_deref());
        }
        settings.open.registry.plain_http |= is_set(&["NOHTTPS", "NO_HTTPS"]);
        if self.disable_cache || is_set(&["DISABLE_CACHE"]) {
            let tmpdir = self
                .tmpdir
                .clone()
                .or_else(|| variable(&["TMPDIR"]).map(PathBuf::from));
            let beside = || {
                let file = self.file();
                let directory = file.as_deref().and_then(Path::parent);
                let directory = directory.filter(|directory| *directory != Path::new(""));
                directory.unwrap_or(Path::new(".")).to_owned()
            };
            settings.store.nothing_kept = Some(tmpdir.unwrap_or_else(beside));
        }
    }

    fn image(&self) -> &OsStr {
        self.file_and_image
            .last()
            .map_or(OsStr::new(""), |image| image)
    }

    /// The file to write; `None` if the image has no name that could be a file's.
    fn file(&self) -> Option<PathBuf> {
        let name = match &self.file_and_image[..] {
            [file, _] => PathBuf::from(file),
            _ => match self
                .name
                .clone()
                .or_else(|| variable(&["PULL_NAME"]).map(PathBuf::from))
            {
                Some(name) => name,
                None => PathBuf::from(default_name(self.image())?),
            },
        };
        let directory = self.dir.clone();
        let directory =
            directory.or_else(|| variable(&["PULLDIR", "PULLFOLDER"]).map(PathBuf::from));
        Some(match directory {
            // In front of an absolute name, too, as Singularity does it.
            Some(directory) => directory.join(name.strip_prefix("/").unwrap_or(&name)),
            None => name,
        })
    }
}

/// Pulls.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let reference = parsed(args.image())?;
    let file = args
        .file()
        .ok_or_else(|| format!("{reference}: say what to call the file"))?;
    refuse_image_as_file(args)?;
    let packing = Packing {
        force: args.force || is_set(&["FORCE"]),
        compression: args.compression,
        ..Packing::default()
    };
    if args.sandbox || is_set(&["SANDBOX"]) {
        unpacked(context, &reference, &file, packing.force)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Reference::Oras(_) | Reference::Web(_) = reference {
        copied(context, &reference, &file, packing.force)?;
        return Ok(ExitCode::SUCCESS);
    }
    packed(context, &reference, None, &file, &packing)?;
    Ok(ExitCode::SUCCESS)
}

/// The file comes first, as with Singularity, which many expect the other way round.
fn refuse_image_as_file(args: &Args) -> Result<(), Error> {
    let [file, image] = &args.file_and_image[..] else {
        return Ok(());
    };
    match Reference::parse(file) {
        Ok(reference) if !matches!(reference, Reference::File(_)) => {
            let (file, image) = (Path::new(file).display(), Path::new(image).display());
            Err(format!(
                "{file}: is an image, not the name of a file: the file comes first, as in sifon pull {image} {file}"
            )
            .into())
        }
        _ => Ok(()),
    }
}

/// Copies a file on another machine as it is, and says so.
fn copied(
    context: &Context,
    reference: &Reference,
    file: &Path,
    overwrite: bool,
) -> Result<(), Error> {
    check_place(file, overwrite)?;
    let settings = &context.settings.open;
    if settings.offline {
        let object = reference.to_string();
        return Err(BlobError::Offline { object }.into());
    }
    let remote = remote_file(reference, &settings.registry);
    let remote = remote.expect("the reference is that of such a file")?;
    let bar = context.output.bar("downloading", remote.blob.size());
    let wanted = &settings.registry.platform;
    let options = CopyOptions {
        overwrite,
        timeout: settings.registry.timeout,
        connections: settings.registry.connections,
        // Whoever did not ask for an architecture takes what there is.
        architecture: (*wanted != Platform::host()).then_some(&wanted.architecture),
        progress: &|bytes| bar.inc(bytes),
    };
    let len = copy(remote, context.store(), reference, file, &options)?;
    bar.finish_and_clear();
    tracing::info!("{}: {}", file.display(), bytes(len));
    Ok(())
}

/// What Singularity calls the file of an image (its `internal/pkg/util/uri`): the last part of the name and the tag,
/// cut at colons without regard to what they mean; of a file at a web server its own name.
fn default_name(image: &OsStr) -> Option<OsString> {
    if let Ok(Reference::Web(address)) = Reference::parse(image) {
        let name = address.without_query().rsplit('/').next()?;
        let is_name = !matches!(name, "" | "." | "..");
        return is_name.then(|| name.into());
    }
    let bytes = image.as_bytes();
    let colon = bytes.iter().position(|&byte| byte == b':')?;
    let last = bytes[colon + 1..].rsplit(|&byte| byte == b'/').next()?;
    let mut parts = last.split(|&byte| byte == b':');
    let name = parts
        .next()
        .filter(|name| !name.is_empty() && *name != b"." && *name != b"..")?;
    let tag = parts.next().unwrap_or(b"latest");
    Some(OsString::from_vec([name, b"_", tag, b".sif"].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_names_that_singularity_gives_them() {
        for (image, name) in [
            ("docker://docker.io/library/python", "python_latest.sif"),
            ("docker://python", "python_latest.sif"),
            ("docker://a/b:1.2", "b_1.2.sif"),
            ("docker://a/b@sha256:abc", "b@sha256_abc.sif"),
            ("docker://b:1.2@sha256:abc", "b_1.2@sha256.sif"),
            ("docker://127.0.0.1:5000/x/y:z", "y_z.sif"),
            ("oci:DIR/oci", "oci_latest.sif"),
            ("oci:DIR/oci:science", "oci_science.sif"),
            ("docker-archive:/tmp/x.tar", "x.tar_latest.sif"),
            ("docker-daemon:a/b:1", "b_1.sif"),
            ("oras://ghcr.io/a/b", "b_latest.sif"),
            ("oras://127.0.0.1:5000/a/b:1.2", "b_1.2.sif"),
            ("https://h.x/a/b.sif", "b.sif"),
            ("http://h.x:8080/b?key=c/d", "b"),
        ] {
            assert_eq!(default_name(image.as_ref()), Some(name.into()), "{image}");
        }
        for image in [
            "",
            "oci:",
            "oci:/",
            "docker://a/",
            "oci:..",
            "https://h.x/a/",
        ] {
            assert_eq!(default_name(image.as_ref()), None, "{image}");
        }
    }

    fn args(words: &[&str]) -> Args {
        use clap::Parser;

        #[derive(Parser)]
        struct Command {
            #[command(flatten)]
            args: Args,
        }
        let words = [&["pull"], words].concat();
        Command::parse_from(words).args
    }

    #[test]
    fn a_directory_stands_before_every_name() {
        for (words, file) in [
            (&["docker://a/b:1"][..], "b_1.sif"),
            (&["x.sif", "docker://a/b:1"], "x.sif"),
            (&["--dir", "d", "docker://a/b:1"], "d/b_1.sif"),
            (&["--dir", "d", "/tmp/zz.sif", "docker://a"], "d/tmp/zz.sif"),
            (&["--name", "n.sif", "docker://a"], "n.sif"),
        ] {
            assert_eq!(args(words).file(), Some(file.into()), "{words:?}");
        }
    }

    #[test]
    fn without_a_cache_files_are_made_beside_the_result() {
        let mut settings = Settings::default();
        args(&["--disable-cache", "d/x.sif", "docker://a"]).amend(&mut settings, false);
        assert_eq!(settings.store.nothing_kept, Some("d".into()));
        args(&["--disable-cache", "docker://a"]).amend(&mut settings, false);
        assert_eq!(settings.store.nothing_kept, Some(".".into()));
    }
}
