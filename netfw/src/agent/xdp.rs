//! XDP on uplinks: where it is right, and where the kernel takes it. Whatever becomes of it, the TC
//! programs stay; XDP only takes packets before they get there.
//!
//! XDP sends frames into veths, whose ends in the containers must poll for it (`bpf::napi`,
//! `net::peer`). The order is: containers' ends, then XDP on uplinks; and back: XDP off the last
//! uplink, then the containers' ends as they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{
    Agent, AgentError, Place,
    config::{XDP_OFF, Xdp},
    record::{Attachment, Endpoint},
    run::LOOK_AGAIN,
};
use crate::{
    bpf::XdpMode,
    name::Name,
    net::{
        Link, Namespace, NetError,
        ethtool::{self, feature},
        peer,
    },
};

/// What the agent knows of XDP.
#[derive(Debug, Default)]
pub struct State {
    uplinks: BTreeMap<u32, Tried>,
    /// Host sides of the endpoints whose other ends poll.
    prepared: BTreeSet<u32>,
    /// Those that could not be prepared, which was said.
    unprepared: BTreeSet<u32>,
    /// When it was last looked whether those ends still poll: nobody tells.
    checked: Option<Instant>,
}

/// What was made of an uplink.
#[derive(Debug)]
struct Tried {
    facts: Facts,
    attached: Result<XdpMode, String>,
}

/// Whoever's it is may go, without anything else changing.
const TAKEN: &str = "another XDP program is on it";

impl Tried {
    fn is_taken(&self) -> bool {
        self.attached.as_ref().is_err_and(|why| why == TAKEN)
    }
}

/// What decides whether XDP is right on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    ethernet: bool,
    served: bool,
    /// Of a device that netlink made: `veth`, `bond`, `vlan`, …
    kind: Option<String>,
    driver: String,
    mtu: u32,
    /// The offloads that matter, of [`feature`].
    features: BTreeSet<String>,
    /// Its VLAN interfaces' name, of one of them.
    vlan: Option<String>,
}

impl Facts {
    /// Of an interface, in the node's namespace.
    fn of(link: &Link, links: &[Link], served: bool) -> Result<Self, NetError> {
        let vlan = links
            .iter()
            .find(|other| other.kind.as_deref() == Some("vlan") && other.peer == Some(link.index));
        let mut features = ethtool::features(&link.name)?;
        features.retain(|name| {
            [feature::RX_VLAN, feature::LRO, feature::GRO_HW].contains(&name.as_str())
        });
        Ok(Self {
            ethernet: link.mac.is_some(),
            served,
            kind: link.kind.clone(),
            driver: ethtool::driver(&link.name)?,
            mtu: link.mtu,
            features,
            vlan: vlan.map(|link| link.name.clone()),
        })
    }

    /// Which mode, or why none. Whether the driver takes it is another question.
    fn choose(&self, asked: Xdp) -> Result<XdpMode, String> {
        let on = |name| self.features.contains(name);
        let kind = self.kind.as_deref().unwrap_or_default();
        let mode = match asked {
            Xdp::Off => return Err(XDP_OFF.into()),
            Xdp::Generic => XdpMode::Generic,
            Xdp::Auto | Xdp::Native => XdpMode::Native,
        };
        if !self.served {
            return Err("it is not served".into());
        }
        if !self.ethernet {
            return Err("no Ethernet header".into());
        }
        // These are wrong whoever asks for them.
        if kind == "bond" && mode == XdpMode::Native {
            // The bond's own index is what everything else goes by.
            return Err("bond: native XDP would see frames as its ports', not as its own".into());
        }
        if let Some(vlan) = &self.vlan {
            // Virtual devices hand tags on beside the frame, whatever they say.
            if on(feature::RX_VLAN) || matches!(kind, "veth" | "tun") {
                let way_out = if kind.is_empty() {
                    "; switch its rx-vlan-offload off (ethtool -K … rxvlan off)"
                } else {
                    ""
                };
                return Err(format!(
                    "XDP would not see the tags of {vlan}'s frames{way_out}"
                ));
            }
        }
        if on(feature::LRO) && mode == XdpMode::Native {
            return Err("LRO is on; switch it off (ethtool -K … lro off)".into());
        }
        if asked != Xdp::Auto {
            return Ok(mode);
        }
        // These work, but cost more than they bring.
        const FORCE: &str = "; --xdp native forces it";
        match kind {
            "veth" => return Err(format!("veth: TSO would be lost at its peer{FORCE}")),
            "tun" => {
                return Err(format!(
                    "tap: what its process sends whole (GSO) would pass it by{FORCE}"
                ));
            }
            "" => {}
            kind => return Err(format!("{kind}: no driver of its own to run it")),
        }
        if on(feature::GRO_HW) {
            let driver = match self.driver.as_str() {
                "" => "its driver",
                driver => driver,
            };
            return Err(format!(
                "{driver} would not merge received segments any more (rx-gro-hw){FORCE}"
            ));
        }
        Ok(mode)
    }
}

