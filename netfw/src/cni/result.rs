//! What ADD answers: interfaces, addresses, routes, name servers.

use std::{net::IpAddr, path::Path};

use serde_json::{Map, Value, json};

use super::{config::Dns, error::CniError, version::Version};
use crate::{
    agent::record::host_mac,
    api::{
        owned::Attached,
        types::{Attachment, Endpoint},
    },
    name::{Mac, Name},
};

/// Where the container's interface stands in `interfaces`, behind the bridge and the host side.
const CONTAINER: usize = 2;

/// The attachment that a runtime is told of.
pub fn of_network<'a>(endpoint: &'a Endpoint, network: &Name) -> Result<&'a Attachment, CniError> {
    let mut all = endpoint.networks.iter();
    all.find(|a| a.network == *network).ok_or_else(|| {
        CniError::decode(format!(
            "the agent attached the container to no network {network}"
        ))
    })
}

/// Its addresses, each with the length of its subnet and the gateway.
pub fn addresses(a: &Attachment) -> impl Iterator<Item = (IpAddr, u8, Option<IpAddr>)> {
    let four = a.ip.map(IpAddr::V4).zip(a.prefix_len);
    let six = a.ip6.map(IpAddr::V6).zip(a.prefix_len6);
    let four = four.map(|(ip, length)| (ip, length, a.gateway));
    let six = six.map(|(ip, length)| (ip, length, a.gateway6));
    four.into_iter().chain(six)
}

pub fn success(
    version: Version,
    netns: &Path,
    attached: &Attached,
    dns: &Dns,
) -> Result<Value, CniError> {
    let network = &attached.network;
    let a = of_network(&attached.endpoint, &network.name)?;
    let interface = |name: &str, mac: Mac, sandbox: Option<&Path>| {
        let mut interface = Map::new();
        interface.insert("name".into(), name.into());
        interface.insert("mac".into(), mac.to_string().into());
        if version >= Version::V1_1_0 {
            interface.insert("mtu".into(), network.mtu.into());
        }
        if let Some(netns) = sandbox {
            interface.insert("sandbox".into(), netns.display().to_string().into());
        }
        Value::from(interface)
    };
    let interfaces = [
        interface(&network.bridge, network.mac, None),
        interface(&a.host_interface, host_mac(&a.host_interface), None),
        interface(&a.interface, a.mac, Some(netns)),
    ];
    let ips = addresses(a).map(|(ip, length, gateway)| {
        let mut of = json!({ "address": format!("{ip}/{length}"), "interface": CONTAINER });
        if let Some(gateway) = gateway {
            of["gateway"] = gateway.to_string().into();
        }
        if version < Version::V1_0_0 {
            of["version"] = if ip.is_ipv4() { "4" } else { "6" }.into();
        }
        of
    });
    let ways = [
        (a.default_route, "0.0.0.0/0", a.gateway),
        (a.default_route6, "::/0", a.gateway6),
    ];
    let routes = ways.into_iter().filter_map(|(is_way, dst, gateway)| {
        let gateway = gateway.filter(|_| is_way)?;
        Some(json!({ "dst": dst, "gw": gateway.to_string() }))
    });
    Ok(json!({
        "cniVersion": version.name(),
        "interfaces": interfaces,
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": dns,
    }))
}
