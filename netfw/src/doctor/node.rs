//! The node: its namespace, what is mounted, sysctls, and which agent serves it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{Area, Finding, Node, State, Told, command};
use crate::{
    agent::{config::DEFAULT_INSTANCE, network, node, record::instance_of},
    api::types::Network,
    bpf::{BPFFS, DataPlane, cgroup_root, is_bpffs_mounted},
    name::Name,
    net::{Namespace, mounts, sysctl},
    rules::Rules,
};

/// Is there an agent of the instance?
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Presence {
    Here {
        version: String,
        pid: u32,
    },
    /// It serves that namespace, and not this one.
    Elsewhere(String),
    None,
    /// There is one, or is not, but it does not answer.
    Silent(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bpffs {
    Mounted,
    Mountable,
    None,
}

/// Where the unit may be.
const UNITS: [&str; 3] = [
    "/etc/systemd/system/netfw.service",
    "/usr/lib/systemd/system/netfw.service",
    "/lib/systemd/system/netfw.service",
];

pub struct Facts {
    instance: Name,
    namespace: String,
    /// As `--netns` takes it; None: of this command.
    netns: Option<String>,
    /// The name that the agent was started with, which is not there any more, and its process.
    unnamed: Option<(PathBuf, u32)>,
    /// There is a unit that starts the agent.
    unit: bool,
    presence: Presence,
    /// What the agent finds amiss itself.
    warnings: Vec<String>,
    /// Something of the instance is in the kernel.
    left: bool,
    /// Of this layout, or why another's is in the way.
    layout: Result<(), String>,
    mounts: Result<(), String>,
    bpffs: Bpffs,
    cgroup: Result<String, String>,
    /// Socket programs that are not attached, of an instance that is there.
    missing: Vec<String>,
    /// Other instances with interfaces in this namespace.
    others: BTreeSet<String>,
    ipv6: Result<(), String>,
    /// Families that routed networks have and the node does not forward, and why they are not reached.
    unforwarded: Vec<(Forwarded, String)>,
    /// Uplinks that have routes from routers, until the node is one itself (`accept_ra` is 1).
    advertised: Vec<String>,
    routed: bool,
    forwarding: Vec<(String, String)>,
    /// Uplinks whose packets must come from where answers would go to (`rp_filter` is 1).
    strict: Vec<String>,
    uplinks: usize,
}

impl Facts {
    pub fn look(
        instance: &Name,
        namespace: &Namespace,
        presence: Presence,
        seen: &Node,
        told: Option<&Told>,
    ) -> Self {
        let words = |error: &dyn std::error::Error| crate::chain(error);
        let networks = told
            .map(|told| &told.status.networks[..])
            .unwrap_or_default();
        let routed = networks.iter().any(|network| is_forwarded(&network.rules));
        let unforwarded: Vec<_> = Forwarded::ALL
            .into_iter()
            .filter(|family| networks.iter().any(|network| family.is_wanted_by(network)))
            .filter_map(|family| Some((family, family.is_off()?)))
            .collect();
        let warnings = told
            .map(|told| told.status.warnings.clone())
            .unwrap_or_default();
        let left = DataPlane::exists(instance);
        let here = matches!(presence, Presence::Here { .. });
        let missing = DataPlane::missing_sockets(instance).unwrap_or_default();
        let others = seen.links.iter().filter_map(|link| {
            let other = instance_of(link.alias.as_deref())?;
            (other != instance.as_str()).then(|| other.to_owned())
        });
        let uplinks = node::observe(&seen.links, &seen.addresses, &[]).uplinks;
        let strict = uplinks.values().filter(|uplink| {
            let of = |which: &str| sysctl::get(&format!("net/ipv4/conf/{which}/rp_filter")).ok();
            // The larger of the two counts (IN_DEV_RPFILTER).
            of("all").max(of(&uplink.name)).as_deref() == Some("1")
        });
        let advertised = uplinks.values().filter(|uplink| {
            let key = format!("net/ipv6/conf/{}/accept_ra", uplink.name);
            sysctl::get(&key).is_ok_and(|value| value == "1")
        });
        let unnamed = told.and_then(|told| {
            let path = told.status.netns.clone()?;
            Namespace::at_path(&path)
                .is_err()
                .then_some((path, told.status.pid))
        });
        Self {
            instance: instance.clone(),
            namespace: match namespace.is_current() {
                true => "the one of this command".into(),
                false => namespace.label().into(),
            },
            netns: (!namespace.is_current()).then(|| namespace.label().into()),
            unnamed,
            unit: UNITS.iter().any(|unit| Path::new(unit).exists()),
            presence,
            warnings: warnings
                .into_iter()
                .filter(|warning| !unforwarded.iter().any(|(_, why)| why == warning))
                .collect(),
            left,
            layout: DataPlane::check_layout(instance).map_err(|error| words(&error)),
            mounts: mounts::check(Path::new(BPFFS)).map_err(|error| words(&error)),
            bpffs: bpffs(),
            cgroup: cgroup_root()
                .map(|path| path.display().to_string())
                .map_err(|error| words(&error)),
            missing: match here || left {
                true => missing.into_iter().map(str::to_owned).collect(),
                false => Vec::new(),
            },
            others: others.collect(),
            ipv6: network::ipv6(),
            unforwarded,
            advertised: advertised.map(|uplink| uplink.name.clone()).collect(),
            routed,
            forwarding: network::FORWARDING
                .iter()
                .filter_map(|key| Some((key.replace('/', "."), sysctl::get(key).ok()?)))
                .collect(),
            strict: strict.map(|uplink| uplink.name.clone()).collect(),
            uplinks: uplinks.len(),
        }
    }
}

/// A family that the node's stack is to forward.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Forwarded {
    Four,
    Six,
}

impl Forwarded {
    const ALL: [Self; 2] = [Self::Four, Self::Six];

    fn is_wanted_by(self, network: &Network) -> bool {
        network.rules.routed
            && match self {
                Self::Four => network.subnet.is_some(),
                Self::Six => network.subnet6.is_some(),
            }
    }

    /// Why routed networks are not reached; None where they are.
    fn is_off(self) -> Option<String> {
        let [four, six] = network::FORWARDING;
        network::unforwarded(match self {
            Self::Four => four,
            Self::Six => six,
        })
    }

    fn turn_on(self, advertised: &[String]) -> String {
        const REST: &str = "and keep it in /etc/sysctl.d. The node then forwards between all of its interfaces: \
                            rules of yours may say for whom";
        match self {
            Self::Four => format!("`sysctl -w net.ipv4.ip_forward=1`, {REST}"),
            Self::Six => {
                let set = "`sysctl -w net.ipv6.conf.all.forwarding=1`";
                let keys = advertised.iter();
                let keys: Vec<String> = keys
                    .map(|uplink| format!("net/ipv6/conf/{uplink}/accept_ra=2"))
                    .collect();
                match keys.is_empty() {
                    true => format!("{set}, {REST}"),
                    false => format!(
                        "first `sysctl -w {}`, or the node loses the routes that routers advertise to it; then {set}, \
                         {REST}",
                        keys.join(" ")
                    ),
                }
            }
        }
    }
}

/// Does the node's stack forward what its containers send, or what is for them?
pub fn is_forwarded(rules: &Rules) -> bool {
    !rules.internal && (rules.routed || !rules.masquerade)
}

fn bpffs() -> Bpffs {
    if is_bpffs_mounted() {
        return Bpffs::Mounted;
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    match known.lines().any(|line| line.ends_with("\tbpf")) {
        true => Bpffs::Mountable,
        false => Bpffs::None,
    }
}

fn ok(check: &str, found: impl Into<String>) -> Finding {
    Finding::ok(Area::Node, check, found)
}

pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![namespace(facts), agent(facts)];
    findings.extend(facts.warnings.iter().map(|warning| {
        ok("agent's warning", warning).but(
            State::Warn,
            "as it says; `netfw status` and the agent's log have the numbers",
        )
    }));
    if let Err(error) = &facts.layout {
        findings.push(ok("layout", error).but(
            State::Fail,
            format!(
                "{} takes all networks, endpoints and publishes of the instance away ({} writes down which); then start \
                 the agent again",
                command(&facts.instance, "down"),
                command(&facts.instance, "store export")
            ),
        ));
    }
    if !facts.others.is_empty() {
        let others: Vec<&str> = facts.others.iter().map(String::as_str).collect();
        let found = format!("{} of netfw serves this namespace", others.join(", "));
        let first = others.first().copied().unwrap_or_default();
        findings.push(ok("instances", found).but(
            State::Warn,
            format!(
                "one instance serves a namespace: `netfw doctor --instance {first}` examines that one, `netfw down \
                 --instance {first}` takes it away, with all of its networks and endpoints"
            ),
        ));
    }
    findings.push(match &facts.mounts {
        Ok(()) => ok("mounts", "what netfw mounts and pins is seen by the whole machine"),
        Err(error) => ok("mounts", error).but(
            State::Fail,
            "run netfw outside of that mount namespace: `nsenter --net` in place of `ip netns exec`, or \
             `--netns`",
        ),
    });
    findings.push(match facts.bpffs {
        Bpffs::Mounted => ok("bpffs", format!("mounted at {BPFFS}")),
        Bpffs::Mountable => ok("bpffs", format!("not mounted at {BPFFS}"))
            .but(
                State::Note,
                format!("`mount -t bpf bpf {BPFFS}`, or nothing"),
            )
            .instead("the agent mounts it"),
        Bpffs::None => ok("bpffs", "this kernel has none")
            .but(State::Fail, "boot a kernel with CONFIG_BPF_SYSCALL"),
    });
    findings.push(match &facts.cgroup {
        Ok(path) => ok("cgroup2", format!("mounted at {path}")),
        Err(error) => ok("cgroup2", error).but(
            State::Warn,
            "`mount -t cgroup2 none /sys/fs/cgroup/unified` and start the agent again, or the node's processes do \
             not reach publishes",
        ),
    });
    if let [first, ..] = &facts.missing[..] {
        let found = format!(
            "{} programs are not attached, {first} first",
            facts.missing.len()
        );
        findings.push(ok("sockets", found).but(
            State::Warn,
            "start the agent again; its log says why processes of the node do not reach publishes",
        ));
    } else if facts.left && facts.cgroup.is_ok() {
        findings.push(ok("sockets", "processes of the node reach publishes"));
    }
    findings.push(match &facts.ipv6 {
        Ok(()) => ok("ipv6", "on"),
        Err(why) => ok("ipv6", why)
            .but(
                State::Note,
                "`sysctl -w net.ipv6.conf.all.disable_ipv6=0` and start the agent again, if IPv6 is wanted",
            )
            .instead("networks have IPv4 alone"),
    });
    findings.extend(forwarding(facts));
    findings.push(rp_filter(facts));
    findings
}

fn namespace(facts: &Facts) -> Finding {
    let Some((path, pid)) = &facts.unnamed else {
        return ok("namespace", &facts.namespace);
    };
    let path = path.display();
    let found = format!("{path} was deleted; only the agent, process {pid}, holds the namespace");
    let again = match path.to_string().strip_prefix("/run/netns/") {
        Some(name) => format!("`ip netns attach {name} {pid}` gives it its name again"),
        None => format!("bind /proc/{pid}/ns/net to {path} again"),
    };
    ok("namespace", found).but(
        State::Warn,
        format!(
            "{again}; otherwise it goes with the agent, and {} clears the rest away",
            command(&facts.instance, "down")
        ),
    )
}

/// What starts the agent, or starts it again.
fn start(facts: &Facts) -> String {
    match &facts.netns {
        None if facts.unit && facts.instance.as_str() == DEFAULT_INSTANCE => {
            "`systemctl restart netfw`".into()
        }
        None => command(&facts.instance, "agent"),
        Some(netns) => command(&facts.instance, &format!("agent --netns {netns}")),
    }
}

fn agent(facts: &Facts) -> Finding {
    let start = start(facts);
    match &facts.presence {
        Presence::Here { version, pid } => {
            let found = format!("netfw {version}, process {pid}");
            match *version == env!("CARGO_PKG_VERSION") {
                true => ok("agent", found),
                false => ok("agent", format!("{found}; this command is {}", env!("CARGO_PKG_VERSION")))
                    .but(State::Note, "start the agent again with the new binary; packets go on"),
            }
        }
        Presence::Elsewhere(other) => {
            ok("agent", format!("it serves another namespace, {other}")).but(
                State::Note,
                "leave --netns out to examine that one; name another --instance to have this one served",
            )
        }
        Presence::None if facts.left => ok("agent", "none runs, but its data plane is there").but(
            State::Warn,
            format!("{start}: until then names are not served, and nothing follows what happens to interfaces"),
        ),
        Presence::None => {
            let found = ok("agent", format!("none runs for instance \"{}\"", facts.instance));
            found.but(
                State::Note,
                match facts.others.first() {
                    None => format!("{start} serves this node; then its networks are examined, too"),
                    Some(other) => format!("nothing: another instance serves this node, {other}"),
                },
            )
        }
        Presence::Silent(error) => ok("agent", error).but(
            State::Fail,
            "look into its log; `kill -KILL` ends one that hangs. Start it again with the options that it had: packets go \
             on meanwhile",
        ),
    }
}

fn forwarding(facts: &Facts) -> Vec<Finding> {
    if !facts.unforwarded.is_empty() {
        let all = facts.unforwarded.iter();
        return all
            .map(|(family, why)| {
                ok("ip_forward", why).but(State::Warn, family.turn_on(&facts.advertised))
            })
            .collect();
    }
    let values: Vec<String> = facts
        .forwarding
        .iter()
        .map(|(key, value)| format!("{key} is {value}"))
        .collect();
    let why = match facts.routed {
        true => "networks that are not routed need none",
        false => "netfw needs none",
    };
    vec![ok("ip_forward", format!("{}; {why}", values.join(", ")))]
}

fn rp_filter(facts: &Facts) -> Finding {
    if facts.strict.is_empty() {
        return ok("rp_filter", "not strict on any uplink");
    }
    let found = format!("strict on {}", facts.strict.join(", "));
    if !facts.routed || facts.uplinks < 2 {
        return ok(
            "rp_filter",
            format!("{found}; translated packets do not come by it"),
        );
    }
    ok("rp_filter", found).but(
        State::Note,
        "where routed networks are reached by one uplink and answer by another, \
         `sysctl -w net.ipv4.conf.all.rp_filter=2` lets that pass",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            instance: "x".parse().unwrap(),
            namespace: "node".into(),
            netns: None,
            unnamed: None,
            unit: false,
            presence: Presence::Here {
                version: env!("CARGO_PKG_VERSION").into(),
                pid: 7,
            },
            warnings: Vec::new(),
            left: true,
            layout: Ok(()),
            mounts: Ok(()),
            bpffs: Bpffs::Mounted,
            cgroup: Ok("/sys/fs/cgroup".into()),
            missing: Vec::new(),
            others: BTreeSet::new(),
            ipv6: Ok(()),
            unforwarded: Vec::new(),
            advertised: Vec::new(),
            routed: false,
            forwarding: vec![("net.ipv4.ip_forward".into(), "0".into())],
            strict: Vec::new(),
            uplinks: 2,
        }
    }

    #[track_caller]
    fn is(facts: Facts, check: &str, state: State, words: &str) {
        let findings = judge(&facts);
        let finding = findings.iter().find(|found| found.check == check);
        let finding = finding.unwrap_or_else(|| panic!("no {check} in {findings:?}"));
        assert_eq!(finding.state, state, "{finding:?}");
        assert_eq!(finding.remedy.is_some(), state != State::Ok, "{finding:?}");
        let remedy = finding.remedy.as_deref().unwrap_or_default();
        let said = format!("{} {remedy}", finding.found);
        assert!(said.contains(words), "{finding:?}");
    }

    #[test]
    fn a_node_as_it_should_be() {
        for finding in judge(&facts()) {
            assert_eq!(finding.state, State::Ok, "{finding:?}");
        }
    }

    #[test]
    fn who_serves_the_node() {
        let with = |presence, left| Facts {
            presence,
            left,
            ..facts()
        };
        is(
            with(Presence::None, false),
            "agent",
            State::Note,
            "`netfw agent --instance x`",
        );
        is(
            with(Presence::None, true),
            "agent",
            State::Warn,
            "names are not served",
        );
        is(
            with(Presence::Elsewhere("b".into()), true),
            "agent",
            State::Note,
            "another namespace, b",
        );
        is(
            with(Presence::Silent("?".into()), true),
            "agent",
            State::Fail,
            "its log",
        );
        let old = Presence::Here {
            version: "0.0.1".into(),
            pid: 1,
        };
        is(with(old, true), "agent", State::Note, "0.0.1");
        let elsewhere = Facts {
            netns: Some("/run/netns/n".into()),
            ..with(Presence::None, false)
        };
        let start = "`netfw agent --netns /run/netns/n --instance x`";
        is(elsewhere, "agent", State::Note, start);
        let unit = Facts {
            instance: DEFAULT_INSTANCE.parse().unwrap(),
            unit: true,
            ..with(Presence::None, true)
        };
        is(unit, "agent", State::Warn, "`systemctl restart netfw`");
        let served = Facts {
            others: ["y".to_owned()].into(),
            ..with(Presence::None, false)
        };
        is(served, "agent", State::Note, "serves this node, y");
        let unnamed = Facts {
            unnamed: Some(("/run/netns/n".into(), 7)),
            ..facts()
        };
        is(unnamed, "namespace", State::Warn, "`ip netns attach n 7`");
        let others = Facts {
            others: ["y".to_owned()].into(),
            ..facts()
        };
        is(others, "instances", State::Warn, "--instance y");
        let warned = Facts {
            warnings: vec!["table flows4 is 95 % full".into()],
            ..facts()
        };
        is(warned, "agent's warning", State::Warn, "95 %");
        let layout = Facts {
            layout: Err("another version".into()),
            ..facts()
        };
        is(layout, "layout", State::Fail, "`netfw down --instance x`");
    }

    #[test]
    fn what_must_be_mounted() {
        let with = |bpffs| Facts { bpffs, ..facts() };
        is(with(Bpffs::Mountable), "bpffs", State::Note, "mount -t bpf");
        is(
            with(Bpffs::None),
            "bpffs",
            State::Fail,
            "CONFIG_BPF_SYSCALL",
        );
        let without = Facts {
            cgroup: Err("none".into()),
            ..facts()
        };
        is(without, "cgroup2", State::Warn, "mount -t cgroup2");
        let hidden = Facts {
            mounts: Err("hidden".into()),
            ..facts()
        };
        is(hidden, "mounts", State::Fail, "nsenter");
        let missing = Facts {
            missing: vec!["netfw_bind4".into()],
            ..facts()
        };
        is(missing, "sockets", State::Warn, "netfw_bind4");
    }

    #[test]
    fn settings_matter_to_networks_that_the_node_forwards_for() {
        let strict = |routed| Facts {
            strict: vec!["up0".into()],
            routed,
            ..facts()
        };
        is(strict(false), "rp_filter", State::Ok, "up0");
        is(strict(true), "rp_filter", State::Note, "rp_filter=2");
        is(facts(), "ip_forward", State::Ok, "needs none");
        let unforwarded = |family| Facts {
            unforwarded: vec![(family, "not reached".into())],
            advertised: vec!["up0".into(), "up1.7".into()],
            routed: true,
            ..facts()
        };
        let four = unforwarded(Forwarded::Four);
        assert!(!judge(&four).iter().any(|one| {
            let remedy = one.remedy.as_deref();
            remedy.is_some_and(|remedy| remedy.contains("ipv6"))
        }));
        is(four, "ip_forward", State::Warn, "ip_forward=1");
        // Before the node is a router, or it has lost its routes.
        let six = "`sysctl -w net/ipv6/conf/up0/accept_ra=2 net/ipv6/conf/up1.7/accept_ra=2`";
        is(unforwarded(Forwarded::Six), "ip_forward", State::Warn, six);
        let off = Facts {
            ipv6: Err("disable_ipv6 is 1".into()),
            ..facts()
        };
        is(off, "ipv6", State::Note, "disable_ipv6=0");
    }
}
