//! Which flows and packets somebody wants to see, as people write it: `flow ls --protocol udp --port 53`.

mod watch;

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use netfw_common::tuple::proto;
use serde::{Deserialize, Serialize};

pub use self::watch::{Place, Reasons, WatchFilter, parse_reason};
use crate::{name::Name, text::by_text};

/// All that is said must hold; nothing said: every flow.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowFilter {
    /// It has part in the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<IpProtocol>,
    /// One of the flow's addresses lies in there, in either direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Prefix>,
    /// One of the flow's ports, in either direction; of a ping, its identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
}

/// A protocol of IP by its name or number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpProtocol(pub u8);

const NAMES: [(&str, u8); 5] = [
    ("tcp", proto::TCP),
    ("udp", proto::UDP),
    ("sctp", proto::SCTP),
    ("icmp", proto::ICMP),
    ("icmpv6", proto::ICMPV6),
];

impl fmt::Display for IpProtocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => out.pad(name),
            None => self.0.fmt(out),
        }
    }
}

impl FromStr for IpProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = NAMES.iter().find(|(name, _)| *name == text);
        named
            .map(|(_, number)| *number)
            .or_else(|| text.parse().ok())
            .map(Self)
            .ok_or_else(|| {
                format!("{text:?} is no protocol: tcp, udp, sctp, icmp, icmpv6, or a number from 0 to 255")
            })
    }
}

/// An address, or a prefix of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(pub IpNet);

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither an address nor a prefix like 10.0.0.0/8");
        prefix(text, wrong).map(Self)
    }
}

/// An address, or a prefix without bits beyond its length: as sources and subnets are.
fn prefix(text: &str, wrong: impl FnOnce() -> String) -> Result<IpNet, String> {
    let net: Option<IpNet> = match text.parse::<std::net::IpAddr>() {
        Ok(ip) => Some(ip.into()),
        Err(_) => text.parse().ok(),
    };
    match net {
        Some(net) if net != net.trunc() => Err(format!(
            "{net} is an address with the length of a prefix: the prefix is {}",
            net.trunc()
        )),
        net => net.ok_or_else(wrong),
    }
}

/// A flow's state, by nf_conntrack's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum State {
    New,
    SynRecv,
    Replied,
    Established,
    FinWait,
    TimeWait,
    Close,
}

impl State {
    /// As it lies in a flow's entry.
    pub fn of(protocol: u8, state: u8) -> Self {
        use netfw_common::flow::state;
        match state {
            state::NEW => Self::New,
            state::REPLIED if protocol == proto::TCP => Self::SynRecv,
            state::REPLIED => Self::Replied,
            state::ESTABLISHED => Self::Established,
            state::FIN_ORIGINAL | state::FIN_REPLY => Self::FinWait,
            state::TIME_WAIT => Self::TimeWait,
            _ => Self::Close,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::SynRecv => "syn_recv",
            Self::Replied => "replied",
            Self::Established => "established",
            Self::FinWait => "fin_wait",
            Self::TimeWait => "time_wait",
            Self::Close => "close",
        }
    }
}

by_text!(IpProtocol, Prefix);

impl FlowFilter {
    /// As the query of a URL; empty where nothing is said.
    pub fn query(&self) -> String {
        query([
            self.endpoint.as_ref().map(|v| format!("endpoint={v}")),
            self.protocol.map(|v| format!("protocol={v}")),
            // Neither `:` nor `/` has a meaning in a query (RFC 3986 3.4).
            self.address.map(|v| format!("address={v}")),
            self.port.map(|v| format!("port={v}")),
            self.state.map(|v| format!("state={}", v.name())),
        ])
    }
}

/// The query of a URL, of those words that there are.
fn query<const N: usize>(words: [Option<String>; N]) -> String {
    let words: Vec<String> = words.into_iter().flatten().collect();
    if words.is_empty() {
        return String::new();
    }
    format!("?{}", words.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_comes_back_from_its_query() {
        let all = FlowFilter {
            endpoint: Some("web".parse().unwrap()),
            protocol: Some("udp".parse().unwrap()),
            address: Some("fd00:1::/64".parse().unwrap()),
            port: Some(53),
            state: Some(State::SynRecv),
        };
        assert_eq!(
            all.query(),
            "?endpoint=web&protocol=udp&address=fd00:1::/64&port=53&state=syn_recv"
        );
        for filter in [
            all,
            FlowFilter::default(),
            FlowFilter {
                protocol: Some("47".parse().unwrap()),
                address: Some("10.0.0.1".parse().unwrap()),
                ..FlowFilter::default()
            },
        ] {
            let url = format!("http://localhost/v1/flows{}", filter.query());
            let query = axum::extract::Query::<FlowFilter>::try_from_uri(&url.parse().unwrap());
            assert_eq!(query.unwrap().0, filter, "{url}");
        }
    }

    #[test]
    fn what_is_no_filter() {
        for bad in ["tpc", "256", "-1", ""] {
            assert!(bad.parse::<IpProtocol>().is_err(), "{bad}");
        }
        for bad in ["10.0.0", "10.0.0.0/33", "x", ""] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        assert_eq!("icmpv6".parse::<IpProtocol>().unwrap().0, 58);
        assert_eq!(IpProtocol(47).to_string(), "47");
    }
}
