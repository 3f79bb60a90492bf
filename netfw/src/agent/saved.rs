//! The store's content as one JSON document: what `netfw store export` writes and `import` reads; and what
//! is wrong in one, for `netfw store check`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    hash::Hash,
    net::IpAddr,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    counter::ENTRIES,
    ipam::Pool,
    record::{Attachment, Endpoint, Mode, Network, Node, Published, Wanted, new_host_interface},
    store::VERSION,
};
use crate::{
    name::Name,
    net::namespace,
    publish::{PortRange, Publish},
};

/// Records are as the store has them: see [`super::record`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Saved {
    /// Of the netfw that wrote it; for people.
    pub netfw: String,
    /// [`VERSION`] of the records.
    pub version: u32,
    #[serde(default)]
    pub node: Option<Node>,
    #[serde(default)]
    pub networks: Vec<Network>,
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("this is no document that `netfw store export` has written: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error(
        "the document has version {found}, this netfw knows {VERSION}: use the netfw that wrote it ({netfw})"
    )]
    Version { found: u32, netfw: String },
    #[error("the document has {what} \"{name}\" twice")]
    Twice { what: &'static str, name: Name },
    #[error("the document contradicts itself:\n  {}", .0.join("\n  "))]
    Faults(Vec<String>),
}

/// Only what says whether the rest can be understood.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    netfw: String,
    version: u32,
}

impl Saved {
    pub fn of(wanted: &Wanted) -> Self {
        Self {
            netfw: env!("CARGO_PKG_VERSION").into(),
            version: VERSION,
            node: wanted.node.clone(),
            networks: wanted.networks.values().cloned().collect(),
            endpoints: wanted.endpoints.values().cloned().collect(),
        }
    }

    /// What the document wants, if it can be had.
    pub fn parse(text: &[u8]) -> Result<Wanted, SavedError> {
        let head: Head = serde_json::from_slice(text)?;
        if head.version > VERSION {
            return Err(SavedError::Version {
                found: head.version,
                netfw: head.netfw,
            });
        }
        let saved: Self = serde_json::from_slice(text)?;
        let wanted = saved.into_wanted()?;
        match faults(&wanted) {
            faults if faults.is_empty() => Ok(wanted),
            faults => Err(SavedError::Faults(faults)),
        }
    }

    pub fn into_wanted(self) -> Result<Wanted, SavedError> {
        fn by_name<T>(
            what: &'static str,
            records: Vec<T>,
            name: impl Fn(&T) -> &Name,
        ) -> Result<BTreeMap<Name, T>, SavedError> {
            let mut all = BTreeMap::new();
            for record in records {
                let name = name(&record).clone();
                if all.insert(name.clone(), record).is_some() {
                    return Err(SavedError::Twice { what, name });
                }
            }
            Ok(all)
        }
        Ok(Wanted {
            node: self.node,
            networks: by_name("network", self.networks, |n| &n.name)?,
            endpoints: by_name("endpoint", self.endpoints, |e| &e.name)?,
            gone: BTreeSet::new(),
        })
    }
}

/// `new` in the place of `old`: an endpoint that only `old` has is on its way out, and the next start
/// finishes its removal. What else nothing wants a start removes in any case. The node stays that of `old`,
/// which is about this machine. One of another `boot`, or machine, says nothing of namespaces here: only its
/// prefix for IPv6 counts.
pub fn replacing(old: Option<&Wanted>, mut new: Wanted, boot: &str) -> Wanted {
    let own = new.node.take().map(|node| match node.boot == boot {
        true => node,
        false => Node {
            id: (0, 0),
            boot: String::new(),
            ..node
        },
    });
    new.node = old.and_then(|old| old.node.clone()).or(own);
    for (name, before) in old.iter().flat_map(|old| &old.endpoints) {
        let Some(endpoint) = new.endpoints.get_mut(name) else {
            new.endpoints.insert(name.clone(), bare(before));
            continue;
        };
        if let Some(older) = &before.predecessor {
            endpoint.predecessor = Some(Box::new(bare(older)));
        }
        // A start keeps a veth pair as it is. Another address, or namespace, takes another pair.
        let moved = endpoint.namespace != before.namespace;
        for attachment in &mut endpoint.attachments {
            let mut all = before.attachments.iter();
            let same = all.find(|a| a.host_interface == attachment.host_interface);
            if same.is_some_and(|same| moved || same != attachment) {
                attachment.host_interface = new_host_interface(name);
            }
        }
    }
    new
}

