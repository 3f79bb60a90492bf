//! CHECK: is everything that the result of ADD (`prevResult`) names still there, and the container's interface as
//! it was made?
//!
//! Whether the node's side is as it was made, only the agent can say. A plugin that came later in the list may
//! have changed routes, so those that count are the result's.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{call::Call, error::CniError, result};
use crate::{
    api::types::Attachment,
    name::Mac,
    net::{Namespace, NetError, Netlink, Route},
};

#[derive(Deserialize)]
pub struct Previous {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
    #[serde(default)]
    routes: Option<Vec<Way>>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNet,
    #[serde(default)]
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct Way {
    dst: IpNet,
    #[serde(default)]
    gw: Option<IpAddr>,
    #[serde(default)]
    table: Option<u32>,
}

impl Previous {
    pub fn of(value: Option<&Value>) -> Result<Self, CniError> {
        let value =
            value.ok_or_else(|| CniError::config("CHECK needs prevResult, what ADD answered"))?;
        Self::deserialize(value).map_err(|error| CniError::config(format!("prevResult: {error}")))
    }

    /// Where the result and the agent's record of the attachment are at odds.
    pub fn compare(&self, call: &Call, a: &Attachment, faults: &mut Vec<String>) {
        let name = &call.interface;
        let inside = |i: &&Interface| i.name == *name && !i.sandbox.is_empty();
        match self.interfaces.iter().find(inside) {
            None => faults.push(format!(
                "prevResult has no interface {name} of the container"
            )),
            Some(interface) => {
                let mac: Option<Mac> = interface.mac.parse().ok();
                if !interface.mac.is_empty() && mac != Some(a.mac) {
                    let (is, was) = (a.mac, &interface.mac);
                    faults.push(format!("the MAC address of {name} is {is}, and was {was}"));
                }
            }
        }
        let host = |i: &Interface| i.sandbox.is_empty() && i.name == a.host_interface;
        if !self.interfaces.iter().any(host) {
            let host = &a.host_interface;
            faults.push(format!(
                "{name}'s other end is {host}, of which prevResult says nothing"
            ));
        }
        let bridge = a.bridge.as_deref().unwrap_or_default();
        if !self
            .interfaces
            .iter()
            .any(|i| i.sandbox.is_empty() && i.name == bridge)
        {
            faults.push(format!(
                "the bridge is {bridge}, of which prevResult says nothing"
            ));
        }
        let had: BTreeSet<String> = self.ours(name).map(|ip| ip.address.to_string()).collect();
        let has: BTreeSet<String> = result::addresses(a)
            .map(|(ip, length, _)| format!("{ip}/{length}"))
            .collect();
        for ip in has.symmetric_difference(&had) {
            let (here, there) = match has.contains(ip) {
                true => ("netfw", "prevResult"),
                false => ("prevResult", "netfw"),
            };
            faults.push(format!(
                "{ip} is an address of {name} for {here}, and not for {there}"
            ));
        }
    }

    /// The addresses of the container's interface.
    fn ours<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Ip> {
        self.ips.iter().filter(move |ip| match ip.interface {
            None => true,
            Some(index) => {
                let interface = self.interfaces.get(index);
                interface.is_some_and(|i| i.name == name && !i.sandbox.is_empty())
            }
        })
    }

    /// What the container's namespace lacks of the result, and of the attachment `a`, whose network has packets of
    /// at most `mtu` bytes.
    pub async fn look(
        &self,
        call: &Call,
        namespace: &Namespace,
        (a, mtu): (&Attachment, u32),
        faults: &mut Vec<String>,
    ) -> Result<(), NetError> {
        let name = &call.interface;
        let netlink = Netlink::within(namespace)?;
        let Some(link) = netlink.link(name).await? else {
            faults.push(format!("the container has no interface {name}"));
            return Ok(());
        };
        if link.peer != a.host_ifindex {
            let other = &a.host_interface;
            faults.push(format!("{name} is not the other end of {other}"));
        }
        if !link.up {
            faults.push(format!("{name} is down"));
        }
        if link.mac != Some(a.mac.0) {
            let has = link.mac.map_or("none".into(), |mac| Mac(mac).to_string());
            let is = a.mac;
            faults.push(format!("the MAC address of {name} is {has}, not {is}"));
        }
        if link.mtu != mtu {
            let has = link.mtu;
            faults.push(format!("the MTU of {name} is {has}, not {mtu}"));
        }
        let addresses = netlink.addresses().await?;
        for ip in self.ours(name) {
            let is_there = addresses.iter().any(|a| {
                let here = (a.ifindex, a.addr, a.prefix_len);
                here == (link.index, ip.address.addr(), ip.address.prefix_len())
            });
            if !is_there {
                faults.push(format!("{name} has no address {}", ip.address));
            }
        }
        let routes = netlink.routes().await?;
        for way in self.routes.iter().flatten() {
            let is_way = |route: &Route| {
                route.dst == way.dst
                    && route.table == way.table.unwrap_or(Route::MAIN)
                    && (way.gw.is_none() || route.via == way.gw)
            };
            if !routes.iter().any(is_way) {
                let via = way.gw.map_or_else(String::new, |gw| format!(" by {gw}"));
                faults.push(format!("the container has no route to {}{via}", way.dst));
            }
        }
        Ok(())
    }
}
