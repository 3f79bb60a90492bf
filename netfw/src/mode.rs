//! What `--network` names, as with `docker run`: a network, or a way to do without one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    name::{Name, NameError},
    text::by_text,
};

/// Where an endpoint gets its network from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Mode {
    /// A veth pair into this network.
    Network(Name),
    /// A namespace with nothing in it but `lo`.
    None,
    /// The node's own namespace.
    Host,
    /// That of another endpoint.
    Container(Name),
}

const NONE: &str = "none";
const HOST: &str = "host";
const CONTAINER: &str = "container:";

/// Names that no network can have.
pub const RESERVED: [&str; 2] = [HOST, NONE];

by_text!(Mode);

impl FromStr for Mode {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(match text {
            NONE => Self::None,
            HOST => Self::Host,
            _ => match text.strip_prefix(CONTAINER) {
                Some(name) => Self::Container(name.parse()?),
                None => Self::Network(text.parse()?),
            },
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(name) => out.pad(name.as_str()),
            Self::None => out.pad(NONE),
            Self::Host => out.pad(HOST),
            Self::Container(name) => out.pad(&format!("{CONTAINER}{name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_what_docker_has() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        for (text, mode) in [
            ("bridge", Mode::Network(name("bridge"))),
            ("app", Mode::Network(name("app"))),
            ("none", Mode::None),
            ("host", Mode::Host),
            ("container:web", Mode::Container(name("web"))),
        ] {
            assert_eq!(text.parse::<Mode>().unwrap(), mode);
            assert_eq!(mode.to_string(), text);
            let json = serde_json::to_string(&mode).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<Mode>(&json).unwrap(), mode);
        }
        for bad in [
            "",
            "container:",
            "container:a/b",
            "container:container:a",
            "a b",
        ] {
            assert!(bad.parse::<Mode>().is_err(), "{bad}");
        }
    }
}
