//! Options that are given as variables, such as `SIFON_BIND` or `APPTAINER_BIND`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// A variable of the user's, under the first of the three names that is set.
pub(super) fn variable(suffix: &str) -> Option<OsString> {
    ["SIFON", "APPTAINER", "SINGULARITY"]
        .iter()
        .find_map(|prefix| std::env::var_os(format!("{prefix}_{suffix}")))
        .filter(|value| !value.is_empty())
}

/// Whether what it says is yes.
pub(super) fn is_true(value: &OsStr) -> bool {
    let value = value.to_string_lossy().to_ascii_lowercase();
    matches!(value.as_str(), "1" | "t" | "true" | "y" | "yes" | "on")
}

/// What commas separate in it.
pub(super) fn listed(text: Option<OsString>) -> Vec<OsString> {
    let text = text.unwrap_or_default();
    let parts = text.as_bytes().split(|&byte| byte == b',');
    parts
        .filter(|part| !part.is_empty())
        .map(|part| OsStr::from_bytes(part).to_owned())
        .collect()
}
