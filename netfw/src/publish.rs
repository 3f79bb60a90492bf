//! Publishes: port mappings as `docker run -p` writes them.
//!
//! [`Spec`] is what somebody asked for, where the host port may be left to us; [`Publish`] is what
//! the node does, every port known, for one family. A spec without a host address becomes a publish
//! for each family that the container has, as Docker does and shows it. Both keep one invariant: a
//! range has a first and a last port, neither is 0, and a publish's two ranges have the same size.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::text::by_text;

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

/// What was asked: `[[HOST_IP:][HOST_PORT[-END]]:]CONTAINER_PORT[-END][/tcp|udp|sctp]`, with an IPv6
/// address in brackets. A host port of 0 is none, and several for one container port are a choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Spec {
    /// None: any local address of either family. Never an IPv4 address in IPv6's clothes.
    pub host_ip: Option<IpAddr>,
    /// None: a free port is chosen.
    pub host_ports: Option<PortRange>,
    /// From which it is chosen, where one is named for a single container port.
    pub choice: Option<PortRange>,
    pub container_ports: PortRange,
    pub protocol: Protocol,
}

/// A port mapping of the node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Publish {
    pub protocol: Protocol,
    /// `0.0.0.0`, `::`: any local address of the family.
    pub host_ip: IpAddr,
    pub host_ports: PortRange,
    pub container_ports: PortRange,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    #[error(
        "{0:?} is no publish: write [HOST_IP:]HOST_PORT[-END]:CONTAINER_PORT[-END][/tcp|udp|sctp], as in 8080:80"
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
    #[error("publish {spec:?}: unknown protocol {protocol:?}: tcp, udp and sctp are known")]
    Protocol { spec: String, protocol: String },
    #[error("publish {spec:?}: {ip:?} is no IP address")]
    HostIp { spec: String, ip: String },
    #[error("publish {spec:?}: an IPv6 address stands in brackets: write [{ip}]")]
    Bare { spec: String, ip: Ipv6Addr },
    #[error("publish {spec:?}: {ip} can be no address of the node")]
    NotUnicast { spec: String, ip: IpAddr },
}

by_text!(Spec);

impl Spec {
    /// Does it lead to all container ports of the other one?
    pub fn serves(&self, other: &Self) -> bool {
        let (own, theirs) = (self.container_ports, other.container_ports);
        self.protocol == other.protocol && own.first <= theirs.first && theirs.last <= own.last
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(s: &str) -> Result<Self, SpecError> {
        let spec = || s.to_owned();
        let syntax = || SpecError::Syntax(spec());
        let (rest, protocol) = match s.split_once('/') {
            None => (s, Protocol::Tcp),
            Some((rest, named)) => match named.to_ascii_lowercase().as_str() {
                "tcp" => (rest, Protocol::Tcp),
                "udp" => (rest, Protocol::Udp),
                "sctp" => (rest, Protocol::Sctp),
                _ => {
                    return Err(SpecError::Protocol {
                        spec: spec(),
                        protocol: named.to_owned(),
                    });
                }
            },
        };
        // The colons of an address are none of ours: nothing behind the last bracket is one.
        let behind = rest.rfind(']').map_or(0, |at| at + 1);
        let (host, container) = match rest[behind..].rfind(':').map(|at| at + behind) {
            None if behind > 0 => return Err(syntax()),
            None => (None, rest),
            Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
        };
        let (ip, host) = match host {
            Some(host) if behind == host.len() && behind > 0 => return Err(syntax()),
            None => (None, None),
            Some(host) => match host.rsplit_once(':') {
                None if host.is_empty() => return Err(syntax()),
                None => (None, Some(host)),
                Some((ip, "")) => (Some(ip), None),
                Some((ip, host)) => (Some(ip), Some(host)),
            },
        };
        let container_ports = parse_ports(s, container)?;
        let host = host.filter(|ports| *ports != "0");
        let host_ports = host.map(|ports| parse_ports(s, ports)).transpose()?;
        let host_ip = ip.map(|ip| parse_ip(s, ip)).transpose()?;
        let (host_ports, choice) = match host_ports {
            Some(host) if host.count() == container_ports.count() => (Some(host), None),
            Some(host) if container_ports.count() == 1 => (None, Some(host)),
            None => (None, None),
            Some(host) => {
                return Err(SpecError::Unequal {
                    spec: spec(),
                    host: host.count(),
                    container: container_ports.count(),
                });
            }
        };
        Ok(Self {
            host_ip,
            host_ports,
            choice,
            container_ports,
            protocol,
        })
    }
}

fn parse_ip(spec: &str, text: &str) -> Result<IpAddr, SpecError> {
    let spec = || spec.to_owned();
    let bracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    match (bracketed.unwrap_or(text).parse(), bracketed) {
        (Ok(IpAddr::V6(ip)), None) => Err(SpecError::Bare { spec: spec(), ip }),
        (Ok(ip), _) => match ip.to_canonical() {
            ip if ip.is_multicast() || ip == Ipv4Addr::BROADCAST => {
                Err(SpecError::NotUnicast { spec: spec(), ip })
            }
            ip => Ok(ip),
        },
        // `8080:80:90`, `a:b:c`: more colons than a publish has.
        (Err(_), _) if text.is_empty() => Err(SpecError::Syntax(spec())),
        (Err(_), _) => Err(SpecError::HostIp {
            spec: spec(),
            ip: text.to_owned(),
        }),
    }
}

/// An address before a colon.
struct Host(IpAddr);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(ip) => write!(f, "{ip}"),
            IpAddr::V6(ip) => write!(f, "[{ip}]"),
        }
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

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host_ip, self.host_ports.or(self.choice)) {
            (Some(ip), Some(ports)) => write!(f, "{}:{ports}:", Host(ip))?,
            (Some(ip), None) => write!(f, "{}::", Host(ip))?,
            (None, Some(ports)) => write!(f, "{ports}:")?,
            (None, None) => {}
        }
        write!(f, "{}/{}", self.container_ports, self.protocol)
    }
}

