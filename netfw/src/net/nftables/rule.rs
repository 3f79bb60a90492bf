//! A rule: what it asks of a packet, and what becomes of one for which all of it holds.
//!
//! To the kernel it is a list of expressions: something is loaded into a register, and compared. Rules put it
//! into the register that is compared next, so what was loaded last is what a comparison is of. What is not
//! understood is kept as such ([`Asks::Unknown`], [`Action::Unknown`]) and never guessed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Place, numbers::*};
use crate::net::{attribute::Attributes, socket::Protocol};

/// An interface, as rules name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Interface {
    Named(String),
    /// All whose names begin so.
    Beginning(String),
    Index(u32),
}

impl Interface {
    /// None where its index would tell, and is not known.
    pub fn is(&self, name: &str, index: Option<u32>) -> Option<bool> {
        match self {
            Self::Named(named) => Some(named == name),
            Self::Beginning(beginning) => Some(name.starts_with(beginning.as_str())),
            Self::Index(number) => index.map(|index| index == *number),
        }
    }
}

/// What is asked of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asks {
    From(Interface),
    To(Interface),
    /// IPv6, and not IPv4.
    Six(bool),
    Protocol(u8),
    /// The destination's, the first and the last.
    Port(u16, u16),
    Source(IpNet),
    Destination(IpNet),
    /// For an address of the node.
    Local,
    /// What is known of its flow, as bits (`NF_CT_STATE_BIT`): one of them is set.
    State(u32),
    Unknown,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    pub asks: Asks,
    /// That it is not so.
    pub not: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Accept,
    /// A refusal, too.
    Drop,
    /// To another destination.
    Dnat,
    /// From another source.
    Snat,
    /// Into that chain of the table, and back if nothing is decided there.
    Jump(String),
    /// The same, and back to where this chain was called from.
    Goto(String),
    Return,
    /// Nothing that decides.
    None,
    /// A decision by a map, or of another kind.
    Unknown,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    pub place: Place,
    /// All must hold.
    pub conditions: Vec<Condition>,
    pub action: Action,
}

/// What a comparison is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Family,
    /// As Ethernet has it.
    Ethertype,
    Protocol,
    Port,
    /// Of the interface: by name, and which.
    Name(Way),
    Index(Way),
    /// The first bytes of an address.
    Source(Prefix),
    Destination(Prefix),
    /// With which bits.
    State(u32),
    /// What the destination is.
    Type,
    Other,
}

/// How many bits of an address count, of IPv6 or of IPv4.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Prefix {
    six: bool,
    bits: u8,
}

impl Prefix {
    fn of(self, value: &[u8]) -> Option<IpNet> {
        let addr: IpAddr = match self.six {
            false => Ipv4Addr::from(filled(value)?).into(),
            true => Ipv6Addr::from(filled(value)?).into(),
        };
        Some(IpNet::new(addr, self.bits).ok()?.trunc())
    }
}

fn filled<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    let mut octets = [0; N];
    octets.get_mut(..value.len())?.copy_from_slice(value);
    Some(octets)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

impl Way {
    fn asks(self, interface: Interface) -> Asks {
        match self {
            Self::In => Asks::From(interface),
            Self::Out => Asks::To(interface),
        }
    }
}

impl Rule {
    pub(super) fn read(place: Place, expressions: Attributes<'_>) -> Option<Self> {
        let mut rule = Self {
            place,
            conditions: Vec::new(),
            action: Action::None,
        };
        let mut loaded = Loaded::Other;
        for (_, expression) in expressions {
            let expression = Attributes::of(expression);
            let name = expression.text(EXPR_NAME)?;
            rule.expression(&name, expression.within(EXPR_DATA), &mut loaded);
        }
        Some(rule)
    }