/// One that is on its way out, whose ports and counters may be another's.
fn bare(before: &Endpoint) -> Endpoint {
    let older = before.predecessor.as_deref();
    Endpoint {
        publishes: Vec::new(),
        counter: 0,
        predecessor: older.map(|older| Box::new(bare(older))),
        ..before.leaving()
    }
}

/// Is that a name of netfw's own for an interface?
fn is_own(name: &str, prefix: &str, digit: impl Fn(char) -> bool) -> bool {
    let rest = name.strip_prefix(prefix);
    rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(digit))
}

/// What contradicts itself in `wanted`, apart from what is on its way out; sentences for people. Nothing of it can be
/// unless somebody wrote to the store who is not netfw.
pub fn faults(wanted: &Wanted) -> Vec<String> {
    let mut faults = Vec::new();
    let networks: Vec<&Network> = wanted.networks.values().collect();
    let stays = |endpoint: &&Endpoint| !endpoint.removing;
    let endpoints: Vec<&Endpoint> = wanted.endpoints.values().filter(stays).collect();
    for (n, network) in networks.iter().enumerate() {
        for other in &networks[..n] {
            let overlap = network
                .subnets()
                .any(|ours| other.subnets().any(|theirs| overlap(ours, theirs)));
            if overlap {
                faults.push(format!(
                    "networks \"{}\" and \"{}\" overlap",
                    other.name, network.name
                ));
            }
        }
        for pool in network.pools() {
            if !pool.subnet.contains(&pool.gateway) {
                faults.push(format!(
                    "the gateway {} of network \"{}\" is outside {}",
                    pool.gateway, network.name, pool.subnet
                ));
            }
        }
        if network.pools().next().is_none() {
            faults.push(format!("network \"{}\" has no subnet", network.name));
        }
        // Or others' interfaces would be taken for netfw's.
        if !is_own(&network.bridge, "netfw", |c| c.is_ascii_digit()) {
            faults.push(format!(
                "network \"{}\" has a bridge {:?}: they are called netfw0, netfw1, …",
                network.name, network.bridge
            ));
        }
    }
    let of = |n: &&Network| format!("network \"{}\"", n.name);
    twice(
        &mut faults,
        "number",
        networks.iter().map(|n| (n.number, of(n))),
    );
    twice(
        &mut faults,
        "bridge",
        networks.iter().map(|n| (&n.bridge, of(n))),
    );

    let of = |e: &Endpoint| format!("endpoint \"{}\"", e.name);
    for endpoint in &endpoints {
        faults.extend(endpoint_faults(wanted, endpoint));
    }
    let attachments = || wanted.attachments().filter(|(endpoint, _)| stays(endpoint));
    let interfaces = attachments().map(|(e, a)| (&a.host_interface, of(e)));
    twice(&mut faults, "interface", interfaces);
    let addresses = attachments().flat_map(|(e, a)| {
        let of = of(e);
        a.ips().map(move |ip| ((&a.network, ip), of.clone()))
    });
    let addresses = addresses.map(|((network, ip), of)| (InNetwork(network, ip), of));
    twice(&mut faults, "address", addresses);
    let macs = attachments().map(|(e, a)| (InNetwork(&a.network, a.mac), of(e)));
    twice(&mut faults, "MAC address", macs);
    let counters = endpoints.iter().flat_map(|e| {
        let of = of(e);
        e.counters().map(move |counter| (counter, of.clone()))
    });
    twice(&mut faults, "counter", counters);
    let mut publishes: Vec<(&Endpoint, Publish)> = endpoints
        .iter()
        .flat_map(|e| e.publishes.iter().map(move |p| (*e, p.publish)))
        .collect();
    publishes.sort_by_key(|(_, publish)| publish.host_ports.first);
    for (n, (endpoint, publish)) in publishes.iter().enumerate() {
        let near = publishes[n + 1..].iter();
        for (other, taken) in near
            .take_while(|(_, other)| other.host_ports.first <= publish.host_ports.last)
            .filter(|(_, other)| other.overlaps(publish))
        {
            faults.push(format!(
                "{} publishes {publish}, which overlaps with {taken} of {}",
                of(endpoint),
                of(other)
            ));
        }
    }
    faults
}