/// Ports that a container is said to serve: `PORT[-END][/tcp|udp|sctp]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Exposed {
    pub protocol: Protocol,
    pub ports: PortRange,
}

impl FromStr for Exposed {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let spec: Spec = text.parse()?;
        if text.contains(':') {
            return Err(SpecError::Syntax(text.to_owned()));
        }
        Ok(Self {
            protocol: spec.protocol,
            ports: spec.container_ports,
        })
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.ports, self.protocol)
    }
}

/// To publish them: on ports that are free.
impl From<Exposed> for Spec {
    fn from(exposed: Exposed) -> Self {
        Self {
            host_ip: None,
            host_ports: None,
            choice: None,
            container_ports: exposed.ports,
            protocol: exposed.protocol,
        }
    }
}

/// The families that a container has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Spec {
    /// The node's addresses that are meant, IPv4's first; none where the container has no address of
    /// that family.
    pub fn host_ips(self, families: Families) -> impl Iterator<Item = IpAddr> + Clone {
        let (first, second) = match self.host_ip {
            Some(ip) => (Some(ip), None),
            None => (
                Some(Ipv4Addr::UNSPECIFIED.into()),
                Some(Ipv6Addr::UNSPECIFIED.into()),
            ),
        };
        first.into_iter().chain(second).filter(move |ip| match ip {
            IpAddr::V4(_) => families.v4,
            IpAddr::V6(_) => families.v6,
        })
    }

    /// The publish on `host_ip`, with `host_ports` where the spec leaves them open.
    pub fn resolve(self, host_ip: IpAddr, host_ports: PortRange) -> Publish {
        Publish {
            protocol: self.protocol,
            host_ip,
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
            && self.choice.is_none_or(|c| c.overlaps(publish.host_ports))
            && match self.host_ip {
                Some(ip) => ip == publish.host_ip,
                None => open || publish.host_ip.is_unspecified(),
            }
    }
}

impl Publish {
    /// Did one spec ask for both: the same ports of any address, in either family?
    pub fn is_twin_of(&self, other: &Self) -> bool {
        let any = self.host_ip.is_unspecified() && other.host_ip.is_unspecified();
        (any || self.host_ip == other.host_ip)
            && self.protocol == other.protocol
            && self.host_ports == other.host_ports
            && self.container_ports == other.container_ports
    }

