//! What the agent holds of the node's memory.
//!
//! It needs 2 MiB in the long run, and much for moments: 50 MiB while the programs are loaded, a
//! gigabyte where a million flows are listed. glibc keeps what is freed, in an arena for each of a
//! dozen threads, which come and go; so it is told not to.

/// For the process's start. Two arenas are enough for two workers, and what is large is a mapping of its
/// own that goes when it is freed: left alone, glibc raises that threshold with each that goes.
pub fn be_frugal() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) sets a number; no other thread is there yet.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 2);
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, 256 << 10);
    }
}

/// Gives back what is free, after much was in use.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) releases pages that nothing is allocated on, and may be called at any time.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