    fn expression(&mut self, name: &str, data: Attributes<'_>, loaded: &mut Loaded) {
        match name {
            "counter" | "log" | "notrack" => {}
            // What is set, and asks nothing.
            "meta" if data.get(META_SOURCE).is_some() => {}
            "ct" if data.get(CT_SOURCE).is_some() => {}
            "payload" if data.get(PAYLOAD_SOURCE).is_some() => {}
            "meta" => *loaded = of_meta(data),
            "payload" => *loaded = of_payload(data),
            "ct" => {
                *loaded = match data.be32(CT_KEY) {
                    Some(CT_STATE) => Loaded::State(0),
                    _ => Loaded::Other,
                }
            }
            "fib" => {
                *loaded = match (data.be32(FIB_RESULT), data.be32(FIB_FLAGS)) {
                    (Some(FIB_TYPE), Some(FIB_DESTINATION)) => Loaded::Type,
                    _ => Loaded::Other,
                }
            }
            "bitwise" => {
                let mask = data
                    .within(BITWISE_MASK)
                    .get(DATA_VALUE)
                    .unwrap_or_default();
                *loaded = masked(*loaded, mask);
            }
            "cmp" => {
                let value = data.within(CMP_DATA).get(DATA_VALUE).unwrap_or_default();
                self.compared(*loaded, data.be32(CMP_OP).unwrap_or(u32::MAX), value);
            }
            "range" => {
                let [from, to] = [RANGE_FROM, RANGE_TO]
                    .map(|end| port(data.within(end).get(DATA_VALUE).unwrap_or_default()));
                let operation = data.be32(RANGE_OP).unwrap_or(u32::MAX);
                match (*loaded, from, to) {
                    (Loaded::Port, Some(from), Some(to)) => {
                        self.asks(Asks::Port(from, to), operation);
                    }
                    _ => self.asks_more(),
                }
            }
            "lookup" => {
                *loaded = Loaded::Other;
                match data.be32(LOOKUP_DESTINATION) {
                    Some(VERDICT_REGISTER) => self.action = Action::Unknown,
                    _ => self.asks_more(),
                }
            }
            "immediate" => self.decide(data),
            "reject" => self.action = Action::Drop,
            "nat" => {
                self.action = match data.be32(NAT_TYPE) {
                    Some(DNAT) => Action::Dnat,
                    _ => Action::Snat,
                }
            }
            "redir" => self.action = Action::Dnat,
            "masq" => self.action = Action::Snat,
            "queue" | "tproxy" | "synproxy" => self.action = Action::Unknown,
            "target" => self.target(data.text(XT_NAME).unwrap_or_default().as_str()),
            "match" => {
                let name = data.text(XT_NAME).unwrap_or_default();
                self.matched(&name, data.get(XT_INFO).unwrap_or_default());
            }
            _ => self.asks_more(),
        }
    }

    fn decide(&mut self, data: Attributes<'_>) {
        let verdict = data.within(IMMEDIATE_DATA).within(DATA_VERDICT);
        let chain = || verdict.text(VERDICT_CHAIN).unwrap_or_default();
        // None: an address or port to translate to.
        if let Some(code) = verdict.be32(VERDICT_CODE) {
            self.action = match code.cast_signed() {
                NF_DROP => Action::Drop,
                NF_ACCEPT => Action::Accept,
                NFT_JUMP => Action::Jump(chain()),
                NFT_GOTO => Action::Goto(chain()),
                NFT_RETURN => Action::Return,
                NFT_CONTINUE => Action::None,
                _ => Action::Unknown,
            };
        }
    }

    /// Of iptables.
    fn target(&mut self, name: &str) {
        match name {
            "DNAT" | "REDIRECT" => self.action = Action::Dnat,
            "SNAT" | "MASQUERADE" => self.action = Action::Snat,
            "REJECT" => self.action = Action::Drop,
            "NFQUEUE" | "TPROXY" | "SYNPROXY" => self.action = Action::Unknown,
            // Marks, logs, counts.
            _ => {}
        }
    }

    fn asks(&mut self, asks: Asks, operation: u32) {
        let condition = match operation {
            EQUAL => Condition { asks, not: false },
            NOT_EQUAL => Condition { asks, not: true },
            _ => return self.asks_more(),
        };
        self.conditions.push(condition);
    }

    /// Something that is not understood.
    fn asks_more(&mut self) {
        self.asks(Asks::Unknown, EQUAL);
    }

    fn compared(&mut self, loaded: Loaded, operation: u32, value: &[u8]) {
        let asked = match loaded {
            Loaded::Family => value
                .first()
                .map(|family| Asks::Six(*family == NFPROTO_IPV6)),
            Loaded::Ethertype => port(value).map(|kind| Asks::Six(kind == ETHERTYPE_IPV6)),
            Loaded::Protocol => value.first().copied().map(Asks::Protocol),
            Loaded::Port => {
                let port = port(value);
                return match (operation, port) {
                    (AT_LEAST, Some(port)) => self.asks(Asks::Port(port, u16::MAX), EQUAL),
                    (AT_MOST, Some(port)) => self.asks(Asks::Port(0, port), EQUAL),
                    (_, Some(port)) => self.asks(Asks::Port(port, port), operation),
                    _ => self.asks_more(),
                };
            }
            Loaded::Name(way) => interface(value).map(|interface| way.asks(interface)),
            Loaded::Index(way) => host32(value).map(|index| way.asks(Interface::Index(index))),
            Loaded::Source(prefix) => prefix.of(value).map(Asks::Source),
            Loaded::Destination(prefix) => prefix.of(value).map(Asks::Destination),
            Loaded::State(mask) => match (host32(value), mask, operation) {
                // Any bit of the mask; none of it.
                (Some(0), 1.., NOT_EQUAL) => return self.asks(Asks::State(mask), EQUAL),
                (Some(0), 1.., EQUAL) => return self.asks(Asks::State(mask), NOT_EQUAL),
                (Some(state @ 1..), 0, _) => Some(Asks::State(state)),
                _ => None,
            },
            Loaded::Type => (host32(value) == Some(RTN_LOCAL)).then_some(Asks::Local),
            Loaded::Other => None,
        };
        match asked {
            Some(asked) => self.asks(asked, operation),
            None => self.asks_more(),
        }
    }

