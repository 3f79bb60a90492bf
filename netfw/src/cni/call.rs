//! What a runtime says by its environment.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::error::CniError;
use crate::name::parse_interface;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    const ALL: [Self; 6] = [
        Self::Add,
        Self::Del,
        Self::Check,
        Self::Gc,
        Self::Status,
        Self::Version,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// `CNI_COMMAND`.
    pub fn of(variable: &impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        const KEY: &str = "CNI_COMMAND";
        let asked = variable(KEY).unwrap_or_default();
        let mut all = Self::ALL.into_iter();
        all.find(|command| command.name() == asked).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            CniError::environment(
                &[KEY],
                format!(
                    "it is {asked:?}, and can be {known}: netfw-cni is a plugin for container runtimes, \
                     see docs/cni.md"
                ),
            )
        })
    }

    /// Those without which it cannot be carried out.
    const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }
}

/// One call. What the command does not need may be empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    pub command: Command,
    pub container: String,
    pub netns: PathBuf,
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// Where other plugins are looked for.
    pub path: Vec<PathBuf>,
}

impl Call {
    pub fn of(
        command: Command,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CniError> {
        let value = |key: &str| variable(key).unwrap_or_default();
        let needs = command.needs();
        let missing: Vec<&str> = needs
            .iter()
            .copied()
            .filter(|key| value(key).is_empty())
            .collect();
        if !missing.is_empty() {
            let command = command.name();
            return Err(CniError::environment(
                &missing,
                format!("{command} needs them"),
            ));
        }
        let container = value("CNI_CONTAINERID");
        if needs.contains(&"CNI_CONTAINERID") && !is_identifier(&container) {
            return Err(CniError::environment(
                &["CNI_CONTAINERID"],
                format!(
                    "{container:?} is none: letters, digits, \"_\", \".\" and \"-\" are allowed, the first a \
                     letter or a digit"
                ),
            ));
        }
        let interface = value("CNI_IFNAME");
        if needs.contains(&"CNI_IFNAME") {
            parse_interface(&interface)
                .map_err(|error| CniError::environment(&["CNI_IFNAME"], error.to_string()))?;
        }
        let path = value("CNI_PATH");
        Ok(Self {
            command,
            container,
            netns: value("CNI_NETNS").into(),
            interface,
            args: value("CNI_ARGS"),
            path: std::env::split_paths(&path)
                .filter(|directory| directory != Path::new(""))
                .collect(),
        })
    }

    /// `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`. What nobody knows is an error, unless the caller says otherwise.
    pub fn arguments(&self) -> Result<BTreeMap<&str, &str>, CniError> {
        const KNOWN: [&str; 3] = ["IP", "MAC", IGNORE_UNKNOWN];
        const IGNORE_UNKNOWN: &str = "IgnoreUnknown";
        let wrong = |details: String| CniError::environment(&["CNI_ARGS"], details);
        let mut arguments = BTreeMap::new();
        for pair in self.args.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(wrong(format!("{pair:?} is not KEY=VALUE")));
            };
            arguments.insert(key, value);
        }
        let says_so = |value: &&str| matches!(value.to_ascii_lowercase().as_str(), "1" | "true");
        if !arguments.get(IGNORE_UNKNOWN).is_some_and(says_so) {
            let mut keys = arguments.keys();
            let unknown = keys.find(|key| !KNOWN.contains(key) && !key.starts_with("K8S_POD_"));
            if let Some(key) = unknown {
                return Err(wrong(format!(
                    "{key} is not known: IgnoreUnknown=true has it ignored"
                )));
            }
        }
        Ok(arguments)
    }
}

/// As the specification has container IDs and names of networks.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}
