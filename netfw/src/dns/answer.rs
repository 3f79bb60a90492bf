//! What an asker is told: pure, but that any of the addresses behind one name may be the first.
//!
//! An asker sees the networks that it is in. Names are looked for where the query came in first, then
//! in the asker's other networks; the first network that has the name answers alone, so that the
//! addresses of an answer belong together. Its links come before all others: it asked for them.
//!
//! The node itself may ask at a gateway, and sees that network; its own resolvers it asks elsewhere. It
//! is known by asking from where nobody in the network is.
//!
//! What is ours is never forwarded, whatever type is asked for: the world does not know it, and need
//! not hear of it. That goes for an endpoint that is down, for a link to nobody, and for all that is in
//! or below the reverse zones of our subnets, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::Query,
    rr::{
        DNSClass, Name as DomainName, RData, RecordType,
        rdata::{A, AAAA, PTR},
    },
};
use ipnet::IpNet;

use super::view::{Holders, Member, Names};
use crate::name::Name;

/// Seconds that an answer may be kept. Docker says 600, and so long a client may go on talking to an
/// address whose container was replaced. To ask us costs microseconds; within five seconds nobody
/// notices much, and a client that asks for each connection need not ask twice in a row.
pub const TTL: u32 = 5;

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The name is ours: these, or nothing of the type that was asked for.
    Ours(Vec<RData>),
    /// An address of ours that nobody has, or nobody whom the asker may see; or below one.
    NoSuchName,
    /// The node's resolvers may know.
    Forward,
    /// They may, but the asker has no way out: SERVFAIL, as Docker says. It is no lie, as NXDOMAIN
    /// would be, and clients that have another server ask that.
    Internal,
}

/// Who asks, and in which networks it may look.
pub struct Asker<'a> {
    names: &'a Names,
    member: Option<&'a Member>,
    /// Where the query came in, then its other ones.
    networks: Vec<usize>,
    /// It is the node that asks.
    is_node: bool,
    is_link_local: bool,
}

/// Whom queries are counted for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Identity {
    Endpoint(Name),
    /// Somebody on the bridge whom netfw does not know: all such together.
    Stranger {
        network: Name,
    },
}

impl<'a> Asker<'a> {
    /// Whoever sends from this address on a network's bridge. None if the network is gone.
    pub fn find(names: &'a Names, network: &Name, from: IpAddr) -> Option<Self> {
        let here = names.network(network)?;
        let from = from.to_canonical();
        let member = names.networks[here].member_at(from);
        let mut networks = vec![here];
        if let Some(member) = member {
            let all = names.networks_of(&member.endpoint).iter();
            networks.extend(all.filter(|&&n| n != here));
        }
        let is_link_local = matches!(from, IpAddr::V6(addr) if addr.is_unicast_link_local());
        let is_near = is_link_local || names.networks[here].owns(from.into());
        Some(Self {
            names,
            member,
            networks,
            is_node: member.is_none() && (!is_near || names.gateways().contains(&from)),
            is_link_local,
        })
    }

    /// On which bridge, if it asks from a link-local address: it may be the node, which has one there.
    pub fn is_link_local_on(&self) -> Option<u32> {
        let bridge = &self.names.networks[self.networks[0]].network.bridge;
        self.is_link_local.then_some(bridge.ifindex)
    }

    pub fn identity(&self) -> Identity {
        match self.member {
            Some(member) => Identity::Endpoint(member.endpoint.clone()),
            None => Identity::Stranger {
                network: self.names.networks[self.networks[0]].network.name.clone(),
            },
        }
    }

    pub fn ask(&self, question: &Query) -> Verdict {
        let of_internet = matches!(question.query_class, DNSClass::IN | DNSClass::ANY);
        let known = of_internet
            .then(|| self.by_address(question).or_else(|| self.by_name(question)))
            .flatten();
        let way_out = || {
            let mut networks = self.networks.iter();
            // The node's resolvers are those that it asks: a query must not go round.
            !self.is_node && networks.any(|&n| !self.names.networks[n].network.internal)
        };
        match known {
            Some(verdict) => verdict,
            None if way_out() => Verdict::Forward,
            None => Verdict::Internal,
        }
    }

