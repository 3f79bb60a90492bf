//! End-to-end tests: real packets between namespaces, through a real agent.

mod agent;
mod ambiguity;
mod bulk;
mod exec;
mod fixtures;
mod fragments;
mod icmp;
mod independent;
mod ipv6;
mod masquerade;
mod mended;
mod network;
mod networks;
mod offloads;
mod output;
mod path_mtu;
mod publish;
mod refused;
mod routing;
mod sctp;
mod setting;
mod shadow;
mod sockets;
mod tunnel;
mod walks;
mod xdp;
