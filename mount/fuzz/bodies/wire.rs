//! Whatever comes over a server's socket is an error, its end, or messages that say the same when they are sent on.

use std::os::fd::AsFd;

use sifon::container::wire::{Ask, Reply, pair, receive, send};

/// As much as a socket takes while nobody reads.
const BYTES_LIMIT: usize = 64 << 10;

pub fn run(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(BYTES_LIMIT)];
    let heard = |bytes: &[u8]| {
        let (here, there) = pair().expect("a socket pair");
        rustix::io::write(&here, bytes).expect("room in its buffer");
        drop(here);
        there
    };
    let socket = heard(bytes);
    while let Ok(Some((ask, _))) = receive::<Ask>(socket.as_fd()) {
        let (here, there) = pair().expect("a socket pair");
        if send(here.as_fd(), &ask, &[]).is_ok() {
            let again = receive::<Ask>(there.as_fd()).expect("it was just sent");
            let (again, _) = again.expect("it was just sent");
            assert_eq!(format!("{ask:?}"), format!("{again:?}"));
        }
    }
    let socket = heard(bytes);
    while let Ok(Some(_)) = receive::<Reply>(socket.as_fd()) {}
}