    /// Would one packet match both?
    pub fn overlaps(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_ports.overlaps(other.host_ports)
            && self.host_ip.is_ipv4() == other.host_ip.is_ipv4()
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
            Host(self.host_ip),
            self.host_ports,
            self.container_ports,
            self.protocol
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
            ("[192.0.2.1]:1:1", "192.0.2.1:1:1/tcp"),
            ("[::]:8080:80", "[::]:8080:80/tcp"),
            ("[::1]::80/udp", "[::1]::80/udp"),
            (
                "[2001:DB8:0::1]:80-81:80-81",
                "[2001:db8::1]:80-81:80-81/tcp",
            ),
            ("[::ffff:192.0.2.1]:1:1", "192.0.2.1:1:1/tcp"),
            ("2905:2905/sctp", "2905:2905/sctp"),
            ("8080:80/TCP", "8080:80/tcp"),
            ("0:80", "80/tcp"),
            ("127.0.0.1:0:80/udp", "127.0.0.1::80/udp"),
            ("8000-8010:80", "8000-8010:80/tcp"),
            ("[::1]:8000-8010:80", "[::1]:8000-8010:80/tcp"),
        ] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn several_host_ports_for_one_are_a_choice() {
        let spec: Spec = "8000-8010:80".parse().unwrap();
        let choice = PortRange {
            first: 8000,
            last: 8010,
        };
        assert_eq!((spec.host_ports, spec.choice), (None, Some(choice)));
        let chosen = |port| {
            let ports = PortRange {
                first: port,
                last: port,
            };
            spec.resolve(Ipv4Addr::UNSPECIFIED.into(), ports)
        };
        assert!(spec.names(&chosen(8003)) && !spec.names(&chosen(8011)));
        assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
    }

    #[test]
    fn an_exposed_port_is_a_container_s() {
        for (text, shown) in [
            ("80", "80/tcp"),
            ("53/UDP", "53/udp"),
            ("80-90", "80-90/tcp"),
        ] {
            assert_eq!(text.parse::<Exposed>().unwrap().to_string(), shown);
        }
        for bad in ["", "80:80", "0", "90-80", "80/x", "127.0.0.1::80"] {
            assert!(bad.parse::<Exposed>().is_err(), "{bad}");
        }
        let exposed: Exposed = "80-81/udp".parse().unwrap();
        assert_eq!(Spec::from(exposed), "80-81/udp".parse().unwrap());
    }

