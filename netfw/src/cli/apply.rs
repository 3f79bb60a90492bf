//! `netfw apply`: the whole wanted state as one document.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{
    Format, Global,
    output::{Table, print},
    store::read,
};
use crate::{
    api::{
        client::ClientError,
        types::{Action, Applied, ApplyRequest, Object, Step},
    },
    document::{Document, line_of},
    name::Name,
};

/// Bring the node to what a document wants: networks, endpoints and publishes.
///
/// Shows first what is different, then changes that and nothing else. What the document does not name is
/// removed. `netfw store export --toml` prints the present state as such a document.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A TOML document, or - for standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Only show what would be changed.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    let text = String::from_utf8(read(&args.file)?)
        .with_context(|| format!("{} is no text", called(&args.file)))?;
    let file = args.file.clone();
    let document: Document = text.parse().map_err(|source| Syntax::Toml {
        file: file.clone(),
        source,
    })?;
    if says_nothing(&document, &text) {
        return Err(Syntax::Empty { file }.into());
    }
    let client = global.client();
    let ask = |request: ApplyRequest| {
        let answer = crate::block_on(client.apply(&request));
        answer.map_err(|error| locate(error, &args.file, &text))
    };
    let plan = ask(ApplyRequest {
        document: document.clone(),
        dry_run: true,
        expected: None,
    })?;
    if args.dry_run || plan.steps.is_empty() {
        return print(global.output, &plan, |plan| shown(&plan.steps));
    }
    if global.output == Format::Table {
        // Before it is carried out.
        print!("{}", shown(&plan.steps));
    }
    let applied = ask(ApplyRequest {
        document,
        dry_run: false,
        expected: Some(plan.steps),
    })?;
    print(global.output, &applied, |_| String::new())?;
    match applied.failures.is_empty() {
        true => Ok(()),
        false => Err(Incomplete(applied).into()),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Syntax {
    #[error("{} is no document for `netfw apply`, and nothing was changed: {source}", called(.file))]
    Toml {
        file: PathBuf,
        source: toml::de::Error,
    },
    /// What was to write it may have failed.
    #[error(
        "{} has neither networks nor endpoints, and nothing was changed: all of them would be removed; if that is \
         wanted, write `[networks]` and `[endpoints]` with nothing in them",
        called(.file)
    )]
    Empty { file: PathBuf },
}

/// Has it nothing in it, without saying so of both tables?
fn says_nothing(document: &Document, text: &str) -> bool {
    let names_both = || {
        let table = text.parse::<toml::Table>();
        table.is_ok_and(|table| {
            ["networks", "endpoints"]
                .iter()
                .all(|key| table.contains_key(*key))
        })
    };
    *document == Document::default() && !names_both()
}

#[derive(Debug, thiserror::Error)]
#[error(
    "not all of it could be done, the rest was; `netfw apply` tries it again:\n  {}", .0.failures.join("\n  ")
)]
struct Incomplete(Applied);

fn called(file: &Path) -> String {
    match file.as_os_str() == "-" {
        true => "the document".into(),
        false => file.display().to_string(),
    }
}

/// Faults with their lines.
fn locate(error: ClientError, file: &Path, text: &str) -> ClientError {
    match error {
        ClientError::Refused {
            kind, mut faults, ..
        } if !faults.is_empty() => {
            faults.sort_by_key(|fault| line_of(text, fault));
            let lines = faults.iter().map(|fault| match line_of(text, fault) {
                Some(line) => format!("line {line}, {fault}"),
                None => fault.to_string(),
            });
            let lines: Vec<String> = lines.collect();
            ClientError::Refused {
                error: format!(
                    "{} cannot be applied, and nothing was changed:\n  {}",
                    called(file),
                    lines.join("\n  ")
                ),
                kind,
                faults,
            }
        }
        error => error,
    }
}

fn shown(steps: &[Step]) -> String {
    if steps.is_empty() {
        return "nothing to change\n".into();
    }
    let mut table = Table::new(&["ACTION", "OBJECT", "NAME", "WHAT"]);
    for step in steps {
        let what = step.publish.iter().map(ToString::to_string);
        let what: Vec<String> = what.chain(step.what.iter().cloned()).collect();
        table.row([
            action(step.action).into(),
            object(step.object).into(),
            name(step),
            what.join("; "),
        ]);
    }
    table.to_string()
}

fn name(step: &Step) -> String {
    let parts = [&step.endpoint, &step.network].into_iter().flatten();
    let parts: Vec<&str> = parts.map(Name::as_str).collect();
    parts.join(" in ")
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Remove => "- remove",
        Action::Add => "+ add",
        Action::Change => "~ change",
        Action::Replace => "! replace",
    }
}

fn object(object: Object) -> &'static str {
    match object {
        Object::Network => "network",
        Object::Endpoint => "endpoint",
        Object::Attachment => "attachment",
        Object::Publish => "publish",
    }
}
