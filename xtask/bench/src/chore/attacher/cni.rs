//! The plugins `bridge` (with `host-local` for addresses) and `portmap`, called as the CNI
//! specification 1.0.0 has a runtime call them: one after the other, each a process with its network
//! configuration on stdin, what the one found handed to the next as `prevResult`; for DEL the other
//! way round.
//!
//! portmap starts `iptables` three times and more for each port, and each reads the whole table that
//! grows meanwhile: its time grows with the square of the ports.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use netfw_tests::{Crowd, Lab, Namespace, crowd::batch, reaper};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Attacher, Commands, Ports};

pub const NAME: &str = "CNI bridge + portmap";

/// Where Debian's package containernetworking-plugins has them.
const PLUGINS: &str = "/usr/lib/cni";
const VERSION: &str = "1.0.0";
const NETWORK: &str = "bench";
const BRIDGE: &str = "cni0";
const SUBNET: &str = "10.88.0.0/16";
const LENGTH: u32 = 16;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const INTERFACE: &str = "eth0";

pub struct Cni {
    crowds: Vec<Crowd>,
    lab: Lab,
    /// The addresses in use, a file each.
    addresses: TempDir,
    /// What `bridge` found of those that are attached.
    results: HashMap<String, Value>,
    filled: u32,
}

impl Cni {
    pub fn new() -> Result<Self> {
        let addresses = tempfile::tempdir().context("cannot make a temporary directory")?;
        reaper::at_end(&format!("rm -rf '{}'", addresses.path().display()));
        Ok(Self {
            crowds: Vec::new(),
            lab: Lab::lay_out(),
            addresses,
            results: HashMap::new(),
            filled: 0,
        })
    }

    /// What is not there of what it needs.
    pub fn missing() -> Option<&'static str> {
        [
            "/usr/lib/cni/bridge",
            "/usr/lib/cni/host-local",
            "/usr/lib/cni/portmap",
        ]
        .into_iter()
        .find(|plugin| !Path::new(plugin).exists())
        .or_else(super::by_hand::missing)
    }

    fn bridge(&self) -> Value {
        json!({
            "cniVersion": VERSION,
            "name": NETWORK,
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": self.addresses.path(),
                "ranges": [[{ "subnet": SUBNET }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })
    }

    /// Copies what the plugins made for the container `first` to the others: rules, addresses, links.
    fn copy(&self, first: &str, crowd: &Crowd, port: u16) -> Result<()> {
        let address = address(&self.results[first])?;
        let saved = self.lab.node.run(&["iptables-save", "-t", "nat"]);
        let template = Template::new(&saved, first, address, port);

        let files = self.addresses.path().join(NETWORK);
        let file = |address: Ipv4Addr| files.join(address.to_string());
        let reserved = fs::read_to_string(file(address)).context("the first one's address")?;
        let (mut rules, mut links) = (String::new(), String::new());
        let mut last = address;
        for (number, name) in (1..).zip(crowd.names().skip(1)) {
            let id = format!("{first}-{number}");
            last = Ipv4Addr::from_bits(address.to_bits() + number);
            let port = port + u16::try_from(number).context("a port")?;
            rules.push_str(&template.copy(self.filled + number, &id, last, port));
            fs::write(file(last), reserved.replace(first, &id)).context("an address")?;
            let link = format!("veth{:08x}", self.filled + number);
            // Writing to a string cannot fail.
            let _ = write!(
                links,
                "link add {link} type veth peer name {INTERFACE} netns {name}\n\
                 link set {link} master {BRIDGE} up\n\
                 link set {link} type bridge_slave hairpin on\n"
            );
        }
        batch(&["-n", self.lab.node.name()], &links)?;
        for (number, name) in (1..).zip(crowd.names().skip(1)) {
            let address = Ipv4Addr::from_bits(address.to_bits() + number);
            let lines = format!(
                "addr add {address}/{LENGTH} dev {INTERFACE}\n\
                 link set {INTERFACE} up\n\
                 route add default via {GATEWAY}\n"
            );
            batch(&["-n", &name], &lines)?;
        }
        fs::write(files.join("last_reserved_ip.0"), last.to_string())
            .context("the last address")?;
        self.lab.node.enter(|| {
            let mut restore = Command::new("iptables-restore");
            let mut commands = Commands::new(Duration::MAX);
            commands.run(restore.arg("--noflush"), &format!("*nat\n{rules}COMMIT\n"))
        })?;
        Ok(())
    }
}

/// Starts a plugin: what it printed.
fn plugin(
    commands: &mut Commands,
    what: &str,
    id: &str,
    netns: &Path,
    configuration: &Value,
) -> Result<String> {
    let kind = configuration["type"].as_str().unwrap_or_default();
    let mut command = Command::new(format!("{PLUGINS}/{kind}"));
    command
        .env("CNI_COMMAND", what)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_PATH", PLUGINS);
    commands.run(&mut command, &configuration.to_string())
}

fn portmap(ports: Ports, result: &Value) -> Value {
    let mappings: Vec<Value> = ports
        .pairs()
        .map(|(published, served)| {
            json!({ "hostPort": published, "containerPort": served, "protocol": "tcp" })
        })
        .collect();
    json!({
        "cniVersion": VERSION,
        "name": NETWORK,
        "type": "portmap",
        "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": mappings },
        "prevResult": result,
    })
}