    /// The addresses behind a name.
    fn by_name(&self, question: &Query) -> Option<Verdict> {
        let name = text(&question.name)?;
        let found = self.linked(&name).or_else(|| {
            let mut networks = self.networks.iter();
            networks.find_map(|&n| Some(Some((n, self.names.networks[n].holders(&name)?))))
        })?;
        let records = |v6| {
            let addresses = found.map(|(n, holders)| self.names.networks[n].addresses(holders, v6));
            let addresses = addresses.into_iter().flatten();
            addresses.map(record).collect::<Vec<_>>()
        };
        Some(Verdict::Ours(match question.query_type {
            RecordType::A => records(false),
            RecordType::AAAA => records(true),
            RecordType::ANY => [records(false), records(true)].concat(),
            _ => Vec::new(),
        }))
    }

    /// Whom the asker has linked to under this name, and in which network; nobody there, perhaps.
    fn linked(&self, name: &str) -> Option<Option<(usize, &'a Holders)>> {
        let member = self.member?;
        let mut linked = None;
        for &n in &self.networks {
            let indexed = &self.names.networks[n];
            let domain = indexed.network.name.as_str();
            // The asker's links in that network.
            let members = indexed.network.members.iter();
            let own = members.filter(|other| other.endpoint == member.endpoint);
            let mut links = own.flat_map(|own| &own.links);
            if let Some(link) = links.find(|link| is_name(name, &link.alias, domain)) {
                if let Some(holders) = indexed.endpoint(&link.endpoint) {
                    return Some(Some((n, holders)));
                }
                linked = Some(None);
            }
        }
        linked
    }

    /// The name of an address, or what there is around it.
    fn by_address(&self, question: &Query) -> Option<Verdict> {
        let Reverse { net, below } = Reverse::read(&question.name)?;
        if !self.names.owns(net) {
            return None;
        }
        if below {
            return Some(Verdict::NoSuchName);
        }
        if net.prefix_len() != net.max_prefix_len() {
            // A zone, which has names in it and none itself.
            return Some(Verdict::Ours(Vec::new()));
        }
        let addr = net.addr();
        let mut networks = self.networks.iter().map(|&n| &self.names.networks[n]);
        let found = networks.find_map(|indexed| {
            let member = indexed.member_at(addr)?;
            domain_name(&member.endpoint, &indexed.network.name)
        });
        Some(match (found, question.query_type) {
            (None, _) => Verdict::NoSuchName,
            (Some(name), RecordType::PTR | RecordType::ANY) => {
                Verdict::Ours(vec![RData::PTR(PTR(name))])
            }
            (Some(_), _) => Verdict::Ours(Vec::new()),
        })
    }
}

/// What a reverse name is of: as much of an address as it has, from the right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reverse {
    net: IpNet,
    /// Labels stand before that which are no part of an address: `lb._dns-sd._udp.0.0.18.172`.
    below: bool,
}

impl Reverse {
    fn read(name: &DomainName) -> Option<Self> {
        let mut labels = name.iter().rev();
        if !labels.next()?.eq_ignore_ascii_case(b"arpa") {
            return None;
        }
        let kind = labels.next()?;
        let left = name.iter().count() - 2;
        let (net, read) = if kind.eq_ignore_ascii_case(b"in-addr") {
            let read: Vec<u8> = labels.take(4).map_while(octet).collect();
            let mut octets = [0; 4];
            octets[..read.len()].copy_from_slice(&read);
            let addr = Ipv4Addr::from(octets).into();
            (IpNet::new(addr, 8 * read.len() as u8), read.len())
        } else if kind.eq_ignore_ascii_case(b"ip6") {
            let read: Vec<u8> = labels.take(32).map_while(nibble).collect();
            let shifts = (0..32).rev().map(|n| 4 * n);
            let bits = read.iter().zip(shifts);
            let bits = bits.map(|(&nibble, shift)| u128::from(nibble) << shift);
            let addr = Ipv6Addr::from_bits(bits.sum()).into();
            (IpNet::new(addr, 4 * read.len() as u8), read.len())
        } else {
            return None;
        };
        Some(Self {
            net: net.ok()?,
            below: left > read,
        })
    }
}