impl Agent {
    /// Brings XDP in line with what was asked for and what interfaces are like. Needs to be called
    /// when uplinks have been served.
    pub(super) fn follow_xdp(&mut self, links: &[Link]) {
        let asked = self.config.xdp;
        let mut seen = BTreeMap::new();
        let mut todo = Vec::new();
        for link in links {
            let Some(uplink) = self.uplinks.get(&link.index) else {
                continue;
            };
            let served = uplink.attached.is_ok() && uplink.uplink.closed.is_none();
            let facts = match Facts::of(link, links, served) {
                Ok(facts) => facts,
                Err(error) => {
                    tracing::debug!(uplink = %link.name, error = %crate::chain(&error), "no facts");
                    continue;
                }
            };
            let before = self.xdp.uplinks.remove(&link.index);
            let chosen = facts
                .choose(asked)
                .and_then(|mode| match self.is_taken(link.index) {
                    true => Err(TAKEN.into()),
                    false => Ok(mode),
                });
            let tried = match (chosen, before) {
                (Ok(mode), Some(before)) if before.attached == Ok(mode) => {
                    // Somebody may have taken it off.
                    if self.runs(link.index) != Some(mode) {
                        todo.push((link.index, link.name.clone(), mode));
                    }
                    Tried { facts, ..before }
                }
                // The kernel refused it as it is.
                (Ok(_), Some(before)) if before.facts == facts && !before.is_taken() => before,
                (Ok(mode), _) => {
                    todo.push((link.index, link.name.clone(), mode));
                    let attached = Ok(mode);
                    Tried { facts, attached }
                }
                (Err(why), before) => {
                    let attached = Err(why);
                    if before.is_none_or(|before| before.attached != attached) {
                        self.say_why(&link.name, &attached);
                    }
                    Tried { facts, attached }
                }
            };
            seen.insert(link.index, tried);
        }
        self.xdp.uplinks = seen;
        if self.xdp.is_active() {
            if self.xdp.is_check_due() {
                self.xdp.prepared.clear();
                self.xdp.checked = Some(Instant::now());
            }
            self.prepare_endpoints(todo.len() == self.xdp.active());
        }
        for (ifindex, name, mode) in todo {
            let attached = self
                .dataplane
                .attach_xdp(ifindex, &name, mode)
                .map(|()| mode)
                .map_err(|error| first_line(&crate::chain(&error)));
            self.say_why(&name, &attached);
            if let Some(tried) = self.xdp.uplinks.get_mut(&ifindex) {
                tried.attached = attached;
            }
        }
        for ifindex in self.dataplane.xdp_pinned() {
            if self
                .xdp
                .uplinks
                .get(&ifindex)
                .is_some_and(|tried| tried.attached.is_ok())
            {
                continue;
            }
            match self.dataplane.detach_xdp(ifindex) {
                Ok(()) => tracing::info!(ifindex, "XDP taken off"),
                Err(error) => tracing::warn!(ifindex, error = %crate::chain(&error), "XDP stays"),
            }
        }
        if !self.xdp.is_active() && self.dataplane.xdp_pinned().is_empty() {
            self.release_endpoints();
        }
    }

    /// Loudly where a person asked for what is not done.
    fn say_why(&self, uplink: &str, attached: &Result<XdpMode, String>) {
        match (attached, self.config.xdp) {
            (Ok(mode), _) => tracing::info!(uplink, %mode, "XDP"),
            (Err(_), Xdp::Off) => {}
            (Err(why), Xdp::Auto) => tracing::info!(uplink, why, "no XDP"),
            (Err(why), Xdp::Native | Xdp::Generic) => {
                tracing::warn!(uplink, why, "no XDP, though asked for: TC does it all");
            }
        }
    }

    fn is_taken(&self, ifindex: u32) -> bool {
        let taken = self.dataplane.is_xdp_taken(ifindex);
        taken.is_ok_and(|taken| taken)
    }

    fn runs(&self, ifindex: u32) -> Option<XdpMode> {
        self.dataplane.xdp_mode(ifindex).unwrap_or_else(|error| {
            tracing::debug!(ifindex, error = %crate::chain(&error), "which XDP mode?");
            None
        })
    }

