//! Publishes: port mappings as `docker run -p` writes them.
//!
//! [`Spec`] is what somebody asked for, where the host port may be left to us; [`Publish`] is what
//! the node does, every port known. Both keep one invariant: a range has a first and a last port,
//! neither is 0, and a publish's two ranges have the same size.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

pub use crate::net::socket::Protocol;

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    pub fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    pub fn ports(self) -> std::ops::RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// What was asked: `[[HOST_IP:][HOST_PORT[-END]]:]CONTAINER_PORT[-END][/tcp|udp]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Spec {
    /// None: any local address.
    pub host_ip: Option<Ipv4Addr>,
    /// None: a free port is chosen.
    pub host_ports: Option<PortRange>,
    pub container_ports: PortRange,
    pub protocol: Protocol,
}

/// A port mapping of the node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Publish {
    pub protocol: Protocol,
    /// `0.0.0.0`: any local address.
    pub host_ip: Ipv4Addr,
    pub host_ports: PortRange,
    pub container_ports: PortRange,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    #[error(
        "{0:?} is no publish: write [HOST_IP:]HOST_PORT[-END]:CONTAINER_PORT[-END][/tcp|udp], as in 8080:80"
    )]
    Syntax(String),
    #[error("publish {spec:?}: {port:?} is no port: 1 to 65535 are")]
    Port { spec: String, port: String },
    #[error("publish {spec:?}: the range {range} runs backwards: write the smaller port first")]
    Reversed { spec: String, range: String },
    #[error(
        "publish {spec:?}: {host} host ports for {container} container ports: the ranges must have the same size"
    )]
    Unequal {
        spec: String,
        host: u32,
        container: u32,
    },
    #[error("publish {spec:?}: unknown protocol {protocol:?}: tcp and udp are known")]
    Protocol { spec: String, protocol: String },
    #[error("publish {spec:?}: sctp cannot be published yet: tcp and udp can")]
    Sctp { spec: String },
    #[error("publish {spec:?}: {ip:?} is no IPv4 address")]
    HostIp { spec: String, ip: String },
    #[error(
        "publish {spec:?}: {ip} is an IPv6 address, and those cannot be published on yet: use an IPv4 address"
    )]
    Ipv6 { spec: String, ip: String },
    #[error("publish {spec:?}: {ip} can be no address of the node")]
    NotUnicast { spec: String, ip: Ipv4Addr },
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(s: &str) -> Result<Self, SpecError> {
        let spec = || s.to_owned();
        let syntax = || SpecError::Syntax(spec());
        let (rest, protocol) = match s.split_once('/') {
            None => (s, Protocol::Tcp),
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some((_, "sctp")) => return Err(SpecError::Sctp { spec: spec() }),
            Some((_, other)) => {
                return Err(SpecError::Protocol {
                    spec: spec(),
                    protocol: other.to_owned(),
                });
            }
        };
        let (host, container) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((host, container)) => (Some(host), container),
        };
        let (ip, host) = match host {
            None => (None, None),
            Some(host) => match host.rsplit_once(':') {
                None if host.is_empty() => return Err(syntax()),
                None => (None, Some(host)),
                Some((ip, "")) => (Some(ip), None),
                Some((ip, host)) => (Some(ip), Some(host)),
            },
        };
        let container_ports = parse_ports(s, container)?;
        let host_ports = host.map(|ports| parse_ports(s, ports)).transpose()?;
        let host_ip = ip.map(|ip| parse_ip(s, ip)).transpose()?;
        if let Some(host) = host_ports
            && host.count() != container_ports.count()
        {
            return Err(SpecError::Unequal {
                spec: spec(),
                host: host.count(),
                container: container_ports.count(),
            });
        }
        Ok(Self {
            host_ip,
            host_ports,
            container_ports,
            protocol,
        })
    }
}