/// `0` to `255`, as reverse names have it.
fn octet(label: &[u8]) -> Option<u8> {
    let number = str::from_utf8(label).ok()?.parse::<u8>().ok()?;
    // Neither `+1` nor `01`.
    (number.to_string().as_bytes() == label).then_some(number)
}

/// A hexadecimal digit.
fn nibble(label: &[u8]) -> Option<u8> {
    let &[digit] = label else { return None };
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

fn record(addr: IpAddr) -> RData {
    match addr {
        IpAddr::V4(addr) => RData::A(A(addr)),
        IpAddr::V6(addr) => RData::AAAA(AAAA(addr)),
    }
}

/// Is `name` (in lower case) this alias, or `ALIAS.NETWORK`?
fn is_name(name: &str, alias: &str, domain: &str) -> bool {
    match name.split_at_checked(alias.len()) {
        Some((start, rest)) if start.eq_ignore_ascii_case(alias) => {
            rest.is_empty()
                || rest
                    .strip_prefix('.')
                    .is_some_and(|rest| rest.eq_ignore_ascii_case(domain))
        }
        _ => false,
    }
}

/// A name as people write it: in lower case, without the last dot. None if it cannot be one of ours.
fn text(name: &DomainName) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        let is_ours = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if !label.iter().all(is_ours) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    Some(text)
}

