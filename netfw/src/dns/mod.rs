//! Names: a DNS server for each network, at its gateway addresses.
//!
//! A query comes in on a network's bridge. What it asks for is answered from the [`View`], which the
//! agent keeps up to date; everything else is forwarded to the node's resolvers.
//!
//! | module | what |
//! |---|---|
//! | [`view`] | what names there are; the [`Directory`] holds the current ones |
//! | [`answer`] | what an asker is told: pure |
//! | [`message`] | as much of the wire format as that takes |
//! | [`resolv`] | `/etc/resolv.conf`, watched |
//! | [`upstream`] | one of the node's resolvers: asking it, and whether it is dead |
//! | [`forward`] | which of them is asked, and when the next one is |
//! | [`round`] | whom one query asks, in turns: pure |
//! | [`failures`] | what failed a moment ago, and is not asked again |
//! | [`resolver`] | from a query's bytes to its answer's |
//! | [`limit`] | how much one asker may have in hand |
//! | [`socket`] | sockets for port 53 that do not take it |
//! | [`udp`], [`tcp`] | serving one gateway address |
//! | [`server`] | serving all of them |
//!
//! **Port 53 may be taken.** The sockets are bound to the gateway's address at a port that the kernel
//! chooses, and [`crate::bpf::Lookup`] hands them what is sent to port 53. Answers by UDP leave
//! through a raw socket, since they must come from port 53.
//!
//! **Who asks** is known by the source address, which the data plane has checked: a container sends
//! from its own address only. From where no container is, it is the node that asks.
//!
//! **What is forwarded** goes byte for byte, but for the id; so do the answers, unless they are more than
//! the asker takes. What this server does not know of the protocol is between the container and the
//! resolver.

pub mod answer;
pub mod error;
pub mod failures;
pub mod forward;
pub mod limit;
pub mod message;
pub mod resolv;
pub mod resolver;
pub mod round;
pub mod server;
pub mod socket;
pub mod tcp;
pub mod udp;
pub mod upstream;
pub mod view;

pub use self::{
    error::DnsError,
    server::{Options, Server},
    view::{Bridge, Directory, Link, Member, Network, View},
};