fn parse_ip(spec: &str, text: &str) -> Result<Ipv4Addr, SpecError> {
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    match bare.parse() {
        Ok(IpAddr::V4(ip)) if ip.is_multicast() || ip.is_broadcast() => {
            Err(SpecError::NotUnicast {
                spec: spec.to_owned(),
                ip,
            })
        }
        Ok(IpAddr::V4(ip)) => Ok(ip),
        Ok(IpAddr::V6(ip)) => Err(SpecError::Ipv6 {
            spec: spec.to_owned(),
            ip: ip.to_string(),
        }),
        // `8080:80:90`, `[::]:80`, `a:b:c`: more colons than a publish has.
        Err(_) if text.is_empty() => Err(SpecError::Syntax(spec.to_owned())),
        Err(_) => Err(SpecError::HostIp {
            spec: spec.to_owned(),
            ip: text.to_owned(),
        }),
    }
}

fn parse_ports(spec: &str, text: &str) -> Result<PortRange, SpecError> {
    let range = match text.split_once('-') {
        None => {
            let port = parse_port(spec, text)?;
            PortRange {
                first: port,
                last: port,
            }
        }
        Some((first, last)) => PortRange {
            first: parse_port(spec, first)?,
            last: parse_port(spec, last)?,
        },
    };
    if range.first > range.last {
        return Err(SpecError::Reversed {
            spec: spec.to_owned(),
            range: text.to_owned(),
        });
    }
    Ok(range)
}

fn parse_port(spec: &str, text: &str) -> Result<u16, SpecError> {
    if text.is_empty() {
        return Err(SpecError::Syntax(spec.to_owned()));
    }
    // `u16::from_str` would take "+80".
    match text.parse() {
        Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(SpecError::Port {
            spec: spec.to_owned(),
            port: text.to_owned(),
        }),
    }
}

impl TryFrom<String> for Spec {
    type Error = SpecError;

    fn try_from(s: String) -> Result<Self, SpecError> {
        s.parse()
    }
}

impl From<Spec> for String {
    fn from(spec: Spec) -> Self {
        spec.to_string()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host_ip, self.host_ports) {
            (Some(ip), Some(ports)) => write!(f, "{ip}:{ports}:")?,
            (Some(ip), None) => write!(f, "{ip}::")?,
            (None, Some(ports)) => write!(f, "{ports}:")?,
            (None, None) => {}
        }
        write!(f, "{}/{}", self.container_ports, self.protocol)
    }
}

impl Spec {
    /// The publish, with `host_ports` where the spec leaves them open.
    pub fn resolve(self, host_ports: PortRange) -> Publish {
        Publish {
            protocol: self.protocol,
            host_ip: self.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            host_ports: self.host_ports.unwrap_or(host_ports),
            container_ports: self.container_ports,
        }
    }

    /// Is `publish` what this spec names (to withdraw it)?
    pub fn names(self, publish: &Publish) -> bool {
        let open = self.host_ports.is_none();
        self.protocol == publish.protocol
            && self.container_ports == publish.container_ports
            && self.host_ports.is_none_or(|p| p == publish.host_ports)
            && match self.host_ip {
                Some(ip) => ip == publish.host_ip,
                None => open || publish.host_ip.is_unspecified(),
            }
    }
}

impl Publish {
    /// Would one packet match both?
    pub fn overlaps(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_ports.overlaps(other.host_ports)
            && (self.host_ip == other.host_ip
                || self.host_ip.is_unspecified()
                || other.host_ip.is_unspecified())
    }

