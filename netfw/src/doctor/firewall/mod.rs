//! Rules of nftables and iptables that may be in netfw's way, or netfw in theirs.
//!
//! Translated packets pass all of them by. What goes through the node's stack meets them: what routed networks and
//! those without masquerade send and get (`forward`); questions for names and, over IPv6, neighbours (`input`), and
//! the answers (`output`); and where `br_netfilter` says so, what a bridge itself forwards. A port that both publish
//! goes to netfw, which is first.
//!
//! Each of those is a packet that needs to pass ([`needs`]), and [`walk`] says whether it does.

mod needs;
mod ports;
mod walk;

use std::{fs, net::IpAddr};

use self::{
    needs::{Bridged, Need, needs},
    ports::Published,
    walk::{Link, Rulebook, Verdict},
};
use super::{Area, Finding, Node, State, Told, unseen};
use crate::{
    agent,
    net::nftables::{self, Chain, Hook, Place, Ruleset},
};

/// What of the node rules are judged by.
#[derive(Default)]
pub struct Facts<'a> {
    networks: Vec<Bridged<'a>>,
    publishes: Vec<Published<'a>>,
    /// Interfaces by which the world is.
    outside: Vec<Link<'a>>,
    locals: Vec<IpAddr>,
    instance: &'a str,
}

impl<'a> Facts<'a> {
    fn of(seen: Option<&'a Node>, told: Option<&'a Told>) -> Self {
        let publishes = told
            .into_iter()
            .flat_map(|told| &told.endpoints)
            .flat_map(|endpoint| endpoint.publishes.iter().map(|p| (&endpoint.name, p)));
        let addresses = seen.into_iter().flat_map(|seen| &seen.addresses);
        Self {
            networks: Bridged::all(seen, told),
            publishes: publishes.collect(),
            outside: seen.map(outside).unwrap_or_default(),
            locals: addresses.map(|address| address.addr).collect(),
            instance: told.map_or("", |told| told.status.instance.as_str()),
        }
    }
}

/// Uplinks with a default route; all, where none has one.
fn outside(seen: &Node) -> Vec<Link<'_>> {
    let uplinks = agent::node::observe(&seen.links, &seen.addresses, &[]).uplinks;
    let links = || {
        seen.links
            .iter()
            .filter(|link| uplinks.contains_key(&link.index))
    };
    let default = |index: u32| {
        let mut routes = seen.routes.iter();
        routes.any(|route| route.dst.prefix_len() == 0 && route.oif == Some(index))
    };
    let link = |link: &'_ crate::net::Link| link.index;
    let chosen: Vec<u32> = links().map(link).filter(|index| default(*index)).collect();
    links()
        .filter(|link| chosen.is_empty() || chosen.contains(&link.index))
        .map(|link| Link {
            name: &link.name,
            index: Some(link.index),
        })
        .collect()
}

/// Looks and judges.
pub fn examine(seen: Option<&Node>, told: Option<&Told>) -> Vec<Finding> {
    let facts = Facts::of(seen, told);
    let mut findings = match nftables::ruleset() {
        Ok(ruleset) => judge(&ruleset, &facts),
        Err(error) => vec![unseen(Area::Firewall, "nftables", &error)],
    };
    findings.extend(legacy(&tables(), &facts.networks));
    if findings.is_empty() {
        findings.push(ok(
            "rules",
            "none found that are in the way, neither of nftables nor of iptables",
        ));
    }
    findings
}

/// The tables of legacy iptables that are in use in this namespace.
fn tables() -> Vec<String> {
    ["ip", "ip6"]
        .into_iter()
        .flat_map(|family| {
            let names = format!("/proc/thread-self/net/{family}_tables_names");
            let names = fs::read_to_string(names).unwrap_or_default();
            let names = names.lines().map(|table| format!("{family}tables {table}"));
            names.collect::<Vec<_>>()
        })
        .collect()
}

fn judge(ruleset: &Ruleset, facts: &Facts<'_>) -> Vec<Finding> {
    let book = Rulebook::of(&ruleset.rules);
    let chains = ruleset.chains.iter();
    let mut findings: Vec<Finding> = chains
        .flat_map(|chain| of_chain(chain, &book, facts))
        .collect();
    findings.extend(ports::translations(
        ruleset,
        &book,
        &facts.publishes,
        &facts.outside,
        &facts.locals,
        facts.instance,
    ));
    findings.extend(ports::sources(&ruleset.rules));
    findings
}

