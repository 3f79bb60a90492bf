//! `docs/rfc-compliance.md`, held against the RFCs and the tests.

use std::{collections::BTreeSet, fs, path::Path};

/// One requirement of the page.
struct Row {
    rfc: String,
    /// `3a`.
    number: String,
    verdicts: [String; 2],
    tests: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

fn rows() -> Vec<Row> {
    let page = read("docs/rfc-compliance.md").expect("the page");
    let (mut rfc, mut rows) = (None, Vec::new());
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## RFC ") {
            rfc = heading.split(':').next().map(str::to_owned);
        }
        let Some(rfc) = &rfc else { continue };
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, number, _, usual, independent, _, tests, _] = cells[..] else {
            assert!(!line.starts_with('|'), "another number of cells: {line}");
            continue;
        };
        if number.starts_with(|c: char| c.is_ascii_digit()) {
            rows.push(Row {
                rfc: rfc.clone(),
                number: number.to_owned(),
                verdicts: [usual, independent].map(str::to_owned),
                tests: tests
                    .split('`')
                    .skip(1)
                    .step_by(2)
                    .map(str::to_owned)
                    .collect(),
            });
        }
    }
    rows
}

#[test]
fn no_requirement_is_missing_or_there_twice() {
    for (rfc, last) in [("4787", 14), ("5382", 10), ("5508", 11)] {
        let found: Vec<_> = rows()
            .into_iter()
            .filter(|row| row.rfc == rfc)
            .map(|row| row.number)
            .collect();
        let once: BTreeSet<_> = found.iter().collect();
        assert_eq!(once.len(), found.len(), "RFC {rfc}: {found:?}");
        for number in 1..=last {
            // 5508's tenth consists of its parts.
            let is_there = |text: &str| {
                text.trim_end_matches(|c: char| c.is_ascii_lowercase()) == number.to_string()
            };
            assert!(found.iter().any(|n| is_there(n)), "RFC {rfc} REQ-{number}");
        }
    }
}

#[test]
fn nothing_is_met_without_a_test() {
    for row in rows() {
        let what = format!("RFC {} REQ-{}", row.rfc, row.number);
        for verdict in &row.verdicts {
            match &**verdict {
                "met" | "partly" => assert!(!row.tests.is_empty(), "{what} has no test"),
                "not" | "–" => {}
                other => panic!("{what}: {other:?} is no verdict"),
            }
        }
    }
}

#[test]
fn every_test_exists() {
    let missing: Vec<_> = rows()
        .into_iter()
        .flat_map(|row| row.tests)
        .filter(|test| !exists(test))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// `packet::state::expired_means_absent`.
fn exists(test: &str) -> bool {
    let [program, file, function] = test.split("::").collect::<Vec<_>>()[..] else {
        return false;
    };
    let directory = match program {
        "packet" | "e2e" | "rfc" => format!("tests/tests/{program}"),
        "common" => "netfw-common/src".to_owned(),
        "agent" => "netfw/src/agent".to_owned(),
        _ => return false,
    };
    let lines = read(&format!("{directory}/{file}.rs")).unwrap_or_default();
    let signature = format!("fn {function}()");
    let (mut before, mut found) = ("", false);
    for line in lines.lines().map(str::trim) {
        found |= before == "#[test]" && line.starts_with(&signature);
        before = line;
    }
    found
}
