//! The network configuration, as it comes on stdin, and what the runtime added to it.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    call::{Command, is_identifier},
    error::CniError,
};
use crate::{
    agent::config::DEFAULT_INSTANCE,
    api::owned::NetworkWish,
    name::{Mac, Name, parse_instance},
    publish::{PortRange, Protocol, Spec},
    rules::{Filter, Nat},
    source::Sources,
};

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub name: String,
    /// Which agent.
    #[serde(default)]
    instance: Option<String>,
    /// netfw's network; the configuration's name, if none is named.
    #[serde(default)]
    network: Option<Name>,
    #[serde(default)]
    subnets: Vec<String>,
    #[serde(default)]
    gateways: Vec<String>,
    #[serde(default)]
    ipv6: Option<bool>,
    #[serde(default)]
    internal: Option<bool>,
    #[serde(default)]
    routed: Option<bool>,
    #[serde(default)]
    ip_masq: Option<bool>,
    #[serde(default)]
    nat: Option<Nat>,
    #[serde(default)]
    filter: Option<Filter>,
    #[serde(default)]
    mtu: Option<u32>,
    /// Who may use the publishes.
    #[serde(default)]
    pub allow_from: Sources,
    #[serde(default)]
    ipam: Option<Ipam>,
    #[serde(default)]
    pub dns: Option<Dns>,
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    #[serde(default)]
    args: Option<Args>,
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// What is not above.
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct Ipam {
    #[serde(default, rename = "type")]
    kind: String,
}

/// What a result says of name servers.
#[derive(Clone, Default, PartialEq, Eq, Debug, Deserialize, serde::Serialize)]
pub struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// What a runtime wants for this one container: capabilities that the configuration declares.
#[derive(Clone, Default, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    #[serde(default)]
    port_mappings: Option<Vec<PortMapping>>,
    #[serde(default)]
    ips: Option<Vec<String>>,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    aliases: Option<Aliases>,
    #[serde(default)]
    dns: Option<RuntimeDns>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// containerd (go-cni) begins the names with capitals, which Go's decoder takes for the same.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMapping {
    #[serde(alias = "HostPort")]
    host_port: i64,
    #[serde(alias = "ContainerPort")]
    container_port: i64,
    #[serde(default, alias = "Protocol")]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

/// The convention is a list; podman has one for each network.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Aliases {
    OfThis(Vec<String>),
    OfEach(BTreeMap<String, Vec<String>>),
}

/// Capitals as in [`PortMapping`]; what is empty may be null.
#[derive(Clone, Debug, Deserialize)]
struct RuntimeDns {
    #[serde(default, alias = "Servers")]
    servers: Option<Vec<String>>,
    #[serde(default, alias = "Searches")]
    searches: Option<Vec<String>>,
    #[serde(default, alias = "Options")]
    options: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Option<CniArgs>,
}

#[derive(Clone, Debug, Deserialize)]
struct CniArgs {
    #[serde(default)]
    ips: Vec<String>,
}

/// Keys of the protocol and of the runtime, which say nothing to a plugin.
const PROTOCOL: [&str; 7] = [
    "cniVersion",
    "cniVersions",
    "type",
    "capabilities",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
];
/// Likewise, whatever follows.
const PROTOCOL_PREFIX: &str = "cni.dev/";
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// What DEL and GC go by.
const REMOVAL: [&str; 4] = ["name", "instance", "ipam", VALID_ATTACHMENTS];

pub fn object(text: &[u8]) -> Result<Map<String, Value>, CniError> {
    serde_json::from_slice(text).map_err(|error| CniError::decode(error.to_string()))
}

/// The version that a configuration is written in. Of a time when there were none: the first.
pub fn version(config: &Map<String, Value>) -> Result<&str, CniError> {
    match config.get("cniVersion") {
        None => Ok("0.1.0"),
        Some(Value::String(version)) if version.is_empty() => Ok("0.1.0"),
        Some(Value::String(version)) => Ok(version),
        Some(other) => Err(CniError::decode(format!(
            "cniVersion is {other}, no string"
        ))),
    }
}