    #[test]
    fn bad_input_is_refused_with_its_reason() {
        use SpecError as E;
        let error = |text: &str| text.parse::<Spec>().unwrap_err();
        for text in [
            "", ":", ":80", "80:", "8080:80:", "::80", "80-", "-80", "/tcp", "[::]", "[::]:80",
            "[::1]:", "80:[::1]",
        ] {
            assert!(
                matches!(error(text), E::Syntax(_)),
                "{text}: {:?}",
                error(text)
            );
        }
        for text in [
            "0-9:80",
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
        assert!(matches!(error("80:80-90"), E::Unequal { .. }));
        assert!(matches!(error("80:80/icmp"), E::Protocol { .. }));
        assert!(matches!(error("80:80/"), E::Protocol { .. }));
        assert!(matches!(error("80:80/tcp/udp"), E::Protocol { .. }));
        assert!(matches!(error("x:80:80"), E::HostIp { .. }));
        assert!(matches!(error("1:2:3:4"), E::HostIp { .. }));
        assert!(matches!(error("192.0.2.256:80:80"), E::HostIp { .. }));
        assert!(matches!(error("::1:80:80"), E::Bare { .. }));
        assert!(matches!(error("2001:db8::1:80:80"), E::Bare { .. }));
        for text in [
            "[fe80::1%eth0]:80:80",
            "[::1:80:80",
            "::1]:80:80",
            "[]:80:80",
        ] {
            assert!(
                matches!(error(text), E::HostIp { .. }),
                "{text}: {:?}",
                error(text)
            );
        }
        for text in [
            "224.0.0.1:80:80",
            "255.255.255.255:80:80",
            "[ff02::1]:80:80",
        ] {
            assert!(matches!(error(text), E::NotUnicast { .. }), "{text}");
        }
    }

    #[test]
    fn overlap_is_by_protocol_port_and_address() {
        let publish = |text: &str| {
            let spec: Spec = text.parse().unwrap();
            let ip = spec.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
            spec.resolve(ip, spec.host_ports.unwrap())
        };
        let base = publish("192.0.2.1:80-90:80-90");
        assert!(base.overlaps(&publish("90:1")));
        assert!(base.overlaps(&publish("192.0.2.1:85:1")));
        assert!(!base.overlaps(&publish("192.0.2.2:85:1")));
        assert!(!base.overlaps(&publish("85:1/udp")));
        assert!(!base.overlaps(&publish("91:1")));
        assert!(!base.overlaps(&publish("[::]:85:1")));
        let base = publish("[2001:db8::1]:80:80");
        assert!(base.overlaps(&publish("[::]:80:1")));
        assert!(!base.overlaps(&publish("[2001:db8::2]:80:1")));
        assert!(!base.overlaps(&publish("0.0.0.0:80:1")));
    }

    #[test]
    fn no_host_address_means_what_the_container_has() {
        let ips = |text: &str, v4, v6| -> Vec<String> {
            let spec: Spec = text.parse().unwrap();
            let ips = spec.host_ips(Families { v4, v6 });
            ips.map(|ip| ip.to_string()).collect()
        };
        assert_eq!(ips("80:80", true, true), ["0.0.0.0", "::"]);
        assert_eq!(ips("80:80", true, false), ["0.0.0.0"]);
        assert_eq!(ips("80:80", false, true), ["::"]);
        assert_eq!(ips("0.0.0.0:80:80", true, true), ["0.0.0.0"]);
        assert_eq!(ips("[::]:80:80", true, true), ["::"]);
        assert!(ips("[::1]:80:80", true, false).is_empty());
    }

    #[test]
    fn a_spec_names_both_that_it_made() {
        let both = Families { v4: true, v6: true };
        let publishes = |text: &str| -> Vec<Publish> {
            let spec: Spec = text.parse().unwrap();
            let ports = spec.host_ports.unwrap();
            spec.host_ips(both)
                .map(|ip| spec.resolve(ip, ports))
                .collect()
        };
        let names = |text: &str, p: &Publish| text.parse::<Spec>().unwrap().names(p);
        let [four, six] = publishes("8080:80")[..] else {
            panic!("one for each family");
        };
        assert!(four.is_twin_of(&six));
        for text in ["8080:80", "80"] {
            assert!(names(text, &four) && names(text, &six), "{text}");
        }
        assert!(names("0.0.0.0:8080:80", &four) && !names("0.0.0.0:8080:80", &six));
        let other = publishes("8081:80")[0];
        assert!(!four.is_twin_of(&other) && !four.is_twin_of(&publishes("[::1]:8080:80")[0]));
    }

    fn spec() -> impl Strategy<Value = Spec> {
        (
            proptest::option::of(prop_oneof![
                any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from(bits))),
                any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).to_canonical()),
            ]),
            any::<bool>(),
            1u16..,
            1u16..,
            0u16..1000,
            prop_oneof![
                Just(Protocol::Tcp),
                Just(Protocol::Udp),
                Just(Protocol::Sctp)
            ],
        )
            .prop_map(|(host_ip, open, host, container, span, protocol)| {
                let span = span.min(u16::MAX - host).min(u16::MAX - container);
                let range = |first| PortRange {
                    first,
                    last: first + span,
                };
                Spec {
                    host_ip: host_ip.filter(|ip| !ip.is_multicast() && *ip != Ipv4Addr::BROADCAST),
                    host_ports: (!open).then_some(range(host)),
                    choice: None,
                    container_ports: range(container),
                    protocol,
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
            let ip = |spec: Spec| spec.host_ip.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
            let (a, b) = (a.resolve(ip(a), range), b.resolve(ip(b), b.container_ports));
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
            prop_assert!(a.overlaps(&a));
            prop_assert_eq!(a.pairs().count() as u32, a.container_ports.count());
        }
    }
}
