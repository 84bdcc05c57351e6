//! Packed bytes become plain ones or an error, and after an error nothing more.

use std::io::{Cursor, Read};

use sifon_mount::layer::inflate::plain;

/// A bomb is the caller's to notice.
const PLAIN_LIMIT: usize = 4 << 20;

pub fn run(bytes: &[u8]) {
    let Ok(mut stream) = plain(Cursor::new(bytes.to_vec())) else {
        return;
    };
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    while total < PLAIN_LIMIT {
        match stream.read(&mut buffer) {
            Ok(0) => {
                assert!(matches!(stream.read(&mut buffer), Ok(0)));
                return;
            }
            Ok(len) => total += len,
            Err(_) => {
                assert!(stream.read(&mut buffer).is_err());
                return;
            }
        }
    }
}
