//! `netfw store`: what an agent keeps on disk, looked at, saved and replaced.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;

use super::{Global, need_root, output::print};
use crate::{
    agent::{
        paths::Paths,
        record::Wanted,
        run::instance_option,
        saved::{Saved, faults, replacing},
        start::boot,
        store::{Store, StoreError},
    },
    document::Document,
    name::Name,
};

/// How long the agent may take to say what is in the store.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Say what is wrong with the store; status 1 if anything is. Changes nothing.
    Check,
    /// Print the store as one JSON document, for `netfw store import`. Changes nothing.
    Export {
        /// Print what is wanted as a TOML document, for `netfw apply`.
        #[arg(long)]
        toml: bool,
        /// Leave out what cannot be read, and say so, instead of giving up.
        #[arg(long)]
        salvage: bool,
    },
    /// Put what `netfw store export` printed in the place of the store, whatever state that is in.
    ///
    /// The agent must not run. Its next start brings the node to what the document wants: endpoints that
    /// are not in it are removed. The store of before is kept beside the new one.
    Import {
        /// A file, or - for standard input.
        file: PathBuf,
    },
}

pub fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    need_root("store")?;
    match command {
        Command::Check => check(global),
        Command::Export { toml, salvage } => export(global, toml, salvage),
        Command::Import { file } => import(global, &file),
    }
}

/// What `netfw store check -o json` prints.
#[derive(Serialize)]
struct Checked {
    networks: usize,
    endpoints: usize,
    faults: Vec<String>,
}

/// There is none to look at.
#[derive(Debug, thiserror::Error)]
#[error(
    "instance \"{0}\" has no store: no agent of it has run since the last `netfw down`, or it is lost"
)]
pub struct NoStore(Name);

/// `1 endpoint`, `2 endpoints`.
fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

fn check(global: &Global) -> anyhow::Result<()> {
    let (wanted, unreadable) = look(global)?;
    let mut all: Vec<String> = unreadable.iter().map(|e| crate::chain(e)).collect();
    all.extend(faults(&wanted));
    let checked = Checked {
        networks: wanted.networks.len(),
        endpoints: wanted.endpoints.len(),
        faults: all,
    };
    print(global.output, &checked, |checked| {
        let counts = format!(
            "{}, {}",
            count(checked.networks, "network"),
            count(checked.endpoints, "endpoint")
        );
        match checked.faults.is_empty() {
            true => format!("{counts}: nothing is wrong\n"),
            false => format!("{counts}, and:\n  {}\n", checked.faults.join("\n  ")),
        }
    })?;
    anyhow::ensure!(
        checked.faults.is_empty(),
        "the store of instance \"{}\" is not as netfw left it: `netfw store export --salvage{}` saves what \
         can be read, to be mended and imported",
        global.instance,
        instance_option(&global.instance)
    );
    Ok(())
}

fn export(global: &Global, toml: bool, salvage: bool) -> anyhow::Result<()> {
    let (wanted, unreadable) = look(global)?;
    for error in unreadable {
        if !salvage {
            return Err(error.into());
        }
        eprintln!("netfw: warning: left out: {}", crate::chain(&error));
    }
    let text = match toml {
        true => Document::from(&wanted).to_string(),
        false => serde_json::to_string_pretty(&Saved::of(&wanted))? + "\n",
    };
    write!(std::io::stdout(), "{text}").context("the document is not written")
}

/// What `netfw store import -o json` prints.
#[derive(Serialize)]
struct Imported {
    networks: usize,
    endpoints: usize,
    /// Endpoints of the store of before that the next start removes.
    removing: Vec<String>,
    /// Where the store of before is.
    kept: Option<PathBuf>,
}

fn import(global: &Global, file: &Path) -> anyhow::Result<()> {
    let text = read(file)?;
    let new = Saved::parse(&text).with_context(|| format!("{}", file.display()))?;
    let paths = Paths::of(&global.instance);
    let _lock = paths.lock()?;
    let old = match paths.store().exists() {
        true => Store::examine(&paths.store()).map(Some),
        false => Ok(None),
    };
    let (old, lost) = match old {
        Ok(Some((old, broken))) => (Some(old), broken),
        Ok(None) => (None, Vec::new()),
        Err(error) => (None, vec![error]),
    };
    for error in &lost {
        eprintln!(
            "netfw: warning: {}; namespaces that netfw made for what is lost by that may remain (`ip netns` \
             lists all)",
            crate::chain(error)
        );
    }
    let wanted = replacing(old.as_ref(), new, &boot()?);
    let kept = Store::replace(&paths.store(), &wanted)?;
    let removing = wanted.endpoints.values().filter(|e| e.removing);
    let imported = Imported {
        networks: wanted.networks.len(),
        endpoints: wanted.endpoints.values().filter(|e| !e.removing).count(),
        removing: removing.map(|e| e.name.to_string()).collect(),
        kept,
    };
    print(global.output, &imported, |imported| {
        let mut text = format!(
            "imported {}, {}; the next start of the agent makes them\n",
            count(imported.networks, "network"),
            count(imported.endpoints, "endpoint")
        );
        if !imported.removing.is_empty() {
            text += &format!("it removes {}\n", imported.removing.join(", "));
        }
        if let Some(kept) = &imported.kept {
            text += &format!("the store of before is {}\n", kept.display());
        }
        text
    })
}

/// Longest document, in bytes: ten times that of a node with all the endpoints that there can be.
const LONGEST: u64 = 64 << 20;

/// A file, or standard input for `-`.
pub fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().take(LONGEST + 1).read_to_end(&mut text),
        false => File::open(file).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut text)),
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    anyhow::ensure!(
        text.len() as u64 <= LONGEST,
        "{} has more than {} MiB, and nothing was changed: it is no document of netfw's",
        file.display(),
        LONGEST >> 20
    );
    Ok(text)
}

/// What the store wants, and what in it cannot be read: from the agent, which has it open, or from the file.
fn look(global: &Global) -> anyhow::Result<(Wanted, Vec<StoreError>)> {
    let paths = Paths::of(&global.instance);
    if paths.is_locked() {
        let client = global.client().with_patience(PATIENCE);
        let saved = crate::block_on(client.store());
        let saved = saved.context("the agent has the store, and alone says what is in it")?;
        return Ok((saved.into_wanted()?, Vec::new()));
    }
    if !paths.store().exists() {
        return Err(NoStore(global.instance.clone()).into());
    }
    Ok(Store::examine(&paths.store())?)
}
