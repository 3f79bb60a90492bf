//! Another plugin that chooses addresses (host-local, static, dhcp, …): found in `CNI_PATH` and run with the
//! very environment and configuration that this one was.

use std::{
    io::Write as _,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
};

use ipnet::IpNet;
use serde::Deserialize;

use super::{
    call::{Call, Command},
    config::{Config, Dns},
    error::CniError,
};
use crate::api::owned::NetworkWish;

pub struct Ipam<'a> {
    plugin: PathBuf,
    /// What came on stdin.
    config: &'a [u8],
}

/// What the plugin gave.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub ips: Vec<IpNet>,
    gateways: Vec<IpAddr>,
    pub dns: Option<Dns>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ips: Vec<Ip>,
    #[serde(default)]
    routes: Option<Vec<Route>>,
    #[serde(default)]
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNet,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
struct Route {
    dst: IpNet,
    #[serde(default)]
    gw: Option<IpAddr>,
}

#[derive(Deserialize)]
struct Refusal {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl<'a> Ipam<'a> {
    /// None where the agent chooses addresses.
    pub fn of(call: &Call, config: &Config, text: &'a [u8]) -> Result<Option<Self>, CniError> {
        let Some(kind) = config.ipam() else {
            return Ok(None);
        };
        if call.path.is_empty() {
            let details = format!("the ipam plugin {kind} is looked for there");
            return Err(CniError::environment(&["CNI_PATH"], details));
        }
        let mut all = call.path.iter().map(|directory| directory.join(kind));
        match all.find(|file| is_program(file)) {
            Some(plugin) => Ok(Some(Self {
                plugin,
                config: text,
            })),
            None => {
                let all: Vec<_> = call.path.iter().map(|d| d.display().to_string()).collect();
                let all = all.join(", ");
                Err(CniError::config(format!(
                    "there is no ipam plugin {kind} in {all}"
                )))
            }
        }
    }

    /// ADD. What it gave is given back where it cannot be understood. What it refused is not: the address may be
    /// the one that the attachment has already.
    pub fn add(&self) -> Result<Given, CniError> {
        let answer = self.run(Command::Add)?;
        given(&answer).inspect_err(|_| self.give_back())
    }

    /// DEL after a failed ADD; its error would hide that one's.
    pub fn give_back(&self) {
        if let Err(error) = self.run(Command::Del) {
            eprintln!(
                "netfw-cni: giving back what {} gave: {error}",
                self.plugin.display()
            );
        }
    }

    /// What has no result but errors.
    pub fn pass_on(&self, command: Command) -> Result<(), CniError> {
        self.run(command).map(drop)
    }

    fn run(&self, command: Command) -> Result<Vec<u8>, CniError> {
        let name = self.plugin.display().to_string();
        let failed = |source: std::io::Error| CniError::io(&name, &source);
        let mut process = Process::new(&self.plugin)
            .env("CNI_COMMAND", command.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = process.stdin.take() {
            // One that does not read it all says why, or has no need of it.
            let _ = stdin.write_all(self.config);
        }
        let output = process.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(match serde_json::from_slice::<Refusal>(&output.stdout) {
            Ok(refusal) => {
                let msg = format!("{name}: {}", refusal.msg);
                CniError::new(refusal.code, msg, refusal.details)
            }
            Err(_) => {
                let source = std::io::Error::other(format!("it ended with {}", output.status));
                CniError::io(&name, &source)
            }
        })
    }
}

fn is_program(file: &Path) -> bool {
    let metadata = std::fs::metadata(file);
    metadata.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn given(answer: &[u8]) -> Result<Given, CniError> {
    let wrong = |details: String| CniError::decode(format!("the ipam plugin's result: {details}"));
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|error| wrong(error.to_string()))?;
    let gateways: Vec<IpAddr> = answer.ips.iter().filter_map(|ip| ip.gateway).collect();
    for six in [false, true] {
        let all = answer
            .ips
            .iter()
            .filter(|ip| ip.address.addr().is_ipv6() == six);
        if all.count() > 1 {
            let details =
                "the ipam plugin gave two addresses of one family: an interface has one of each";
            return Err(CniError::config(details));
        }
    }
    if answer.ips.is_empty() {
        return Err(wrong("it has no addresses".into()));
    }
    let elsewhere = |route: &&Route| route.gw.is_some_and(|gw| !gateways.contains(&gw));
    if let Some(Route { dst, gw }) = answer.routes.iter().flatten().find(elsewhere) {
        let gw = gw.map_or_else(String::new, |gw| gw.to_string());
        return Err(CniError::config(format!(
            "the ipam plugin wants a route to {dst} by {gw}: netfw's containers reach everything by \
             their gateway"
        )));
    }
    Ok(Given {
        ips: answer.ips.iter().map(|ip| ip.address).collect(),
        gateways,
        dns: answer.dns,
    })
}

impl Given {
    /// The network that such addresses are of.
    pub fn complete(&self, wish: &mut NetworkWish) {
        wish.subnets = self.ips.iter().map(IpNet::trunc).collect();
        wish.gateways.clone_from(&self.gateways);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_of_any_version_is_understood() {
        let old = br#"{"cniVersion": "0.3.1", "ips": [
            {"version": "4", "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
            {"version": "6", "address": "fd00::5/64", "gateway": "fd00::1"}],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.1.0.1"}], "dns": {}}"#;
        let mut wish = NetworkWish {
            name: "a".parse().unwrap(),
            subnets: Vec::new(),
            gateways: Vec::new(),
            ipv6: None,
            internal: None,
            routed: None,
            masquerade: None,
            nat: None,
            filter: None,
            mtu: None,
        };
        let given = given(old).unwrap();
        given.complete(&mut wish);
        let subnets: Vec<String> = wish.subnets.iter().map(IpNet::to_string).collect();
        assert_eq!(subnets, ["10.1.0.0/16", "fd00::/64"]);
        assert_eq!(given.ips[0].addr().to_string(), "10.1.0.5");
        assert_eq!(wish.gateways.len(), 2);
    }

    #[test]
    fn what_netfw_would_not_do_is_refused() {
        for answer in [
            r#"{"ips": []}"#,
            r#"{"ips": [{"address": "10.1.0.5/16"}, {"address": "10.2.0.5/16"}]}"#,
            r#"{"ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}],
                "routes": [{"dst": "10.0.0.0/8", "gw": "10.1.0.7"}]}"#,
            "nonsense",
        ] {
            assert!(given(answer.as_bytes()).is_err(), "{answer}");
        }
    }
}
