//! The agent's configuration: what the command line and the file say, checked and resolved.
//!
//! The command line wins over the file. Times in the file are seconds.

use std::{
    io,
    path::{Path, PathBuf},
};

use netfw_common::{
    flow::{Timeouts, ticks},
    record,
};
use serde::Deserialize;

use crate::{
    dns::resolv,
    metrics::Address,
    name::{InterfaceError, Name, parse_interface},
    source::Sources,
};

pub const DEFAULT_INSTANCE: &str = "netfw";

/// Flows that the table holds by default: 2^18 pairs, 2^19 entries.
const DEFAULT_MAX_FLOWS: u32 = 1 << 18;
const DEFAULT_MAX_EMBRYOS: u32 = 1 << 16;
/// Ticks (some seconds) that one container takes at least to push out all embryos: the others' connections are
/// answered in that time.
const EMBRYOS_TURN: u32 = 8;
/// 2^24 pairs take 3 GiB: whoever wants more mistyped.
const MOST_FLOWS: u32 = 1 << 24;

/// Four series each.
const DEFAULT_METRICS_ROWS: usize = 1000;

/// When XDP takes packets before TC does.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Xdp {
    /// In the driver, where that costs nothing.
    #[default]
    Auto,
    /// Never.
    Off,
    /// In the driver, wherever it can.
    Native,
    /// On skbs, with any driver. Slower than TC: for trying it out.
    Generic,
}

/// Why there is no XDP, where it is not wanted.
pub const XDP_OFF: &str = "--xdp off";

#[derive(Clone, Debug)]
pub struct Config {
    pub instance: Name,
    /// The namespace to serve; none: the one that the agent is started in.
    pub netns: Option<PathBuf>,
    /// Empty: every interface that is not netfw's own.
    pub uplinks: Vec<String>,
    pub xdp: Xdp,
    pub max_flows: u32,
    pub max_embryos: u32,
    pub dataplane: record::Config,
    /// Group that may open the socket beside root.
    pub socket_group: Option<String>,
    /// Who may use publishes that no other list speaks of.
    pub allow_from: Sources,
    /// Where the node's resolvers are named.
    pub resolv_conf: PathBuf,
    /// Whether dockerd finds a driver for its networks.
    pub docker: bool,
    /// Where metrics are served, beside the API's socket.
    pub metrics: Option<Address>,
    /// Endpoints and publishes that have counters among them.
    pub metrics_rows: usize,
    /// Whether the programs log every decision (slow).
    pub program_log: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {path} cannot be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration {path} is wrong: {source}")]
    Syntax {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("uplinks: {0}")]
    Uplink(InterfaceError),
    #[error("{key} = {value}: {why}")]
    Value {
        key: &'static str,
        value: String,
        why: &'static str,
    },
}

/// The file, as written.
#[derive(Clone, Default, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub max_flows: Option<u32>,
    /// Of those, how many may be of UDP, ICMP and others without connections.
    pub max_udp_flows: Option<u32>,
    pub max_embryos: Option<u32>,
    /// How many a container may begin in a second that come to nothing.
    pub max_unanswered: Option<u32>,
    /// Ports for masquerade, `"1024-32767"`.
    pub ports: Option<String>,
    pub socket_group: Option<String>,
    pub uplinks: Vec<String>,
    pub xdp: Option<Xdp>,
    pub allow_from: Sources,
    pub resolv_conf: Option<PathBuf>,
    pub docker: Option<bool>,
    pub metrics: Option<Address>,
    pub metrics_rows: Option<usize>,
    pub timeouts: FileTimeouts,
}

/// Seconds; see [`Timeouts`].
#[derive(Clone, Default, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileTimeouts {
    pub tcp_embryonic: Option<u32>,
    pub tcp_established: Option<u32>,
    pub tcp_closing: Option<u32>,
    pub udp_unreplied: Option<u32>,
    pub udp_replied: Option<u32>,
    pub icmp: Option<u32>,
}

