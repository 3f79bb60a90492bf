//! The figures for docs/benchmarks.md (`--docs`): what stands between two marks there is ours, all else
//! is written by hand. Charts and raw rounds lie in docs/benchmarks.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{Measure, Report, chart, command, html, notes, targets, write};

const BEGIN: &str = "<!-- figures: written by `cargo xtask bench --docs` -->";
const END: &str = "<!-- end of figures -->";

/// Where the page lies in the sources that this bench was built from.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// That the page can be written, before hours of measuring are spent on it.
pub fn check(directory: &Path) -> Result<()> {
    between(&page(directory)?, "").map(|_| ())
}

/// That the report is one of a whole run, which is what the page shows.
pub fn check_report(report: &Report) -> Result<()> {
    let part = |word: &String| word.starts_with("--quick") || word.starts_with("--only");
    ensure!(
        !report.unfinished && !report.command.iter().any(part),
        "the page shows whole runs only, and this is the report of a part: {}",
        command::line(&report.command)
    );
    Ok(())
}

/// Writes the page's figures, its charts and its raw rounds anew. The page.
pub fn update(report: &Report, directory: &Path) -> Result<PathBuf> {
    let file = directory.join("benchmarks.md");
    let text = between(&page(directory)?, &figures(report)?)?;
    let charts = directory.join("benchmarks");
    remove_charts(&charts)?;
    for measure in &report.measures {
        if let Some(svg) = chart::svg(measure)? {
            write(&charts.join(chart_name(measure)), &svg)?;
        }
    }
    let mut published = report.clone();
    published.command = command::repeating(&report.command);
    published.write(&charts.join("report.json"))?;
    write(&file, &text)?;
    Ok(file)
}

fn page(directory: &Path) -> Result<String> {
    let file = directory.join("benchmarks.md");
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

/// Charts of measures that may not be there any more.
fn remove_charts(directory: &Path) -> Result<()> {
    let cannot = || format!("cannot empty {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(cannot)?,
    };
    for entry in entries {
        let path = entry.with_context(cannot)?.path();
        if path.extension() == Some(OsStr::new("svg")) {
            fs::remove_file(path).with_context(cannot)?;
        }
    }
    Ok(())
}

/// `text` with what is between the marks replaced.
fn between(text: &str, figures: &str) -> Result<String> {
    let begin = text.find(BEGIN);
    let end = text.find(END);
    let (Some(begin), Some(end)) = (begin, end) else {
        anyhow::bail!("docs/benchmarks.md lacks the marks `{BEGIN}` and `{END}`");
    };
    let begin = begin + BEGIN.len();
    ensure!(
        begin <= end,
        "the marks in docs/benchmarks.md are the wrong way round"
    );
    Ok(format!("{}\n\n{figures}\n{}", &text[..begin], &text[end..]))
}

fn chart_name(measure: &Measure) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = measure.heading.id.chars().map(safe).collect();
    format!("{name}.svg")
}

fn figures(report: &Report) -> Result<String> {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let out = &mut text;
    let repeating = command::line(&command::repeating(&report.command));
    let _ = writeln!(out, "    {repeating}\n");
    let _ = writeln!(out, "| | |\n|---|---|");
    for (name, value) in html::facts(report) {
        let _ = writeln!(out, "| {} | {} |", cell(name), cell(&value));
    }
    let targets = targets::judge(report);
    let _ = writeln!(out, "\n### Targets\n\n{}.\n", targets::summary(&targets));
    let _ = writeln!(out, "| target | wanted | seen | |\n|---|---|---|---|");
    for target in &targets {
        let reason = target
            .reason
            .map_or(String::new(), |reason| format!(": {reason}"));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {}{} |",
            cell(target.what),
            cell(&target.wanted),
            cell(target.seen.as_deref().unwrap_or_default()),
            target.verdict,
            cell(&reason)
        );
    }
    for measure in &report.measures {
        section(out, measure)?;
    }
    Ok(text)
}

fn section(out: &mut String, measure: &Measure) -> Result<()> {
    let title = &measure.heading.title;
    let _ = writeln!(out, "\n### {title}");
    if let Some(note) = notes::of(&measure.heading.id) {
        let _ = writeln!(out, "\n{note}");
    }
    if chart::svg(measure)?.is_some() {
        let _ = writeln!(out, "\n![{title}](benchmarks/{})", chart_name(measure));
    }
    let _ = writeln!(out);
    let rows = measure.rows();
    let axis = measure.heading.axis.as_deref();
    let has_ratios = rows.iter().any(|row| !row.ratio.is_empty());
    let mut line = |name: &str, at: &str, figures: [&str; 4], ratio: &str| {
        let mut words = vec![name.to_owned()];
        words.extend(axis.map(|_| at.to_owned()));
        words.extend(figures.map(str::to_owned));
        words.extend(has_ratios.then(|| ratio.to_owned()));
        let _ = writeln!(out, "| {} |", words.join(" | "));
    };
    let titles = ["median", "lowest", "highest", "spread"];
    let unit = measure.unit();
    line(&cell(&unit), axis.unwrap_or_default(), titles, "x iptables");
    line("---", "---:", ["---:"; 4], "---:");
    for row in rows {
        let figures = [&*row.median, &row.lowest, &row.highest, &row.spread];
        line(&cell(&row.contender), &row.at, figures, &row.ratio);
    }
    Ok(())
}

/// Text in a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('\n', " ")
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
    fn what_is_written_by_hand_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("benchmarks.md");
        let by_hand = format!("# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n");
        fs::write(&file, by_hand).expect("written");
        let old = directory.path().join("benchmarks").join("gone.svg");
        write(&old, "<svg/>").expect("written");

        let heading = Heading {
            axis: Some("publishes".to_owned()),
            ..heading("connections")
        };
        let figures: &[(&str, Option<u64>, &[f64])] = &[
            ("iptables (nft)", Some(10), &[1.0, 2.0]),
            ("iptables (nft)", Some(1000), &[1.0, 2.0]),
        ];
        let mut report = report(&heading, figures);
        report.command = ["cargo", "xtask", "bench", "--into", "/home/me"]
            .map(str::to_owned)
            .into();
        update(&report, directory.path()).expect("updated");
        let first = fs::read_to_string(&file).expect("read");
        assert!(
            first.starts_with("# Title\n") && first.ends_with("\nThe end.\n"),
            "{first}"
        );
        assert!(
            first.contains("| iptables (nft) | 1,000 | 1.50 | 1.00 | 2.00 |"),
            "{first}"
        );
        assert!(!first.contains("old") && !old.exists());
        let json = fs::read_to_string(directory.path().join("benchmarks/report.json"));
        for text in [&first, &json.expect("raw rounds")] {
            assert!(!text.contains("/home/me"));
        }
        assert!(directory.path().join("benchmarks/connections.svg").exists());

        update(&report, directory.path()).expect("updated");
        assert_eq!(fs::read_to_string(&file).expect("read"), first);
    }

    #[test]
    fn a_page_without_marks_is_refused_before_any_measuring() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(check(directory.path()).is_err());
        fs::write(directory.path().join("benchmarks.md"), "# Title\n").expect("written");
        let error = check(directory.path()).expect_err("no marks");
        assert!(error.to_string().contains("lacks the marks"), "{error}");
    }

    #[test]
    fn the_real_page_has_its_marks() {
        check(&super::directory()).expect("docs/benchmarks.md");
    }
}
