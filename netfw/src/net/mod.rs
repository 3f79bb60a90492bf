//! The node's network as the kernel shows it: interfaces, addresses, routes, namespaces, sysctls
//! and sockets. It knows nothing of BPF, endpoints or networks.
//!
//! Everything goes by netlink and system calls; nothing shells out. Functions without a namespace
//! in their arguments speak of the calling thread's network namespace, which is the node's: the
//! process enters it before it starts other threads.
//!
//! | module | what |
//! |---|---|
//! | [`namespace`] | network namespaces by name, path or process |
//! | [`netlink`] | links, addresses and routes: made, found, changed |
//! | `list` | whole lists of them |
//! | [`clsact`] | the queueing discipline for filters: looked at, removed |
//! | [`ethtool`] | drivers and offloads |
//! | [`peer`] | the other end of a veth pair |
//! | [`xdp`] | which XDP program an interface runs, and how |
//! | [`nftables`] | rules of nftables, iptables' among them |
//! | [`monitor`] | being told of changes |
//! | [`mounts`] | whether others see what we mount |
//! | [`sysctl`] | `/proc/sys` |
//! | [`release`] | which kernel it is |
//! | [`socket`] | who holds a port |
//! | [`subnet`] | the choice of a subnet that is in nobody's way |

mod attribute;
pub mod clsact;
pub mod diag;
pub mod error;
pub mod ethtool;
mod exchange;
mod list;
pub mod monitor;
pub mod mounts;
pub mod namespace;
pub mod netlink;
pub mod nftables;
pub mod peer;
pub mod record;
pub mod release;
pub mod socket;
pub mod subnet;
pub mod sysctl;
pub mod xdp;

pub use error::NetError;
pub use monitor::{Change, Monitor, Touched};
pub use namespace::Namespace;
pub use netlink::{Netlink, Veth};
pub use record::{Address, Forwarding, Link, Route};
