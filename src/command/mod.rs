//! One file for each verb: what it takes, what it prints. The work is elsewhere.

pub mod build;
pub mod cache;
pub mod compact;
pub mod complete;
pub mod completion;
pub mod demo;
pub mod doctor;
pub mod exec;
mod gpu;
pub mod index;
pub mod inspect;
pub mod instance;
pub mod mount;
pub mod overlay;
pub mod profile;
pub mod program;
pub mod ps;
pub mod pull;
pub mod push;
pub mod registry;
pub mod run;
pub mod serve;
pub mod shell;
pub mod sif;
pub mod sign;
pub mod stats;
pub mod stop;
pub mod umount;
pub mod verify;

use sifon_mount::daemon::UnmountError;
use sifon_mount::fetch::ReadError;
use sifon_mount::image::open::OpenError;
use sifon_mount::image::share::ShareError;
use sifon_mount::reference::ParseReferenceError;

use sifon_mount::blob::BlobError;
use sifon_mount::source::SourceError;

use crate::pack::verbatim::CopyError;
use crate::setting::Error;

/// What the user can do about an error.
pub fn hint(error: &Error) -> Option<String> {
    if let Some(err) = error.downcast_ref::<ParseReferenceError>() {
        return err.hint().map(str::to_owned);
    }
    if let Some(err) = error.downcast_ref::<UnmountError>() {
        return err.hint();
    }
    if let Some(err) = error.downcast_ref::<OpenError>() {
        return err.hint();
    }
    if let Some(err) = error.downcast_ref::<ShareError>() {
        return err.hint();
    }
    if let Some(err) = error.downcast_ref::<SourceError>() {
        return err.hint();
    }
    if let Some(err) = error.downcast_ref::<BlobError>() {
        return err.hint();
    }
    if let Some(err) = error.downcast_ref::<CopyError>() {
        return err.hint();
    }
    program::hint(error)
        .or_else(|| mount::hint(error))
        .or_else(|| compact::hint(error))
        .or_else(|| push::hint(error))
        .or_else(|| demo::hint(error))
        .or_else(|| verify::hint(error))
        .or_else(|| read_hint(&**error))
}

/// What the user can do if bytes of the image did not come, at whatever level that was noticed.
fn read_hint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let carried = error
        .downcast_ref::<std::io::Error>()
        .and_then(|err| err.get_ref()?.downcast_ref::<ReadError>());
    match carried {
        Some(err) => err.hint(),
        None => read_hint(error.source()?),
    }
}
