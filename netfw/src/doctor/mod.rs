//! `netfw doctor`: what in the kernel, on the node and between netfw and others is not as netfw needs it, which
//! way is taken instead, and what to do.
//!
//! | file | area |
//! |---|---|
//! | [`kernel`] | features, tried out |
//! | [`node`] | namespace, mounts, sysctls, the agent |
//! | [`hooks`] | uplinks, and what else is on their hooks |
//! | [`firewall`] | rules of nftables and iptables |
//! | [`networks`] | MTUs, subnets, bridges |
//! | [`endpoints`] | what is gone, and what containers have lost inside |
//!
//! Each looks (facts, by way of `bpf` and `net`) and judges (pure: facts in, findings out). Nothing is changed:
//! what has to be tried is tried in a namespace of its own, which goes with the trial.

mod endpoints;
mod firewall;
mod hooks;
mod kernel;
mod networks;
mod node;

use nix::errno::Errno;
use serde::Serialize;

use crate::{
    agent::run::instance_option,
    api::types::{Endpoint, Status},
    bpf::on_hooks,
    name::Name,
    net::{Address, Link, Namespace, NetError, Netlink, Route},
};

/// What a finding is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    Kernel,
    Node,
    Hooks,
    Firewall,
    Networks,
}

impl Area {
    pub const ALL: [Self; 5] = [
        Self::Kernel,
        Self::Node,
        Self::Hooks,
        Self::Firewall,
        Self::Networks,
    ];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Node => "node",
            Self::Hooks => "hooks",
            Self::Firewall => "firewall",
            Self::Networks => "networks",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ok,
    /// Good to know; all works.
    Note,
    /// Something of netfw does not work, or will not.
    Warn,
    /// netfw does not work.
    Fail,
}

impl State {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was found; `-o json` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    pub area: Area,
    /// What was looked at.
    pub check: String,
    pub state: State,
    pub found: String,
    /// What netfw does in place of what is missing.
    pub instead: Option<String>,
    /// What to do. Null where all is well.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(area: Area, check: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            area,
            check: check.into(),
            state: State::Ok,
            found: found.into(),
            instead: None,
            remedy: None,
        }
    }

    /// It is worse than that, and this is what to do.
    fn but(self, state: State, remedy: impl Into<String>) -> Self {
        Self {
            state,
            remedy: Some(remedy.into()),
            ..self
        }
    }

    fn instead(self, instead: impl Into<String>) -> Self {
        Self {
            instead: Some(instead.into()),
            ..self
        }
    }
}

/// What an agent says of itself.
pub struct Told {
    pub status: Status,
    pub endpoints: Vec<Endpoint>,
}

impl Told {
    /// The node that it serves: by its name, where that has not been deleted.
    fn namespace(&self) -> Result<Namespace, NetError> {
        let named = self.status.netns.as_deref().map(Namespace::at_path);
        match named {
            Some(Ok(named)) => Ok(named),
            _ => Namespace::of_pid(self.status.pid),
        }
    }
}

/// What is examined.
pub struct Subject {
    pub instance: Name,
    /// None: the agent's node, or where we are.
    pub netns: Option<Namespace>,
    /// None where no agent runs; an error where it does not answer.
    pub agent: Result<Option<Told>, String>,
}

/// The node as netlink shows it.
struct Node {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

impl Node {
    async fn look() -> Result<Self, NetError> {
        let netlink = Netlink::current()?;
        Ok(Self {
            links: netlink.links().await?,
            addresses: netlink.addresses().await?,
            routes: netlink.routes().await?,
        })
    }

    fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }
}

/// Examines all that can be. Enters the node's namespace, so the calling thread must be the process's only one.
pub fn examine(subject: Subject) -> Vec<Finding> {
    let Subject {
        instance,
        netns,
        agent,
    } = subject;
    let mut findings = kernel::judge(&kernel::Facts::look());
    let served = match &agent {
        Ok(Some(told)) => Some(told.namespace()),
        _ => None,
    };
    let namespace = match (netns, served) {
        (Some(netns), _) => Ok(netns),
        (None, Some(served)) => served,
        (None, None) => Namespace::current(),
    };
    let entered = namespace.and_then(|namespace| namespace.enter().map(|()| namespace));
    let namespace = match entered {
        Ok(namespace) => namespace,
        Err(error) => {
            findings.push(unseen(Area::Node, "namespace", &error));
            return findings;
        }
    };
    // One that serves another node has nothing to say of this one.
    let (told, presence) = match agent {
        Ok(Some(told)) => match told.namespace() {
            Ok(served) if served == namespace => {
                let presence = node::Presence::Here {
                    version: told.status.version.clone(),
                    pid: told.status.pid,
                };
                (Some(told), presence)
            }
            Ok(served) => (None, node::Presence::Elsewhere(served.label().into())),
            Err(error) => (None, node::Presence::Silent(crate::chain(&error))),
        },
        Ok(None) => (None, node::Presence::None),
        Err(error) => (None, node::Presence::Silent(error)),
    };
    let seen = crate::block_on(Node::look());
    match &seen {
        Ok(seen) => {
            let facts = node::Facts::look(&instance, &namespace, presence, seen, told.as_ref());
            findings.extend(node::judge(&facts));
            for uplink in hooks::uplinks(seen, told.as_ref()) {
                let found = uplink.ifindex.map(|ifindex| {
                    on_hooks(&instance, ifindex, &uplink.name).map_err(|error| crate::chain(&error))
                });
                findings.extend(hooks::judge(&uplink, found));
            }
        }
        Err(error) => findings.push(unseen(Area::Node, "interfaces", error)),
    }
    findings.extend(firewall::examine(seen.as_ref().ok(), told.as_ref()));
    if let (Ok(seen), Some(told)) = (&seen, &told) {
        findings.extend(networks::judge(&networks::Facts::look(
            &instance, seen, told,
        )));
    }
    findings
}

/// What cannot be looked at may be wrong.
fn unseen(area: Area, check: &str, error: &NetError) -> Finding {
    Finding::ok(
        area,
        check,
        format!("not examined: {}", crate::chain(error)),
    )
    .but(
        State::Warn,
        match error.errno() {
            Some(Errno::EPERM | Errno::EACCES) => {
                "run `netfw doctor` with CAP_SYS_ADMIN and CAP_NET_ADMIN, in the machine's own user namespace"
            }
            _ => "run `netfw doctor` again once what it says is mended",
        },
    )
}

/// A command of ours, as it is to be typed.
fn command(instance: &str, words: &str) -> String {
    format!("`netfw {words}{}`", instance_option(instance))
}
