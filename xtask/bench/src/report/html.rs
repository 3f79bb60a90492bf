//! The page: everything in one file, nothing fetched from anywhere.

use anyhow::{Context as _, Result};
use askama::Template;

use crate::contender::Kind;

use super::{
    Report, chart, command, notes,
    table::{self, Row},
    targets::{self, Target, Verdict},
};

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    report: &'a Report,
    facts: Vec<(&'a str, String)>,
    command: String,
    repeating: String,
    summary: String,
    targets: Vec<Target>,
    sections: Vec<Section<'a>>,
    /// By contender, what it is made with.
    commands: Vec<(String, String)>,
}

struct Section<'a> {
    id: &'a str,
    title: &'a str,
    unit: String,
    axis: &'a str,
    note: Option<&'static str>,
    /// SVG of our own making.
    chart: Option<String>,
    rows: Vec<Row>,
    has_ratios: bool,
}

impl Verdict {
    fn class(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Undecided => "undecided",
            Self::Unmeasured => "unmeasured",
        }
    }
}

pub fn page(report: &Report) -> Result<String> {
    let targets = targets::judge(report);
    let sections = report
        .measures
        .iter()
        .map(|measure| {
            let rows = measure.rows();
            Ok(Section {
                id: &measure.heading.id,
                title: &measure.heading.title,
                unit: measure.unit(),
                axis: measure.heading.axis.as_deref().unwrap_or_default(),
                note: notes::of(&measure.heading.id),
                chart: chart::svg(measure)?,
                has_ratios: rows.iter().any(|row| !row.ratio.is_empty()),
                rows,
            })
        })
        .collect::<Result<_>>()?;
    let page = Page {
        report,
        facts: facts(report),
        command: command::line(&report.command),
        repeating: command::line(&command::repeating(&report.command)),
        summary: targets::summary(&targets),
        targets,
        sections,
        commands: Kind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind.to_string(), kind.commands()?)))
            .collect(),
    };
    page.render().context("making the page")
}

/// Where and when, and with what.
pub fn facts(report: &Report) -> Vec<(&str, String)> {
    let machine = &report.machine;
    let mut facts = vec![
        ("started", report.started.clone()),
        ("kernel", format!("Linux {}", machine.kernel)),
        (
            "processor",
            format!("{}, {} CPUs", machine.cpu, machine.cpus),
        ),
        (
            "memory",
            format!("{} MiB", table::grouped(machine.memory_mib)),
        ),
    ];
    let versions = machine.versions.iter();
    facts.extend(versions.map(|(program, version)| (program.as_str(), version.clone())));
    let settings = machine.settings.iter();
    facts.extend(settings.map(|(name, value)| (name.as_str(), value.clone())));
    if let Some(idle) = machine.idle {
        facts.push((
            "idle before the run",
            format!("{idle:.0}% of the processors' time"),
        ));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Heading,
            tests::{heading, report},
        },
        *,
    };

    #[test]
    fn what_is_no_markup_is_escaped() {
        let heading = Heading {
            title: "<script>alert('a')</script> & more".to_owned(),
            ..heading("one")
        };
        let figures: &[(&str, Option<u64>, &[f64])] = &[("<b>", None, &[1.0, 2.0])];
        let mut report = report(&heading, figures);
        report.command = vec!["cargo".to_owned(), "--only=<x>".to_owned()];
        report.machine.cpu = "A & <B>".to_owned();
        let page = page(&report).expect("a page");
        for raw in ["<script", "<b>", "<x>", "<B>", "& "] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("<svg "));
        assert!(!page.contains("&lt;svg"));
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        let figures: &[(&str, Option<u64>, &[f64])] = &[
            ("netfw (TC)", Some(1), &[1.0, 2.0]),
            ("netfw (TC)", Some(10), &[1.0, 2.0]),
        ];
        let mut heading = heading("attach");
        heading.axis = Some("endpoints".to_owned());
        let page = page(&report(&heading, figures)).expect("a page");
        let links = page.replace("http://www.w3.org/2000/svg", "");
        for elsewhere in ["http:", "https:", "src=", "<link", "<script", "url("] {
            assert!(!links.contains(elsewhere), "{elsewhere}");
        }
        for section in ["Targets", "Machine", "Command", "Attaching a container"] {
            assert!(page.contains(section), "{section}");
        }
    }
}