impl Config {
    /// What the command has no need of is not looked at where it only takes away: a container must be got rid of,
    /// whatever has become of its configuration.
    pub fn of(mut config: Map<String, Value>, command: Command) -> Result<Self, CniError> {
        if matches!(command, Command::Del | Command::Gc) {
            config.retain(|key, _| REMOVAL.contains(&key.as_str()));
        }
        let config: Self = serde_json::from_value(config.into())
            .map_err(|error| CniError::config(error.to_string()))?;
        if !is_identifier(&config.name) {
            let name = &config.name;
            return Err(CniError::config(format!(
                "{name:?} is no name of a network"
            )));
        }
        if let Some(kind) = config.ipam()
            && (kind.contains('/') || kind == "..")
        {
            return Err(CniError::config(format!(
                "ipam: {kind:?} is no name of a plugin"
            )));
        }
        Ok(config)
    }

    /// Refuses what the plugin would not do: people write it to have it done.
    pub fn check_fields(&self) -> Result<(), CniError> {
        let known = |key: &str| PROTOCOL.contains(&key) || key.starts_with(PROTOCOL_PREFIX);
        if let Some((key, value)) = self.rest.iter().find(|(key, _)| !known(key)) {
            let why = "netfw-cni has no such setting: docs/cni.md lists them";
            return Err(CniError::unsupported(key, value, why));
        }
        let mut asked = self.runtime_config.rest.iter();
        if let Some((key, value)) = asked.find(|(_, value)| !value.is_null()) {
            let why =
                "netfw-cni has no such capability: take it out of the configuration's capabilities";
            return Err(CniError::unsupported(
                &format!("runtimeConfig.{key}"),
                value,
                why,
            ));
        }
        if self.prev_result.is_some() {
            let details =
                "prevResult: netfw-cni makes the interface, and is the first plugin of a list";
            return Err(CniError::config(details));
        }
        Ok(())
    }

    pub fn instance(&self) -> Result<Name, CniError> {
        let instance = self.instance.as_deref().unwrap_or(DEFAULT_INSTANCE);
        parse_instance(instance).map_err(|error| CniError::config(format!("instance: {error}")))
    }

    /// The plugin that chooses addresses; none: the agent does.
    pub fn ipam(&self) -> Option<&str> {
        let kind = self.ipam.as_ref().map(|ipam| ipam.kind.as_str());
        kind.filter(|kind| !kind.is_empty())
    }

    /// netfw's network.
    pub fn wish(&self) -> Result<NetworkWish, CniError> {
        let name = match &self.network {
            Some(name) => name.clone(),
            None => self.name.parse().map_err(|error| {
                CniError::config(format!("{error}: name another with \"network\""))
            })?,
        };
        if self.ipam().is_some() && !(self.subnets.is_empty() && self.gateways.is_empty()) {
            let details =
                "subnets and gateways are the ipam plugin's to choose: leave one of them away";
            return Err(CniError::config(details));
        }
        let subnet = |text: &String| {
            let net: Result<IpNet, _> = text.parse();
            let wrong = format!("subnets: {text:?} is no subnet, as 10.1.0.0/24 is");
            net.map_err(|_| CniError::config(wrong))
        };
        let gateway = |text: &String| {
            let ip: Result<IpAddr, _> = text.parse();
            ip.map_err(|_| CniError::config(format!("gateways: {text:?} is no IP address")))
        };
        Ok(NetworkWish {
            name,
            subnets: self.subnets.iter().map(subnet).collect::<Result<_, _>>()?,
            gateways: self
                .gateways
                .iter()
                .map(gateway)
                .collect::<Result<_, _>>()?,
            ipv6: self.ipv6,
            internal: self.internal,
            routed: self.routed,
            masquerade: self.ip_masq,
            nat: self.nat,
            filter: self.filter,
            mtu: self.mtu,
        })
    }

    /// The addresses that the runtime asks for: by capability, or else by `args`.
    pub fn ips(&self) -> Result<Vec<IpAddr>, CniError> {
        let args = self.args.as_ref().and_then(|args| args.cni.as_ref());
        let asked = self
            .runtime_config
            .ips
            .as_ref()
            .or(args.map(|args| &args.ips));
        let asked = asked.into_iter().flatten();
        asked
            .map(|text| address(text).map_err(|why| CniError::config(format!("ips: {why}"))))
            .collect()
    }

    pub fn mac(&self) -> Result<Option<Mac>, CniError> {
        let mac = self
            .runtime_config
            .mac
            .as_deref()
            .filter(|mac| !mac.is_empty());
        let mac = mac.map(|text| text.parse::<Mac>()).transpose();
        mac.map_err(|error| CniError::config(format!("mac: {error}")))
    }

