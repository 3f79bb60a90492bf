//! Ports that rules translate and netfw publishes, too; and who else masquerades.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    ok,
    walk::{Destination, End, Link, NEW, Packet, Rulebook},
};
use crate::{
    api::types::Publish,
    doctor::{Finding, State, command},
    name::Name,
    net::nftables::{Action, Asks, Family, Hook, Rule, Ruleset},
};

/// A publish, and whose it is.
pub type Published<'a> = (&'a Name, &'a Publish);

/// A publish and one of its ports, which stands for those that rules treat alike.
type Candidate<'a> = (Published<'a>, u16);

/// A finding for each table.
pub fn translations(
    ruleset: &Ruleset,
    book: &Rulebook<'_>,
    publishes: &[Published<'_>],
    outside: &[Link<'_>],
    locals: &[IpAddr],
    instance: &str,
) -> Vec<Finding> {
    let mut tables: BTreeMap<String, [Vec<Candidate<'_>>; 2]> = BTreeMap::new();
    let candidates = candidates(&ruleset.rules, publishes);
    for chain in ruleset
        .chains
        .iter()
        .filter(|chain| chain.hook == Hook::Prerouting)
    {
        let [certain, possible] = tables.entry(chain.place.table()).or_default();
        for candidate in &candidates {
            let ((_, publish), port) = candidate;
            let ip = publish.host_ip;
            let sees = match chain.place.family {
                Family::Ip => ip.is_ipv4(),
                Family::Ip6 => ip.is_ipv6(),
                Family::Inet => true,
                Family::Bridge | Family::Other => false,
            };
            let own = [ip];
            let packet = Packet {
                six: ip.is_ipv6(),
                from: End::OneOf(outside),
                to: End::OneOf(&[]),
                protocol: Some(publish.protocol.number()),
                port: Some(*port),
                source: None,
                destination: Destination::Local(match ip.is_unspecified() {
                    true => locals,
                    false => &own,
                }),
                state: NEW,
            };
            match sees.then(|| book.translates(chain, &packet)) {
                Some(Some(true)) => certain.push(*candidate),
                Some(None) => possible.push(*candidate),
                Some(Some(false)) | None => {}
            }
        }
    }
    tables
        .iter()
        .filter_map(|(table, [certain, possible])| {
            finding(table, certain, State::Warn, instance)
                .or_else(|| finding(table, possible, State::Note, instance))
        })
        .collect()
}

/// Where two rules treat ports differently, one of them names the first that is another.
fn candidates<'a>(rules: &[Rule], publishes: &[Published<'a>]) -> Vec<Candidate<'a>> {
    let asked: BTreeSet<(u16, u16)> = rules
        .iter()
        .flat_map(|rule| &rule.conditions)
        .filter_map(|condition| match condition.asks {
            Asks::Port(first, last) if !condition.not => Some((first, last)),
            _ => None,
        })
        .collect();
    let mut found = BTreeMap::new();
    // Whatever the port: one publish of each kind stands for all.
    for (name, publish) in publishes {
        let port = publish.host_ports.first;
        let kind = (publish.host_ip, publish.protocol.number());
        found
            .entry((kind, None))
            .or_insert(((*name, *publish), port));
    }
    for (first, last) in asked {
        for (name, publish) in publishes {
            let ports = publish.host_ports;
            if ports.first <= last && first <= ports.last {
                let port = ports.first.max(first);
                let kind = (publish.host_ip, publish.protocol.number());
                found
                    .entry((kind, Some(port)))
                    .or_insert(((*name, *publish), port));
            }
        }
    }
    found.into_values().collect()
}

fn finding(
    table: &str,
    candidates: &[Candidate<'_>],
    state: State,
    instance: &str,
) -> Option<Finding> {
    let kinds: BTreeSet<_> = candidates
        .iter()
        .map(|((_, publish), port)| (publish.host_ip, publish.protocol.number(), port))
        .collect();
    let ((endpoint, publish), port) = candidates.last()?;
    let more = match kinds.len() {
        0 | 1 => String::new(),
        n => format!(", and {} more like it", n - 1),
    };
    let spec = crate::publish::Publish::from((*publish).clone());
    let which = format!(
        "{} port {port}, which netfw publishes for {endpoint} ({spec}){more}",
        publish.protocol
    );
    let show = format!("`nft -a list table {table}` shows the rules");
    Some(match state {
        State::Warn => ok(
            "ports",
            format!("rules in {table} translate {which}; netfw is first"),
        )
        .but(
            State::Warn,
            format!(
                "publish one of the two at another port ({}): {show}",
                command(instance, &format!("unpublish {endpoint} {spec}"))
            ),
        ),
        _ => ok("ports", format!("rules in {table} may translate {which}")).but(
            State::Note,
            format!("see that none is for netfw's ports: {show}"),
        ),
    })
}

/// Who else gives packets the node's addresses: neither knows the other's ports.
pub fn sources(rules: &[Rule]) -> Vec<Finding> {
    let places: BTreeSet<_> = rules
        .iter()
        .filter(|rule| rule.action == Action::Snat)
        .map(|rule| &rule.place)
        .collect();
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for place in places {
        tables
            .entry(place.table())
            .or_default()
            .push(place.to_string());
    }
    tables
        .into_values()
        .map(|places| {
            ok("masquerade", format!("rules in {} masquerade, too", places.join(", "))).but(
                State::Note,
                "nothing, unless both speak to one server from one fixed port: then keep their ports apart, by \
                 `ports` in the agent's file (1024-32767 by default) and `masquerade to :32768-65535` there",
            )
        })
        .collect()
}
