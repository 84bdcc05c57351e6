//! The process that shows images to programs; see [`crate::container::server`].

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, Weak};

use sifon_mount::image::history::{History, Plan};
use sifon_mount::image::open::{ForPrograms, OnProgress, identify, open_for_programs};
use sifon_mount::reference::Reference;
use sifon_mount::source::Source;
use sifon_mount::store::{Settings as StoreSettings, Store};
use sifon_mount::sys::memory::keep_one_heap;
use tracing::Level;

use super::mount::with_singularitys_layer;
use super::stats;
use crate::container::client::KIND;
use crate::container::environment::Variables;
use crate::container::images::{Images, Opening, Refusal, Shown};
use crate::container::meeting::Group;
use crate::container::scripts;
use crate::container::server::{self, Inside, Serving};
use crate::container::wire::{Ready, Request};
use crate::output::{Lines, Output, Verbosity};
use crate::setting::{Error, Settings, environment, require_own};

/// The hidden verb of this process.
pub const VERB: &str = "serve-images";

/// The kind of server in whose user namespace the caller is root, and alone.
pub const ROOT_INSIDE: &str = "root";

/// The kind in whose user namespace the caller is root, with numbers for other users.
pub const ROOT_AND_OTHERS: &str = "root and others";

/// A log longer than this begins anew.
const LOG_BYTES_LIMIT: u64 = 1 << 20;

/// Serves images until nobody needs them; to be called in the first lines of the process.
pub fn run() -> ExitCode {
    match server::begin().and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!("server: {err}");
            ExitCode::from(255)
        }
    }
}

fn serve(listener: UnixListener) -> io::Result<()> {
    keep_one_heap();
    let kind = std::env::var(KIND).unwrap_or_default();
    let group = Group::of_caller(&kind)?;
    let log =
        log_directory().map(|directory| directory.join(format!("{}.log", group.short_name())));
    let sink = Arc::new(Log {
        path: log.clone(),
        file: Mutex::default(),
        openings: Mutex::default(),
    });
    Output::to(Arc::clone(&sink) as Arc<dyn Lines>);
    let images = StoredImages {
        stores: Mutex::default(),
        asked: Mutex::default(),
        log: sink,
    };
    let serving = Serving {
        images: Box::new(images),
        log,
        job: group.job,
        inside: match kind.as_str() {
            ROOT_INSIDE => Inside::Root,
            ROOT_AND_OTHERS => Inside::RootAndOthers,
            _ => Inside::Caller,
        },
    };
    server::serve(listener, serving)
}

/// Images from registries and directories, through the stores that clients name.
struct StoredImages {
    stores: Mutex<HashMap<String, Arc<Store>>>,
    asked: Mutex<Option<Asked>>,
    log: Arc<Log>,
}

/// A place with connections and permissions from asking what a name means.
struct Asked {
    image: OsString,
    settings: serde_json::Value,
    source: Source,
}

impl StoredImages {
    /// One for all who name it in the same way, so that they share what it has in memory.
    fn store(&self, settings: &StoreSettings) -> Result<(String, Arc<Store>), Error> {
        let name = serde_json::to_string(settings)?;
        let mut stores = self.stores.lock().expect("opening a store does not panic");
        let store = stores
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Store::open(settings)));
        Ok((name, Arc::clone(store)))
    }

    fn key_of(&self, request: &Request) -> Result<String, Error> {
        let settings: Settings = serde_json::from_value(request.settings.clone())?;
        let (name, store) = self.store(&settings.store)?;
        let reference = Reference::parse(&request.image)?;
        let (manifest, source) = identify(&reference, &settings.open, &store)?;
        *self.asked.lock().expect("setting does not panic") = source.map(|source| Asked {
            image: request.image.clone(),
            settings: request.settings.clone(),
            source,
        });
        let form = if request.is_bare { "bare " } else { "" };
        Ok(format!("{form}{manifest} {name}"))
    }

    /// The place that was asked last, if that was for this request.
    fn asked_for(&self, request: &Request) -> Option<Source> {
        let mut asked = self.asked.lock().expect("taking does not panic");
        let is_same =
            |asked: &mut Asked| asked.image == request.image && asked.settings == request.settings;
        asked.take_if(is_same).map(|asked| asked.source)
    }

    fn opened(&self, request: &Request, opening: &Arc<Opening>) -> Result<Shown, Error> {
        let settings: Settings = serde_json::from_value(request.settings.clone())?;
        self.log.tell_also(opening, settings.verbosity);
        let (_, store) = self.store(&settings.store)?;
        let reference = Reference::parse(&request.image)?;
        let told = Arc::clone(opening);
        let progress: OnProgress = Arc::new(move |step| told.step(&step));
        let timeout = settings.open.registry.timeout;
        let opened = with_singularitys_layer(&reference, |on_top| {
            let with = ForPrograms {
                on_top: (!request.is_bare).then_some(on_top),
                source: self.asked_for(request),
                program: request.program.clone().map(OsString::into_vec),
            };
            open_for_programs(&reference, &settings.open, &store, &progress, with)
        })?;
        if let Err(err) = &opened.has_layer_on_top {
            tracing::warn!("{reference}: /.singularity.d is left out: {err}");
        }
        let plan = Plan {
            records_profile: !settings.open.no_profile,
            completes: false,
        };
        let history = History::begin(&opened, &reference.to_string(), &store, plan);
        let config = &opened.description.config;
        let bytes = |words: &[String]| words.iter().map(|word| word.clone().into_bytes()).collect();
        let lines = config.env.iter();
        let mut environment: Variables = lines.filter_map(|line| split(line.as_bytes())).collect();
        if reference.is_file_system() {
            environment = scripts::of_image(&opened.image, environment, timeout);
        }
        let about = Ready {
            targets: Vec::new(),
            environment,
            entrypoint: bytes(&config.entrypoint),
            command: bytes(&config.cmd),
            working_directory: config.working_dir.clone().into_bytes(),
            user: config.user.clone().into_bytes(),
            has_own_scripts: matches!(opened.has_layer_on_top, Ok(false)),
        };
        Ok(Shown {
            image: Arc::clone(&opened.image),
            timeout,
            name: reference.to_string(),
            digest: opened.description.manifest_digest.to_string(),
            about,
            answers: stats::answers(history.teller()),
            kept: Box::new((history, opened.lease, store)),
        })
    }
}

