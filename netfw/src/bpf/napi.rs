//! The veths that XDP may send frames to: map `VETHS`, and the flag [`endpoint_flag::NAPI`] in an
//! endpoint's record, which says that its veth is in there.
//!
//! A program that sees the flag sends without asking further, so it is set last and cleared first.
//! Flows carry a copy of it (`flow::flag::NAPI`) that nobody clears. It is used by XDP alone; so an
//! entry goes only with its interface (the kernel sees to that), or while no XDP program of ours
//! runs. Before one runs again, each endpoint has its entry again, or its flows lose the flag
//! ([`DataPlane::forget_napi`]).

use std::collections::BTreeSet;

use netfw_common::{
    addr::{Ip4, Ip6},
    record::endpoint_flag,
};
use nix::libc;

use super::{
    BpfError, DataPlane,
    attach::{self, Hook},
    error::root_errno,
    load, pin,
};

const VETHS: &str = "VETHS";

impl DataPlane {
    /// XDP may send to the endpoint of this interface from now on: the other end must poll.
    pub fn set_napi(&mut self, ifindex: u32) -> Result<(), BpfError> {
        self.maps
            .veths
            .insert(ifindex, ifindex, None, 0)
            .map_err(|error| BpfError::Veths {
                call: "write",
                source: error.into(),
            })?;
        self.flag_endpoint(ifindex, true)
    }

    /// Not any more. No XDP program may run, or the endpoint must be on its way out.
    pub fn clear_napi(&mut self, ifindex: u32) -> Result<(), BpfError> {
        self.flag_endpoint(ifindex, false)?;
        match self.maps.veths.remove(ifindex) {
            Err(error) if root_errno(&error) != Some(libc::ENOENT) => {
                Err(BpfError::map(VETHS, "delete from")(error))
            }
            _ => Ok(()),
        }
    }

    /// May XDP send to this interface?
    pub fn has_napi(&self, ifindex: u32) -> bool {
        self.maps.veths.get(ifindex, 0).is_ok()
    }

    /// The interfaces that XDP may send to.
    pub fn napi(&self) -> Vec<u32> {
        let keys = self.maps.veths.keys();
        keys.filter_map(|key| {
            key.inspect_err(|error| tracing::error!(%error, map = VETHS, "reading"))
                .ok()
        })
        .collect()
    }

    /// Takes the flag from flows into interfaces that have no entry (any more), before XDP runs.
    /// Returns how many halves had it.
    pub fn forget_napi(&mut self, ifindexes: &BTreeSet<u32>) -> Result<usize, BpfError> {
        Ok(self.clear_napi_in_flows::<Ip4>(ifindexes)?
            + self.clear_napi_in_flows::<Ip6>(ifindexes)?)
    }

    /// Notes that GRO at the other end of a veth pair is on because of us; also for agents after us.
    pub fn note_gro(&mut self, ifindex: u32) -> Result<(), BpfError> {
        let pin = attach::gro_pin(&self.pins.links(), ifindex);
        let program = load::program(&mut self.ebpf, Hook::Container)?;
        attach::remember(program, pin)
    }

    pub fn is_gro_noted(&self, ifindex: u32) -> bool {
        attach::gro_pin(&self.pins.links(), ifindex).exists()
    }

    pub fn forget_gro(&mut self, ifindex: u32) -> Result<(), BpfError> {
        pin::remove(&attach::gro_pin(&self.pins.links(), ifindex))
    }

    fn flag_endpoint(&mut self, ifindex: u32, on: bool) -> Result<(), BpfError> {
        let endpoints = &mut self.maps.endpoints;
        let Some(mut endpoint) = endpoints.get(&ifindex)? else {
            return Ok(());
        };
        let flags = if on {
            endpoint.flags | endpoint_flag::NAPI
        } else {
            endpoint.flags & !endpoint_flag::NAPI
        };
        if flags == endpoint.flags {
            return Ok(());
        }
        endpoint.flags = flags;
        endpoints.insert(&ifindex, &endpoint)
    }
}
