//! What was found, and whether it is right.

use std::io::Write;

use anyhow::Context;
use serde::Serialize;

use crate::cli::Format;

/// What `-o json` prints.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Finding {
    /// Null: nothing that can be right or wrong.
    ok: Option<bool>,
    what: String,
}

impl Report {
    pub fn check(&mut self, ok: bool, what: String) {
        self.findings.push(Finding { ok: Some(ok), what });
    }

    pub fn note(&mut self, what: String) {
        self.findings.push(Finding { ok: None, what });
    }

    pub fn all_right(&self) -> bool {
        self.findings.iter().all(|f| f.ok != Some(false))
    }

    pub fn print(&self, format: Format) -> anyhow::Result<()> {
        if format == Format::Json {
            return say(&format!("{}\n", serde_json::to_string_pretty(self)?));
        }
        let mut text = String::new();
        for finding in &self.findings {
            let mark = match finding.ok {
                Some(true) => "ok    ",
                Some(false) => "WRONG ",
                None => "      ",
            };
            text += &format!("{mark} {}\n", finding.what);
        }
        say(&text)
    }
}

/// Prints, and fails where nobody reads any more; `print!` would panic.
pub fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("the demo's output is read by nobody; everything is removed")
}