impl File {
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// The configuration of `instance`; `netns`, `uplinks`, `xdp` and `metrics` are the command line's.
    pub fn resolve(
        self,
        instance: Name,
        netns: Option<PathBuf>,
        uplinks: Vec<String>,
        xdp: Option<Xdp>,
        metrics: Option<Address>,
        program_log: bool,
    ) -> Result<Config, ConfigError> {
        let (port_min, port_max) = match self.ports.as_deref() {
            Some(text) => parse_ports(text)?,
            None => {
                let default = record::Config::default();
                (default.port_min, default.port_max)
            }
        };
        for name in &self.uplinks {
            parse_interface(name).map_err(ConfigError::Uplink)?;
        }
        let max_flows = size("max_flows", self.max_flows, DEFAULT_MAX_FLOWS)?;
        let max_embryos = size("max_embryos", self.max_embryos, DEFAULT_MAX_EMBRYOS)?;
        let default = (max_embryos / EMBRYOS_TURN).max(1);
        let max_unanswered = size("max_unanswered", self.max_unanswered, default)?;
        // Three quarters: connections find room in any flood.
        let default = (max_flows - max_flows / 4).max(1);
        let max_udp_flows = size("max_udp_flows", self.max_udp_flows, default)?;
        if max_udp_flows > max_flows {
            return Err(ConfigError::Value {
                key: "max_udp_flows",
                value: max_udp_flows.to_string(),
                why: "there is no room for more than max_flows",
            });
        }
        Ok(Config {
            instance,
            netns,
            uplinks: if uplinks.is_empty() {
                self.uplinks
            } else {
                uplinks
            },
            xdp: xdp.or(self.xdp).unwrap_or_default(),
            max_flows,
            max_embryos,
            dataplane: record::Config {
                port_min,
                port_max,
                timeouts: self.timeouts.resolve()?,
                epoch: 0,
                mappings: 0,
                // Two entries a flow.
                max_queries: max_udp_flows * 2,
                max_flows: max_flows * 2,
                max_unanswered,
            },
            socket_group: self.socket_group,
            allow_from: self.allow_from,
            resolv_conf: match self.resolv_conf {
                Some(path) if path.is_relative() => {
                    return Err(ConfigError::Value {
                        key: "resolv_conf",
                        value: path.display().to_string(),
                        why: "it takes an absolute path",
                    });
                }
                path => path.unwrap_or_else(|| resolv::PATH.into()),
            },
            docker: self.docker.unwrap_or(true),
            metrics: metrics.or(self.metrics),
            metrics_rows: self.metrics_rows.unwrap_or(DEFAULT_METRICS_ROWS),
            program_log,
        })
    }
}

impl FileTimeouts {
    fn resolve(&self) -> Result<Timeouts, ConfigError> {
        let default = Timeouts::default();
        let pick = |key, given: Option<u32>, default: u32| match given {
            None => Ok(default),
            Some(0) => Err(ConfigError::Value {
                key,
                value: "0".into(),
                why: "a timeout is at least 1 second",
            }),
            // Half of the tick counter: beyond it "expired" could not be told from "new".
            Some(seconds) if seconds > u32::MAX / 2 => Err(ConfigError::Value {
                key,
                value: seconds.to_string(),
                why: "a timeout is at most 2147483647 seconds",
            }),
            Some(seconds) => Ok(ticks(seconds)),
        };
        Ok(Timeouts {
            tcp_embryonic: pick(
                "timeouts.tcp_embryonic",
                self.tcp_embryonic,
                default.tcp_embryonic,
            )?,
            tcp_established: pick(
                "timeouts.tcp_established",
                self.tcp_established,
                default.tcp_established,
            )?,
            tcp_closing: pick(
                "timeouts.tcp_closing",
                self.tcp_closing,
                default.tcp_closing,
            )?,
            udp_unreplied: pick(
                "timeouts.udp_unreplied",
                self.udp_unreplied,
                default.udp_unreplied,
            )?,
            udp_replied: pick(
                "timeouts.udp_replied",
                self.udp_replied,
                default.udp_replied,
            )?,
            icmp: pick("timeouts.icmp", self.icmp, default.icmp)?,
        })
    }
}

fn size(key: &'static str, given: Option<u32>, default: u32) -> Result<u32, ConfigError> {
    match given {
        None => Ok(default),
        Some(n) if (1..=MOST_FLOWS).contains(&n) => Ok(n),
        Some(n) => Err(ConfigError::Value {
            key,
            value: n.to_string(),
            why: "from 1 to 16777216 flows are possible",
        }),
    }
}

