//! The packets whose cost is measured, and the flows that they belong to.

use std::fmt;

use anyhow::{Result, ensure};
use netfw_tests::{
    packet::Packet,
    site::{
        Site,
        names::{Family, set_family, tcp, udp},
    },
    testrun::{RunOn as _, TC_DROP, TC_NEXT, TC_REDIRECT, XDP_DROP, XDP_PASS, XDP_REDIRECT},
};

/// A program, and where it is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    Uplink,
    UplinkXdp,
    Container,
}

/// What kind of packet it is, to the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    KnownUdp,
    KnownTcp,
    /// The first packet of a connection.
    New,
    /// For the node itself.
    Pass,
    /// Straight to a container's address; from a container to another network's.
    Refused,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    pub hook: Hook,
    pub what: What,
    pub family: Family,
}

impl Case {
    /// Every kind of packet in every program, of both families.
    pub fn all() -> Vec<Self> {
        use What::{KnownTcp, KnownUdp, New, Pass, Refused};
        let mut all = Vec::new();
        for hook in [Hook::Uplink, Hook::UplinkXdp, Hook::Container] {
            for family in [Family::V4, Family::V6] {
                for what in [KnownUdp, KnownTcp, New, Pass, Refused] {
                    all.push(Self { hook, what, family });
                }
            }
        }
        all
    }

    pub fn program(self) -> &'static str {
        match self.hook {
            Hook::Uplink => "netfw_uplink",
            Hook::UplinkXdp => "netfw_uplink_xdp",
            Hook::Container => "netfw_container",
        }
    }

    /// Does every packet need another flow?
    pub fn opens_flows(self) -> bool {
        self.what == What::New
    }

    pub fn verdict(self) -> u32 {
        match (self.what, self.hook) {
            (What::KnownUdp | What::KnownTcp | What::New, Hook::UplinkXdp) => XDP_REDIRECT,
            (What::KnownUdp | What::KnownTcp | What::New, _) => TC_REDIRECT,
            (What::Pass, Hook::UplinkXdp) => XDP_PASS,
            (What::Pass, _) => TC_NEXT,
            (What::Refused, Hook::UplinkXdp) => XDP_DROP,
            (What::Refused, _) => TC_DROP,
        }
    }

    /// The index of the device that the packets come from.
    pub fn device(self, site: &Site) -> u32 {
        match self.hook {
            Hook::Uplink | Hook::UplinkXdp => site.devices.uplink.ifindex,
            Hook::Container => site.devices.veth.ifindex,
        }
    }

    /// The packets, as many as there are to be flows: at most `runs`.
    pub fn packets(self, site: &Site, runs: u32) -> Vec<Vec<u8>> {
        set_family(self.family);
        let count = if self.opens_flows() { runs } else { 1 };
        (0..count)
            .map(|number| self.frame(site, &self.packet(number)))
            .collect()
    }

    fn frame(self, site: &Site, packet: &Packet) -> Vec<u8> {
        let macs = site.macs();
        let (from, to) = match self.hook {
            Hook::Uplink | Hook::UplinkXdp => (macs.client, macs.uplink),
            Hook::Container => (macs.web, macs.gateway),
        };
        packet.clone().macs(from, to).build()
    }

    fn packet(self, number: u32) -> Packet {
        if self.hook == Hook::Container {
            return match self.what {
                What::KnownUdp => udp("web:5000", "server:53"),
                What::KnownTcp => tcp("web:5000", "server:443", ".P"),
                What::New => tcp(&format!("web:{}", 10_000 + number), "server:443", "S"),
                What::Pass => udp("web:5001", "gateway:53"),
                What::Refused => udp("web:5001", "stranger:80"),
            };
        }
        match self.what {
            What::KnownUdp => udp("client:4000", "node:8080"),
            What::KnownTcp => tcp("client:4000", "node:8080", ".P"),
            What::New => tcp(&format!("client:{}", 10_000 + number), "node:8080", "S"),
            What::Pass => udp("client:4001", "node:5353"),
            What::Refused => udp("client:4001", "web:80"),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Uplink => "uplink TC",
            Hook::UplinkXdp => "uplink XDP",
            Hook::Container => "container TC",
        };
        let what = match self.what {
            What::KnownUdp => "known UDP flow",
            What::KnownTcp => "known TCP flow",
            What::New => "new TCP flow",
            What::Pass => "not for netfw",
            What::Refused => "refused",
        };
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        write!(out, "{hook}: {what}, {family}")
    }
}

/// Opens the flows that the known packets belong to: one of each protocol to a publish, and one to the
/// world.
pub fn open_flows(site: &Site) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        set_family(family);
        let world = |packet: Packet| send(site, Hook::Uplink, &packet);
        let web = |packet: Packet| send(site, Hook::Container, &packet);

        world(udp("client:4000", "node:8080"))?;
        web(udp("web:80", "client:4000"))?;
        world(udp("client:4000", "node:8080"))?;

        world(tcp("client:4000", "node:8080", "S"))?;
        web(tcp("web:80", "client:4000", "S."))?;
        world(tcp("client:4000", "node:8080", "."))?;

        // The source port is kept where it is free.
        web(udp("web:5000", "server:53"))?;
        world(udp("server:53", "node:5000"))?;
        web(udp("web:5000", "server:53"))?;

        web(tcp("web:5000", "server:443", "S"))?;
        world(tcp("server:443", "node:5000", "S."))?;
        web(tcp("web:5000", "server:443", "."))?;
    }
    Ok(())
}

/// Sends a packet that must be sent on.
fn send(site: &Site, hook: Hook, packet: &Packet) -> Result<()> {
    let case = Case {
        hook,
        what: What::KnownUdp,
        family: netfw_tests::site::names::family(),
    };
    let frame = case.frame(site, packet);
    let program = super::classifier(&site.ebpf, case.program())?;
    let verdict = program.run_on(&frame, case.device(site))?.verdict;
    ensure!(
        verdict == TC_REDIRECT,
        "{} made {verdict} of {packet:?}",
        case.program()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let names: BTreeSet<String> = Case::all().iter().map(Case::to_string).collect();
        assert_eq!(names.len(), Case::all().len());
        assert!(names.contains("uplink TC: known UDP flow, IPv4"));
    }
}
