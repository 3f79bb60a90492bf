//! The figures: what was measured, as it is kept in JSON.
//!
//! * [`stats`]: medians and spread
//! * [`table`]: the figures for a terminal
//! * [`targets`]: what netfw must reach, and whether it does
//! * [`notes`]: what a figure means
//! * [`chart`], [`html`]: the figures for a browser
//! * [`docs`]: the figures for docs/benchmarks.md
//! * [`compare`]: what differs from an older report
//! * [`machine`]: where they were measured
//! * [`command`]: the command line, and how to repeat it

mod chart;
pub mod command;
pub mod compare;
pub mod docs;
pub mod html;
pub mod machine;
mod notes;
pub mod stats;
pub mod table;
pub mod targets;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

pub use self::machine::Machine;

/// Of the file's layout.
const VERSION: u32 = 1;

/// All of a run. The file has every round's figure: medians are for readers to make.
#[derive(Clone, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    pub machine: Machine,
    /// The command line, see [`command`].
    pub command: Vec<String>,
    /// UTC, in RFC 3339's form.
    pub started: String,
    /// The run goes on, or was stopped: measures are missing.
    #[serde(default)]
    pub unfinished: bool,
    pub measures: Vec<Measure>,
    /// Where the figures are kept while the run goes on.
    #[serde(skip)]
    file: Option<PathBuf>,
}

/// The file: a report, and what it says about the targets. Those are for other readers; this bench judges
/// anew, by the targets that it knows.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    report: &'a Report,
    targets: Vec<targets::Target>,
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
            command: command::this(),
            started,
            unfinished: false,
            measures: Vec::new(),
            file: None,
        }
    }

    /// From now on [`Self::keep`] writes the report to `file`.
    pub fn keep_in(&mut self, file: PathBuf) {
        self.unfinished = true;
        self.file = Some(file);
    }

    /// Writes what was measured so far, so that a run that is stopped leaves something behind.
    pub fn keep(&self) -> Result<()> {
        match &self.file {
            Some(file) => self.write(file),
            None => Ok(()),
        }
    }

    /// The run has come to its end.
    pub fn finish(&mut self) -> Result<()> {
        self.unfinished = false;
        self.keep()
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
        /// What every layout has.
        #[derive(Deserialize)]
        struct Layout {
            version: u32,
        }

        let no_report = || format!("{} is no report of this bench", file.display());
        let Layout { version } = serde_json::from_str(&text).with_context(no_report)?;
        ensure!(
            version == VERSION,
            "{} has layout {version}, and this bench reads {VERSION}",
            file.display(),
        );
        serde_json::from_str(&text).with_context(no_report)
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let written = Written {
            report: self,
            targets: targets::judge(self),
        };
        let text = serde_json::to_string_pretty(&written).context("as JSON")? + "\n";
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

/// Writes a file, whole or not at all, and the directory that it is in. Root may do so in a user's
/// directory: what is new belongs to the owner of where it lies.
pub fn write(file: &Path, text: &str) -> Result<()> {
    let directory = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    make_directory(directory)?;
    let cannot = || format!("cannot write {}", file.display());
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    fs::write(&part, text).with_context(cannot)?;
    give_to_owner_of(directory, Path::new(&part)).with_context(cannot)?;
    fs::rename(&part, file).with_context(cannot)
}

/// That a file can be written by [`write`].
pub fn check_writable(file: &Path) -> Result<()> {
    let mut trial = file.as_os_str().to_owned();
    trial.push(".trial");
    write(Path::new(&trial), "")?;
    fs::remove_file(&trial).with_context(|| format!("cannot write {}", file.display()))
}

fn make_directory(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = match directory.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    make_directory(parent)?;
    fs::create_dir(directory)
        .and_then(|()| give_to_owner_of(parent, directory))
        .with_context(|| format!("cannot make {}", directory.display()))
}

fn give_to_owner_of(directory: &Path, new: &Path) -> std::io::Result<()> {
    let (owner, ours) = (fs::metadata(directory)?, fs::metadata(new)?);
    if (owner.uid(), owner.gid()) == (ours.uid(), ours.gid()) || ours.uid() != 0 {
        return Ok(());
    }
    chown(new, Some(owner.uid()), Some(owner.gid()))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A report with figures of one measure: contender, place on the axis, rounds.
    pub fn report(heading: &Heading, figures: &[(&str, Option<u64>, &[f64])]) -> Report {
        let mut report = Report::new("2026-01-02T03:04:05Z".to_owned());
        add(&mut report, heading, figures);
        report
    }

    pub fn add(report: &mut Report, heading: &Heading, figures: &[(&str, Option<u64>, &[f64])]) {
        for &(contender, at, rounds) in figures {
            for &round in rounds {
                report.add(heading, contender, at, round);
            }
        }
    }

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
        assert!(!file.with_extension("json.part").exists());
        let back = Report::read(&file).expect("read");
        let measure = back.measure("one").expect("the measure");
        assert_eq!(measure.contenders(), ["a", "b"]);
        assert_eq!(measure.figure("a", None).expect("a").rounds, [1.0, 3.0]);
        assert_eq!(measure.figure("b", Some(7)).expect("b").median(), 2.0);
    }

    #[test]
    fn what_is_no_report_is_refused_with_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let refused = |name: &str| match Report::read(&directory.path().join(name)) {
            Ok(_) => panic!("{name} was read"),
            Err(error) => format!("{error:#}"),
        };
        assert!(refused("absent.json").contains("cannot read"));
        let write = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).expect("written");
        };
        write("text.json", "no JSON");
        assert!(refused("text.json").contains("text.json is no report of this bench"));
        let mut report = Report::new(String::new());
        report.version = 77;
        report
            .write(&directory.path().join("other.json"))
            .expect("written");
        assert!(refused("other.json").contains("has layout 77"));
        write("other.json", "{\"version\": 99}");
        assert!(refused("other.json").contains("has layout 99"));
    }
}
