//! What plugins for container runtimes ask: attachments by the names that the runtime has for them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::types::{Endpoint, Network, NetworkRequest};
use crate::{
    document,
    name::{Mac, Name},
    owner::Owner,
    publish::Spec,
    rules::{Filter, Nat},
    source::Sources,
};

/// The label of networks that were made for a runtime: its name of the network.
pub const LABEL: &str = "cni";

/// One attachment: its owner, and the interface's name in the container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owned {
    pub owner: Owner,
    pub interface: String,
}

/// To attach a container of a runtime's: as a new endpoint, or, where the container is one already, to a
/// further network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    pub attachment: Owned,
    /// For a new endpoint: the first that is free.
    pub names: Vec<Name>,
    pub network: NetworkWish,
    /// An absolute path of the container's namespace file.
    pub namespace: PathBuf,
    /// None: a free one is chosen, as for [`EndpointRequest`](super::types::EndpointRequest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Those that the endpoint has already, by another attachment, are not published again.
    #[serde(default)]
    pub publish: Vec<Spec>,
    /// Who may use these.
    #[serde(default, skip_serializing_if = "Sources::is_empty")]
    pub allow_from: Sources,
}

/// A network as somebody wishes it: made where there is none of the name. What is not said here is as it
/// comes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkWish {
    pub name: Name,
    #[serde(default)]
    pub subnets: Vec<IpNet>,
    #[serde(default)]
    pub gateways: Vec<std::net::IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routed: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<Nat>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

impl NetworkWish {
    /// To make it, for this network of a runtime's.
    pub fn request(&self, owner: &Owner) -> NetworkRequest {
        let default = document::Network::default().request(self.name.clone());
        NetworkRequest {
            subnets: self.subnets.clone(),
            gateways: self.gateways.clone(),
            ipv6: self.ipv6.unwrap_or(default.ipv6),
            internal: self.internal.unwrap_or(default.internal),
            routed: self.routed.unwrap_or(default.routed),
            masquerade: self.masquerade.unwrap_or(default.masquerade),
            nat: self.nat.unwrap_or(default.nat),
            filter: self.filter,
            mtu: self.mtu,
            labels: BTreeMap::from([(LABEL.to_owned(), owner.network().to_owned())]),
            ..default
        }
    }

    /// What of the wish a network does not fulfil, if anything.
    pub fn unfulfilled(&self, network: &Network) -> Option<String> {
        let has = [network.subnet, network.subnet6];
        for subnet in &self.subnets {
            if !has.contains(&Some(*subnet)) {
                return Some(format!("it has no subnet {subnet}"));
            }
        }
        let has = [network.gateway, network.gateway6];
        for gateway in &self.gateways {
            if !has.contains(&Some(*gateway)) {
                return Some(format!("its gateway is not {gateway}"));
            }
        }
        let rules = &network.rules;
        let six = network.subnet6.is_some();
        let settings = [
            differs("ipv6", self.ipv6, six),
            differs("internal", self.internal, rules.internal),
            differs("routed", self.routed, rules.routed),
            differs("masquerade", self.masquerade, rules.masquerade),
            differs("nat", self.nat.map(Nat::name), rules.nat.name()),
            differs("filter", self.filter.map(Filter::name), rules.filter.name()),
            differs("mtu", self.mtu, network.mtu),
        ];
        settings.into_iter().flatten().next()
    }
}

fn differs<T: PartialEq + std::fmt::Display>(
    what: &str,
    wished: Option<T>,
    is: T,
) -> Option<String> {
    let wished = wished.filter(|wished| *wished != is)?;
    Some(format!("its {what} is {is}, not {wished}"))
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attached {
    pub endpoint: Endpoint,
    pub network: Network,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detached {
    /// Null: there was no such attachment.
    pub endpoint: Option<Name>,
}

/// To remove what a runtime does not have any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// The runtime's name of the network: attachments to others are left alone.
    pub network: String,
    /// The attachments that are still there.
    pub valid: Vec<Owned>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Collected {
    pub removed: Vec<Owned>,
    /// What went wrong on the way, in sentences for people. The rest was done.
    pub failures: Vec<String>,
}

/// What an attachment is, and what is not as the agent made it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// Null: the agent knows of no such attachment.
    pub attached: Option<Attached>,
    /// Sentences for people.
    pub faults: Vec<String>,
}

/// Which netfw answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Version {
    pub version: String,
}
