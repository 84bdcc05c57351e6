//! What a user has set, resolved once: flags, then environment variables, then defaults.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use sifon_mount::image::open::{
    Description, ForPrograms, OnProgress, OnTop, Opened, Options, open, open_for_programs,
};
use sifon_mount::image::outlook::{Outlook, describe};
use sifon_mount::reference::Reference;
use sifon_mount::store::{self, Store};

use crate::output::{Output, Verbosity};

/// Any error; it is printed with its causes and not matched.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Everything that a command and the processes it starts need to know. It travels to them through a pipe, since it
/// may hold a password.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Settings {
    /// Where bytes are kept.
    pub store: store::Settings,
    /// How images are found.
    pub open: Options,
    /// How much is said.
    pub verbosity: Verbosity,
}

impl Settings {
    /// The same for an image of which nothing is worth keeping: what it takes for a while is in files without names.
    pub fn keeping_nothing(&self) -> Self {
        let mut settings = self.clone();
        // Programs start also where $TMPDIR leads nowhere.
        let directory = Some(std::env::temp_dir()).filter(|directory| directory.is_dir());
        settings.store.nothing_kept = Some(directory.unwrap_or_else(|| "/tmp".into()));
        settings
    }
}

/// What a command works with.
pub struct Context {
    /// What the user has set.
    pub settings: Settings,
    /// Where messages go.
    pub output: Output,
    store: OnceLock<Arc<Store>>,
}

impl Context {
    /// A context for this process.
    pub fn new(settings: Settings) -> Self {
        let output = Output::start(settings.verbosity);
        Self {
            settings,
            output,
            store: OnceLock::new(),
        }
    }

    /// The store, opened on first use.
    pub fn store(&self) -> &Arc<Store> {
        self.store
            .get_or_init(|| Arc::new(Store::open(&self.settings.store)))
    }

    /// Opens an image; progress is shown on a terminal.
    pub fn open(&self, reference: &Reference) -> Result<Opened, Error> {
        let (options, progress) = (&self.settings.open, self.output.progress());
        Ok(open(reference, options, self.store(), &progress)?)
    }

    /// Opens an image that programs will see, with a layer of ours on top; `progress` is told how far that is.
    pub fn open_for_programs(
        &self,
        reference: &Reference,
        progress: &OnProgress,
        on_top: Option<&OnTop<'_>>,
    ) -> Result<Opened, Error> {
        Ok(open_for_programs(
            reference,
            &self.settings.open,
            self.store(),
            progress,
            ForPrograms {
                on_top,
                source: None,
                program: None,
            },
        )?)
    }

    /// What an image says of itself and how its layers would be read, without reading one.
    pub fn outlook(&self, reference: &Reference) -> Result<(Description, Vec<Outlook>), Error> {
        Ok(describe(reference, &self.settings.open, self.store())?)
    }
}

/// The image that a user means; its path, if it has one, no longer depends on the current directory.
pub fn parsed(text: &OsStr) -> Result<Reference, Error> {
    match image_or_directory(text)? {
        Reference::Directory(path) => {
            let path = path.display();
            Err(format!(
                "{path}: it is a directory already: `sifon exec {path} PROGRAM` runs programs in it as it is, `sifon build FILE.sif \
                 {path}` packs it"
            )
            .into())
        }
        image => Ok(image),
    }
}

/// The same for those who run programs: a directory will do, too.
pub fn image_or_directory(text: &OsStr) -> Result<Reference, Error> {
    let is_file = || fs::metadata(text).is_ok_and(|found| found.is_file());
    let mut reference = match Reference::parse(text) {
        Err(_) if is_file() => Reference::File(text.into()),
        Err(_) | Ok(Reference::File(_)) if Path::new(text).is_dir() => {
            Reference::Directory(text.into())
        }
        parsed => parsed?,
    };
    match &mut reference {
        Reference::OciLayout {
            directory: path, ..
        }
        | Reference::OciArchive { file: path, .. }
        | Reference::DockerArchive { file: path, .. }
        | Reference::File(path) => *path = std::path::absolute(&path)?,
        Reference::Directory(path) => {
            let shown = path.display();
            fs::read_dir(&path).map_err(|err| format!("image {shown}: {err}"))?;
            // Without a slash at the end.
            *path = std::path::absolute(&path)?.components().collect();
        }
        Reference::Registry(_)
        | Reference::DockerDaemon { .. }
        | Reference::Oras(_)
        | Reference::Web(_) => {}
    }
    Ok(reference)
}

/// The first of the variables that is set and not empty.
pub fn environment(names: &[&str]) -> Option<OsString> {
    names
        .iter()
        .find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

/// Yes or no, as Go's `strconv.ParseBool` reads it; `None` for anything else.
pub fn flag(value: &OsStr) -> Option<bool> {
    match value.to_str()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Where the store is when no flag says so: `$SIFON_STORE`, beside Singularity's cache, or in the user's.
pub fn default_store() -> PathBuf {
    if let Some(store) = environment(&["SIFON_STORE"]) {
        return store.into();
    }
    if let Some(cache) = environment(&["APPTAINER_CACHEDIR", "SINGULARITY_CACHEDIR"]) {
        return PathBuf::from(cache).join("sifon");
    }
    let cache = environment(&["XDG_CACHE_HOME"]).map(PathBuf::from);
    let cache = cache.filter(|cache| cache.is_absolute());
    let home = || environment(&["HOME"]).map(|home| PathBuf::from(home).join(".cache"));
    cache
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("sifon")
}

/// Makes `directory` if need be; fails if it is a link, or somebody else's, or others can write there.
pub fn require_own(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
        _ => {}
    }
    let found = fs::symlink_metadata(directory)?;
    let is_own = found.uid() == rustix::process::geteuid().as_raw();
    if found.is_dir() && is_own && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("{}: not this user's own directory", directory.display()),
    ))
}

/// A number of bytes as people write it: `500M`, `10G`, `1.5T`, in powers of 1000, or plain.
pub fn byte_count(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let factor: f64 = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "K" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        "T" | "TB" => 1e12,
        unit => return Err(format!("unknown unit {unit:?}: use K, M, G or T")),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is no number of bytes"))?;
    if !(0.0..1e18).contains(&(number * factor)) {
        return Err(format!("{text:?} is out of range"));
    }
    Ok((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("12", 12),
            ("1.5K", 1500),
            ("10g", 10_000_000_000),
        ] {
            assert_eq!(byte_count(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "-1", "1X", "1e30", "nan"] {
            assert!(byte_count(text).is_err(), "{text}");
        }
    }
}
