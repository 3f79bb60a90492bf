//! The commands that Docker's bridge driver amounts to: a veth pair on a bridge, and per port three
//! rules: DNAT, the masquerade of a container that asks for itself, and what lets the packet pass.
//!
//! Ports in numbers are given to one `iptables-restore`, as nobody would start ten thousand
//! processes. Docker itself makes links without a process, and starts one of iptables for each rule.

use std::{fmt::Write as _, net::Ipv4Addr, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use netfw_tests::{Crowd, Lab, Namespace, crowd::batch};

use super::{Attacher, Commands, Ports};

pub const NAME: &str = "iptables by hand";
const BRIDGE: &str = "docker0";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);

pub struct ByHand {
    crowds: Vec<Crowd>,
    lab: Lab,
    /// Containers there are; it numbers their addresses and links.
    attached: u32,
}

/// What is not there of what it needs.
pub fn missing() -> Option<&'static str> {
    ["iptables", "iptables-restore"]
        .into_iter()
        .find(|program| Command::new(program).arg("-V").output().is_err())
}

impl ByHand {
    pub fn new() -> Result<Self> {
        let lab = Lab::lay_out();
        let node = &lab.node;
        node.ip(&["link", "add", BRIDGE, "type", "bridge"]);
        node.ip(&["addr", "add", &format!("{GATEWAY}/16"), "dev", BRIDGE]);
        node.ip(&["link", "set", BRIDGE, "up"]);
        node.sysctl("ipv4/ip_forward", "1");
        let by_hand = Self {
            crowds: Vec::new(),
            lab,
            attached: 0,
        };
        by_hand.restore(&format!(
            "*nat\n\
             :DOCKER - [0:0]\n\
             -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A POSTROUTING -s {GATEWAY}/16 ! -o {BRIDGE} -j MASQUERADE\n\
             -A DOCKER -i {BRIDGE} -j RETURN\n\
             COMMIT\n\
             *filter\n\
             :FORWARD DROP [0:0]\n\
             :DOCKER - [0:0]\n\
             -A FORWARD -o {BRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A FORWARD -o {BRIDGE} -j DOCKER\n\
             -A FORWARD -i {BRIDGE} ! -o {BRIDGE} -j ACCEPT\n\
             -A FORWARD -i {BRIDGE} -o {BRIDGE} -j ACCEPT\n\
             COMMIT\n"
        ))?;
        Ok(by_hand)
    }

    /// Has `iptables-restore` add rules, out of all measuring.
    fn restore(&self, rules: &str) -> Result<()> {
        self.lab.node.enter(|| {
            let mut restore = Command::new("iptables-restore");
            let mut commands = Commands::new(Duration::MAX);
            commands.run(restore.arg("--noflush"), rules)?;
            Ok(())
        })
    }
}