    /// For the status: the mode that the kernel says is in effect, and why that one, or none.
    pub(super) fn xdp_view(&self, ifindex: u32) -> (Option<&'static str>, Option<String>) {
        let mode = self.runs(ifindex).map(XdpMode::word);
        let tried = self.xdp.uplinks.get(&ifindex);
        let why = tried.map(|tried| match &tried.attached {
            Err(why) => why.clone(),
            Ok(_) if mode.is_none() => "taken off by somebody else".into(),
            Ok(mode) => match self.config.xdp {
                Xdp::Auto if tried.facts.driver.is_empty() => "auto: its driver runs it".into(),
                Xdp::Auto => format!("auto: {} runs it", tried.facts.driver),
                _ => format!("--xdp {mode}"),
            },
        });
        (mode, why)
    }

    /// An endpoint that has just come up, if XDP runs.
    pub(super) fn prepare_endpoint(
        &mut self,
        endpoint: &Endpoint,
        ifindex: u32,
        namespace: &Namespace,
    ) {
        if !self.xdp.is_active() {
            return;
        }
        match self.prepare(ifindex, namespace) {
            Ok(true) => {}
            Ok(false) => tracing::debug!(endpoint = %endpoint.name, "down: XDP later"),
            Err(error) => self.not_prepared(&endpoint.name, ifindex, &error),
        }
    }

    /// `first`: no XDP program runs yet.
    fn prepare_endpoints(&mut self, first: bool) {
        let todo: Vec<(Place, u32)> = self
            .up
            .iter()
            .filter(|(_, ifindex)| !self.xdp.prepared.contains(ifindex))
            .map(|(place, ifindex)| (place.clone(), *ifindex))
            .collect();
        let mut without = BTreeSet::new();
        for ((name, network), ifindex) in todo {
            let Some(endpoint) = self.wanted.endpoints.get(&name).cloned() else {
                continue;
            };
            let attachment = endpoint.attachment(&network);
            let prepared = match attachment.is_some_and(Attachment::is_waiting) {
                true => Ok(false),
                false => self
                    .open_target(&endpoint)
                    .and_then(|namespace| self.prepare(ifindex, &namespace)),
            };
            match prepared {
                Ok(true) => continue,
                Ok(false) => tracing::debug!(endpoint = %name, "down: XDP later"),
                Err(error) => self.not_prepared(&name, ifindex, &error),
            }
            if first && !self.dataplane.has_napi(ifindex) {
                without.insert(ifindex);
            }
        }
        if !without.is_empty()
            && let Err(error) = self.dataplane.forget_napi(&without)
        {
            tracing::warn!(%error, "flows may not be reached by XDP");
        }
    }

    /// Has the container's end poll, and XDP send to it. False: the end is down.
    fn prepare(&mut self, ifindex: u32, namespace: &Namespace) -> Result<bool, AgentError> {
        let known = self.dataplane.has_napi(ifindex);
        let noted = self.dataplane.is_gro_noted(ifindex);
        if !noted {
            // Beforehand: whoever is killed between leaves it noted, and it is put back.
            self.dataplane.note_gro(ifindex)?;
        }
        let before = peer::switch_gro(ifindex, namespace, true, !known);
        let was_off = matches!(before, Ok(Some(peer::Before { gro: false })));
        if !noted && !was_off {
            self.dataplane.forget_gro(ifindex)?;
        }
        if before?.is_none() {
            return Ok(false);
        }
        if known && was_off {
            tracing::warn!(
                ifindex,
                "GRO was switched off in the container: on again, or what XDP sends would be lost"
            );
        }
        self.dataplane.set_napi(ifindex)?;
        self.xdp.prepared.insert(ifindex);
        self.xdp.unprepared.remove(&ifindex);
        Ok(true)
    }

    fn not_prepared(&mut self, endpoint: &Name, ifindex: u32, error: &AgentError) {
        let error = crate::chain(error);
        if self.dataplane.has_napi(ifindex) {
            tracing::debug!(%endpoint, error, "XDP sends to it, but it could not be looked at");
        } else if self.xdp.unprepared.insert(ifindex) {
            tracing::warn!(
                %endpoint,
                error,
                "XDP cannot send to it, and leaves its packets to TC"
            );
        }
    }

