//! `docs/unsafe.md`, held against the code.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// What is shipped.
const CRATES: [&str; 3] = ["netfw", "netfw-common", "netfw-ebpf"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// How often the word stands in code, outside of line comments.
fn uses(code: &str) -> usize {
    let of_line = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        let words = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| *word == "unsafe").count()
    };
    code.lines().map(of_line).sum()
}

/// Of each file below, by its path from the root; those that have some.
fn look(directory: &Path, found: &mut BTreeMap<String, usize>) {
    for entry in fs::read_dir(directory)
        .expect("the workspace is there")
        .flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            look(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let count = uses(&fs::read_to_string(&path).expect("a source file"));
            if count > 0 {
                let name = path.strip_prefix(root()).expect("below it");
                found.insert(name.display().to_string(), count);
            }
        }
    }
}

#[test]
fn each_use_of_unsafe_code_is_listed() {
    let mut found = BTreeMap::new();
    for name in CRATES {
        look(&root().join(name), &mut found);
    }
    let page = fs::read_to_string(root().join("docs/unsafe.md")).expect("the page");
    let mut listed: BTreeMap<String, usize> = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, file, count, why, _] = cells[..] else {
            panic!("another number of cells: {line}");
        };
        assert!(!why.is_empty(), "{file} is not justified");
        let count: usize = count.parse().expect("a number");
        let twice = listed.insert(file.trim_matches('`').to_owned(), count);
        assert!(twice.is_none(), "{file} is listed twice");
    }
    let wrong: Vec<String> = found
        .iter()
        .filter(|(file, count)| listed.get(*file) != Some(count))
        .map(|(file, count)| {
            format!(
                "{file} has {count}, docs/unsafe.md says {:?}",
                listed.get(file)
            )
        })
        .chain(
            listed
                .keys()
                .filter(|file| !found.contains_key(*file))
                .map(|file| format!("{file} has none any more")),
        )
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn words_are_counted_in_code_alone() {
    assert_eq!(
        uses("unsafe { x() } // unsafe\n#[unsafe(no_mangle)]\nunsafe_op();"),
        2
    );
}