impl Attacher for ByHand {
    fn name(&self) -> &'static str {
        NAME
    }

    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn fill(&mut self, crowd: Crowd, port: u16) -> Result<()> {
        let mut links = String::new();
        let (mut nat, mut filter) = (String::new(), String::new());
        for (name, port) in crowd.names().zip(port..) {
            self.attached += 1;
            let (link, address) = (link(self.attached), address(self.attached));
            // Writing to a string cannot fail.
            let _ = write!(
                links,
                "link add {link} type veth peer name eth0 netns {name}\n\
                 link set {link} master {BRIDGE} up\n"
            );
            for rule in rules(address, port, 80) {
                let rules = match rule.table {
                    "nat" => &mut nat,
                    _ => &mut filter,
                };
                let _ = writeln!(rules, "-A {}", rule.text);
            }
        }
        batch(&["-n", self.lab.node.name()], &links)?;
        let first = self.attached - u32::try_from(crowd.names().count())?;
        for (name, number) in crowd.names().zip(first + 1..) {
            let address = address(number);
            let lines = format!(
                "addr add {address}/16 dev eth0\n\
                 link set eth0 up\n\
                 route add default via {GATEWAY}\n"
            );
            batch(&["-n", &name], &lines)?;
        }
        self.restore(&format!("*nat\n{nat}COMMIT\n*filter\n{filter}COMMIT\n"))?;
        self.crowds.push(crowd);
        Ok(())
    }

    fn attach(
        &mut self,
        _name: &str,
        to: &Namespace,
        ports: Ports,
        commands: &mut Commands,
    ) -> Result<()> {
        self.attached += 1;
        let link = link(self.attached);
        let address = address(self.attached);
        let (netns, with_length) = (to.name(), format!("{address}/16"));
        let peer = ["peer", "name", "eth0", "netns", netns];
        commands.words(&[&["ip", "link", "add", &link, "type", "veth"], &peer[..]].concat())?;
        commands.words(&["ip", "link", "set", &link, "master", BRIDGE, "up"])?;
        let inside = ["ip", "-n", netns];
        let gateway = GATEWAY.to_string();
        for words in [
            &["addr", "add", &with_length, "dev", "eth0"][..],
            &["link", "set", "eth0", "up"],
            &["route", "add", "default", "via", &gateway],
        ] {
            commands.words(&[&inside[..], words].concat())?;
        }
        change(commands, "-A", address, ports)
    }

    fn detach(
        &mut self,
        _name: &str,
        _from: &Namespace,
        ports: Ports,
        commands: &mut Commands,
    ) -> Result<()> {
        change(commands, "-D", address(self.attached), ports)?;
        commands.words(&["ip", "link", "del", &link(self.attached)])?;
        self.attached -= 1;
        Ok(())
    }
}

/// Adds (`-A`) or deletes (`-D`) the rules of a container's ports.
fn change(commands: &mut Commands, how: &str, address: Ipv4Addr, ports: Ports) -> Result<()> {
    if ports.count == 1 {
        for rule in rules(address, ports.published, ports.served) {
            let words = ["iptables", "-t", rule.table, how].into_iter();
            let words: Vec<&str> = words.chain(rule.text.split(' ')).collect();
            commands.words(&words)?;
        }
        return Ok(());
    }
    let mut input = String::new();
    for table in ["nat", "filter"] {
        let _ = writeln!(input, "*{table}");
        for (published, served) in ports.pairs() {
            for rule in rules(address, published, served) {
                if rule.table == table {
                    let _ = writeln!(input, "{how} {}", rule.text);
                }
            }
        }
        input.push_str("COMMIT\n");
    }
    let mut restore = Command::new("iptables-restore");
    commands
        .run(restore.arg("--noflush"), &input)
        .context("rules of a range")?;
    Ok(())
}

struct Rule {
    table: &'static str,
    /// Chain and rule.
    text: String,
}

/// Of one port.
fn rules(address: Ipv4Addr, published: u16, served: u16) -> [Rule; 3] {
    let rule = |table, text| Rule { table, text };
    [
        rule(
            "nat",
            format!(
                "DOCKER ! -i {BRIDGE} -p tcp --dport {published} -j DNAT --to-destination {address}:{served}"
            ),
        ),
        rule(
            "nat",
            format!(
                "POSTROUTING -s {address}/32 -d {address}/32 -p tcp --dport {served} -j MASQUERADE"
            ),
        ),
        rule(
            "filter",
            format!(
                "DOCKER -d {address}/32 ! -i {BRIDGE} -o {BRIDGE} -p tcp --dport {served} -j ACCEPT"
            ),
        ),
    ]
}

/// The node's end of the `number`th container's veth pair.
fn link(number: u32) -> String {
    format!("veth{number}")
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(GATEWAY.to_bits() + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_docker_s_three_rules() {
        let texts = rules(address(1), 8080, 80).map(|rule| format!("{} {}", rule.table, rule.text));
        assert_eq!(
            texts,
            [
                "nat DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
                "nat POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp --dport 80 -j MASQUERADE",
                "filter DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT",
            ]
        );
    }
}
