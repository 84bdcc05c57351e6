//! Bytes of a file on their way from the disk and to it, and which of them are there.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

/// Has the kernel begin to read what there is of these bytes, so that who reads them soon finds them in memory. It is an advice, as
/// [`begin_writing`] is. Where the file has a hole nothing is read.
pub fn begin_reading(file: &File, bytes: &Range<u64>) {
    // A whole hole would fill memory with zeros. The place that is left behind is nobody's: files are read at places.
    let is_here = seek(file, SeekFrom::Data(bytes.start)).is_ok_and(|at| at < bytes.end);
    if is_here {
        let len = NonZeroU64::new(bytes.end - bytes.start);
        let _ = fadvise(file, bytes.start, len, Advice::WillNeed);
    }
}

/// How many bytes the file takes on the disk.
pub fn stored_bytes(file: &File) -> u64 {
    let metadata = file.metadata();
    metadata.map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}

/// The holes in the first `len` bytes of a file, in order, each as long as it is. `None` where the file system does not tell: one
/// that knows of no holes calls all of a file data, and then the file is only taken for that if it takes the room, too.
pub fn holes(file: &File, len: u64) -> Option<Vec<Range<u64>>> {
    let (mut holes, mut at) = (Vec::new(), 0);
    while at < len {
        let hole = seek(file, SeekFrom::Hole(at)).ok()?;
        if hole >= len {
            break;
        }
        at = match seek(file, SeekFrom::Data(hole)) {
            Ok(data) => data.min(len),
            Err(Errno::NXIO) => len,
            Err(_) => return None,
        };
        holes.push(hole..at);
    }
    let is_told = !holes.is_empty() || stored_bytes(file) >= len;
    is_told.then_some(holes)
}

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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Whether the page with the byte at `at` is in memory. Asking does not bring it there.
    fn is_in_memory(file: &File, at: u64) -> bool {
        // SAFETY: nobody else has the file, so nothing changes it or cuts it short.
        let mapped = unsafe { memmap2::Mmap::map(file) }.unwrap();
        let mut pages = vec![0; mapped.len().div_ceil(4096)];
        // SAFETY: there is a byte for each page of the mapping, also where pages are larger.
        let told = unsafe {
            libc::mincore(
                mapped.as_ptr().cast_mut().cast(),
                mapped.len(),
                pages.as_mut_ptr(),
            )
        };
        assert_eq!(told, 0);
        let page = at / rustix::param::page_size() as u64;
        pages[page as usize] & 1 == 1
    }

    #[test]
    fn holes_are_told_from_zeros_that_were_written() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(4 * MIB).unwrap();
        assert!(holes(&file, 4 * MIB).unwrap().iter().eq([&(0..4 * MIB)]));
        file.write_all(&vec![0; MIB as usize]).unwrap();
        file.write_all_at(&[0; 65536], 2 * MIB).unwrap();
        let found = holes(&file, 3 * MIB);
        assert_eq!(found, Some(vec![MIB..2 * MIB, 2 * MIB + 65536..3 * MIB]));
        assert_eq!(holes(&file, MIB), Some(vec![]));
    }

    #[test]
    fn what_will_be_read_comes_to_memory_and_holes_take_none() {
        // Beside the program that runs: the directory for temporary files may be memory already.
        let program = std::env::current_exe().unwrap();
        let mut file = tempfile::tempfile_in(program.parent().unwrap()).unwrap();
        file.write_all(&vec![7; MIB as usize]).unwrap();
        file.set_len(3 * MIB).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        if is_in_memory(&file, MIB / 2) {
            eprintln!("skipped: this file system keeps files in memory");
            return;
        }
        begin_reading(&file, &(0..MIB));
        begin_reading(&file, &(2 * MIB..3 * MIB));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_in_memory(&file, MIB / 2) {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!is_in_memory(&file, 5 * MIB / 2));
    }
}
