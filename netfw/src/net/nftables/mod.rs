//! The rules of nftables in the calling thread's namespace, as far as they may be in netfw's way
//! (linux/netfilter/nf_tables.h). Those of `iptables-nft` are among them: to the kernel they are the same,
//! but for matches and targets that keep the form of iptables (linux/netfilter/x_tables.h).

mod numbers;
mod rule;

use std::{collections::BTreeSet, fmt, io, path::Path};

use nix::libc;

use super::{NetError, attribute::Attributes, exchange::exchange_bytes, release};
use numbers::*;
pub use rule::{Action, Asks, Condition, Interface, Rule};

const NETLINK_NETFILTER: isize = 12;

// NFNL_SUBSYS_NFTABLES << 8, and enum nf_tables_msg_types.
const GET_TABLE: u16 = 10 << 8 | 1;
const GET_CHAIN: u16 = 10 << 8 | 4;
const GET_RULE: u16 = 10 << 8 | 7;

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

impl Place {
    /// The table's full name.
    pub fn table(&self) -> String {
        format!("{} {}", self.family.word(), self.table)
    }

    /// Is it one of those into which iptables-nft has packets come?
    pub fn is_of_iptables(&self) -> bool {
        let tables = ["filter", "nat", "mangle", "raw", "security"];
        let chains = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        matches!(self.family, Family::Ip | Family::Ip6)
            && tables.contains(&self.table.as_str())
            && chains.contains(&self.chain.as_str())
    }
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

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Ruleset {
    /// Base chains.
    pub chains: Vec<Chain>,
    /// Of all chains, in order.
    pub rules: Vec<Rule>,
}

/// All there is, but for tables that are switched off (`dormant`). Nothing where the kernel has no nftables, or has not loaded it: to ask would load it.
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
    let mut dormant = BTreeSet::new();
    dump(GET_TABLE, "tables", |message| {
        dormant.extend(dormant_table(message))
    })?;
    let counts = |place: &Place| !dormant.contains(&(place.family, place.table.clone()));
    found.chains.retain(|chain| counts(&chain.place));
    found.rules.retain(|rule| counts(&rule.place));
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

/// A table that is switched off.
fn dormant_table(message: &[u8]) -> Option<(Family, String)> {
    let (family, attributes) = head(message)?;
    let flags = attributes.be32(TABLE_FLAGS)?;
    Some((family, attributes.text(TABLE_NAME)?)).filter(|_| flags & DORMANT != 0)
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
        drops: attributes.be32(CHAIN_POLICY) == Some(NF_DROP.cast_unsigned()),
    })
}

