//! What reads as a reference prints as a reference to the same, and an error has a hint.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use sifon_mount::reference::Reference;

pub fn run(bytes: &[u8]) {
    match Reference::parse(OsStr::from_bytes(bytes)) {
        Ok(reference) if std::str::from_utf8(bytes).is_ok() => {
            assert_eq!(reference.written().parse(), Ok(reference));
        }
        Ok(_) => {}
        Err(error) => assert!(error.hint().is_some()),
    }
}