impl Images for StoredImages {
    fn key(&self, request: &Request) -> Result<String, Refusal> {
        self.key_of(request).map_err(refusal)
    }

    fn open(&self, request: &Request, opening: &Arc<Opening>) -> Result<Shown, Refusal> {
        self.opened(request, opening).map_err(refusal)
    }
}

fn refusal(error: Error) -> Refusal {
    Refusal::new(&*error, super::hint(&error))
}

/// `NAME=VALUE` as an image's configuration writes it; a name alone has an empty value.
fn split(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut parts = line.splitn(2, |&byte| byte == b'=');
    let name = parts.next().filter(|name| !name.is_empty())?;
    Some((name.to_vec(), parts.next().unwrap_or_default().to_vec()))
}

/// Messages of the server: warnings go to a file, which is made when there is one; those who wait for an image get what they
/// would see if it were opened before their eyes.
struct Log {
    path: Option<PathBuf>,
    file: Mutex<Option<File>>,
    openings: Mutex<Vec<(Weak<Opening>, Verbosity)>>,
}

impl Log {
    fn tell_also(&self, opening: &Arc<Opening>, verbosity: Verbosity) {
        let mut openings = self.openings.lock().expect("pushing does not panic");
        openings.retain(|(opening, _)| opening.strong_count() > 0);
        openings.push((Arc::downgrade(opening), verbosity));
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let mut file = self.file.lock().expect("writing does not panic");
        if file.is_none() {
            *file = Some(opened_log(path)?);
        }
        match &mut *file {
            Some(file) => file.write_all(text.as_bytes()),
            None => Ok(()),
        }
    }
}

impl Lines for Log {
    fn line(&self, level: Level, text: &str) {
        if level <= Level::WARN {
            // Nobody is left to be told that the log cannot be written.
            let _ = self.write(text);
        }
        let openings = self
            .openings
            .lock()
            .expect("telling does not panic")
            .clone();
        for (opening, verbosity) in openings {
            let shown = match verbosity {
                Verbosity::Quiet => Level::ERROR,
                Verbosity::Normal => Level::INFO,
                Verbosity::Verbose | Verbosity::Debug => Level::DEBUG,
            };
            if level <= shown
                && let Some(opening) = opening.upgrade()
            {
                opening.message(text);
            }
        }
    }
}

fn opened_log(path: &Path) -> io::Result<File> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    require_own(directory)?;
    let mut options = OpenOptions::new();
    options
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    let file = options.open(path)?;
    if file.metadata()?.len() > LOG_BYTES_LIMIT {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Where logs lie: below the directory that the login made, or in one of our own in /tmp.
fn log_directory() -> Option<PathBuf> {
    let login = environment(&["XDG_RUNTIME_DIR"])
        .map(PathBuf::from)
        .filter(|directory| require_own(directory).is_ok())
        .map(|directory| directory.join("sifon"));
    let uid = rustix::process::geteuid().as_raw();
    Some(login.unwrap_or_else(|| PathBuf::from(format!("/tmp/sifon-{uid}"))))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_log_is_written_only_where_nobody_else_can_put_one() {
        let scratch = tempfile::tempdir().unwrap();
        let own = scratch.path().join("own");
        assert!(opened_log(&own.join("a.log")).is_ok());
        fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(opened_log(&own.join("b.log")).is_err());
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&own, scratch.path().join("link")).unwrap();
        assert!(opened_log(&scratch.path().join("link/c.log")).is_err());
        std::os::unix::fs::symlink("/etc/passwd", own.join("d.log")).unwrap();
        assert!(opened_log(&own.join("d.log")).is_err());
    }

    #[test]
    fn a_long_log_begins_anew() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("own/a.log");
        opened_log(&path)
            .unwrap()
            .set_len(LOG_BYTES_LIMIT + 1)
            .unwrap();
        assert_eq!(opened_log(&path).unwrap().metadata().unwrap().len(), 0);
    }
}