    pub fn aliases(&self) -> Result<Vec<Name>, CniError> {
        let asked = match &self.runtime_config.aliases {
            None => return Ok(Vec::new()),
            Some(Aliases::OfThis(all)) => all.as_slice(),
            Some(Aliases::OfEach(each)) => each.get(&self.name).map_or(&[][..], Vec::as_slice),
        };
        let aliases: Result<Vec<Name>, _> = asked.iter().map(|alias| alias.parse()).collect();
        aliases.map_err(|error| CniError::config(format!("aliases: {error}")))
    }

    /// The port mappings; those of subsequent ports are ranges.
    pub fn publishes(&self) -> Result<Vec<Spec>, CniError> {
        let mut publishes: Vec<Spec> = Vec::new();
        for mapping in self.runtime_config.port_mappings.iter().flatten() {
            let spec = mapping.spec()?;
            match publishes.last_mut() {
                Some(last) if follows(last, &spec) => {
                    let end = spec.host_ports.map(|ports| ports.last);
                    if let (Some(ports), Some(end)) = (&mut last.host_ports, end) {
                        ports.last = end;
                    }
                    last.container_ports.last = spec.container_ports.last;
                }
                _ => publishes.push(spec),
            }
        }
        Ok(publishes)
    }

    /// What the result says of name servers; `own` are netfw's.
    pub fn result_dns(&self, own: Vec<IpAddr>, ipam: Option<Dns>) -> Dns {
        let said = self.dns.clone().filter(|dns| *dns != Dns::default());
        let ipam = ipam.filter(|dns| *dns != Dns::default());
        let mut dns = said.or(ipam).unwrap_or_else(|| Dns {
            nameservers: own.iter().map(IpAddr::to_string).collect(),
            ..Dns::default()
        });
        if let Some(asked) = &self.runtime_config.dns {
            let set = |of: &mut Vec<String>, asked: &Option<Vec<String>>| {
                if let Some(asked) = asked.as_ref().filter(|asked| !asked.is_empty()) {
                    of.clone_from(asked);
                }
            };
            set(&mut dns.nameservers, &asked.servers);
            set(&mut dns.search, &asked.searches);
            set(&mut dns.options, &asked.options);
        }
        dns
    }

    /// The attachments that are still there: container and interface.
    pub fn valid_attachments(&self) -> Result<Vec<(String, String)>, CniError> {
        #[derive(Deserialize)]
        struct Valid {
            #[serde(rename = "containerID")]
            container: String,
            ifname: String,
        }
        let Some(value) = self.rest.get(VALID_ATTACHMENTS) else {
            return Err(CniError::config(format!(
                "GC needs {VALID_ATTACHMENTS}: without, nobody can tell what is stale"
            )));
        };
        // What Go makes of an empty list.
        let all: Option<Vec<Valid>> = serde_json::from_value(value.clone())
            .map_err(|error| CniError::config(format!("{VALID_ATTACHMENTS}: {error}")))?;
        let all = all.into_iter().flatten();
        Ok(all.map(|valid| (valid.container, valid.ifname)).collect())
    }
}

impl PortMapping {
    fn spec(&self) -> Result<Spec, CniError> {
        let wrong = |details: String| CniError::config(format!("portMappings: {details}"));
        let port = |key: &str, port: i64| match u16::try_from(port) {
            Ok(port @ 1..) => Ok(PortRange {
                first: port,
                last: port,
            }),
            _ => Err(wrong(format!("{key} {port} is no port: 1 to 65535 are"))),
        };
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => {
                return Err(wrong(format!(
                    "unknown protocol {other:?}: tcp, udp and sctp are known"
                )));
            }
        };
        let host_ip = match self.host_ip.as_str() {
            "" => None,
            text => {
                let ip: Result<IpAddr, _> = text.parse();
                Some(ip.map_err(|_| wrong(format!("hostIP {text:?} is no IP address")))?)
            }
        };
        Ok(Spec {
            host_ip: host_ip.map(|ip| ip.to_canonical()),
            host_ports: Some(port("hostPort", self.host_port)?),
            choice: None,
            container_ports: port("containerPort", self.container_port)?,
            protocol,
        })
    }
}

fn follows(last: &Spec, next: &Spec) -> bool {
    let follow = |last: PortRange, next: PortRange| last.last.checked_add(1) == Some(next.first);
    let hosts = last.host_ports.zip(next.host_ports);
    (last.host_ip, last.protocol) == (next.host_ip, next.protocol)
        && hosts.is_some_and(|(last, next)| follow(last, next))
        && follow(last.container_ports, next.container_ports)
}

