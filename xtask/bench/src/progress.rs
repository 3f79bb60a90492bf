//! How far the run is, and how long it will take: a bar in a terminal, and elsewhere a line for each
//! load. Both on stderr: stdout is the report's.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    /// Seconds foreseen for all.
    total: f64,
}

impl Progress {
    /// For a run of about so many seconds.
    pub fn new(seconds: f64) -> Self {
        let bar = ProgressBar::new(ticks(seconds));
        // The template is a constant, and right.
        if let Ok(style) = ProgressStyle::with_template(
            "{bar:30} {percent:>3}%, {elapsed} gone, {prefix} to go  {wide_msg}",
        ) {
            bar.set_style(style);
        }
        let progress = Self {
            bar,
            started: Instant::now(),
            total: seconds,
        };
        progress.advance(0.0);
        progress.bar.enable_steady_tick(Duration::from_secs(1));
        progress
    }

    /// A load or chore begins.
    pub fn start(&self, what: &str) {
        if self.bar.is_hidden() {
            let percent = (100.0 * self.done() / self.total.max(1.0)).min(100.0);
            eprintln!("{percent:>3.0}%, {} to go: {what}", self.to_go());
        }
    }

    /// What is done now.
    pub fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// So many of the seconds foreseen are over.
    pub fn advance(&self, seconds: f64) {
        self.bar.inc(ticks(seconds));
        self.bar.set_prefix(self.to_go());
    }

    /// Shows a line that stays.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Seconds foreseen for what is done.
    fn done(&self) -> f64 {
        Duration::from_millis(self.bar.position()).as_secs_f64()
    }

    fn to_go(&self) -> String {
        let left = left(self.total, self.done(), self.started.elapsed());
        format!("about {}", humantime::format_duration(left))
    }
}

/// What is left of `total` seconds, at the pace of the `done` ones so far. Whole seconds, and minutes
/// where there are many.
fn left(total: f64, done: f64, elapsed: Duration) -> Duration {
    /// Before so many seconds, what was foreseen is the better guess.
    const TELLING: f64 = 20.0;
    let pace = if done < TELLING {
        1.0
    } else {
        elapsed.as_secs_f64() / done
    };
    let seconds = Duration::from_secs_f64(((total - done) * pace).max(0.0)).as_secs();
    Duration::from_secs(match seconds {
        0..120 => seconds,
        _ => seconds.div_ceil(60) * 60,
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "milliseconds of some minutes"
)]
fn ticks(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_so_far_tells_what_is_left() {
        let seconds = Duration::from_secs;
        assert_eq!(left(100.0, 0.0, seconds(7)), seconds(100));
        assert_eq!(left(100.0, 50.0, seconds(100)), seconds(100));
        assert_eq!(left(1000.0, 100.0, seconds(100)), seconds(15 * 60));
        assert_eq!(left(100.0, 120.0, seconds(100)), seconds(0));
    }
}