    /// Host port and container port of each mapping.
    pub fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        self.host_ports.ports().zip(self.container_ports.ports())
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}/{}",
            self.host_ip, self.host_ports, self.container_ports, self.protocol
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_docker_takes() {
        for (text, canonical) in [
            ("8080:80", "8080:80/tcp"),
            ("8080:80/udp", "8080:80/udp"),
            ("192.0.2.1:8080:80", "192.0.2.1:8080:80/tcp"),
            ("127.0.0.1::80/udp", "127.0.0.1::80/udp"),
            ("80", "80/tcp"),
            ("80-90/udp", "80-90/udp"),
            ("8000-8010:9000-9010", "8000-8010:9000-9010/tcp"),
            ("1-65535:1-65535", "1-65535:1-65535/tcp"),
            ("0.0.0.0:1:1", "0.0.0.0:1:1/tcp"),
        ] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn bad_input_is_refused_with_its_reason() {
        use SpecError as E;
        let error = |text: &str| text.parse::<Spec>().unwrap_err();
        for text in [
            "", ":", ":80", "80:", "8080:80:", "::80", "80-", "-80", "/tcp",
        ] {
            assert!(
                matches!(error(text), E::Syntax(_)),
                "{text}: {:?}",
                error(text)
            );
        }
        for text in [
            "0:80",
            "80:0",
            "65536:80",
            "80:99999999999",
            "+80:80",
            "a:80",
            "8 0:80",
            "80:1-2-3",
        ] {
            assert!(
                matches!(error(text), E::Port { .. }),
                "{text}: {:?}",
                error(text)
            );
        }
        assert!(matches!(error("90-80:90-80"), E::Reversed { .. }));
        assert!(matches!(
            error("80-90:80-89"),
            E::Unequal {
                host: 11,
                container: 10,
                ..
            }
        ));
        assert!(matches!(error("80-90:80"), E::Unequal { .. }));
        assert!(matches!(error("80:80/sctp"), E::Sctp { .. }));
        assert!(matches!(error("80:80/TCP"), E::Protocol { .. }));
        assert!(matches!(error("80:80/"), E::Protocol { .. }));
        assert!(matches!(error("80:80/tcp/udp"), E::Protocol { .. }));
        assert!(matches!(error("x:80:80"), E::HostIp { .. }));
        assert!(matches!(error("1:2:3:4"), E::HostIp { .. }));
        assert!(matches!(error("192.0.2.256:80:80"), E::HostIp { .. }));
        assert!(matches!(error("[::1]:80:80"), E::Ipv6 { .. }));
        assert!(matches!(error("224.0.0.1:80:80"), E::NotUnicast { .. }));
    }

    #[test]
    fn overlap_is_by_protocol_port_and_address() {
        let publish = |text: &str| {
            let spec: Spec = text.parse().unwrap();
            spec.resolve(spec.host_ports.unwrap())
        };
        let base = publish("192.0.2.1:80-90:80-90");
        assert!(base.overlaps(&publish("90:1")));
        assert!(base.overlaps(&publish("192.0.2.1:85:1")));
        assert!(!base.overlaps(&publish("192.0.2.2:85:1")));
        assert!(!base.overlaps(&publish("85:1/udp")));
        assert!(!base.overlaps(&publish("91:1")));
    }

    fn spec() -> impl Strategy<Value = Spec> {
        (
            proptest::option::of(any::<u32>().prop_map(Ipv4Addr::from)),
            any::<bool>(),
            1u16..,
            1u16..,
            0u16..1000,
            any::<bool>(),
        )
            .prop_map(|(host_ip, open, host, container, span, udp)| {
                let span = span.min(u16::MAX - host).min(u16::MAX - container);
                let range = |first| PortRange {
                    first,
                    last: first + span,
                };
                Spec {
                    host_ip: host_ip.filter(|ip| !ip.is_multicast() && !ip.is_broadcast()),
                    host_ports: (!open).then_some(range(host)),
                    container_ports: range(container),
                    protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(spec in spec()) {
            prop_assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
        }

        #[test]
        fn never_panics(text in "[0-9:./a-z\\[\\]-]{0,40}") {
            let _ = text.parse::<Spec>();
        }

        #[test]
        fn overlap_is_symmetric_and_pairs_count(a in spec(), b in spec()) {
            let range = PortRange { first: 1, last: a.container_ports.count() as u16 };
            let (a, b) = (a.resolve(range), b.resolve(b.container_ports));
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
            prop_assert!(a.overlaps(&a));
            prop_assert_eq!(a.pairs().count() as u32, a.container_ports.count());
        }
    }
}
