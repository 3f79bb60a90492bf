//! The NAT engine: one for both hooks and both families.
//!
//! [`world`] decides about packets from uplinks, [`container`] about those that containers send,
//! [`guard`] about what leaves an uplink. [`mapping`] makes flows, [`translate`] carries them out.

pub mod container;
pub mod guard;
mod mapping;
mod translate;
pub mod world;
