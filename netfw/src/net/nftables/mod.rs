//! The rules of nftables in the calling thread's namespace, as far as they may be in netfw's way
//! (linux/netfilter/nf_tables.h). Those of `iptables-nft` are among them: to the kernel they are the same,
//! but for matches and targets that keep the form of iptables (linux/netfilter/x_tables.h).
//!
//! A rule is a list of expressions: something is loaded into a register, and compared. Rules put it into the
//! register that is compared next, so what was loaded last is what a comparison is of.

use std::{fmt, io, path::Path};

use nix::libc;

use super::{NetError, attribute::Attributes, exchange::exchange_bytes, release, socket::Protocol};

const NETLINK_NETFILTER: isize = 12;

// NFNL_SUBSYS_NFTABLES << 8, and enum nf_tables_msg_types.
const GET_CHAIN: u16 = 10 << 8 | 4;
const GET_RULE: u16 = 10 << 8 | 7;

// enum nft_chain_attributes, nft_hook_attributes
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
// enum nft_rule_attributes, nft_list_attributes, nft_expr_attributes
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
// Of expressions: what is at their beginning, and so on.
const META_KEY: u16 = 2;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const RANGE_OP: u16 = 2;
const RANGE_FROM: u16 = 3;
const RANGE_TO: u16 = 4;
const NAT_TYPE: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const XT_NAME: u16 = 1;
const XT_INFO: u16 = 3;