fn endpoint_faults(wanted: &Wanted, endpoint: &Endpoint) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |what: String| {
        faults.push(format!("endpoint \"{}\" {what}", endpoint.name));
    };
    match &endpoint.mode {
        Mode::Networks if endpoint.attachments.is_empty() => {
            fault("is in no network".into());
        }
        Mode::Container(other) if !wanted.endpoints.contains_key(other) => {
            fault(format!("shares with \"{other}\", which is not there"));
        }
        Mode::Networks | Mode::Container(_) => {}
        Mode::None | Mode::Host if endpoint.attachments.is_empty() => {}
        Mode::None | Mode::Host => fault("has attachments, and a mode that has none".into()),
    }
    let made = Path::new(namespace::DIRECTORY).join(endpoint.name.as_str());
    if endpoint.namespace.made && endpoint.namespace.path != made {
        let path = endpoint.namespace.path.display();
        fault(format!("has a namespace that netfw made, but at {path}"));
    }
    if endpoint
        .counters()
        .any(|counter| !(1..ENTRIES).contains(&counter))
    {
        fault(format!("has a counter that is not in 1..{ENTRIES}"));
    }
    let backwards = |ports: PortRange| ports.first > ports.last;
    for Published { publish, .. } in &endpoint.publishes {
        if backwards(publish.host_ports) || backwards(publish.container_ports) {
            fault(format!(
                "has a publish whose range runs backwards: {publish}"
            ));
        }
    }
    for attachment in &endpoint.attachments {
        let host = &attachment.host_interface;
        if !is_own(host, "nf", |c| c.is_ascii_hexdigit()) {
            fault(format!(
                "has a veth pair {host:?}: they are called nf and hexadecimal digits"
            ));
        }
        let Some(network) = wanted.networks.get(&attachment.network) else {
            let network = &attachment.network;
            fault(format!("is in network \"{network}\", which is not there"));
            continue;
        };
        for (ip, error) in misplaced(attachment, network) {
            fault(format!("has {ip} in network \"{}\": {error}", network.name));
        }
    }
    faults
}

/// The attachment's addresses that its network cannot have given it.
fn misplaced<'a>(
    attachment: &'a Attachment,
    network: &'a Network,
) -> impl Iterator<Item = (IpAddr, String)> + 'a {
    attachment.ips().filter_map(|ip| {
        let mut pools = network.pools();
        let same = |pool: &&Pool| pool.gateway.is_ipv4() == ip.is_ipv4();
        let error = match pools.find(same) {
            Some(pool) => pool.check(ip, &BTreeSet::new()).err()?.to_string(),
            None => "it has no such family".into(),
        };
        Some((ip, error))
    })
}

fn overlap(a: ipnet::IpNet, b: ipnet::IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// `172.18.0.2 in network "app"`.
#[derive(PartialEq, Eq, Hash)]
struct InNetwork<'a, T>(&'a Name, T);

impl<T: Display> Display for InNetwork<'_, T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} in network \"{}\"", self.1, self.0)
    }
}

