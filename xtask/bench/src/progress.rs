//! How far the run is, and how long it will take.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

pub struct Progress(ProgressBar);

impl Progress {
    /// For a run of about so many seconds. Without a terminal it says nothing.
    pub fn new(seconds: f64) -> Self {
        let bar = ProgressBar::new(ticks(seconds));
        // The template is a constant, and right.
        if let Ok(style) = ProgressStyle::with_template(
            "{bar:30} {percent:>3} %, {elapsed} gone, about {eta} to go  {wide_msg}",
        ) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_secs(1));
        Self(bar)
    }

    /// What is done now.
    pub fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// So many of the seconds foreseen are over.
    pub fn advance(&self, seconds: f64) {
        self.0.inc(ticks(seconds));
    }

    /// Shows a line above the bar.
    pub fn line(&self, text: &str) {
        if self.0.is_hidden() {
            println!("{text}");
        } else {
            self.0.println(text);
        }
    }

    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "milliseconds of some minutes"
)]
fn ticks(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}
