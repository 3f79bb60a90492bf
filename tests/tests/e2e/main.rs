//! End-to-end tests: real packets between namespaces, through a real agent.

mod agent;
mod fixtures;
mod sockets;
