//! Apps of an image: directories below `/scif/apps`, each with programs, variables and a script of its own
//! (<https://sci-f.github.io>). To be called inside the container.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::environment::Variables;
use super::error::Error;
use super::scripts;

/// The image's variables `of_image` with those of `app`, if one was chosen, which must be there.
pub fn environment(app: Option<&OsStr>, of_image: &Variables) -> Result<Variables, Error> {
    match app {
        Some(app) => Ok(with_app(app, &place(app)?, of_image)),
        None => Ok(of_image.clone()),
    }
}

/// What `run` starts for `app`.
pub fn runscript(app: &OsStr) -> Result<PathBuf, Error> {
    let script = place(app)?.join("scif/runscript");
    match script.is_file() {
        true => Ok(script),
        false => Err(Error::Refused(format!(
            "app {}: the image has nothing that it runs ({})",
            app.display(),
            script.display()
        ))),
    }
}

/// What an instance of `app` begins with, if it has anything for that.
pub fn startscript(app: &OsStr) -> Result<Option<PathBuf>, Error> {
    let script = place(app)?.join("scif/startscript");
    Ok(script.is_file().then_some(script))
}

fn place(app: &OsStr) -> Result<PathBuf, Error> {
    let place = Path::new("/scif/apps").join(app);
    let is_name = Path::new(app).file_name() == Some(app);
    match is_name && place.is_dir() {
        true => Ok(place),
        false => Err(Error::Refused(format!(
            "the image has no app {} in /scif/apps",
            app.display()
        ))),
    }
}

fn with_app(app: &OsStr, place: &Path, of_image: &Variables) -> Variables {
    let mut variables = of_image.clone();
    let mut set = |name: &str, value: Vec<u8>| {
        variables.retain(|(known, _)| known != name.as_bytes());
        variables.push((name.into(), value));
    };
    let data = Path::new("/scif/data").join(app);
    let bytes = |path: PathBuf| path.as_os_str().as_bytes().to_vec();
    for (name, value) in [
        ("SCIF_APPS", PathBuf::from("/scif/apps")),
        ("SCIF_DATA", PathBuf::from("/scif/data")),
        ("SCIF_APPNAME", PathBuf::from(app)),
        ("SCIF_APPROOT", place.to_owned()),
        ("SCIF_APPBIN", place.join("bin")),
        ("SCIF_APPLIB", place.join("lib")),
        ("SCIF_APPMETA", place.join("scif")),
        ("SCIF_APPENV", place.join("scif/env/90-environment.sh")),
        ("SCIF_APPLABELS", place.join("scif/labels.json")),
        ("SCIF_APPRUN", place.join("scif/runscript")),
        ("SCIF_APPDATA", data.clone()),
        ("SCIF_APPINPUT", data.join("input")),
        ("SCIF_APPOUTPUT", data.join("output")),
    ] {
        set(name, bytes(value));
    }
    for (list, directory) in [("PATH", "bin"), ("LD_LIBRARY_PATH", "lib")] {
        let known = of_image.iter().find(|(name, _)| name == list.as_bytes());
        let mut first = bytes(place.join(directory));
        if let Some((_, rest)) = known.filter(|(_, rest)| !rest.is_empty()) {
            first.push(b':');
            first.extend_from_slice(rest);
        }
        set(list, first);
    }
    let scripts = scripts::in_directory(&place.join("scif/env"));
    scripts::exported(&variables, scripts.iter().map(Vec::as_slice))
}