// enum nft_meta_keys
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;
// enum nft_payload_bases
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_CMP_EQ`, `NFT_RANGE_EQ`.
const EQUAL: u32 = 0;
/// `NFT_CMP_LTE`, `NFT_CMP_GTE`: the ends of a range, as nft writes it.
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
/// `NFT_NAT_DNAT`
const DNAT: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// What rules are for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    Inet,
    Ip,
    Ip6,
    Bridge,
    /// ARP, or of one interface.
    Other,
}

impl Family {
    fn of(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            7 => Self::Bridge,
            10 => Self::Ip6,
            _ => Self::Other,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
            Self::Other => "netdev",
        }
    }
}

/// A chain's full name, as `nft list chain` takes it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub family: Family,
    pub table: String,
    pub chain: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family.word(), self.table, self.chain)
    }
}

/// Where packets come into a base chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// Of an interface, or newer than this.
    Other,
}

/// A base chain: packets come into it, and not from other chains only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    pub place: Place,
    pub hook: Hook,
    /// What no rule decides is dropped.
    pub drops: bool,
}

/// Which destination ports a rule is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    Any,
    /// The first and the last.
    Range(u16, u16),
    /// Those in a set, which is not looked into, or all but one.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Accept,
    /// A refusal, too.
    Drop,
    /// To another destination.
    Dnat,
    /// From another source.
    Snat,
    /// To another chain, or nothing.
    Other,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    pub place: Place,
    pub protocol: Option<Protocol>,
    pub ports: Ports,
    /// Names of interfaces that it compares with; with an asterisk at the end, how they begin.
    pub interfaces: Vec<String>,
    /// It asks nothing.
    pub unconditional: bool,
    pub action: Action,
}

impl Rule {
    /// Does it name this interface?
    pub fn names(&self, interface: &str) -> bool {
        self.interfaces
            .iter()
            .any(|named| match named.strip_suffix('*') {
                Some(beginning) => interface.starts_with(beginning),
                None => named == interface,
            })
    }
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Ruleset {
    /// Base chains.
    pub chains: Vec<Chain>,
    /// Of all chains, in order.
    pub rules: Vec<Rule>,
}

/// All there is. Nothing where the kernel has no nftables, or has not loaded it: to ask would load it.
pub fn ruleset() -> Result<Ruleset, NetError> {
    let mut found = Ruleset::default();
    if !may_be_there() {
        return Ok(found);
    }
    dump(GET_CHAIN, "chains", |message| {
        found.chains.extend(chain(message))
    })?;
    dump(GET_RULE, "rules", |message| {
        found.rules.extend(rule(message))
    })?;
    Ok(found)
}

/// Is nftables in the kernel? It is unless it is a module that is not loaded.
fn may_be_there() -> bool {
    if Path::new("/sys/module/nf_tables").exists() {
        return true;
    }
    let builtin = format!("/lib/modules/{}/modules.builtin", release::release());
    match std::fs::read_to_string(builtin) {
        Ok(names) => names.contains("/nf_tables.ko"),
        // A kernel without modules.
        Err(_) => true,
    }
}

fn dump(kind: u16, what: &str, visit: impl FnMut(&[u8])) -> Result<(), NetError> {
    match exchange_bytes(NETLINK_NETFILTER, &request(kind), visit) {
        Err(error) if lacks(&error) => Ok(()),
        Err(source) => Err(NetError::Netlink {
            asked: format!("list the {what} of nftables"),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

/// Does the error say that the kernel has no netfilter, or no nftables?
fn lacks(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)
    )
}

/// `struct nlmsghdr` (16 bytes), then `struct nfgenmsg`: family (0: all), version, a number (4).
fn request(kind: u16) -> [u8; 20] {
    let mut bytes = [0; 20];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    bytes[..4].copy_from_slice(&20u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

fn head(message: &[u8]) -> Option<(Family, Attributes<'_>)> {
    let (head, attributes) = message.split_first_chunk::<4>()?;
    Some((Family::of(head[0]), Attributes::of(attributes)))
}

/// None of a chain that is no base chain.
fn chain(message: &[u8]) -> Option<Chain> {
    let (family, attributes) = head(message)?;
    let number = attributes.within(CHAIN_HOOK).be32(HOOK_NUMBER)?;
    let hook = match (family, number) {
        (Family::Other, _) => Hook::Other,
        (_, 0) => Hook::Prerouting,
        (_, 1) => Hook::Input,
        (_, 2) => Hook::Forward,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::Postrouting,
        _ => Hook::Other,
    };
    Some(Chain {
        place: Place {
            family,
            table: attributes.text(CHAIN_TABLE)?,
            chain: attributes.text(CHAIN_NAME)?,
        },
        hook,
        drops: attributes.be32(CHAIN_POLICY) == Some(NF_DROP),
    })
}

fn rule(message: &[u8]) -> Option<Rule> {
    let (family, attributes) = head(message)?;
    let mut rule = Rule {
        place: Place {
            family,
            table: attributes.text(RULE_TABLE)?,
            chain: attributes.text(RULE_CHAIN)?,
        },
        protocol: None,
        ports: Ports::Any,
        interfaces: Vec::new(),
        unconditional: true,
        action: Action::Other,
    };
    let mut loaded = Loaded::Other;
    for (_, expression) in attributes.within(RULE_EXPRESSIONS) {
        let expression = Attributes::of(expression);
        let name = expression.text(EXPR_NAME)?;
        rule.read(&name, expression.within(EXPR_DATA), &mut loaded);
    }
    Some(rule)
}

/// What a comparison is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Protocol,
    Port,
    Interface,
    Other,
}

impl Rule {
    fn read(&mut self, name: &str, data: Attributes<'_>, loaded: &mut Loaded) {
        match name {
            "counter" | "log" => {}
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
            "target" => self.target(data.text(XT_NAME).unwrap_or_default().as_str()),
            _ => {
                self.unconditional = false;
                self.condition(name, data, loaded);
            }
        }
    }

    fn decide(&mut self, data: Attributes<'_>) {
        let verdict = data.within(IMMEDIATE_DATA).within(DATA_VERDICT);
        match verdict.be32(VERDICT_CODE) {
            Some(NF_DROP) => self.action = Action::Drop,
            Some(NF_ACCEPT) => self.action = Action::Accept,
            // An address or port to translate to.
            _ => {}
        }
    }

    /// Of iptables.
    fn target(&mut self, name: &str) {
        match name {
            "DNAT" | "REDIRECT" => self.action = Action::Dnat,
            "SNAT" | "MASQUERADE" => self.action = Action::Snat,
            "REJECT" => self.action = Action::Drop,
            _ => {}
        }
    }

    fn condition(&mut self, name: &str, data: Attributes<'_>, loaded: &mut Loaded) {
        match name {
            "meta" => {
                *loaded = match data.be32(META_KEY) {
                    Some(META_L4PROTO) => Loaded::Protocol,
                    Some(META_IIFNAME | META_OIFNAME) => Loaded::Interface,
                    _ => Loaded::Other,
                }
            }
            "payload" => {
                let place = [PAYLOAD_BASE, PAYLOAD_OFFSET, PAYLOAD_LEN].map(|part| data.be32(part));
                *loaded = match place.map(|part| part.unwrap_or(u32::MAX)) {
                    [TRANSPORT_HEADER, 2, 2] => Loaded::Port,
                    // The protocol in a header of IPv4, of IPv6.
                    [NETWORK_HEADER, 9 | 6, 1] => Loaded::Protocol,
                    _ => Loaded::Other,
                }
            }
            "cmp" => {
                let value = data.within(CMP_DATA).get(DATA_VALUE).unwrap_or_default();
                self.compared(*loaded, data.be32(CMP_OP).unwrap_or(u32::MAX), value);
            }
            "range" => {
                let [from, to] = [RANGE_FROM, RANGE_TO]
                    .map(|end| port(data.within(end).get(DATA_VALUE).unwrap_or_default()));
                if *loaded == Loaded::Port {
                    self.ports = match (data.be32(RANGE_OP), from, to) {
                        (Some(EQUAL), Some(from), Some(to)) => Ports::Range(from, to),
                        _ => Ports::Unknown,
                    };
                }
            }
            // In a set or a map.
            "lookup" if *loaded == Loaded::Port => self.ports = Ports::Unknown,
            "match" => {
                let name = data.text(XT_NAME).unwrap_or_default();
                self.matched(&name, data.get(XT_INFO).unwrap_or_default());
            }
            _ => {}
        }
    }

    fn compared(&mut self, loaded: Loaded, operation: u32, value: &[u8]) {
        match (loaded, operation) {
            (Loaded::Port, operation) => {
                let range = match self.ports {
                    Ports::Range(first, last) => (first, last),
                    _ => (0, u16::MAX),
                };
                self.ports = match (operation, port(value)) {
                    (EQUAL, Some(port)) => Ports::Range(port, port),
                    (AT_LEAST, Some(port)) => Ports::Range(port, range.1),
                    (AT_MOST, Some(port)) => Ports::Range(range.0, port),
                    _ => Ports::Unknown,
                };
            }
            (Loaded::Protocol, EQUAL) => {
                self.protocol = value.first().and_then(|n| Protocol::from_number(*n));
            }
            (Loaded::Interface, EQUAL) => self.interfaces.extend(interface(value)),
            _ => {}
        }
    }

    /// Of iptables: `struct xt_tcp`, `struct xt_udp` and `struct xt_sctp` begin with the first and the last of
    /// the source ports and of the destination ports, in host order; then the options differ.
    fn matched(&mut self, name: &str, info: &[u8]) {
        if name == "multiport" {
            self.ports = Ports::Unknown;
            return;
        }
        let Ok(protocol) = name.parse() else {
            return;
        };
        self.protocol = Some(protocol);
        let half = |at: usize| {
            let bytes = info.get(at..at + 2)?.try_into().ok()?;
            Some(u16::from_ne_bytes(bytes))
        };
        self.ports = match (half(4), half(6)) {
            (Some(0), Some(u16::MAX)) | (None, _) | (_, None) => self.ports,
            (Some(from), Some(to)) => Ports::Range(from, to),
        };
    }
}

/// In network byte order.
fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*value.first_chunk()?))
}

/// A name that ends is a whole one.
fn interface(value: &[u8]) -> Option<String> {
    match value.iter().position(|byte| *byte == 0) {
        Some(end) => String::from_utf8(value[..end].to_vec()).ok(),
        None => Some(format!("{}*", str::from_utf8(value).ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::attribute::made::{attribute, be32, nested, text};

    fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        nested(1, &[text(EXPR_NAME, name), nested(EXPR_DATA, data)])
    }

    fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
        nested(kind, &[attribute(DATA_VALUE, bytes)])
    }

    fn cmp(bytes: &[u8]) -> Vec<u8> {
        expression("cmp", &[be32(CMP_OP, EQUAL), value(CMP_DATA, bytes)])
    }

    fn meta(key: u32) -> Vec<u8> {
        expression("meta", &[be32(META_KEY, key)])
    }

    fn destination_port() -> Vec<u8> {
        let parts = [
            (PAYLOAD_BASE, TRANSPORT_HEADER),
            (PAYLOAD_OFFSET, 2),
            (PAYLOAD_LEN, 2),
        ];
        expression("payload", &parts.map(|(part, number)| be32(part, number)))
    }

    fn verdict(code: u32) -> Vec<u8> {
        let verdict = nested(DATA_VERDICT, &[be32(VERDICT_CODE, code)]);
        expression("immediate", &[nested(IMMEDIATE_DATA, &[verdict])])
    }

    fn made(family: u8, expressions: &[Vec<u8>]) -> Rule {
        let mut message = vec![family, 0, 0, 0];
        message.extend(text(RULE_TABLE, "nat"));
        message.extend(text(RULE_CHAIN, "DOCKER"));
        message.extend(nested(RULE_EXPRESSIONS, expressions));
        rule(&message).unwrap()
    }

    #[test]
    fn a_translation_of_nft_is_read() {
        let rule = made(
            2,
            &[
                meta(META_IIFNAME),
                cmp(b"eth0\0\0\0\0\0\0\0\0\0\0\0\0"),
                meta(META_L4PROTO),
                cmp(&[6]),
                destination_port(),
                cmp(&8080u16.to_be_bytes()),
                expression("counter", &[]),
                expression("immediate", &[value(IMMEDIATE_DATA, &[172, 17, 0, 2])]),
                expression("nat", &[be32(NAT_TYPE, DNAT)]),
            ],
        );
        assert_eq!(rule.place.to_string(), "ip nat DOCKER");
        assert_eq!(rule.action, Action::Dnat);
        assert_eq!(rule.protocol, Some(Protocol::Tcp));
        assert_eq!(rule.ports, Ports::Range(8080, 8080));
        assert!(rule.names("eth0") && !rule.names("eth1") && !rule.unconditional);
    }

    #[test]
    fn a_translation_of_iptables_is_read() {
        let ports: Vec<u8> = [0, u16::MAX, 8080, 8090]
            .iter()
            .flat_map(|port: &u16| port.to_ne_bytes())
            .chain([0; 4])
            .collect();
        let rule = made(
            2,
            &[
                expression("match", &[text(XT_NAME, "tcp"), attribute(XT_INFO, &ports)]),
                expression("target", &[text(XT_NAME, "DNAT")]),
            ],
        );
        assert_eq!(rule.action, Action::Dnat);
        assert_eq!(rule.protocol, Some(Protocol::Tcp));
        assert_eq!(rule.ports, Ports::Range(8080, 8090));
    }

    #[test]
    fn ports_in_a_set_are_unknown() {
        let rule = made(1, &[destination_port(), expression("lookup", &[])]);
        assert_eq!(rule.ports, Ports::Unknown);
        let range = [
            be32(RANGE_OP, EQUAL),
            value(RANGE_FROM, &80u16.to_be_bytes()),
            value(RANGE_TO, &90u16.to_be_bytes()),
        ];
        let rule = made(1, &[destination_port(), expression("range", &range)]);
        assert_eq!(rule.ports, Ports::Range(80, 90));
        let end = |operation, port: u16| {
            let port = value(CMP_DATA, &port.to_be_bytes());
            expression("cmp", &[be32(CMP_OP, operation), port])
        };
        let ends = [end(AT_LEAST, 80), end(AT_MOST, 90)];
        let rule = made(1, &[&[destination_port()], &ends[..]].concat());
        assert_eq!(rule.ports, Ports::Range(80, 90));
    }

    #[test]
    fn what_asks_nothing_is_known() {
        let refusal = [expression("counter", &[]), expression("reject", &[])];
        let rule = made(1, &refusal);
        assert!(rule.unconditional && rule.action == Action::Drop);
        let rule = made(1, &[verdict(NF_DROP)]);
        assert!(rule.unconditional && rule.action == Action::Drop);
        let rule = made(1, &[meta(META_OIFNAME), cmp(b"netfw"), verdict(NF_ACCEPT)]);
        assert!(!rule.unconditional && rule.action == Action::Accept);
        assert!(rule.names("netfw0") && !rule.names("net"), "a beginning");
    }

    #[test]
    fn base_chains_are_read_and_others_are_not() {
        let names = [text(CHAIN_TABLE, "filter"), text(CHAIN_NAME, "FORWARD")].concat();
        let mut message = vec![2, 0, 0, 0];
        message.extend(names);
        assert_eq!(chain(&message), None);
        message.extend(nested(CHAIN_HOOK, &[be32(HOOK_NUMBER, 2)]));
        message.extend(be32(CHAIN_POLICY, NF_DROP));
        let found = chain(&message).unwrap();
        assert_eq!(found.hook, Hook::Forward);
        assert!(found.drops);
    }

    proptest::proptest! {
        #[test]
        fn any_message_is_read_or_not(bytes: Vec<u8>) {
            let _ = (chain(&bytes), rule(&bytes));
        }
    }

    #[test]
    fn the_kernel_answers() {
        // Without root it may refuse.
        let _ = ruleset();
    }
}