fn rule(message: &[u8]) -> Option<Rule> {
    let (family, attributes) = head(message)?;
    let place = Place {
        family,
        table: attributes.text(RULE_TABLE)?,
        chain: attributes.text(RULE_CHAIN)?,
    };
    Rule::read(place, attributes.within(RULE_EXPRESSIONS))
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

    fn verdict(code: i32) -> Vec<u8> {
        let verdict = nested(DATA_VERDICT, &[be32(VERDICT_CODE, code.cast_unsigned())]);
        expression("immediate", &[nested(IMMEDIATE_DATA, &[verdict])])
    }

    fn made(family: u8, expressions: &[Vec<u8>]) -> Rule {
        let mut message = vec![family, 0, 0, 0];
        message.extend(text(RULE_TABLE, "nat"));
        message.extend(text(RULE_CHAIN, "DOCKER"));
        message.extend(nested(RULE_EXPRESSIONS, expressions));
        rule(&message).unwrap()
    }

    fn is(asks: Asks) -> Condition {
        Condition { asks, not: false }
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
        let asked = [
            Asks::From(Interface::Named("eth0".into())),
            Asks::Protocol(6),
            Asks::Port(8080, 8080),
        ];
        assert_eq!(rule.conditions, asked.map(is));
    }

    #[test]
    fn a_translation_of_iptables_is_read() {
        let ports: Vec<u8> = [0, u16::MAX, 8080, 8090]
            .iter()
            .flat_map(|port: &u16| port.to_ne_bytes())
            .chain([0; 4])
            .collect();
        let with = |info: &[u8]| {
            made(
                2,
                &[
                    expression("match", &[text(XT_NAME, "comment")]),
                    expression("match", &[text(XT_NAME, "tcp"), attribute(XT_INFO, info)]),
                    expression("target", &[text(XT_NAME, "DNAT")]),
                ],
            )
        };
        let rule = with(&ports);
        assert_eq!(rule.action, Action::Dnat);
        let asked = [Asks::Protocol(6), Asks::Port(8080, 8090)];
        assert_eq!(rule.conditions, asked.map(is));
        // All but those ports.
        let turned = [&ports[..11], &[2]].concat();
        let asked = [Asks::Protocol(6), Asks::Unknown];
        assert_eq!(with(&turned).conditions, asked.map(is));
    }

    #[test]
    fn what_iptables_knows_of_flows_and_addresses_is_read() {
        let asked = |name: &str, info: &[u8]| {
            let rule = made(
                2,
                &[expression(
                    "match",
                    &[text(XT_NAME, name), attribute(XT_INFO, info)],
                )],
            );
            rule.conditions
        };
        let mut info = [0; 160];
        info[146..148].copy_from_slice(&1u16.to_ne_bytes());
        info[150..152].copy_from_slice(&6u16.to_ne_bytes());
        assert_eq!(asked("conntrack", &info), [is(Asks::State(6))]);
        info[148..150].copy_from_slice(&1u16.to_ne_bytes());
        assert_eq!(asked("conntrack", &info), [is(Asks::Unknown)]);
        assert_eq!(
            asked("addrtype", LOCAL_DESTINATION.as_flattened()),
            [is(Asks::Local)]
        );
        assert_eq!(asked("addrtype", &[0; 8]), [is(Asks::Unknown)]);
        assert_eq!(asked("owner", &[0; 8]), [is(Asks::Unknown)]);
    }

    #[test]
    fn ports_are_read_or_unknown() {
        let asked =
            |parts: &[Vec<u8>]| made(1, &[&[destination_port()], parts].concat()).conditions;
        assert_eq!(asked(&[expression("lookup", &[])]), [is(Asks::Unknown)]);
        let range = [
            be32(RANGE_OP, EQUAL),
            value(RANGE_FROM, &80u16.to_be_bytes()),
            value(RANGE_TO, &90u16.to_be_bytes()),
        ];
        assert_eq!(
            asked(&[expression("range", &range)]),
            [is(Asks::Port(80, 90))]
        );
        let end = |operation, port: u16| {
            let port = value(CMP_DATA, &port.to_be_bytes());
            expression("cmp", &[be32(CMP_OP, operation), port])
        };
        let ends = [Asks::Port(80, u16::MAX), Asks::Port(0, 90)];
        assert_eq!(asked(&[end(AT_LEAST, 80), end(AT_MOST, 90)]), ends.map(is));
        let but = Condition {
            asks: Asks::Port(80, 80),
            not: true,
        };
        assert_eq!(asked(&[end(NOT_EQUAL, 80)]), [but]);
        assert_eq!(asked(&[end(2, 80)]), [is(Asks::Unknown)]);
    }

    #[test]
    fn addresses_flows_and_interfaces_are_read() {
        let load = |offset: u32, length: u32| {
            let parts = [
                (PAYLOAD_BASE, NETWORK_HEADER),
                (PAYLOAD_OFFSET, offset),
                (PAYLOAD_LEN, length),
            ];
            expression("payload", &parts.map(|(part, number)| be32(part, number)))
        };
        let mask = |bytes: &[u8]| expression("bitwise", &[value(BITWISE_MASK, bytes)]);
        let net = |text: &str| text.parse().unwrap();
        let six: [u8; 8] = [0xfd, 0, 0, 0x12, 0, 0, 0, 0];
        let differs = expression("cmp", &[be32(CMP_OP, NOT_EQUAL), value(CMP_DATA, &[0; 4])]);
        let state = expression("ct", &[be32(CT_KEY, CT_STATE)]);
        let fib = [be32(FIB_RESULT, FIB_TYPE), be32(FIB_FLAGS, FIB_DESTINATION)];
        for (parts, asks) in [
            (
                vec![load(16, 2), cmp(&[172, 18])],
                Asks::Destination(net("172.18.0.0/16")),
            ),
            (
                vec![load(12, 4), mask(&[255, 240, 0, 0]), cmp(&[172, 16, 0, 0])],
                Asks::Source(net("172.16.0.0/12")),
            ),
            (
                vec![load(12, 4), mask(&[255, 0, 255, 0]), cmp(&[1, 0, 1, 0])],
                Asks::Unknown,
            ),
            (
                vec![load(24, 8), cmp(&six)],
                Asks::Destination(net("fd00:12::/64")),
            ),
            (
                vec![state, mask(&6u32.to_ne_bytes()), differs],
                Asks::State(6),
            ),
            (
                vec![expression("fib", &fib), cmp(&2u32.to_ne_bytes())],
                Asks::Local,
            ),
            (
                vec![meta(META_IIF), cmp(&7u32.to_ne_bytes())],
                Asks::From(Interface::Index(7)),
            ),
            (
                vec![meta(META_OIFNAME), cmp(b"netfw")],
                Asks::To(Interface::Beginning("netfw".into())),
            ),
            (vec![meta(META_NFPROTO), cmp(&[10])], Asks::Six(true)),
            (vec![meta(3), cmp(&[0; 4])], Asks::Unknown),
        ] {
            assert_eq!(made(1, &parts).conditions, [is(asks)]);
        }
        let set = expression("meta", &[be32(META_KEY, 3), be32(META_SOURCE, 1)]);
        assert_eq!(made(1, &[set]).conditions, []);
    }

    #[test]
    fn what_is_done_is_read() {
        let jump = |code: i32| {
            let verdict = [
                be32(VERDICT_CODE, code.cast_unsigned()),
                text(VERDICT_CHAIN, "last"),
            ];
            let verdict = nested(DATA_VERDICT, &verdict);
            expression("immediate", &[nested(IMMEDIATE_DATA, &[verdict])])
        };
        let by_map = expression("lookup", &[be32(LOOKUP_DESTINATION, VERDICT_REGISTER)]);
        for (part, action) in [
            (expression("reject", &[]), Action::Drop),
            (verdict(NF_DROP), Action::Drop),
            (verdict(NF_ACCEPT), Action::Accept),
            (verdict(NFT_RETURN), Action::Return),
            (jump(NFT_JUMP), Action::Jump("last".into())),
            (jump(NFT_GOTO), Action::Goto("last".into())),
            (by_map, Action::Unknown),
            (expression("target", &[text(XT_NAME, "MARK")]), Action::None),
        ] {
            let rule = made(1, &[expression("counter", &[]), part]);
            assert_eq!(rule.action, action);
            assert_eq!(rule.conditions, []);
        }
    }

    #[test]
    fn a_table_that_is_switched_off_is_known() {
        let table = |flags| {
            let mut message = vec![1, 0, 0, 0];
            message.extend([text(TABLE_NAME, "x"), be32(TABLE_FLAGS, flags)].concat());
            dormant_table(&message)
        };
        assert_eq!(table(0), None);
        assert_eq!(table(DORMANT), Some((Family::Inet, "x".into())));
    }

    #[test]
    fn base_chains_are_read_and_others_are_not() {
        let names = [text(CHAIN_TABLE, "filter"), text(CHAIN_NAME, "FORWARD")].concat();
        let mut message = vec![2, 0, 0, 0];
        message.extend(names);
        assert_eq!(chain(&message), None);
        message.extend(nested(CHAIN_HOOK, &[be32(HOOK_NUMBER, 2)]));
        message.extend(be32(CHAIN_POLICY, NF_DROP.cast_unsigned()));
        let found = chain(&message).unwrap();
        assert_eq!(found.hook, Hook::Forward);
        assert!(found.drops);
    }

    proptest::proptest! {
        #[test]
        fn any_message_is_read_or_not(bytes: Vec<u8>) {
            let _ = (chain(&bytes), rule(&bytes), dormant_table(&bytes));
        }
    }

    #[test]
    fn the_kernel_answers() {
        // Without root it may refuse.
        let _ = ruleset();
    }
}