/// The address in a result.
fn address(result: &Value) -> Result<Ipv4Addr> {
    let text = result["ips"][0]["address"].as_str().unwrap_or_default();
    let address = text.split('/').next().unwrap_or_default();
    address
        .parse()
        .with_context(|| format!("no address in {result}"))
}

impl Attacher for Cni {
    fn name(&self) -> &'static str {
        NAME
    }

    fn lab(&self) -> &Lab {
        &self.lab
    }

    /// One by the plugins, and copies of what they made: a thousand times the plugins would take
    /// many minutes.
    fn fill(&mut self, crowd: Crowd, port: u16) -> Result<()> {
        let Some(path) = crowd.paths().next() else {
            return Ok(());
        };
        let id = format!("present{}", self.filled);
        let node = self.lab.node.path();
        netfw_tests::netns::enter(&node, || {
            let mut commands = Commands::new(Duration::MAX);
            self.add(&id, &path, Ports::one(port), &mut commands)
        })?;
        self.copy(&id, &crowd, port)?;
        self.filled += u32::try_from(crowd.names().count())?;
        self.crowds.push(crowd);
        Ok(())
    }

    fn attach(
        &mut self,
        name: &str,
        to: &Namespace,
        ports: Ports,
        commands: &mut Commands,
    ) -> Result<()> {
        self.add(name, &to.path(), ports, commands)
    }

    fn detach(
        &mut self,
        name: &str,
        from: &Namespace,
        ports: Ports,
        commands: &mut Commands,
    ) -> Result<()> {
        let result = self.results.remove(name).context("it was attached")?;
        let path = from.path();
        plugin(commands, "DEL", name, &path, &portmap(ports, &result))?;
        let mut bridge = self.bridge();
        bridge["prevResult"] = result;
        plugin(commands, "DEL", name, &path, &bridge)?;
        Ok(())
    }
}

impl Cni {
    fn add(&mut self, id: &str, netns: &Path, ports: Ports, commands: &mut Commands) -> Result<()> {
        let result = plugin(commands, "ADD", id, netns, &self.bridge())?;
        let result: Value = serde_json::from_str(&result).context("a result of bridge's")?;
        plugin(commands, "ADD", id, netns, &portmap(ports, &result))?;
        self.results.insert(id.to_owned(), result);
        Ok(())
    }
}

/// The lines of an `iptables-save` that are one container's, to be written for others.
struct Template {
    lines: Vec<String>,
    /// Its chains, whose names end in a hash of its id.
    chains: Vec<String>,
    id: String,
    address: Ipv4Addr,
    port: u16,
}

