//! Bytes of a file on their way to the disk.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Has the kernel begin to write these bytes of a file to the disk, so that syncing it later does not take as long. It is an
/// advice: where it does not work, nothing is lost but time.
pub fn begin_writing(file: &File, bytes: Range<u64>) {
    let number = |number| libc::off64_t::try_from(number).ok();
    let len = bytes.end.checked_sub(bytes.start);
    if let (Some(start), Some(len)) = (number(bytes.start), len.and_then(number)) {
        // SAFETY: it takes numbers only, and a descriptor that the borrowed file keeps open.
        let _ = unsafe {
            libc::sync_file_range(file.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE)
        };
    }
}
