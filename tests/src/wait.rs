//! Waiting: for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; panics with `what` was waited for once `deadline` has passed.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, deadline, || condition().then_some(()));
}

/// Waits until `value` gives one.
#[track_caller]
pub fn wait_for<T>(what: &str, deadline: Duration, mut value: impl FnMut() -> Option<T>) -> T {
    match wait_at_most(deadline, &mut value) {
        Some(value) => value,
        None => panic!("waited {deadline:?} in vain for {what}"),
    }
}

/// As [`wait_for`], for those that go on without: drop code must not panic.
pub fn wait_at_most<T>(deadline: Duration, mut value: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = value() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(PAUSE);
    }
}
