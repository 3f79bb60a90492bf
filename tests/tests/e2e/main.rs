//! End-to-end tests: real packets between namespaces, through a real agent.

mod agent;
mod ambiguity;
mod bulk;
mod exec;
mod fixtures;
mod icmp;
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
mod setting;
mod sockets;
mod walks;
mod xdp;
