//! Keys and certificates.

use std::path::Path;
use std::process::Command;

/// Runs openssl with `words` in `directory`; what it says on its standard output, or nothing where it is not installed.
pub fn openssl(directory: &Path, words: &str) -> Option<Vec<u8>> {
    let done = Command::new("openssl")
        .args(words.split(' '))
        .current_dir(directory)
        .output();
    let Ok(done) = done else {
        eprintln!("skipped: openssl is not installed");
        return None;
    };
    assert!(done.status.success(), "{done:?}");
    Some(done.stdout)
}
