//! Which packets somebody wants to be told of: `monitor --reason leak --from 10.0.0.0/8 --to :53`.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use netfw_common::{
    addr::{Be16, Be32, Ip4, Ip6},
    drop::Drop,
    event::{Filter, Side},
};
use serde::{Deserialize, Serialize};

use super::{IpProtocol, prefix, query};
use crate::{name::Name, text::by_text};

/// All that is said must hold; nothing said: every packet.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchFilter {
    /// Dropped for one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasons: Option<Reasons>,
    /// Of this endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<IpProtocol>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Place>,
}

impl WatchFilter {
    /// As the query of a URL; empty where nothing is said.
    pub fn query(&self) -> String {
        query([
            self.reasons.as_ref().map(|v| format!("reasons={v}")),
            self.endpoint.as_ref().map(|v| format!("endpoint={v}")),
            self.protocol.map(|v| format!("protocol={v}")),
            self.from.map(|v| format!("from={v}")),
            self.to.map(|v| format!("to={v}")),
        ])
    }

    /// As the programs have it; endpoints have other names there.
    pub fn record(&self) -> Filter {
        let side = |place: Option<Place>| place.map_or(Side::ANY, |place| place.side());
        Filter {
            reasons: self.reasons.as_ref().map_or(u64::MAX, Reasons::bits),
            from: side(self.from),
            to: side(self.to),
            proto: self.protocol.map_or(0, |protocol| protocol.0),
            proto_mask: if self.protocol.is_some() { u8::MAX } else { 0 },
            ..Filter::default()
        }
    }
}

/// Reasons for a drop, by name, between commas.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reasons(pub Vec<Drop>);

impl Reasons {
    fn bits(&self) -> u64 {
        self.0
            .iter()
            .fold(0, |bits, &reason| bits | 1 << reason as u32)
    }
}

/// One of the reasons that there are.
pub fn parse_reason(text: &str) -> Result<Drop, String> {
    let found = Drop::ALL.iter().find(|reason| reason.name() == text);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = Drop::ALL.iter().map(|reason| reason.name()).collect();
        format!("{text:?} is no reason for a drop: {}", names.join(", "))
    })
}

impl fmt::Display for Reasons {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|reason| reason.name()).collect();
        out.write_str(&names.join(","))
    }
}

impl FromStr for Reasons {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(parse_reason)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// Where packets come from or go to: an address or a prefix of addresses, a port, or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place {
    pub net: Option<IpNet>,
    pub port: Option<u16>,
}

impl Place {
    fn side(self) -> Side {
        let mut side = Side::ANY;
        if let Some(net) = self.net {
            let words = |ip| match ip {
                IpAddr::V4(ip) => Ip6::from_mapped(Ip4::from(ip)),
                IpAddr::V6(ip) => Ip6::from(ip),
            };
            side.addr = words(net.network());
            side.mask = words(net.netmask());
            if let IpNet::V4(_) = net {
                // Of the family, all bits count.
                for word in &mut side.mask.0[..3] {
                    *word = Be32::new(u32::MAX);
                }
            }
        }
        if let Some(port) = self.port {
            (side.port, side.port_mask) = (Be16::new(port), u16::MAX);
        }
        side
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = self.net.map(|net| match net {
            net if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
            net => net.to_string(),
        });
        match (net, self.port) {
            (Some(net), None) => out.write_str(&net),
            (Some(net), Some(port)) if net.contains(':') => write!(out, "[{net}]:{port}"),
            (net, Some(port)) => write!(out, "{}:{port}", net.unwrap_or_default()),
            (None, None) => Ok(()),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is neither an address nor a prefix, with or without a port: 192.0.2.1, \
                 10.0.0.0/8:53, [2001:db8::1]:443, :80"
            )
        };
        if text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok() {
            return Ok(Self {
                net: Some(prefix(text, wrong)?),
                port: None,
            });
        }
        let (place, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = place.strip_prefix('[').and_then(|p| p.strip_suffix(']'));
        Ok(Self {
            net: match bare.unwrap_or(place) {
                "" => None,
                // What looks like a port may be the end of the address.
                six if six.contains(':') && bare.is_none() => return Err(wrong()),
                place => Some(prefix(place, wrong)?),
            },
            port: Some(port.parse().map_err(|_| wrong())?),
        })
    }
}

by_text!(Reasons, Place);

#[cfg(test)]
mod tests {
    use netfw_common::event::{Action, Ends, Event, wants};

    use super::*;

    #[test]
    fn a_filter_comes_back_from_its_query() {
        for filter in [
            WatchFilter::default(),
            WatchFilter {
                reasons: Some("leak,no-flow".parse().unwrap()),
                endpoint: Some("web".parse().unwrap()),
                protocol: Some("udp".parse().unwrap()),
                from: Some("[fd00::/64]:53".parse().unwrap()),
                to: Some("10.0.0.0/8:80".parse().unwrap()),
            },
        ] {
            let url = format!("http://localhost/v1/monitor{}", filter.query());
            let query = axum::extract::Query::<WatchFilter>::try_from_uri(&url.parse().unwrap());
            assert_eq!(query.unwrap().0, filter, "{url}");
        }
    }

    #[test]
    fn places_are_written_as_everywhere() {
        for text in [
            "192.0.2.1",
            "10.0.0.0/8",
            "192.0.2.1:80",
            "10.0.0.0/8:53",
            "2001:db8::1",
            "2001:db8::/32",
            "[2001:db8::1]:443",
            "[2001:db8::/32]:443",
            ":80",
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            ":",
            "x",
            "10.0.0.0/33",
            "192.0.2.1:",
            ":65536",
            "2001:db8::1::80",
            "[::1]",
            "10.0.0.1/8",
            "10.0.0.1/8:53",
            "[2001:db8::1/32]:443",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
        assert!("leak,lek".parse::<Reasons>().is_err());
    }

    #[test]
    fn a_prefix_is_of_its_family() {
        let event = |src: &str| {
            let ip: IpAddr = src.parse().unwrap();
            let src = match ip {
                IpAddr::V4(ip) => Ip6::from_mapped(ip.into()),
                IpAddr::V6(ip) => ip.into(),
            };
            Event {
                before: Ends {
                    src,
                    ..Ends::default()
                },
                action: Action::Drop as u8,
                ..Event::default()
            }
        };
        for (from, src, suits) in [
            ("10.0.0.0/8", "10.9.9.9", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "11.0.0.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ] {
            let filter = WatchFilter {
                from: Some(from.parse().unwrap()),
                ..WatchFilter::default()
            };
            let filter = Filter {
                wants: wants::DROPS,
                ..filter.record()
            };
            assert_eq!(filter.suits(&event(src)), suits, "{from}: {src}");
        }
    }
}