    /// Of iptables.
    fn matched(&mut self, name: &str, info: &[u8]) {
        let asked = match name {
            // Says something, and asks nothing.
            "comment" => return,
            "tcp" | "udp" | "sctp" => return self.matched_ports(name, info),
            "conntrack" => conntrack(info).map(Asks::State),
            "state" => host32(info).map(Asks::State),
            "addrtype" => (info == LOCAL_DESTINATION.as_flattened()).then_some(Asks::Local),
            _ => None,
        };
        self.asks(asked.unwrap_or(Asks::Unknown), EQUAL);
    }

    /// `struct xt_tcp`, `struct xt_udp` and `struct xt_sctp` begin with the first and the last of the source
    /// ports and of the destination ports, in host order; what follows is 0 where nothing else is asked.
    fn matched_ports(&mut self, name: &str, info: &[u8]) {
        if let Ok(protocol) = name.parse::<Protocol>() {
            self.asks(Asks::Protocol(protocol.number()), EQUAL);
        }
        let half = |at: usize| {
            let bytes = info.get(at..at + 2)?.try_into().ok()?;
            Some(u16::from_ne_bytes(bytes))
        };
        let rest = info.get(8..).unwrap_or_default();
        match [half(0), half(2), half(4), half(6)] {
            [Some(0), Some(u16::MAX), Some(from), Some(to)] if rest.iter().all(|b| *b == 0) => {
                if (from, to) != (0, u16::MAX) {
                    self.asks(Asks::Port(from, to), EQUAL);
                }
            }
            _ => self.asks_more(),
        }
    }
}

fn of_meta(data: Attributes<'_>) -> Loaded {
    match data.be32(META_KEY) {
        Some(META_PROTOCOL) => Loaded::Ethertype,
        Some(META_NFPROTO) => Loaded::Family,
        Some(META_L4PROTO) => Loaded::Protocol,
        Some(META_IIF) => Loaded::Index(Way::In),
        Some(META_OIF) => Loaded::Index(Way::Out),
        Some(META_IIFNAME) => Loaded::Name(Way::In),
        Some(META_OIFNAME) => Loaded::Name(Way::Out),
        _ => Loaded::Other,
    }
}

/// nft loads no more of an address than its prefix has.
fn of_payload(data: Attributes<'_>) -> Loaded {
    let place = [PAYLOAD_BASE, PAYLOAD_OFFSET, PAYLOAD_LEN].map(|part| data.be32(part));
    let prefix = |six, length: u32| Prefix {
        six,
        bits: (length * 8) as u8,
    };
    match place.map(|part| part.unwrap_or(u32::MAX)) {
        [TRANSPORT_HEADER, 2, 2] => Loaded::Port,
        // The protocol in a header of IPv4, of IPv6.
        [NETWORK_HEADER, 9 | 6, 1] => Loaded::Protocol,
        [NETWORK_HEADER, 12, length @ 1..=4] => Loaded::Source(prefix(false, length)),
        [NETWORK_HEADER, 16, length @ 1..=4] => Loaded::Destination(prefix(false, length)),
        // One byte could be the TTL of IPv4.
        [NETWORK_HEADER, 8, length @ 2..=16] => Loaded::Source(prefix(true, length)),
        [NETWORK_HEADER, 24, length @ 1..=16] => Loaded::Destination(prefix(true, length)),
        _ => Loaded::Other,
    }
}

fn masked(loaded: Loaded, mask: &[u8]) -> Loaded {
    let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let leading = mask
        .iter()
        .position(|byte| *byte != u8::MAX)
        .map_or(ones, |at| at as u32 * 8 + mask[at].leading_ones());
    let bits = ones as u8;
    match loaded {
        Loaded::Source(Prefix { six, .. }) if leading == ones => {
            Loaded::Source(Prefix { six, bits })
        }
        Loaded::Destination(Prefix { six, .. }) if leading == ones => {
            Loaded::Destination(Prefix { six, bits })
        }
        Loaded::State(0) => host32(mask).map_or(Loaded::Other, Loaded::State),
        _ => Loaded::Other,
    }
}

/// `struct xt_conntrack_mtinfo2`, 3: flags at 146, those that are turned round, the states.
fn conntrack(info: &[u8]) -> Option<u32> {
    let half = |at: usize| {
        let bytes = info.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_ne_bytes(bytes))
    };
    let states_alone = half(146)? == 1 && half(148)? == 0;
    states_alone.then(|| half(150).map(u32::from))?
}

/// In network byte order.
fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*value.first_chunk()?))
}

fn host32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*value.first_chunk()?))
}

/// A name that ends is a whole one.
fn interface(value: &[u8]) -> Option<Interface> {
    match value.iter().position(|byte| *byte == 0) {
        Some(end) => String::from_utf8(value[..end].to_vec())
            .ok()
            .map(Interface::Named),
        None => Some(Interface::Beginning(str::from_utf8(value).ok()?.into())),
    }
}
