//! Names of instances, networks and endpoints, and MAC addresses as people write them.
//!
//! A name becomes a file name (`/run/netns/NAME`, `/run/netfw/INSTANCE`), part of an interface's
//! alias (`netfw:INSTANCE:NAME`) and of a URL's path, so it must be safe in all three; whoever
//! holds a [`Name`] need not ask again.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::text::by_text;

/// Longest name, in bytes: a DNS label's length.
pub const MAX: usize = 63;

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most [`MAX`] bytes. Clones share it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    #[error("a name must not be empty")]
    Empty,
    #[error("the name \"{start}…\" has {length} bytes: at most {MAX} are allowed")]
    TooLong { start: String, length: usize },
    #[error("the name {name:?} must begin with a letter or a digit, not with {found:?}")]
    Start { name: String, found: char },
    #[error(
        "the name {name:?} must not contain {found:?}: letters, digits, \"_\", \".\" and \"-\" are allowed"
    )]
    Character { name: String, found: char },
    #[error("the instance name {name:?} must not contain a dot: it becomes a directory in bpffs")]
    Dot { name: String },
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

by_text!(Name, NameLink, Mac);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let first = s.chars().next().ok_or(NameError::Empty)?;
        if s.len() > MAX {
            return Err(NameError::TooLong {
                start: s.chars().take(16).collect(),
                length: s.len(),
            });
        }
        let name = || s.to_owned();
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::Start {
                name: name(),
                found: first,
            });
        }
        match s
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')))
        {
            Some(found) => Err(NameError::Character {
                name: name(),
                found,
            }),
            None => Ok(Self(s.into())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl std::ops::Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// `--link ENDPOINT[:ALIAS]`: by which name an endpoint knows another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameLink {
    pub endpoint: Name,
    /// The endpoint's own name, unless another was given.
    pub alias: Name,
}

impl FromStr for NameLink {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (endpoint, alias) = text.split_once(':').unwrap_or((text, text));
        Ok(Self {
            endpoint: endpoint.parse()?,
            alias: alias.parse()?,
        })
    }
}

impl fmt::Display for NameLink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.endpoint)?;
        match self.alias == self.endpoint {
            true => Ok(()),
            false => write!(out, ":{}", self.alias),
        }
    }
}

/// The name of an instance: a [`Name`] without dots, which bpffs does not allow.
pub fn parse_instance(s: &str) -> Result<Name, NameError> {
    let name: Name = s.parse()?;
    if name.contains('.') {
        return Err(NameError::Dot { name: s.to_owned() });
    }
    Ok(name)
}

/// The name of an interface that may exist: what the kernel's `dev_valid_name` takes.
pub fn parse_interface(s: &str) -> Result<String, InterfaceError> {
    let reason = match s {
        "" => "it is empty",
        "." | ".." => "the kernel keeps it for directories",
        _ if s.len() > 15 => "it is longer than 15 bytes",
        _ if s.contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace()) => {
            "it contains a slash, a colon or a blank"
        }
        _ => return Ok(s.to_owned()),
    };
    Err(InterfaceError {
        name: s.to_owned(),
        reason,
    })
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no interface can have the name {name:?}: {reason}")]
pub struct InterfaceError {
    name: String,
    reason: &'static str,
}

/// A unicast MAC address, written `02:6e:ac:12:00:02`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MacError {
    #[error("{0:?} is no MAC address: write it as 02:00:00:00:00:01")]
    Syntax(String),
    #[error("the MAC address {0} is a multicast address: an interface needs a unicast one")]
    Multicast(String),
    #[error("the MAC address 00:00:00:00:00:00 cannot be given to an interface")]
    Zero,
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(s: &str) -> Result<Self, MacError> {
        let syntax = || MacError::Syntax(s.to_owned());
        let mut mac = [0; 6];
        let mut parts = s.split([':', '-']);
        for byte in &mut mac {
            let part = parts.next().ok_or_else(syntax)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(syntax());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
        }
        if parts.next().is_some() {
            return Err(syntax());
        }
        if mac == [0; 6] {
            return Err(MacError::Zero);
        }
        if mac[0] & 1 != 0 {
            return Err(MacError::Multicast(s.to_owned()));
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_and_bad_names() {
        for good in ["a", "web", "Web_1.x-y", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "-x",
            "_x",
            "a/b",
            "a b",
            "a:b",
            "a\0",
            "ä",
            "a\n",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn macs() {
        assert_eq!(
            "02-6E-ac:12:00:02".parse::<Mac>().unwrap().to_string(),
            "02:6e:ac:12:00:02"
        );
        for bad in [
            "",
            "02",
            "02:6e:ac:12:00",
            "02:6e:ac:12:00:02:03",
            "+2:6e:ac:12:00:02",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "zz:6e:ac:12:00:02",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_link_has_an_alias_or_the_name_itself() {
        for (text, endpoint, alias) in [("db", "db", "db"), ("db:database", "db", "database")] {
            let link: NameLink = text.parse().unwrap();
            assert_eq!(
                (link.endpoint.as_str(), link.alias.as_str()),
                (endpoint, alias)
            );
            assert_eq!(link.to_string(), text);
        }
        for bad in ["", ":", "db:", ":x", "a:b:c"] {
            assert!(bad.parse::<NameLink>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_a_file_name_or_an_error(s in any::<String>()) {
            if let Ok(name) = s.parse::<Name>() {
                prop_assert_eq!(std::path::Path::new(name.as_str()).components().count(), 1);
                prop_assert!(!matches!(name.as_str(), "." | ".."));
            }
        }
    }
}
