//! A native file and the table that somebody wrote for it: an error, or the tar stream that its footer names, and
//! then a table of our own.

use std::io::{self, Write};

use sifon_mount::digest::Hasher;
use sifon_mount::layer::native::{Blueprint, Footer, accepted, rebuild};
use sifon_mount::layer::table::Table;
use sifon_mount::sys::Sealed;

/// A bomb is the reader's to notice.
const PLAIN_LIMIT: usize = 4 << 20;

/// The table's length in four bytes, the table, the native file.
pub fn run(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let Some((table, native)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else {
        return;
    };
    let Ok(table) = Table::open(Sealed::in_memory(table.to_vec())) else {
        return;
    };
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(native).expect("room for it");
    let mut stream = Stream::default();
    if rebuild(&table, &file, &mut stream).is_err() {
        return;
    }
    let footer = Footer::of(&file).expect("it was read a moment ago");
    let blueprint = Blueprint {
        layer: table.layer(),
        packed_len: 0,
        diff_id: footer.expect("nothing is rebuilt without").diff_id(),
    };
    let is_promised = stream.hasher.finish() == blueprint.diff_id;
    let scratch = std::env::temp_dir();
    if accepted(blueprint, &table, &file, &scratch).is_ok() {
        assert!(is_promised);
    }
}

#[derive(Default)]
struct Stream {
    hasher: Hasher,
    len: usize,
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.len += bytes.len();
        if self.len > PLAIN_LIMIT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
