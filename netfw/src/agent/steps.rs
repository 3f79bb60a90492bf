//! What is different between the present state and a wanted one, as steps in the order in which they are
//! taken: removals before what may need the port, the address or the subnet. Pure.

use std::fmt::Display;

use super::{
    record::{Attachment, Endpoint, Mode, Network, Wanted},
    target::{is_another, is_replaced},
};
use crate::{
    api::types::{Action, Object, Step},
    name::Name,
};

/// `is_gone` tells whether an endpoint's attachment, or an endpoint without any, was deleted from the kernel.
pub(super) fn steps(
    present: &Wanted,
    target: &Wanted,
    is_gone: impl Fn(&Endpoint, Option<&Attachment>) -> bool,
) -> Vec<Step> {
    let mut all = Vec::new();
    for before in present.endpoints.values().filter(|e| !e.removing) {
        match target.endpoints.get(&before.name) {
            None => all.push(of_endpoint(Action::Remove, before, summary(before))),
            // Its own step says all.
            Some(after) if is_another(before, after) => {}
            Some(after) => removals(before, after, &mut all),
        }
    }
    for before in present.networks.values() {
        if !target.networks.contains_key(&before.name) {
            all.push(of_network(Action::Remove, before, subnets(before)));
        }
    }
    for after in target.networks.values() {
        all.extend(network(present, target, after));
    }
    // Whose namespace others share comes before them.
    let shares = |e: &&Endpoint| matches!(e.mode, Mode::Container(_));
    let owners = target.endpoints.values().filter(|e| !shares(e));
    for after in owners.chain(target.endpoints.values().filter(shares)) {
        match present.endpoints.get(&after.name) {
            None => all.push(of_endpoint(Action::Add, after, added(after))),
            Some(before) if is_another(before, after) => {
                let mut what = becoming(before, after);
                what.extend(added(after));
                all.push(of_endpoint(Action::Replace, after, what));
            }
            Some(before) => changes(before, after, &is_gone, &mut all),
        }
    }
    // The order within what was said of one is kept.
    all.sort_by_key(rank);
    all
}

fn rank(step: &Step) -> u8 {
    match (step.action, step.object) {
        (Action::Remove, Object::Publish) => 0,
        (Action::Remove, Object::Attachment) => 1,
        (Action::Remove, Object::Endpoint) => 2,
        (Action::Remove, Object::Network) => 3,
        (_, Object::Network) => 4,
        (_, Object::Endpoint) => 5,
        (_, Object::Attachment) => 6,
        (_, Object::Publish) => 7,
    }
}

fn of_network(action: Action, network: &Network, what: Vec<String>) -> Step {
    Step {
        action,
        object: Object::Network,
        endpoint: None,
        network: Some(network.name.clone()),
        publish: None,
        what,
    }
}

fn of_endpoint(action: Action, endpoint: &Endpoint, what: Vec<String>) -> Step {
    Step {
        action,
        object: Object::Endpoint,
        endpoint: Some(endpoint.name.clone()),
        network: None,
        publish: None,
        what,
    }
}

fn of_attachment(
    action: Action,
    endpoint: &Endpoint,
    attachment: &Attachment,
    what: Vec<String>,
) -> Step {
    Step {
        object: Object::Attachment,
        network: Some(attachment.network.clone()),
        ..of_endpoint(action, endpoint, what)
    }
}

fn of_publish(
    action: Action,
    endpoint: &Endpoint,
    publish: crate::publish::Publish,
    what: Vec<String>,
) -> Step {
    Step {
        object: Object::Publish,
        publish: Some(publish),
        ..of_endpoint(action, endpoint, what)
    }
}

/// `ITEM, ITEM`, or `nothing`.
fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.is_empty() {
        true => "nothing".into(),
        false => items.join(", "),
    }
}

fn subnets(network: &Network) -> Vec<String> {
    network.subnets().map(|net| net.to_string()).collect()
}

fn addresses(attachment: &Attachment) -> String {
    list(attachment.ips())
}

/// Of one that goes, what goes with it.
fn summary(endpoint: &Endpoint) -> Vec<String> {
    let mut what: Vec<String> = endpoint.ips().map(|ip| ip.to_string()).collect();
    what.extend(endpoint.publishes.iter().map(|p| p.publish.to_string()));
    if endpoint.namespace.made {
        what.push("its namespace goes too".into());
    }
    what
}

fn added(endpoint: &Endpoint) -> Vec<String> {
    let mut what = Vec::new();
    for a in &endpoint.attachments {
        what.push(format!("{} in {}", addresses(a), a.network));
    }
    if endpoint.attachments.is_empty() {
        what.push(endpoint.mode().to_string());
    }
    let publishes = endpoint.publishes.iter();
    what.extend(publishes.map(|p| p.publish.to_string()));
    what
}

/// Why it is another one.
fn becoming(before: &Endpoint, after: &Endpoint) -> Vec<String> {
    let words = |e: &Endpoint| match (&e.mode, e.namespace.made) {
        (Mode::Host | Mode::Container(_), _) => e.mode().to_string(),
        (_, true) => "a namespace of its own".into(),
        (_, false) => e.namespace.path.display().to_string(),
    };
    let mut what = vec![changed("", words(before), words(after))];
    if before.namespace.made {
        what.push("its namespace goes, and processes in it are left without network".into());
    }
    what
}

fn changed(what: &str, before: impl Display, after: impl Display) -> String {
    format!("{what} {before} -> {after}").trim_start().into()
}

