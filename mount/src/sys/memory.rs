//! What the C library does with memory that is given back, and what the kernel does with much of it at once.

use rustix::mm::{Advice, madvise};

/// Blocks from this size on go back to the kernel as soon as they are freed: chunks of others' formats have megabytes, and each
/// thread that once decoded one would otherwise keep some (mallopt(3), M_MMAP_THRESHOLD: left alone, the threshold rises with
/// the first large block that is freed).
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 2 << 20;

/// So much that is free at the end of the heap stays there: without it the kernel takes back what the next chunk needs.
#[cfg(target_env = "gnu")]
const FREE_BYTES: libc::c_int = 4 << 20;

/// Has this process keep no large blocks that it has freed. For one that lives long; other C libraries than glibc do so anyway.
pub fn keep_no_large_blocks() {
    #[cfg(target_env = "gnu")]
    set(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
}

/// Has this process put what its threads need into one heap. To be called before there are threads that last. What is decoded by one
/// thread is dropped by another: with a heap for each, all of them have holes, and together they take twice what is in use.
pub fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    {
        set(libc::M_ARENA_MAX, 1);
        set(libc::M_TRIM_THRESHOLD, FREE_BYTES);
    }
}

/// `len` zeros, in large pages where the kernel has some: with those the memory comes in a few pieces, where page by page that would
/// take as long as what is then done with the bytes.
pub fn zeros_in_large_pages(len: usize) -> Vec<u8> {
    // The kernel has zeros, so that nothing is written yet.
    let mut zeros = vec![0; len];
    prefer_large_pages(&mut zeros);
    zeros
}

/// A hint: nothing changes but the time that it takes to write there first.
fn prefer_large_pages(bytes: &mut [u8]) {
    let skipped = bytes.as_ptr().align_offset(LARGE_PAGE_BYTES);
    let len = bytes.len().saturating_sub(skipped) / LARGE_PAGE_BYTES * LARGE_PAGE_BYTES;
    if let Some(pages) = bytes.get_mut(skipped..skipped.saturating_add(len)) {
        // SAFETY: the place is that of a slice that is borrowed here; the advice changes neither what is in memory nor whether it
        // can be reached.
        let _ = unsafe { madvise(pages.as_mut_ptr().cast(), len, Advice::LinuxHugepage) };
    }
}

/// What x86-64 has, and arm64 with pages of 4 KiB.
const LARGE_PAGE_BYTES: usize = 2 << 20;

#[cfg(target_env = "gnu")]
fn set(parameter: libc::c_int, value: libc::c_int) {
    // SAFETY: it takes two numbers, and any thread may call it at any time.
    let is_set = unsafe { libc::mallopt(parameter, value) };
    debug_assert_eq!(is_set, 1);
}
