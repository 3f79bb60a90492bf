//! The NAT engine: one for both hooks and both families.
//!
//! [`world`] decides about packets from uplinks, [`container`] about those that containers send,
//! [`guard`] about what leaves an uplink, [`fragment`] about datagrams in pieces. [`mapping`] makes flows, [`translate`] carries them out;
//! [`related`] does both for ICMP errors, [`answer`] makes those that are the node's own.

pub mod answer;
pub mod container;
pub mod fragment;
pub mod guard;
mod mapping;
pub mod related;
mod translate;
pub mod world;
