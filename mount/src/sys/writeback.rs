//! Written bytes on their way to the disk.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Has the kernel begin to write these bytes of `file` to the disk, without waiting for that. A later `fdatasync` finds less to do.
/// Where the file system does not know of this, nothing happens.
pub fn begin(file: &File, bytes: Range<u64>) {
    let (Ok(from), Ok(len)) = (
        bytes.start.try_into(),
        bytes.end.saturating_sub(bytes.start).try_into(),
    ) else {
        return;
    };
    // SAFETY: the call takes numbers only, and the descriptor is open as long as `file` is borrowed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), from, len, libc::SYNC_FILE_RANGE_WRITE) };
}
