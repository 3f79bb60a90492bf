//! The command line of a run, as it is told and repeated.

/// Options that say where results go, not what is measured. All take a value but the last.
const ONLY_FOR_RESULTS: &[&str] = &["--into", "--compare", "--from"];
const DOCS: &str = "--docs";

/// Of this process: the program by the name under which it is called.
pub fn this() -> Vec<String> {
    ["cargo", "xtask", "bench"]
        .map(str::to_owned)
        .into_iter()
        .chain(std::env::args().skip(1))
        .collect()
}

/// The same measurements again: without what names places on the machine of the first run.
pub fn repeating(command: &[String]) -> Vec<String> {
    let mut words = Vec::new();
    let mut skip = false;
    for word in command {
        if std::mem::take(&mut skip) || word == DOCS {
            continue;
        }
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        if ONLY_FOR_RESULTS.contains(&name) {
            skip = value.is_empty();
            continue;
        }
        words.push(word.clone());
    }
    words
}

/// As one would type it.
pub fn line(command: &[String]) -> String {
    let plain = |word: &String| {
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_=.,/:+%@".contains(c);
        if !word.is_empty() && word.chars().all(safe) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    command.iter().map(plain).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn repeating_names_no_file() {
        let command = words(
            "cargo xtask bench --quick --into /tmp/x --compare=/home/a/old.json --docs --only netfw",
        );
        assert_eq!(
            line(&repeating(&command)),
            "cargo xtask bench --quick --only netfw"
        );
    }

    #[test]
    fn words_with_spaces_are_quoted() {
        assert_eq!(
            line(&["a b".to_owned(), "it's".to_owned()]),
            r"'a b' 'it'\''s'"
        );
    }
}
