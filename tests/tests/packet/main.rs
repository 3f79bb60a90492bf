//! Packet tests: bytes in, verdict and bytes out, through the kernel's `BPF_PROG_TEST_RUN`.
//!
//! Every packet that leaves is parsed, and its checksums verified, by etherparse. What the rig
//! checks by itself for each packet: one that is handed on is untouched and counts as no drop; a
//! drop has exactly one reason; a packet that is sent keeps its length, payload and the state of
//! its checksums, right or wrong.

mod allow;
mod answers;
mod errors;
mod events;
mod fragments;
mod fuzz;
mod guard;
mod hairpin;
mod icmp;
mod independent;
mod ipv6;
mod masquerade;
mod mended;
mod network;
mod other_protocols;
mod publish;
mod rfc;
mod rig;
mod sanity;
mod sctp;
mod shadow;
mod state;
mod sums;
mod xdp;