impl Template {
    fn new(saved: &str, id: &str, address: Ipv4Addr, port: u16) -> Self {
        let quoted = format!("id: \\\"{id}\\\"");
        // Rules of the common chains lead there.
        let chains: BTreeSet<String> = saved
            .lines()
            .filter(|line| line.contains(&quoted))
            .filter_map(|line| line.rsplit_once("-j "))
            .map(|(_, target)| target.to_owned())
            .filter(|target| target.starts_with("CNI-"))
            .collect();
        let belongs = |line: &str| {
            line.contains(&quoted) || chains.iter().any(|chain| line.contains(chain.as_str()))
        };
        Self {
            lines: saved
                .lines()
                .filter(|line| belongs(line))
                .map(str::to_owned)
                .collect(),
            chains: chains.into_iter().collect(),
            id: id.to_owned(),
            address,
            port,
        }
    }

    /// The lines for the `number`th container.
    fn copy(&self, number: u32, id: &str, address: Ipv4Addr, port: u16) -> String {
        let mut copy = String::new();
        for line in &self.lines {
            let mut line = line
                .replace(
                    &format!("id: \\\"{}\\\"", self.id),
                    &format!("id: \\\"{id}\\\""),
                )
                .replace(&format!("{}/32", self.address), &format!("{address}/32"))
                .replace(&format!("{}:", self.address), &format!("{address}:"))
                .replace(&format!("dport {}", self.port), &format!("dport {port}"))
                .replace(&format!("dports {}", self.port), &format!("dports {port}"));
            for chain in &self.chains {
                // As long as it was, and ends in the number instead of the hash's end.
                let kept = &chain[..chain.len() - 8];
                line = line.replace(chain.as_str(), &format!("{kept}{number:08x}"));
            }
            copy.push_str(&line);
            copy.push('\n');
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"*nat
:CNI-0ff45c20dadaa139981ab7d2 - [0:0]
:CNI-DN-0ff45c20dadaa139981ab - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -s 10.88.0.2/32 -m comment --comment "name: \"bench\" id: \"pc1\"" -j CNI-0ff45c20dadaa139981ab7d2
-A CNI-0ff45c20dadaa139981ab7d2 -d 10.88.0.0/16 -m comment --comment "name: \"bench\" id: \"pc1\"" -j ACCEPT
-A CNI-0ff45c20dadaa139981ab7d2 ! -d 224.0.0.0/4 -m comment --comment "name: \"bench\" id: \"pc1\"" -j MASQUERADE
-A CNI-DN-0ff45c20dadaa139981ab -p tcp -m tcp --dport 20001 -j DNAT --to-destination 10.88.0.2:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"bench\" id: \"pc1\"" -m multiport --dports 20001 -j CNI-DN-0ff45c20dadaa139981ab
COMMIT
"#;

    #[test]
    fn a_container_s_rules_are_written_for_another() {
        let template = Template::new(SAVED, "pc1", Ipv4Addr::new(10, 88, 0, 2), 20_001);
        let copy = template.copy(7, "pc8", Ipv4Addr::new(10, 88, 0, 9), 20_008);
        let expected = r#":CNI-0ff45c20dadaa13900000007 - [0:0]
:CNI-DN-0ff45c20dadaa00000007 - [0:0]
-A POSTROUTING -s 10.88.0.9/32 -m comment --comment "name: \"bench\" id: \"pc8\"" -j CNI-0ff45c20dadaa13900000007
-A CNI-0ff45c20dadaa13900000007 -d 10.88.0.0/16 -m comment --comment "name: \"bench\" id: \"pc8\"" -j ACCEPT
-A CNI-0ff45c20dadaa13900000007 ! -d 224.0.0.0/4 -m comment --comment "name: \"bench\" id: \"pc8\"" -j MASQUERADE
-A CNI-DN-0ff45c20dadaa00000007 -p tcp -m tcp --dport 20008 -j DNAT --to-destination 10.88.0.9:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"bench\" id: \"pc8\"" -m multiport --dports 20008 -j CNI-DN-0ff45c20dadaa00000007
"#;
        assert_eq!(copy, expected);
    }
}
