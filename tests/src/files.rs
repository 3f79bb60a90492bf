//! A table of open files for each test.
//!
//! The threads of a process share one table. Whenever one of them starts a program, the child has a
//! copy of everything that is open until it calls `exec(2)`. To a test that closes a socket and
//! counts on its port being free, the child of any other test is then in the way.

use std::cell::Cell;

use nix::{
    errno::Errno,
    libc::{CLOSE_RANGE_UNSHARE, c_uint, close_range},
};

use crate::reaper;

/// From now on this thread, and those that it starts, have a table of their own. What was open is
/// closed in it, but for the standard streams and the [`reaper`]'s pipe.
///
/// To be called before anything is opened. A thread's second call does nothing.
pub fn own_table() {
    thread_local! {
        static OWNED: Cell<bool> = const { Cell::new(false) };
    }
    if OWNED.replace(true) {
        return;
    }
    let pipe = c_uint::try_from(reaper::pipe()).expect("descriptors are not negative");
    for (first, last) in [(pipe + 1, c_uint::MAX), (3, pipe - 1)] {
        if first > last {
            continue;
        }
        // SAFETY: no value of this thread stands for a descriptor of that range yet, and those of
        // other threads stand for descriptors of their table, which stays as it is.
        let done = unsafe { close_range(first, last, CLOSE_RANGE_UNSHARE.cast_signed()) };
        Errno::result(done).expect("close_range(2), since Linux 5.9");
    }
}
