//! End-to-end tests: real packets between namespaces, through a real agent.

mod agent;
mod bulk;
mod exec;
mod fixtures;
mod fragments;
mod ipv6;
mod masquerade;
mod mended;
mod network;
mod networks;
mod output;
mod publish;
mod refused;
mod setting;
mod sockets;