fn parse_ports(text: &str) -> Result<(u16, u16), ConfigError> {
    let wrong = |why| ConfigError::Value {
        key: "ports",
        value: format!("{text:?}"),
        why,
    };
    let (min, max) = text
        .split_once('-')
        .ok_or_else(|| wrong("write it as \"1024-32767\""))?;
    let parse = |s: &str| s.trim().parse::<u16>().ok().filter(|p| *p != 0);
    match (parse(min), parse(max)) {
        (Some(min), Some(max)) if min <= max => Ok((min, max)),
        (Some(_), Some(_)) => Err(wrong("the range runs backwards")),
        _ => Err(wrong("ports are 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn resolve(text: &str) -> Result<Config, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        file.resolve("netfw".parse().unwrap(), None, vec![], None, None, false)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_is_checked() {
        let config = resolve(
            "max_flows = 1000\nxdp = \"native\"\nports = \"2000-3000\"\nsocket_group = \"wheel\"\n[timeouts]\nicmp = 5\n",
        )
        .unwrap();
        assert_eq!(config.max_flows, 1000);
        assert_eq!(config.dataplane.max_unanswered, 8192);
        let few = resolve("max_embryos = 800").unwrap();
        assert_eq!(few.dataplane.max_unanswered, 100);
        let none = resolve("max_unanswered = 5").unwrap();
        assert_eq!(none.dataplane.max_unanswered, 5);
        assert_eq!(config.dataplane.max_queries, 2 * 750);
        let all = resolve("max_flows = 1000\nmax_udp_flows = 1000").unwrap();
        assert_eq!(all.dataplane.max_queries, 2 * 1000);
        assert_eq!(config.xdp, Xdp::Native);
        assert_eq!(resolve("").unwrap().xdp, Xdp::Auto);
        assert_eq!(config.dataplane.port_max, 3000);
        assert!(config.allow_from.is_empty());
        let some = resolve("allow_from = [\"10.0.0.0/8\", \"fd00::1\"]").unwrap();
        assert_eq!(some.allow_from.to_string(), "10.0.0.0/8, fd00::1");
        let wrong = resolve("allow_from = [\"10.0.0.1/8\"]").unwrap_err();
        assert!(wrong.contains("the sources are 10.0.0.0/8"), "{wrong}");
        assert_eq!(config.dataplane.timeouts.icmp, ticks(5));
        assert_eq!(
            config.dataplane.timeouts.tcp_established,
            Timeouts::default().tcp_established
        );
        for bad in [
            "xdp = \"on\"",
            "max_flow = 1",
            "max_flows = 0",
            "max_unanswered = 0",
            "max_udp_flows = 0",
            "max_flows = 1000\nmax_udp_flows = 1001",
            "max_flows = -1",
            "ports = \"5\"",
            "ports = \"9-8\"",
            "ports = \"0-8\"",
            "uplinks = [\"a/b\"]",
            "allow_from = \"10.0.0.0/8\"",
            "allow_from = [\"10.0.0.0/33\"]",
            "allow_from = [\"\"]",
            "resolv_conf = \"resolv.conf\"",
            "docker = \"netfw\"",
            "metrics = \"9469\"",
            "metrics_rows = -1",
            "[timeouts]\nicmp = 0",
            "[timeouts]\nicmp = 4294967295",
        ] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_packaged_file_says_the_defaults_of_all_keys() {
        let text = include_str!("../../../packaging/netfw.toml");
        let shown = |text: &str| format!("{:?}", resolve(text).unwrap());
        assert_eq!(shown(text), shown(""), "nothing is set");
        let uncommented = |without: &[&str]| {
            let keys = text.lines().filter_map(|line| {
                let line = line.strip_prefix('#').unwrap_or(line);
                // Sentences begin behind a blank.
                (!line.starts_with(' ')).then_some(line)
            });
            let keys = keys.filter(|line| !without.iter().any(|key| line.starts_with(key)));
            keys.collect::<Vec<_>>().join("\n")
        };
        let examples = ["socket_group", "uplinks", "allow_from", "metrics ="];
        assert_eq!(shown(&uncommented(&examples)), shown(""));
        let all = uncommented(&[]);
        assert_ne!(shown(&all), shown(""));
        let table: toml::Table = toml::from_str(&all).unwrap();
        let inner = table["timeouts"].as_table().unwrap();
        for (wrong, keys) in [("no = 1", &table), ("[timeouts]\nno = 1", inner)] {
            // "unknown field `no`, expected one of `max_flows`, …"
            let error = toml::from_str::<File>(wrong).unwrap_err();
            let known = error.message().split('`').skip(1).step_by(2).skip(1);
            let known: BTreeSet<&str> = known.collect();
            assert!(known.len() > 1, "{error}");
            let said: BTreeSet<&str> = keys.keys().map(String::as_str).collect();
            assert_eq!(said, known);
        }
    }
}
