//! What the metrics are made of, and who is told them.

use std::net::IpAddr;

use netfw_common::addr::{Ip4, Ip6};

use super::{Agent, AgentError};
use crate::{
    api::types::Table,
    bpf::{Family, Part},
    metrics::{Events, Page, process::Process},
};

impl Agent {
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// All metrics but for the events.
    pub fn page(&self) -> Result<Page, AgentError> {
        let mut status = self.status();
        let embryos = [self.embryos::<Ip4>("4"), self.embryos::<Ip6>("6")];
        status.tables.extend(embryos);
        Ok(Page {
            status,
            stats: self.stats()?,
            process: Process::this().map_err(|source| AgentError::Io {
                path: "/proc/self".into(),
                source,
            })?,
            rows: self.config.metrics_rows,
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
