//! What the C library does with memory that is given back.

/// Blocks from this size on go back to the kernel as soon as they are freed: chunks of others' formats have megabytes, and each
/// thread that once decoded one would otherwise keep some (mallopt(3), M_MMAP_THRESHOLD: left alone, the threshold rises with
/// the first large block that is freed).
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 2 << 20;

/// Has this process keep no large blocks that it has freed. For one that lives long; other C libraries than glibc do so anyway.
pub fn keep_no_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes two numbers, and any thread may call it at any time.
        let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
        debug_assert_eq!(is_set, 1);
    }
}