fn legacy(tables: &[String], networks: &[Bridged<'_>]) -> Option<Finding> {
    let routed: Vec<&str> = networks
        .iter()
        .filter(|network| network.is_forwarded())
        .map(|network| network.link.name)
        .collect();
    let concerned = match routed.is_empty() {
        true => String::new(),
        false => format!(
            ", FORWARD must accept what {} sends and gets",
            routed.join(", ")
        ),
    };
    let found = ok("legacy", format!("in use: {}", tables.join(", ")));
    (!tables.is_empty()).then(|| {
        found.but(
            State::Note,
            format!(
                "`iptables-legacy-save` and `ip6tables-legacy-save` show the rules, which are not looked into here: \
                 none may translate a port that netfw publishes, INPUT must accept port 53 and ICMPv6 from netfw's \
                 bridges{concerned}"
            ),
        )
    })
}

fn ok(check: &str, found: impl Into<String>) -> Finding {
    Finding::ok(Area::Firewall, check, found)
}

fn word(hook: Hook) -> &'static str {
    match hook {
        Hook::Forward => "forward",
        Hook::Input => "input",
        _ => "output",
    }
}

/// What of netfw a chain drops.
fn of_chain(chain: &Chain, book: &Rulebook<'_>, facts: &Facts<'_>) -> Option<Finding> {
    let needs = needs(chain, &facts.networks, &facts.outside);
    let judged = needs
        .iter()
        .map(|need| (need, book.verdict(chain, &need.packet)));
    let (mut dropped, mut doubtful) = (Vec::new(), Vec::new());
    for (need, verdict) in judged {
        match verdict {
            Verdict::Passes => {}
            Verdict::Drops(by) => dropped.push((need, by)),
            Verdict::Unknown => doubtful.push(need),
        }
    }
    let place = &chain.place;
    let check = word(chain.hook);
    if let Some(worst) = dropped.iter().map(|(need, _)| need.state).max() {
        dropped.retain(|(need, _)| need.state == worst);
        let by = each_once(dropped.iter().map(|(_, by)| by.clone()));
        let dropped: Vec<&Need<'_>> = dropped.iter().map(|(need, _)| *need).collect();
        let found = format!("chain {place} drops {}: {by}", words(&dropped));
        return Some(ok(check, found).but(
            worst,
            format!("{}. Keep it in the firewall's own configuration: what is typed goes when that is loaded again", commands(&dropped, place)),
        ));
    }
    if !doubtful.is_empty() {
        let found = format!(
            "chain {place} may drop {}: not all of its conditions are understood here",
            words(&doubtful)
        );
        return Some(ok(check, found).but(
            State::Note,
            format!(
                "`nft list table {}` shows it. If it does: {}",
                place.table(),
                commands(&doubtful, place)
            ),
        ));
    }
    if !needs.is_empty() {
        return None;
    }
    let to_come = needs::of_any(chain, &Bridged::to_come(), &facts.outside)?;
    let Verdict::Drops(by) = book.verdict(chain, &to_come.packet) else {
        return None;
    };
    let found = format!("chain {place} drops what no rule accepts: {by}");
    Some(ok(check, found).but(
        State::Note,
        match chain.hook {
            Hook::Forward => {
                "nothing: translated packets pass it by. A network made with --routed or --no-masquerade needs rules \
                 of its own there"
            }
            _ => "nothing, as long as it accepts port 53, TCP and UDP, and ICMPv6 from netfw's bridges",
        },
    ))
}

fn words(needs: &[&Need<'_>]) -> String {
    each_once(needs.iter().map(|need| need.words.clone()))
}

fn commands(needs: &[&Need<'_>], place: &Place) -> String {
    each_once(needs.iter().map(|need| need.rule(place)))
}

fn each_once(all: impl Iterator<Item = String>) -> String {
    let mut once = Vec::new();
    for words in all {
        if !once.contains(&words) {
            once.push(words);
        }
    }
    once.join(", ")
}

#[cfg(test)]
mod tests;
