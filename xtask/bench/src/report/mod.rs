//! The figures: what was measured, as it is kept in JSON.
//!
//! * [`stats`]: medians and spread
//! * [`table`]: the figures for a terminal
//! * [`machine`]: where they were measured

pub mod machine;
pub mod stats;
pub mod table;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

pub use self::machine::Machine;

/// Of the file's layout.
const VERSION: u32 = 1;

/// All of a run. The file has every round's figure: medians are for readers to make.
#[derive(Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    pub machine: Machine,
    /// The command line.
    pub command: Vec<String>,
    /// UTC, in RFC 3339's form.
    pub started: String,
    pub measures: Vec<Measure>,
}

/// What was measured, of every contender.
#[derive(Clone, Serialize, Deserialize)]
pub struct Measure {
    #[serde(flatten)]
    pub heading: Heading,
    pub figures: Vec<Figure>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heading {
    /// Short, for `--compare` and for programs: `packets-in`.
    pub id: String,
    pub title: String,
    /// `packets/s`, `µs`.
    pub unit: String,
    pub better: Better,
    /// What grows from figure to figure of one contender, if anything does: `flows`, `publishes`.
    pub axis: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

/// One contender's rounds.
#[derive(Clone, Serialize, Deserialize)]
pub struct Figure {
    pub contender: String,
    /// On the measure's axis.
    pub at: Option<u64>,
    pub rounds: Vec<f64>,
}

impl Report {
    pub fn new(started: String) -> Self {
        Self {
            version: VERSION,
            machine: Machine::here(),
            command: std::env::args().collect(),
            started,
            measures: Vec::new(),
        }
    }

    /// Adds a round's figure.
    pub fn add(&mut self, heading: &Heading, contender: &str, at: Option<u64>, value: f64) {
        let known = self
            .measures
            .iter()
            .position(|measure| measure.heading.id == heading.id);
        let place = known.unwrap_or_else(|| {
            self.measures.push(Measure {
                heading: heading.clone(),
                figures: Vec::new(),
            });
            self.measures.len() - 1
        });
        let figures = &mut self.measures[place].figures;
        match figures
            .iter_mut()
            .find(|figure| figure.contender == contender && figure.at == at)
        {
            Some(figure) => figure.rounds.push(value),
            None => figures.push(Figure {
                contender: contender.to_owned(),
                at,
                rounds: vec![value],
            }),
        }
    }

    pub fn measure(&self, id: &str) -> Option<&Measure> {
        self.measures
            .iter()
            .find(|measure| measure.heading.id == id)
    }

    pub fn read(file: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let report: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no report of this bench", file.display()))?;
        ensure!(
            report.version == VERSION,
            "{} has layout {}, and this bench reads {VERSION}",
            file.display(),
            report.version
        );
        Ok(report)
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("as JSON")? + "\n";
        write(file, &text)
    }
}

impl Measure {
    pub fn figure(&self, contender: &str, at: Option<u64>) -> Option<&Figure> {
        self.figures
            .iter()
            .find(|figure| figure.contender == contender && figure.at == at)
    }

    /// The points on the axis, in order; one `None` where there is no axis.
    pub fn points(&self) -> Vec<Option<u64>> {
        let mut points: Vec<_> = self.figures.iter().map(|figure| figure.at).collect();
        points.sort_unstable();
        points.dedup();
        points
    }

    /// Each once, in the order in which they came.
    pub fn contenders(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for figure in &self.figures {
            if !names.contains(&figure.contender.as_str()) {
                names.push(&figure.contender);
            }
        }
        names
    }
}

impl Figure {
    pub fn median(&self) -> f64 {
        stats::median(&self.rounds)
    }
}

/// Writes a file, and the directory that it is in.
pub fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn heading(id: &str) -> Heading {
        Heading {
            id: id.to_owned(),
            title: "title".to_owned(),
            unit: "s".to_owned(),
            better: Better::Lower,
            axis: None,
        }
    }

    #[test]
    fn a_report_comes_back_from_its_file() {
        let mut report = Report::new("2026-01-02T03:04:05Z".to_owned());
        report.add(&heading("one"), "a", None, 1.0);
        report.add(&heading("one"), "a", None, 3.0);
        report.add(&heading("one"), "b", Some(7), 2.0);
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("new").join("report.json");
        report.write(&file).expect("written");
        let back = Report::read(&file).expect("read");
        let measure = back.measure("one").expect("the measure");
        assert_eq!(measure.contenders(), ["a", "b"]);
        assert_eq!(measure.figure("a", None).expect("a").rounds, [1.0, 3.0]);
        assert_eq!(measure.figure("b", Some(7)).expect("b").median(), 2.0);
    }
}