    /// No XDP program runs any more: containers' ends are made as they were.
    fn release_endpoints(&mut self) {
        self.xdp.prepared.clear();
        self.xdp.unprepared.clear();
        let mut all: BTreeSet<u32> = self.dataplane.napi().into_iter().collect();
        let up = self.up.values().copied();
        all.extend(up.filter(|&ifindex| self.dataplane.is_gro_noted(ifindex)));
        for ifindex in all {
            if let Err(error) = self.dataplane.clear_napi(ifindex) {
                tracing::warn!(ifindex, %error, "not cleared");
            }
            if !self.dataplane.is_gro_noted(ifindex) {
                continue;
            }
            let restored = self
                .attachment_at(ifindex)
                .map(|(endpoint, _)| self.open_target(endpoint))
                .transpose()
                .and_then(|namespace| match namespace {
                    Some(namespace) => Ok(peer::switch_gro(ifindex, &namespace, false, false)?),
                    None => Ok(None),
                });
            if let Err(error) = restored {
                tracing::warn!(ifindex, error = %crate::chain(&error), "GRO stays on in the container");
            }
            if let Err(error) = self.dataplane.forget_gro(ifindex) {
                tracing::warn!(ifindex, %error, "not forgotten");
            }
        }
    }

    /// An endpoint is on its way out.
    pub(super) fn forget_prepared(&mut self, ifindex: u32) {
        self.xdp.prepared.remove(&ifindex);
        self.xdp.unprepared.remove(&ifindex);
    }
}

impl State {
    fn active(&self) -> usize {
        self.uplinks
            .values()
            .filter(|tried| tried.attached.is_ok())
            .count()
    }

    fn is_check_due(&self) -> bool {
        self.checked.is_none_or(|at| at.elapsed() >= LOOK_AGAIN)
    }

    /// Does XDP run anywhere, or is about to?
    pub(super) fn is_active(&self) -> bool {
        self.active() > 0
    }
}

/// A refused program's error brings the verifier's log.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic() -> Facts {
        Facts {
            ethernet: true,
            served: true,
            kind: None,
            driver: "ixgbe".into(),
            mtu: 1500,
            features: [feature::RX_VLAN.to_owned()].into(),
            vlan: None,
        }
    }

    fn of_kind(kind: &str) -> Facts {
        Facts {
            kind: Some(kind.into()),
            driver: kind.into(),
            features: BTreeSet::new(),
            ..nic()
        }
    }

    #[test]
    fn auto_takes_what_costs_nothing() {
        let virtual_machine = Facts {
            driver: "virtio_net".into(),
            features: [feature::GRO_HW.to_owned()].into(),
            ..nic()
        };
        for (facts, auto, native, generic) in [
            (nic(), true, true, true),
            (virtual_machine, false, true, true),
            (of_kind("veth"), false, true, true),
            (of_kind("tun"), false, true, true),
            (of_kind("bond"), false, false, true),
            // The kernel is asked, and says that it cannot.
            (of_kind("vlan"), false, true, true),
            (of_kind("bridge"), false, true, true),
        ] {
            let chosen = |asked| facts.choose(asked).ok();
            let native_or_not = |yes: bool| yes.then_some(XdpMode::Native);
            assert_eq!(chosen(Xdp::Auto), native_or_not(auto), "{facts:?}");
            assert_eq!(chosen(Xdp::Native), native_or_not(native), "{facts:?}");
            let generic = generic.then_some(XdpMode::Generic);
            assert_eq!(chosen(Xdp::Generic), generic, "{facts:?}");
            assert_eq!(chosen(Xdp::Off), None);
        }
    }

    #[test]
    fn what_is_wrong_is_not_done_for_anybody() {
        let no_header = Facts {
            ethernet: false,
            ..of_kind("tun")
        };
        let closed = Facts {
            served: false,
            ..nic()
        };
        let tags_taken_off = Facts {
            vlan: Some("eth0.5".into()),
            ..nic()
        };
        let tags_beside = Facts {
            vlan: Some("veth0.5".into()),
            ..of_kind("veth")
        };
        for facts in [no_header, closed, tags_taken_off, tags_beside] {
            for asked in [Xdp::Auto, Xdp::Native, Xdp::Generic] {
                assert!(facts.choose(asked).is_err(), "{asked:?} {facts:?}");
            }
        }
    }

    #[test]
    fn tags_that_stay_on_the_frame_are_seen() {
        let facts = Facts {
            vlan: Some("eth0.5".into()),
            features: BTreeSet::new(),
            ..nic()
        };
        assert_eq!(facts.choose(Xdp::Auto), Ok(XdpMode::Native));
    }

    #[test]
    fn lro_is_for_skbs() {
        let facts = Facts {
            features: [feature::LRO.to_owned()].into(),
            ..nic()
        };
        assert!(facts.choose(Xdp::Native).is_err());
        // The kernel switches it off by itself for that.
        assert_eq!(facts.choose(Xdp::Generic), Ok(XdpMode::Generic));
    }
}
