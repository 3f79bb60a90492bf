//! What netfw's eBPF programs and its user space share.
//!
//! Every record that lies in a BPF map is defined here, once, with its layout; so are the drop
//! reasons, the counters, and the checksum arithmetic. The crate is `no_std` and free of unsafe
//! code but for the POD declarations and [`fragment::Shared`], so that all of it is tested on the host.
//!
//! | module | what |
//! |---|---|
//! | [`addr`] | addresses and integers in network byte order |
//! | [`tuple`] | tuples and where a packet was received (zone) |
//! | [`flow`] | flow entries, states, timeouts, ticks |
//! | [`record`] | endpoints, publishes, subnets, uplinks, configuration, counters |
//! | [`drop`] | why a packet was dropped |
//! | [`event`] | what somebody who listens is told of single packets |
//! | [`csum`] | RFC 1624 checksum arithmetic |
//! | [`crc32c`] | SCTP's checksum, changed without reading the packet |
//! | [`fragment`] | datagrams in pieces, and pieces that wait |
//! | [`port`] | the choice of a port for masquerade |
//! | [`taken`] | ports that processes of the node may not bind |
#![no_std]

pub mod addr;
pub mod budget;
pub mod crc32c;
pub mod csum;
pub mod drop;
pub mod event;
pub mod flow;
pub mod fragment;
mod named;
pub mod port;
pub mod record;
pub mod taken;
pub mod tuple;

/// Version of the map layouts: pins lie under `<bpffs>/<instance>/v<ABI>`.
///
/// Raise it with every change to a record, a map's type or the meaning of a field, and say in the steps of
/// `netfw::bpf::carry` what becomes of what was written before.
pub const ABI: u32 = 4;
