//! What is in a container's namespace: what the agent gave it may have been taken away from inside, which is the
//! container's own business, so nothing is put back. Looked at for whoever asks why it cannot be reached.

use std::{net::IpAddr, path::Path};

use crate::{
    api::types::Endpoint,
    net::{Address, Link, Namespace, NetError, Netlink, Route},
    owner::Owner,
};

pub struct Interior {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

/// What the container has lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    pub what: String,
    /// What puts it back, run in the namespace. None: only making the endpoint again does.
    pub command: Option<String>,
}

impl Interior {
    /// Of the namespace at `netns`.
    pub async fn look(netns: &Path) -> Result<Self, NetError> {
        let netlink = Netlink::within(&Namespace::at_path(netns)?)?;
        Ok(Self {
            links: netlink.links().await?,
            addresses: netlink.addresses().await?,
            routes: netlink.routes().await?,
        })
    }

    /// Of the interface by that name, in bytes.
    pub fn mtu(&self, interface: &str) -> Option<u32> {
        let mut links = self.links.iter();
        links
            .find(|link| link.name == interface)
            .map(|link| link.mtu)
    }

    /// In the order in which it is put back.
    pub fn losses(&self, endpoint: &Endpoint) -> Vec<Loss> {
        let mut losses = Vec::new();
        let mut routes = Vec::new();
        let mut lost = |what: String, command: Option<String>| {
            losses.push(Loss { what, command });
        };
        for attachment in &endpoint.networks {
            let Some(host) = attachment.host_ifindex else {
                // Gone, which is told of elsewhere.
                continue;
            };
            let Some(link) = self.links.iter().find(|link| link.peer == Some(host)) else {
                losses.push(Loss {
                    what: format!("{} is not in its namespace", attachment.interface),
                    command: None,
                });
                return losses;
            };
            // The container chooses the name, and commands are for people to paste.
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.@-".contains(c);
            let dev = match link.name.chars().all(is_plain) {
                true => link.name.clone(),
                false => format!("{:?}", link.name),
            };
            let command = |command: String| (dev == link.name).then_some(command);
            if link.mac != Some(attachment.mac.0) {
                let is = attachment.mac;
                let address = format!("ip link set dev {dev} address {is}");
                lost(
                    format!("{dev} has another MAC address than {is}, and hears nothing"),
                    command(address),
                );
            }
            if !link.up {
                let up = format!("ip link set dev {dev} up");
                lost(format!("{dev} is down inside"), command(up));
            }
            let has = |ip: IpAddr| {
                let mut addresses = self.addresses.iter();
                addresses.any(|address| address.ifindex == link.index && address.addr == ip)
            };
            let sets_routes = attachment.owner.as_ref().is_some_and(Owner::configures);
            let v4 = (
                attachment.ip.map(IpAddr::V4),
                attachment.prefix_len,
                attachment.gateway,
                attachment.default_route,
            );
            let v6 = (
                attachment.ip6.map(IpAddr::V6),
                attachment.prefix_len6,
                attachment.gateway6,
                attachment.default_route6,
            );
            for (ip, length, gateway, leads_here) in [v4, v6] {
                let (Some(ip), Some(length), Some(gateway)) = (ip, length, gateway) else {
                    continue;
                };
                if !has(ip) {
                    let at_once = if ip.is_ipv6() { " nodad" } else { "" };
                    let add = format!("ip addr add {ip}/{length} dev {dev}{at_once}");
                    lost(format!("{dev} has lost its address {ip}"), command(add));
                }
                // Of somebody else's making, perhaps: that is the container's own business, too.
                let is_there = self.routes.iter().any(|route| {
                    route.table == Route::MAIN
                        && route.dst.prefix_len() == 0
                        && route.dst.addr().is_ipv4() == ip.is_ipv4()
                });
                if leads_here && !is_there && !sets_routes {
                    let (family, option) = match ip {
                        IpAddr::V4(_) => ("IPv4", ""),
                        IpAddr::V6(_) => ("IPv6", "-6 "),
                    };
                    routes.push(Loss {
                        what: format!("no default route of {family} is left inside"),
                        command: command(format!(
                            "ip {option}route add default via {gateway} dev {dev}"
                        )),
                    });
                }
            }
        }
        losses.extend(routes);
        losses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Attachment;

    fn endpoint() -> Endpoint {
        let attachment: Attachment = serde_json::from_value(serde_json::json!({
            "network": "bridge", "bridge": "netfw0", "state": "up",
            "ip": "172.18.0.2", "prefix_len": 16, "gateway": "172.18.0.1",
            "ip6": "fd00::2", "prefix_len6": 64, "gateway6": "fd00::1",
            "mac": "02:6e:ac:12:00:02", "interface": "eth0", "host_interface": "nf1", "host_ifindex": 7,
            "default_route": true, "default_route6": true,
        }))
        .unwrap();
        let mut endpoint: Endpoint = serde_json::from_value(serde_json::json!({
            "name": "web", "state": "up", "network": "bridge", "ip": null, "prefix_len": null,
            "gateway": null, "ip6": null, "prefix_len6": null, "gateway6": null, "mac": null,
            "netns": "/run/netns/web", "netns_made": true, "interface": null, "host_interface": null,
            "host_ifindex": null, "publishes": [],
        }))
        .unwrap();
        endpoint.networks.push(attachment);
        endpoint
    }

    fn interior() -> Interior {
        let link = Link {
            mac: Some([0x02, 0x6e, 0xac, 0x12, 0, 2]),
            peer: Some(7),
            peer_elsewhere: true,
            ..Link::example(3, "eth0")
        };
        let address = |addr, prefix_len| Address::example(3, addr, prefix_len);
        let route = |dst: &str| Route::to(dst.parse().unwrap(), 3, Route::MAIN);
        Interior {
            links: vec![link],
            addresses: vec![address("172.18.0.2", 16), address("fd00::2", 64)],
            routes: vec![route("0.0.0.0/0"), route("::/0")],
        }
    }

    fn commands(interior: &Interior) -> Vec<String> {
        let losses = interior.losses(&endpoint()).into_iter();
        losses
            .map(|loss| loss.command.unwrap_or(loss.what))
            .collect()
    }

    #[test]
    fn what_is_lost_is_told_in_the_order_in_which_it_is_put_back() {
        assert_eq!(commands(&interior()), [""; 0]);
        let mut down = interior();
        down.links[0].up = false;
        down.links[0].name = "net0".into();
        down.addresses.truncate(1);
        down.routes.clear();
        assert_eq!(
            commands(&down),
            [
                "ip link set dev net0 up",
                "ip addr add fd00::2/64 dev net0 nodad",
                "ip route add default via 172.18.0.1 dev net0",
                "ip -6 route add default via fd00::1 dev net0",
            ]
        );
        let mut other = interior();
        other.links[0].mac = None;
        assert_eq!(
            commands(&other),
            ["ip link set dev eth0 address 02:6e:ac:12:00:02"]
        );
        let mut bare = interior();
        bare.addresses[0].ifindex = 1;
        assert_eq!(commands(&bare), ["ip addr add 172.18.0.2/16 dev eth0"]);
        bare.links.clear();
        assert_eq!(commands(&bare), ["eth0 is not in its namespace"]);
    }

    #[test]
    fn a_default_route_of_the_containers_own_counts() {
        let mut own = interior();
        for route in &mut own.routes {
            route.oif = Some(9);
        }
        assert_eq!(commands(&own), [""; 0]);
        own.routes[0].table = 100;
        assert_eq!(
            commands(&own),
            ["ip route add default via 172.18.0.1 dev eth0"]
        );
    }
}
