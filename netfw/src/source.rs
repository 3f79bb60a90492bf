//! Sources that a publish is for (`--allow-from`): prefixes of addresses, as people write them.
//!
//! A [`Source`] has no bits beyond its prefix and is of the family whose packets it means; always so once
//! parsed.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::text::by_text;

/// A prefix of addresses, or one address: `10.0.0.0/8`, `fd00::/8`, `192.0.2.7`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Source(IpNet);

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "{0:?} is no source: write an address or a prefix, as in 192.0.2.7, 10.0.0.0/8 or fd00::/8"
    )]
    Syntax(String),
    #[error("{given} is an address with the length of a prefix: the sources are {meant}")]
    HostBits { given: IpNet, meant: IpNet },
    #[error("{ip} is nobody's address: everybody is {everybody}")]
    Nobody { ip: IpAddr, everybody: IpNet },
}

impl Source {
    pub fn net(self) -> IpNet {
        self.0
    }
}

by_text!(Source);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let net = match text.parse::<IpAddr>() {
            Ok(ip) => IpNet::from(ip),
            Err(_) => text
                .parse()
                .map_err(|_| SourceError::Syntax(text.to_owned()))?,
        };
        let given = plain(net);
        let meant = given.trunc();
        if given != meant {
            return Err(SourceError::HostBits { given, meant });
        }
        let ip = given.addr();
        if ip.is_unspecified() && given.prefix_len() == given.max_prefix_len() {
            let everybody = IpNet::new_assert(ip, 0);
            return Err(SourceError::Nobody { ip, everybody });
        }
        Ok(Self(given))
    }
}

/// IPv4 in IPv6's clothes (`::ffff:10.0.0.0/104`) is IPv4: no packet has such a source.
fn plain(net: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    match (
        net.addr().to_canonical(),
        net.prefix_len().checked_sub(MAPPED),
    ) {
        (IpAddr::V4(ip), Some(length)) if net.addr().is_ipv6() => {
            Ipv4Net::new_assert(ip, length).into()
        }
        _ => net,
    }
}

impl fmt::Display for Source {
    /// One address stands without a length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

/// Sources, in the order in which they were written, each once. None: no rule is made, and the next one
/// counts; where there is none, everybody may.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "Vec<Source>", into = "Vec<Source>")]
pub struct Sources(Vec<Source>);

impl Sources {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        self.0.iter().map(|source| source.0)
    }

    /// These, or else those.
    pub fn or<'a>(&'a self, others: &'a Self) -> &'a Self {
        if self.is_empty() { others } else { self }
    }

    /// Does it close a publish on `ip` to everybody, because it names nobody of that family?
    pub fn closes(&self, ip: IpAddr) -> bool {
        !self.is_empty() && !self.nets().any(|net| net.addr().is_ipv4() == ip.is_ipv4())
    }
}

impl From<Vec<Source>> for Sources {
    fn from(all: Vec<Source>) -> Self {
        let mut seen = std::collections::HashSet::new();
        Self(
            all.into_iter()
                .filter(|source| seen.insert(*source))
                .collect(),
        )
    }
}

impl From<Sources> for Vec<Source> {
    fn from(sources: Sources) -> Self {
        sources.0
    }
}

/// `10.0.0.0/8, fd00::/8`.
impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, source) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(", ")?;
            }
            source.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_addresses() {
        for (text, shown, net) in [
            ("10.0.0.0/8", "10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7/32", "192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0", "0.0.0.0/0"),
            ("0.0.0.0/8", "0.0.0.0/8", "0.0.0.0/8"),
            ("fd00::/8", "fd00::/8", "fd00::/8"),
            ("2001:DB8::7", "2001:db8::7", "2001:db8::7/128"),
            ("::/0", "::/0", "::/0"),
            ("::1", "::1", "::1/128"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8", "10.0.0.0/8"),
            ("::ffff:10.1.2.3", "10.1.2.3", "10.1.2.3/32"),
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source.to_string(), shown);
            assert_eq!(source.net(), net.parse().unwrap(), "{text}");
            assert_eq!(shown.parse(), Ok(source), "{text}");
        }
    }

    #[test]
    fn what_is_no_source_says_why() {
        for (text, phrase) in [
            ("", "is no source"),
            ("10.0.0.0/33", "is no source"),
            ("10.0.0/8", "is no source"),
            ("10.0.0.0/255.0.0.0", "is no source"),
            ("fd00::/129", "is no source"),
            ("fe80::1%eth0", "is no source"),
            ("[fd00::]/8", "is no source"),
            ("localhost", "is no source"),
            ("10.0.0.1/8", "the sources are 10.0.0.0/8"),
            ("fd00::1/8", "the sources are fd00::/8"),
            ("::ffff:10.1.0.0/104", "the sources are 10.0.0.0/8"),
            ("0.0.0.0", "everybody is 0.0.0.0/0"),
            ("::", "everybody is ::/0"),
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(phrase), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_list_that_says_something_counts() {
        let sources = |text: &str| -> Sources { serde_json::from_str(text).unwrap() };
        let none = Sources::default();
        let some = sources(r#"["10.0.0.0/8", "fd00::1", "10.0.0.0/8"]"#);
        assert_eq!(some.to_string(), "10.0.0.0/8, fd00::1");
        assert_eq!(
            serde_json::to_string(&some).unwrap(),
            r#"["10.0.0.0/8","fd00::1"]"#
        );
        assert_eq!(some.or(&none), &some);
        assert_eq!(none.or(&some), &some);
        let four = sources(r#"["10.0.0.0/8"]"#);
        let (v4, v6) = ("0.0.0.0".parse().unwrap(), "::".parse().unwrap());
        assert!(four.closes(v6) && !four.closes(v4));
        assert!(!none.closes(v6) && !some.closes(v6));
        assert!(serde_json::from_str::<Sources>(r#"["10.0.0.1/8"]"#).is_err());
    }
}