/// What two have of which one can be had.
fn twice<K: Eq + Hash + Display>(
    faults: &mut Vec<String>,
    what: &str,
    all: impl Iterator<Item = (K, String)>,
) {
    let mut owners: HashMap<K, String> = HashMap::new();
    for (key, of) in all {
        if let Some(other) = owners.get(&key) {
            faults.push(format!("{other} and {of} have the same {what}, {key}"));
        } else {
            owners.insert(key, of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{
        record::NamespaceId,
        store::tests::{endpoint, network},
    };

    /// A network with two endpoints.
    fn wanted() -> Wanted {
        let mut wanted = Wanted::default();
        let network = network();
        wanted.networks.insert(network.name.clone(), network);
        for (n, name) in ["a", "b"].into_iter().enumerate() {
            let n = n as u8;
            let mut endpoint = endpoint(name);
            endpoint.namespace.path = format!("/run/netns/{name}").into();
            endpoint.counter = 10 + u32::from(n);
            let attachment = &mut endpoint.attachments[0];
            attachment.ip4 = Some([172, 18, 0, 2 + n].into());
            attachment.ip6 = Some(format!("fd00:1:2::{}", 2 + n).parse().unwrap());
            attachment.mac.0[5] = 2 + n;
            attachment.host_interface = format!("nf{n}");
            endpoint.publishes[0].counter = 20 + u32::from(n);
            endpoint.publishes[0].publish.host_ports.first += 100 * u16::from(n);
            endpoint.publishes[0].publish.host_ports.last += 100 * u16::from(n);
            wanted.endpoints.insert(endpoint.name.clone(), endpoint);
        }
        wanted
    }

    fn node(id: NamespaceId) -> Node {
        Node {
            netns: None,
            id,
            boot: "b".into(),
            prefix6: Some("fd00:1:2::/48".parse().unwrap()),
        }
    }

    #[test]
    fn a_document_says_all() {
        let mut wanted = wanted();
        wanted.node = Some(node((4, 5)));
        let text = serde_json::to_vec(&Saved::of(&wanted)).unwrap();
        assert_eq!(Saved::parse(&text).unwrap(), wanted);
    }

    #[test]
    fn what_cannot_be_is_found() {
        assert_eq!(faults(&wanted()), [""; 0]);
        type Change = fn(&mut Wanted);
        fn of<'a>(wanted: &'a mut Wanted, name: &str) -> &'a mut Endpoint {
            wanted.endpoints.get_mut(&name.parse().unwrap()).unwrap()
        }
        let table: &[(Change, &str)] = &[
            (|w| w.networks.clear(), "which is not there"),
            (
                |w| of(w, "b").attachments[0].ip4 = of(w, "a").attachments[0].ip4,
                "the same address, 172.18.0.2 in network \"bridge\"",
            ),
            (
                |w| of(w, "b").attachments[0].mac = of(w, "a").attachments[0].mac,
                "the same MAC address",
            ),
            (
                |w| of(w, "b").attachments[0].host_interface = "nf0".into(),
                "the same interface, nf0",
            ),
            (|w| of(w, "b").counter = 20, "the same counter, 20"),
            (|w| of(w, "b").counter = 0, "counter that is not in"),
            (
                |w| of(w, "b").publishes[0].publish.host_ports.first = 8090,
                "overlaps with",
            ),
            (
                |w| of(w, "b").attachments[0].ip4 = Some([10, 0, 0, 1].into()),
                "does not lie in the subnet",
            ),
            (
                |w| of(w, "b").attachments[0].ip4 = Some([172, 18, 0, 1].into()),
                "is the gateway",
            ),
            (|w| of(w, "b").attachments.clear(), "is in no network"),
            (
                |w| of(w, "b").attachments[0].host_interface = "eth0".into(),
                "a veth pair \"eth0\"",
            ),
            (
                |w| of(w, "b").publishes[0].publish.container_ports.last = 1,
                "runs backwards",
            ),
            (
                |w| {
                    for network in w.networks.values_mut() {
                        network.bridge = "eth0".into();
                    }
                },
                "a bridge \"eth0\"",
            ),
            (
                |w| of(w, "b").namespace.path = "/run/netns/a".into(),
                "but at /run/netns/a",
            ),
            (
                |w| of(w, "b").mode = Mode::Container("c".parse().unwrap()),
                "\"c\", which is not there",
            ),
            (
                |w| {
                    let mut other = network();
                    other.name = "other".parse().unwrap();
                    (other.number, other.bridge) = (2, "netfw1".into());
                    w.networks.insert(other.name.clone(), other);
                },
                "\"bridge\" and \"other\" overlap",
            ),
        ];
        for (change, phrase) in table {
            let mut wanted = wanted();
            change(&mut wanted);
            let faults = faults(&wanted);
            assert!(
                faults.iter().any(|fault| fault.contains(phrase)),
                "{phrase}: {faults:?}"
            );
        }
        // One on its way out has perhaps no network any more.
        let mut wanted = wanted();
        wanted.networks.clear();
        for endpoint in wanted.endpoints.values_mut() {
            endpoint.removing = true;
        }
        assert_eq!(faults(&wanted), [""; 0]);
    }

    #[test]
    fn a_newer_document_names_who_wrote_it() {
        let text = format!(r#"{{"netfw":"9.1.0","version":{},"new":1}}"#, VERSION + 1);
        let said = Saved::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(said.contains("9.1.0"), "{said}");
        let twice = Saved {
            endpoints: vec![endpoint("a"), endpoint("a")],
            ..Saved::of(&wanted())
        };
        let twice = serde_json::to_vec(&twice).unwrap();
        assert!(matches!(
            Saved::parse(&twice),
            Err(SavedError::Twice { .. })
        ));
    }

    #[test]
    fn what_only_the_old_one_has_is_on_its_way_out() {
        let (mut old, mut new) = (wanted(), wanted());
        (old.node, new.node) = (Some(node((4, 5))), Some(node((6, 7))));
        new.endpoints.remove(&"b".parse::<Name>().unwrap());
        // It has what the other had.
        let mut taken = old.endpoints[&"b".parse::<Name>().unwrap()].clone();
        taken.name = "c".parse().unwrap();
        taken.namespace.path = "/run/netns/c".into();
        taken.attachments[0].host_interface = "nf9".into();
        new.endpoints.insert(taken.name.clone(), taken);
        assert_eq!(faults(&new), [""; 0]);
        let merged = replacing(Some(&old), new.clone(), "b");
        assert_eq!(merged.node, old.node);
        let removing: Vec<_> = merged.endpoints.values().map(|e| e.removing).collect();
        assert_eq!(removing, [false, true, false]);
        assert_eq!(faults(&merged), [""; 0]);
        // Elsewhere: no namespace is the document's, and the prefix stays.
        let moved = replacing(None, new.clone(), "c").node.unwrap();
        assert_eq!((moved.id, moved.boot.as_str()), ((0, 0), ""));
        assert_eq!(moved.prefix6, new.node.as_ref().unwrap().prefix6);
        // The store was lost, and nothing else.
        assert_eq!(replacing(None, new.clone(), "b").node, new.node);
    }

    #[test]
    fn another_address_takes_another_interface() {
        let (old, mut new) = (wanted(), wanted());
        let b: Name = "b".parse().unwrap();
        let attachment = &mut new.endpoints.get_mut(&b).unwrap().attachments[0];
        attachment.ip4 = Some([172, 18, 0, 9].into());
        let merged = replacing(Some(&old), new, "b");
        let of = |wanted: &Wanted, name: &str| {
            wanted.endpoints[&name.parse::<Name>().unwrap()].attachments[0].clone()
        };
        assert_eq!(of(&merged, "a"), of(&old, "a"));
        let (was, is) = (of(&old, "b"), of(&merged, "b"));
        assert_ne!(was.host_interface, is.host_interface);
        assert_eq!(is.ip4, Some([172, 18, 0, 9].into()));
    }
}