/// `ENDPOINT.NETWORK.`; None where dots stand so that it is no domain name.
fn domain_name(endpoint: &Name, network: &Name) -> Option<DomainName> {
    let labels = endpoint.split('.').chain(network.split('.'));
    let mut name = DomainName::from_labels(labels.map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::view::{Bridge, Link, Member, Network, View};

    fn names(words: &[&str]) -> Vec<Name> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    fn member(endpoint: &str, aliases: &[&str], addresses: &[&str]) -> Member {
        Member {
            endpoint: endpoint.parse().unwrap(),
            aliases: names(aliases),
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
            links: Vec::new(),
        }
    }

    fn network(name: &str, subnets: &[&str], members: Vec<Member>) -> Network {
        Network {
            name: name.parse().unwrap(),
            internal: false,
            bridge: Bridge {
                ifindex: 7,
                name: "nf-test".into(),
            },
            gateways: Vec::new(),
            subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
            members,
        }
    }

    /// `front`: web, both families; two workers; db is in `back` and in `front`.
    fn world() -> Names {
        let mut web = member("Web", &["www"], &["10.1.0.2", "fd01::2"]);
        web.links.push(Link {
            alias: "store".parse().unwrap(),
            endpoint: "db".parse().unwrap(),
        });
        let front = vec![
            web,
            member("worker1", &["workers"], &["10.1.0.3"]),
            member("worker2", &["workers"], &["10.1.0.4"]),
            member("db", &[], &["10.1.0.5"]),
        ];
        let back = vec![
            member("db", &["database"], &["10.2.0.2"]),
            member("backup.v2", &["db-copy"], &["10.2.0.3"]),
        ];
        let mut back = network("back.end", &["10.2.0.0/24"], back);
        back.internal = true;
        let mut front = network("front", &["10.1.0.0/24", "fd01::/64"], front);
        front.gateways.push("10.1.0.1".parse().unwrap());
        Names::new(View::of([front, back]))
    }

    fn ask(names: &Names, network: &str, from: &str, name: &str, kind: RecordType) -> Verdict {
        let asker = Asker::find(names, &network.parse().unwrap(), from.parse().unwrap()).unwrap();
        asker.ask(&Query::query(DomainName::from_ascii(name).unwrap(), kind))
    }

    fn ours(addresses: &[&str]) -> Verdict {
        let addresses = addresses.iter().map(|addr| addr.parse().unwrap());
        Verdict::Ours(addresses.map(record).collect())
    }

    #[test]
    fn the_node_is_told_names_and_nothing_is_forwarded_for_it() {
        let names = world();
        // A gateway, an address of another network, one of the node's uplink, and loopback.
        for from in [
            "10.1.0.1",
            "::ffff:10.1.0.1",
            "10.2.0.2",
            "192.0.2.1",
            "::1",
        ] {
            let node = |name| ask(&names, "front", from, name, RecordType::A);
            assert_eq!(node("web."), ours(&["10.1.0.2"]), "{from}");
            assert_eq!(node("database."), Verdict::Internal, "not its network");
            assert_eq!(node("example.org."), Verdict::Internal, "{from}");
        }
        let front = "front".parse().unwrap();
        for (from, on) in [
            ("10.1.0.77", None),
            ("fe80::1", Some(7)),
            ("10.1.0.2", None),
        ] {
            let asker = Asker::find(&names, &front, from.parse().unwrap()).unwrap();
            assert_eq!(asker.is_link_local_on(), on, "{from}");
            let told = ask(&names, "front", from, "example.org.", RecordType::A);
            assert_eq!(told, Verdict::Forward, "{from}");
        }
    }

    #[test]
    fn names_and_aliases_with_and_without_network_in_any_case() {
        let names = world();
        let worker = |name, kind| ask(&names, "front", "10.1.0.3", name, kind);
        for name in [
            "web.",
            "web",
            "WEB.",
            "www.",
            "web.front.",
            "WwW.FRONT.",
            "www.front",
        ] {
            assert_eq!(worker(name, RecordType::A), ours(&["10.1.0.2"]), "{name}");
            assert_eq!(worker(name, RecordType::AAAA), ours(&["fd01::2"]), "{name}");
        }
        for name in [
            "web.back.end.",
            "web.web.",
            "we.",
            "web.front.front.",
            ".",
            "front.",
        ] {
            assert_eq!(worker(name, RecordType::A), Verdict::Forward, "{name}");
        }
    }

    #[test]
    fn a_name_without_the_family_or_the_type_is_known_and_empty() {
        let names = world();
        for (name, kind) in [
            ("worker1.", RecordType::AAAA),
            ("web.", RecordType::MX),
            ("web.front.", RecordType::TXT),
            ("web.", RecordType::HTTPS),
        ] {
            let told = ask(&names, "front", "10.1.0.3", name, kind);
            assert_eq!(told, Verdict::Ours(Vec::new()), "{name} {kind}");
        }
        let any = ask(&names, "front", "10.1.0.3", "web.", RecordType::ANY);
        assert_eq!(any, ours(&["10.1.0.2", "fd01::2"]));
    }

    #[test]
    fn what_is_down_is_known_and_has_no_addresses() {
        let mut web = member("web", &["www"], &["10.1.0.2"]);
        for (alias, endpoint) in [("store", "db"), ("cache", "gone"), ("pooled", "pool")] {
            web.links.push(Link {
                alias: alias.parse().unwrap(),
                endpoint: endpoint.parse().unwrap(),
            });
        }
        let down = member("db", &["database", "pool"], &[]);
        let up = member("db2", &["pool"], &["10.1.0.3"]);
        let names = Names::new(View::of([network(
            "front",
            &["10.1.0.0/24"],
            vec![web, down, up],
        )]));
        let of = |name, kind| ask(&names, "front", "10.1.0.2", name, kind);
        for name in [
            "db.",
            "db.front.",
            "database.",
            "store.",
            "store.front.",
            // A link is to an endpoint, and to none that has its name for an alias.
            "cache.",
            "pooled.",
        ] {
            for kind in [RecordType::A, RecordType::AAAA, RecordType::MX] {
                assert_eq!(of(name, kind), ours(&[]), "{name} {kind}");
            }
        }
        assert_eq!(of("pool.", RecordType::A), ours(&["10.1.0.3"]));
        let other = ask(&names, "front", "10.1.0.3", "cache.", RecordType::A);
        assert_eq!(other, Verdict::Forward);
    }

    #[test]
    fn a_link_is_found_in_the_network_where_its_target_is() {
        let link = Link {
            alias: "store".parse().unwrap(),
            endpoint: "db".parse().unwrap(),
        };
        let at = |addr| {
            let mut web = member("web", &[], &[addr]);
            web.links.push(link.clone());
            web
        };
        let db = member("db", &[], &["10.2.0.3"]);
        let names = Names::new(View::of([
            network("front", &["10.1.0.0/24"], vec![at("10.1.0.2")]),
            network("back", &["10.2.0.0/24"], vec![at("10.2.0.2"), db]),
        ]));
        for (network, from) in [("front", "10.1.0.2"), ("back", "10.2.0.2")] {
            let told = ask(&names, network, from, "store.", RecordType::A);
            assert_eq!(told, ours(&["10.2.0.3"]), "{network}");
        }
    }

    #[test]
    fn only_the_askers_networks_are_seen() {
        let names = world();
        let of = |network, from, name| ask(&names, network, from, name, RecordType::A);
        // Not in `back.end`.
        assert_eq!(of("front", "10.1.0.2", "database."), Verdict::Forward);
        assert_eq!(of("front", "10.1.0.2", "db.back.end."), Verdict::Forward);
        // In both, asked in either; where the query came in goes first.
        for (network, from, first) in [
            ("front", "10.1.0.5", "10.1.0.5"),
            ("back.end", "10.2.0.2", "10.2.0.2"),
        ] {
            assert_eq!(of(network, from, "db."), ours(&[first]));
            assert_eq!(of(network, from, "web."), ours(&["10.1.0.2"]));
            assert_eq!(of(network, from, "database."), ours(&["10.2.0.2"]));
            assert_eq!(of(network, from, "db.back.end."), ours(&["10.2.0.2"]));
        }
        // Names with dots in them.
        assert_eq!(
            of("back.end", "10.2.0.2", "backup.v2."),
            ours(&["10.2.0.3"])
        );
        assert_eq!(
            of("back.end", "10.2.0.2", "backup.v2.back.end."),
            ours(&["10.2.0.3"])
        );
        // Somebody unknown on the bridge sees that network.
        assert_eq!(of("front", "10.1.0.99", "web."), ours(&["10.1.0.2"]));
        assert_eq!(of("front", "fe80::1", "db."), ours(&["10.1.0.5"]));
    }

    #[test]
    fn links_are_the_askers_alone_and_come_first() {
        let names = world();
        let of = |from, name| ask(&names, "front", from, name, RecordType::A);
        assert_eq!(of("10.1.0.2", "store."), ours(&["10.1.0.5"]));
        assert_eq!(of("10.1.0.2", "Store.Front."), ours(&["10.1.0.5"]));
        assert_eq!(of("10.1.0.2", "stores."), Verdict::Forward);
        assert_eq!(of("10.1.0.3", "store."), Verdict::Forward);
    }

    #[test]
    fn nothing_is_forwarded_from_internal_networks() {
        let names = world();
        let of = |network, from| ask(&names, network, from, "example.org.", RecordType::A);
        assert_eq!(of("back.end", "10.2.0.3"), Verdict::Internal);
        // Whoever is in another network, too, has a way out.
        assert_eq!(of("back.end", "10.2.0.2"), Verdict::Forward);
        assert_eq!(of("front", "10.1.0.2"), Verdict::Forward);
    }

    #[test]
    fn reverse_names() {
        let names = world();
        let of = |from, addr: &str, kind| {
            let name = DomainName::from(addr.parse::<IpAddr>().unwrap());
            ask(&names, "front", from, &name.to_ascii(), kind)
        };
        let named = |name: &str| {
            let name = DomainName::from_ascii(name).unwrap();
            Verdict::Ours(vec![RData::PTR(PTR(name))])
        };
        assert_eq!(
            of("10.1.0.3", "10.1.0.2", RecordType::PTR),
            named("Web.front.")
        );
        assert_eq!(
            of("10.1.0.3", "fd01::2", RecordType::PTR),
            named("Web.front.")
        );
        assert_eq!(
            of("10.1.0.3", "10.1.0.2", RecordType::A),
            Verdict::Ours(Vec::new())
        );
        for unknown in ["10.1.0.77", "10.2.0.3", "fd01::77"] {
            let told = of("10.1.0.3", unknown, RecordType::PTR);
            assert_eq!(told, Verdict::NoSuchName, "{unknown}");
        }
        // `db` is in that network.
        assert_eq!(
            of("10.1.0.5", "10.2.0.3", RecordType::PTR),
            named("backup.v2.back.end.")
        );
        for outside in ["192.0.2.1", "2001:db8::1"] {
            let told = of("10.1.0.3", outside, RecordType::PTR);
            assert_eq!(told, Verdict::Forward, "{outside}");
        }
    }

    #[test]
    fn what_is_around_our_addresses_does_not_leak() {
        let names = Names::new(View::of([network(
            "front",
            &["172.18.0.0/16", "10.1.2.0/23", "fd15:5d77:8eaa::/64"],
            vec![member("web", &[], &["172.18.0.2"])],
        )]));
        let empty = || Verdict::Ours(Vec::new());
        let v6 = "0.0.0.0.a.a.e.8.7.7.d.5.5.1.d.f.ip6.arpa.";
        for (name, told) in [
            // As systemd and avahi ask.
            (
                "lb._dns-sd._udp.0.0.18.172.in-addr.arpa.",
                Verdict::NoSuchName,
            ),
            (
                "lb._dns-sd._udp.0.18.172.IN-ADDR.ARPA.",
                Verdict::NoSuchName,
            ),
            ("x.2.0.18.172.in-addr.arpa.", Verdict::NoSuchName),
            ("300.0.18.172.in-addr.arpa.", Verdict::NoSuchName),
            ("02.0.18.172.in-addr.arpa.", Verdict::NoSuchName),
            ("0.18.172.in-addr.arpa.", empty()),
            ("18.172.in-addr.arpa.", empty()),
            ("3.1.10.in-addr.arpa.", empty()),
            // More than ours is in these, or nothing of it.
            ("172.in-addr.arpa.", Verdict::Forward),
            ("1.10.in-addr.arpa.", Verdict::Forward),
            ("x.1.10.in-addr.arpa.", Verdict::Forward),
            ("in-addr.arpa.", Verdict::Forward),
            ("arpa.", Verdict::Forward),
            ("19.172.in-addr.arpa.", Verdict::Forward),
            ("lb._dns-sd._udp.0.0.19.172.in-addr.arpa.", Verdict::Forward),
            (v6, empty()),
            (&format!("F.{v6}"), empty()),
            (&format!("g.f.{v6}"), Verdict::NoSuchName),
            (&format!("lb._dns-sd._udp.{v6}"), Verdict::NoSuchName),
            (&v6[8..], Verdict::Forward),
            ("8.b.d.0.1.0.0.2.ip6.arpa.", Verdict::Forward),
        ] {
            for kind in [RecordType::PTR, RecordType::SOA] {
                let found = ask(&names, "front", "172.18.0.2", name, kind);
                assert_eq!(found, told, "{name} {kind}");
            }
        }
    }

    #[test]
    fn other_classes_are_not_ours() {
        let names = world();
        let asker = Asker::find(
            &names,
            &"front".parse().unwrap(),
            "10.1.0.2".parse().unwrap(),
        );
        let mut question = Query::query(DomainName::from_ascii("web.").unwrap(), RecordType::TXT);
        question.query_class = DNSClass::CH;
        assert_eq!(asker.unwrap().ask(&question), Verdict::Forward);
    }
}