fn network(present: &Wanted, target: &Wanted, after: &Network) -> Option<Step> {
    let Some(before) = present.networks.get(&after.name) else {
        return Some(of_network(Action::Add, after, subnets(after)));
    };
    let mut what = Vec::new();
    let mut differ = |key: &str, before: String, after: String| {
        if before != after {
            what.push(changed(key, before, after));
        }
    };
    differ("subnet", list(before.subnets()), list(after.subnets()));
    let gateways = |n: &Network| list(n.pools().map(|pool| pool.gateway));
    differ("gateway", gateways(before), gateways(after));
    let mtu = |n: &Network| n.mtu.map_or("the uplink's".into(), |mtu| mtu.to_string());
    differ("mtu", mtu(before), mtu(after));
    let (was, is) = (&before.rules, &after.rules);
    for (key, was, is) in [
        ("internal", was.internal, is.internal),
        ("routed", was.routed, is.routed),
        ("masquerade", was.masquerade, is.masquerade),
    ] {
        differ(key, was.to_string(), is.to_string());
    }
    differ("nat", was.nat.name().into(), is.nat.name().into());
    differ("filter", was.filter.name().into(), is.filter.name().into());
    let labels = |n: &Network| list(n.labels.iter().map(|(key, value)| format!("{key}={value}")));
    differ("labels", labels(before), labels(after));
    if what.is_empty() {
        return None;
    }
    let replaced = is_replaced(before, after);
    // Of those that go, their own steps say all.
    let stays = |e: &Endpoint| {
        let after = target.endpoints.get(&e.name);
        after.is_some_and(|after| !is_another(e, after) && after.attachment(&before.name).is_some())
    };
    let members: Vec<&Name> = present
        .attachments()
        .filter(|(e, a)| a.network == before.name && !e.removing && !a.removing && stays(e))
        .map(|(e, _)| &e.name)
        .collect();
    if (replaced || was != is) && !members.is_empty() {
        what.push(format!("connections of {} end", list(members)));
    }
    let action = match replaced {
        true => Action::Replace,
        false => Action::Change,
    };
    Some(of_network(action, after, what))
}

/// Of an endpoint that stays.
fn removals(before: &Endpoint, after: &Endpoint, all: &mut Vec<Step>) {
    for had in &before.publishes {
        if !after.publishes.iter().any(|p| p.publish == had.publish) {
            all.push(of_publish(Action::Remove, before, had.publish, Vec::new()));
        }
    }
    for had in before.attached() {
        if after.attachment(&had.network).is_none() {
            all.push(of_attachment(
                Action::Remove,
                before,
                had,
                vec![addresses(had)],
            ));
        }
    }
}

fn changes(
    before: &Endpoint,
    after: &Endpoint,
    is_gone: &impl Fn(&Endpoint, Option<&Attachment>) -> bool,
    all: &mut Vec<Step>,
) {
    if before.mode == Mode::None && is_gone(before, None) {
        let what = vec!["its namespace is gone: made again".into()];
        all.push(of_endpoint(Action::Replace, after, what));
    }
    let mut what = Vec::new();
    let mut differ = |key: &str, before: String, after: String| {
        if before != after {
            what.push(changed(key, before, after));
        }
    };
    differ(
        "namespace",
        before.namespace.path.display().to_string(),
        after.namespace.path.display().to_string(),
    );
    differ("expose", list(&before.exposed), list(&after.exposed));
    differ("links", list(&before.links), list(&after.links));
    let allowed = |e: &Endpoint| list(e.allow_from.nets());
    differ("allow_from", allowed(before), allowed(after));
    let stays = |a: &&Attachment| before.attachment(&a.network).is_some();
    let was = before.attached().map(|a| &a.network);
    let was: Vec<&Name> = was.filter(|n| after.attachment(n).is_some()).collect();
    let is: Vec<&Name> = after
        .attachments
        .iter()
        .filter(stays)
        .map(|a| &a.network)
        .collect();
    differ("order of networks", list(was), list(is));
    if !what.is_empty() {
        all.push(of_endpoint(Action::Change, after, what));
    }
    for is in &after.attachments {
        let Some(was) = before.attachment(&is.network) else {
            all.push(of_attachment(Action::Add, after, is, vec![addresses(is)]));
            continue;
        };
        let mut what = Vec::new();
        let mut differ = |key: &str, before: String, after: String| {
            if before != after {
                what.push(changed(key, before, after));
            }
        };
        differ("address", addresses(was), addresses(is));
        differ("mac", was.mac.to_string(), is.mac.to_string());
        differ("aliases", list(&was.aliases), list(&is.aliases));
        let action = match was.host_interface == is.host_interface {
            _ if is_gone(before, Some(was)) => {
                what.push("its interface is gone: made again".into());
                Action::Replace
            }
            true if what.is_empty() => continue,
            true => Action::Change,
            false => {
                if what.is_empty() {
                    what.push("its network is made anew".into());
                }
                Action::Replace
            }
        };
        all.push(of_attachment(action, after, is, what));
    }
    for is in &after.publishes {
        let mut had = before.publishes.iter();
        match had.find(|p| p.publish == is.publish) {
            None => {
                let what = match is.allow_from.is_empty() {
                    true => Vec::new(),
                    false => vec![format!("from {}", is.allow_from)],
                };
                all.push(of_publish(Action::Add, after, is.publish, what));
            }
            Some(was) if was.allow_from != is.allow_from => {
                let (was, is_now) = (list(was.allow_from.nets()), list(is.allow_from.nets()));
                let what = vec![changed("allow_from", was, is_now)];
                all.push(of_publish(Action::Change, after, is.publish, what));
            }
            Some(_) => {}
        }
    }
}
