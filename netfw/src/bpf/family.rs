//! IPv4 and IPv6: what their maps have in common is written once, for a [`Family`].
//!
//! Each family has maps of its own, whose names differ in the last digit. Everything that works on
//! one is generic in the address; [`Maps`] and [`Flows`] hold both.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aya::Pod;
use ipnet::IpNet;
use netfw_common::{
    addr::{Address, Ip4, Ip6},
    flow::Flow,
    record::{Allowed, Endpoint, Mapping, MappingKey, Publish, PublishKey, SocketKey, SocketPeer},
    tuple::Tuple,
};

use super::{
    flows::{FlowTables, FlowWalk, Flows, Position},
    maps::{FamilyMaps, Maps},
};

/// The names of a family's maps.
pub struct Names {
    pub flows: &'static str,
    pub embryos: &'static str,
    pub holdings: &'static str,
    pub mappings: &'static str,
    pub permits: &'static str,
    pub publishes: &'static str,
    pub allowed: &'static str,
    pub taken: &'static str,
    pub addresses: &'static str,
    pub subnets: &'static str,
    pub locals: &'static str,
    pub sockets: &'static str,
}

/// [`Ip4`] or [`Ip6`], the key of a family's maps. Sealed: there is no third.
pub trait Family:
    Address
    + Pod
    + Hash
    + Ord
    + Send
    + Sync
    + sealed::Sealed
    + Records<Tuple<Self>, Is: Pod>
    + Records<Flow<Self>, Is: Pod>
    + Records<PublishKey<Self>, Is: Pod>
    + Records<Publish<Self>, Is: Pod>
    + Records<Allowed<Self>, Is: Pod>
    + Records<MappingKey<Self>, Is: Pod>
    + Records<Mapping<Self>, Is: Pod>
    + Records<SocketKey<Self>, Is: Pod>
    + Records<SocketPeer<Self>, Is: Pod>
{
    const NAMES: Names;
    /// Bits of an address.
    const BITS: u8;

    /// None where it is of the other family.
    fn of(ip: IpAddr) -> Option<Self>;
    fn ip(self) -> IpAddr;

    /// The endpoint's, or [`Address::ANY`].
    fn of_endpoint(endpoint: &Endpoint) -> Self;

    fn maps(maps: &Maps) -> &FamilyMaps<Self>;
    fn maps_mut(maps: &mut Maps) -> &mut FamilyMaps<Self>;
    fn flows(flows: &Flows) -> &FlowTables<Self>;
    fn flows_mut(flows: &mut Flows) -> &mut FlowTables<Self>;
    fn position(walk: &mut FlowWalk) -> &mut Position<Self>;

    /// None where it is of the other family.
    fn key_of(net: &IpNet) -> Option<aya::maps::lpm_trie::Key<Self>> {
        let addr = Self::of(net.network())?;
        Some(aya::maps::lpm_trie::Key::new(
            u32::from(net.prefix_len()),
            addr,
        ))
    }
}

impl Family for Ip4 {
    const NAMES: Names = Names {
        flows: "FLOWS4",
        embryos: "EMBRYOS4",
        holdings: "HOLDINGS4",
        mappings: "MAPPINGS4",
        permits: "PERMITS4",
        publishes: "PUBLISHES4",
        allowed: "ALLOWED4",
        taken: "TAKEN4",
        addresses: "ADDRESSES4",
        subnets: "SUBNETS4",
        locals: "LOCALS4",
        sockets: "SOCKETS4",
    };
    const BITS: u8 = 32;

    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    fn of_endpoint(endpoint: &Endpoint) -> Self {
        endpoint.ip4
    }

    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v4
    }

    fn maps_mut(maps: &mut Maps) -> &mut FamilyMaps<Self> {
        &mut maps.v4
    }

    fn flows(flows: &Flows) -> &FlowTables<Self> {
        &flows.v4
    }

    fn flows_mut(flows: &mut Flows) -> &mut FlowTables<Self> {
        &mut flows.v4
    }

    fn position(walk: &mut FlowWalk) -> &mut Position<Self> {
        &mut walk.v4
    }
}

impl Family for Ip6 {
    const NAMES: Names = Names {
        flows: "FLOWS6",
        embryos: "EMBRYOS6",
        holdings: "HOLDINGS6",
        mappings: "MAPPINGS6",
        permits: "PERMITS6",
        publishes: "PUBLISHES6",
        allowed: "ALLOWED6",
        taken: "TAKEN6",
        addresses: "ADDRESSES6",
        subnets: "SUBNETS6",
        locals: "LOCALS6",
        sockets: "SOCKETS6",
    };
    const BITS: u8 = 128;

    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip.into()),
        }
    }

    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    fn of_endpoint(endpoint: &Endpoint) -> Self {
        endpoint.ip6
    }

    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v6
    }

    fn maps_mut(maps: &mut Maps) -> &mut FamilyMaps<Self> {
        &mut maps.v6
    }

    fn flows(flows: &Flows) -> &FlowTables<Self> {
        &flows.v6
    }

    fn flows_mut(flows: &mut Flows) -> &mut FlowTables<Self> {
        &mut flows.v6
    }

    fn position(walk: &mut FlowWalk) -> &mut Position<Self> {
        &mut walk.v6
    }
}

/// Makes a bound of `T` known to whoever asks for a [`Family`]: a trait's own `where` clauses are not,
/// those of its supertraits' associated types are.
pub trait Records<T>: Is<T, Is = T> {}

impl<A, T> Records<T> for A {}

pub trait Is<T> {
    type Is;
}

impl<A, T> Is<T> for A {
    type Is = T;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Ip4 {}
    impl Sealed for super::Ip6 {}
}
