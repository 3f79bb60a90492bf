//! Where metrics are served: `127.0.0.1:9469`, `[::1]:9469`, `unix:/run/netfw-metrics.sock`.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::text::by_text;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// Of the node's network namespace.
    Tcp(SocketAddr),
    /// An absolute path, in the agent's mount namespace.
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error(
        "{0:?} is no place for metrics: write ADDRESS:PORT, as in 127.0.0.1:9469 or [::1]:9469, or unix:/PATH"
    )]
    Form(String),
    #[error("metrics at {0} need a port, from 1 to 65535")]
    Port(SocketAddr),
    #[error("the metrics' socket {0:?} needs an absolute path")]
    Relative(PathBuf),
}

const UNIX: &str = "unix:";

by_text!(Address);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix(UNIX) {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(AddressError::Relative(path))
            };
        }
        let addr: SocketAddr = text
            .parse()
            .map_err(|_| AddressError::Form(text.to_owned()))?;
        if addr.port() == 0 {
            return Err(AddressError::Port(addr));
        }
        Ok(Self::Tcp(addr))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in ["127.0.0.1:9469", "[::]:9469", "unix:/run/m.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_place_says_so() {
        for (text, why) in [
            ("9469", "write ADDRESS:PORT"),
            (":9469", "write ADDRESS:PORT"),
            ("localhost:9469", "write ADDRESS:PORT"),
            ("127.0.0.1", "write ADDRESS:PORT"),
            ("127.0.0.1:0", "need a port"),
            ("unix:m.sock", "absolute"),
            ("unix:", "absolute"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