/// `IP` or `IP/LENGTH`.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let ip = text.split_once('/').map_or(text, |(ip, _)| ip);
    ip.parse().map_err(|_| format!("{text:?} is no IP address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::of(object(text.as_bytes()).unwrap(), Command::Add).unwrap()
    }

    #[test]
    fn port_mappings_are_publishes() {
        let config = config(
            r#"{"name": "a", "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80},
                {"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
                {"hostPort": 9000, "containerPort": 9000, "protocol": "tcp", "hostIP": ""},
                {"hostPort": 9001, "containerPort": 9001, "protocol": "tcp", "hostIP": ""},
                {"hostPort": 9002, "containerPort": 9002, "protocol": "tcp", "hostIP": ""},
                {"hostPort": 9003, "containerPort": 9004, "protocol": "tcp", "hostIP": ""},
                {"hostPort": 443, "containerPort": 443, "protocol": "sctp", "hostIP": "::1"}
            ]}}"#,
        );
        let publishes = config.publishes().unwrap();
        let publishes: Vec<String> = publishes.iter().map(Spec::to_string).collect();
        assert_eq!(
            publishes,
            [
                "8080:80/tcp",
                "192.0.2.1:53:53/udp",
                "9000-9002:9000-9002/tcp",
                "9003:9004/tcp",
                "[::1]:443:443/sctp"
            ]
        );
    }

    #[test]
    fn aliases_are_a_list_or_a_list_for_each_network() {
        for aliases in [r#"["db", "sql"]"#, r#"{"a": ["db", "sql"], "b": ["x"]}"#] {
            let text = format!(r#"{{"name": "a", "runtimeConfig": {{"aliases": {aliases}}}}}"#);
            let names: Vec<String> = config(&text)
                .aliases()
                .unwrap()
                .iter()
                .map(Name::to_string)
                .collect();
            assert_eq!(names, ["db", "sql"]);
        }
    }

    #[test]
    fn addresses_may_have_a_length() {
        let asked =
            config(r#"{"name": "a", "args": {"cni": {"ips": ["10.2.2.42/24", "2001:db8::5"]}}}"#);
        let ips: Vec<String> = asked.ips().unwrap().iter().map(IpAddr::to_string).collect();
        assert_eq!(ips, ["10.2.2.42", "2001:db8::5"]);
        assert!(
            config(r#"{"name": "a", "runtimeConfig": {"ips": ["x/24"]}}"#)
                .ips()
                .is_err()
        );
    }

    #[test]
    fn null_is_as_nothing() {
        let text = r#"{"name": "a", "ipam": {}, "runtimeConfig": {"portMappings": null, "ips": null,
            "aliases": null, "bandwidth": null}, "cni.dev/valid-attachments": null}"#;
        let config = config(text);
        config.check_fields().unwrap();
        assert!(config.publishes().unwrap().is_empty() && config.ips().unwrap().is_empty());
        assert!(config.valid_attachments().unwrap().is_empty());
        assert_eq!(config.ipam(), None);
    }

    #[test]
    fn name_servers_are_the_configuration_s_or_netfw_s() {
        let own = vec!["10.0.0.1".parse().unwrap()];
        let dns = config(r#"{"name": "a", "dns": {}}"#).result_dns(own.clone(), None);
        assert_eq!(dns.nameservers, ["10.0.0.1"]);
        let text = r#"{"name": "a", "dns": {"nameservers": ["192.0.2.53"], "search": ["x"]}}"#;
        let dns = config(text).result_dns(own.clone(), None);
        assert_eq!(
            (dns.nameservers, dns.search),
            (vec!["192.0.2.53".into()], vec!["x".into()])
        );
        for dns in [
            r#"{"servers": ["192.0.2.54"]}"#,
            r#"{"Servers": ["192.0.2.54"], "Searches": [], "Options": null}"#,
        ] {
            let text = format!(r#"{{"name": "a", "runtimeConfig": {{"dns": {dns}}}}}"#);
            assert_eq!(
                config(&text).result_dns(own.clone(), None).nameservers,
                ["192.0.2.54"]
            );
        }
    }

    /// As go-cni writes it, whose fields have no names for JSON.
    #[test]
    fn containerd_s_port_mappings_are_understood() {
        let text = r#"{"name": "a", "runtimeConfig": {"portMappings": [
            {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.0.2.1"}]}}"#;
        let publishes = config(text).publishes().unwrap();
        assert_eq!(publishes, ["192.0.2.1:8080:80".parse().unwrap()]);
    }
}
