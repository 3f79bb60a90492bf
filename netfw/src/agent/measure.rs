//! What the metrics are made of, and who is told them.

use std::net::IpAddr;

use netfw_common::addr::{Ip4, Ip6};

use super::{Agent, AgentError};
use crate::{
    api::types::Table,
    bpf::{Family, Part},
    metrics::{Address, Events, Page, process::Process},
};

impl Agent {
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// All metrics but for the events. Counters that the page has no room for are not read.
    pub fn page(&self, process: Process) -> Result<Page, AgentError> {
        let mut status = self.status();
        let embryos = [self.embryos::<Ip4>("4"), self.embryos::<Ip6>("6")];
        status.tables.extend(embryos);
        let rows = self.config.metrics_rows;
        let endpoints = self.wanted.endpoints.values();
        let all: usize = endpoints.map(|endpoint| 1 + endpoint.publishes.len()).sum();
        Ok(Page {
            left_out: all.saturating_sub(rows),
            stats: self.stats_within(rows)?,
            status,
            process,
        })
    }

    /// Why nobody reaches the metrics' address, if so.
    pub fn no_metrics_address(&self) -> Option<String> {
        let Some(Address::Tcp(addr)) = self.config.metrics else {
            return None;
        };
        let ip = addr.ip().to_canonical();
        let has = ip.is_unspecified() || ip.is_loopback() || self.locals.contains_key(&ip);
        (!has).then(|| {
            format!(
                "metrics are served at {addr}, and the node has no address {ip} (yet): nobody reaches them until \
                 it has, or the agent is given another (--metrics, or `metrics` in the configuration)"
            )
        })
    }

    /// Half-open flows: too many of them is nothing that `status` would tell, since they push out each other.
    fn embryos<A: Family>(&self, digit: &str) -> Table {
        let (used, max) = self.dataplane.flow_usage::<A>(Part::Embryos);
        Table {
            name: format!("embryos{digit}"),
            used: used as u64,
            max: max as u64,
        }
    }

    /// Does an address that the node's stack took a connection from belong to a container? Those cannot send
    /// from others' addresses (`spoofed-address`); link-local ones tell nothing, and are taken for theirs.
    pub fn is_container(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if self.locals.contains_key(&ip) {
            return false;
        }
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let mut networks = self.wanted.networks.values();
        link_local || networks.any(|network| network.subnets().any(|net| net.contains(&ip)))
    }
}
