//! Making, finding and changing links, addresses, routes and rules of one namespace, over `NETLINK_ROUTE`.
//!
//! The socket belongs to the namespace in which it was opened, whichever thread uses it later; so
//! one process serves many namespaces without ever moving its own threads.
//!
//! What asks for a state that is there already succeeds; what asks for something to be gone that is
//! gone already succeeds too. Everything else is an error that names the interface.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_core::NLM_F_ACK,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{
            BridgeStpState, InfoBridge, InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
        },
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
            RouteType,
        },
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use tokio::{runtime, task::AbortHandle};

use super::{Link, Namespace, NetError, Route, exchange::exchange};

/// How often it is looked for what the kernel does in its own time: for a fifth of a second.
const LOOKS: u32 = 200;

/// Between two looks. As a rule it is there after some hundred microseconds, and a millisecond or two is the
/// shortest that tokio waits.
async fn pause(look: u32) {
    match look {
        0..10 => std::thread::sleep(Duration::from_micros(50)),
        _ => tokio::time::sleep(Duration::from_millis(1)).await,
    }
}

/// So many interfaces are deleted at once; meanwhile nobody else has the RTNL lock.
const TOGETHER: usize = 128;

/// A `NETLINK_ROUTE` socket in one namespace. Clones share it.
#[derive(Clone)]
pub struct Netlink {
    pub(super) handle: Handle,
    /// Ends the connection's task with the last clone.
    _connection: Arc<Connection>,
}

struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A veth pair to be made: the host end here, as a port of `master`, the peer in `peer_ns`.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    pub host_name: &'a str,
    pub host_mac: [u8; 6],
    pub peer_name: &'a str,
    pub peer_mac: [u8; 6],
    pub peer_ns: BorrowedFd<'a>,
    pub mtu: u32,
    pub master: u32,
    pub alias: &'a str,
}

impl Netlink {
    /// In the calling thread's namespace. Needs a tokio runtime, on which the connection is served.
    pub fn current() -> Result<Self, NetError> {
        let asked = "open a netlink socket";
        let runtime = runtime::Handle::try_current().map_err(|_| NetError::NoRuntime {
            asked: asked.into(),
        })?;
        Self::open(&runtime).map_err(NetError::system(asked))
    }

    /// In `ns`.
    pub fn within(ns: &Namespace) -> Result<Self, NetError> {
        let asked = format!("open a netlink socket in network namespace {}", ns.label());
        let Ok(runtime) = runtime::Handle::try_current() else {
            return Err(NetError::NoRuntime { asked });
        };
        ns.run(move || Self::open(&runtime))?
            .map_err(NetError::system(asked))
    }

    fn open(runtime: &runtime::Handle) -> io::Result<Self> {
        let _entered = runtime.enter();
        let (connection, handle, _messages) = rtnetlink::new_connection()?;
        let task = runtime.spawn(connection);
        Ok(Self {
            handle,
            _connection: Arc::new(Connection(task.abort_handle())),
        })
    }

    /// None where there is none of this name.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetError> {
        // The kernel would refuse a longer one (IFNAMSIZ with its NUL); so none can have it.
        if name.is_empty() || name.len() > 15 {
            return Ok(None);
        }
        let mut found = self.handle.link().get().match_name(name).execute().boxed();
        present(found.try_next().await, || {
            format!("look up interface {name}")
        })
    }

    /// None where there is none of this index.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetError> {
        // Index 0 would list them all.
        if index == 0 {
            return Ok(None);
        }
        let mut found = self
            .handle
            .link()
            .get()
            .match_index(index)
            .execute()
            .boxed();
        present(found.try_next().await, || {
            format!("look up the interface of index {index}")
        })
    }

    /// Waits until what is sent by the interface leaves, which has just come up at both ends; false where
    /// it is down, or that does not come about soon.
    ///
    /// The kernel acts on a carrier in its own time (linkwatch). Until then an interface's queueing
    /// discipline drops all, a bridge takes nothing from a port, and who sends at once loses a second with
    /// the retry of ARP. Since 6.6 (facd15dfd691) to ask for the interface makes it act first.
    pub async fn wait_operational(&self, ifindex: u32) -> Result<bool, NetError> {
        for look in 0..LOOKS {
            match self.link_by_index(ifindex).await? {
                Some(link) if link.operational || !link.up => return Ok(link.operational),
                Some(_) => pause(look).await,
                None => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Waits until what comes for an address of the namespace is taken; false where that does not come about
    /// soon. With IPv6 the kernel makes the route for it at the end of duplicate address detection, and in its
    /// own time (addrconf_dad_start) also where there is none; what comes before is dropped.
    pub async fn wait_local(&self, ip: IpAddr) -> bool {
        let length = if ip.is_ipv4() { 32 } else { 128 };
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(ip, length)
            .map(RouteMessageBuilder::build);
        let Ok(message) = message else {
            return false;
        };
        for look in 0..LOOKS {
            let mut found = self.handle.route().get(message.clone()).execute().boxed();
            // Unreachable, or by the interface, until then.
            if let Ok(Some(route)) = found.try_next().await
                && route.header.kind == RouteType::Local
            {
                return true;
            }
            pause(look).await;
        }
        false
    }

    /// A bridge without spanning tree, so that ports forward at once; still down. Returns its index.
    pub async fn create_bridge(
        &self,
        name: &str,
        mac: [u8; 6],
        mtu: u32,
        alias: &str,
    ) -> Result<u32, NetError> {
        let asked = || format!("create bridge {name}");
        let message = LinkBridge::new(name)
            .down()
            .address(mac.to_vec())
            .mtu(mtu)
            .append_info_data(InfoBridge::ForwardDelay(0))
            .append_info_data(InfoBridge::StpState(BridgeStpState::Disabled))
            .build();
        self.add_link(message, asked).await?;
        let index = self.index_of(name, asked).await?;
        // The kernel takes an alias only for a device that exists (do_setlink, not rtnl_newlink).
        match self.set_alias(index, alias).await {
            Ok(()) => Ok(index),
            Err(error) => self.undo(index, error).await,
        }
    }

    /// Makes both ends at once, the peer directly in its namespace, both down. Returns the indexes of host
    /// end and peer. If anything fails, neither end stays.
    pub async fn create_veth(&self, veth: Veth<'_>) -> Result<(u32, u32), NetError> {
        let asked = || format!("create veth pair {}, {}", veth.host_name, veth.peer_name);
        // One queue each way, which is what the kernel uses of the many that it makes otherwise; to put the
        // others out of use it waits for all CPUs (veth_init_queues, netif_set_real_num_tx_queues).
        let queues = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(veth.peer_name)
            .address(veth.peer_mac.to_vec())
            .mtu(veth.mtu)
            .setns_by_fd(veth.peer_ns.as_raw_fd());
        let peer = (queues.iter().cloned())
            .fold(peer, LinkMessageBuilder::append_extra_attribute)
            .build();
        let message = LinkVeth::new(veth.host_name, veth.peer_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(veth.host_mac.to_vec())
            .mtu(veth.mtu)
            .controller(veth.master);
        let message = (queues.into_iter())
            .fold(message, LinkMessageBuilder::append_extra_attribute)
            .build();
        self.add_link(message, asked).await?;
        let host = self.link(veth.host_name).await?;
        let indexes = host.and_then(|link| Some((link.index, link.peer?)));
        let Some((host, peer)) = indexes else {
            return Err(NetError::Answer {
                asked: asked(),
                found: format!("{} is gone, or has no peer", veth.host_name),
            });
        };
        // No alias counts when an interface is made.
        match self.set_alias(host, veth.alias).await {
            Ok(()) => Ok((host, peer)),
            Err(error) => self.undo(host, error).await,
        }
    }

    /// Takes a half-made interface away again.
    async fn undo<T>(&self, ifindex: u32, error: NetError) -> Result<T, NetError> {
        if let Err(error) = self.delete_link(ifindex).await {
            tracing::error!(%error, "undoing");
        }
        Err(error)
    }

    async fn add_link(
        &self,
        message: LinkMessage,
        asked: impl Fn() -> String,
    ) -> Result<(), NetError> {
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|error| NetError::netlink(asked(), error))
    }

    async fn index_of(&self, name: &str, asked: impl Fn() -> String) -> Result<u32, NetError> {
        match self.link(name).await? {
            Some(link) => Ok(link.index),
            None => Err(NetError::Answer {
                asked: asked(),
                found: format!("{name} was made, but is not there"),
            }),
        }
    }

    pub async fn set_up(&self, ifindex: u32) -> Result<(), NetError> {
        self.set(LinkUnspec::new_with_index(ifindex).up(), || {
            format!("set the interface of index {ifindex} up")
        })
        .await
    }

    /// Makes the interface a port of the bridge of index `master`.
    pub async fn set_master(&self, ifindex: u32, master: u32) -> Result<(), NetError> {
        self.set(
            LinkUnspec::new_with_index(ifindex).controller(master),
            || format!("put the interface of index {ifindex} into that of index {master}"),
        )
        .await
    }

    /// What `ip link` shows as `alias`.
    pub async fn set_alias(&self, ifindex: u32, alias: &str) -> Result<(), NetError> {
        self.set(LinkUnspec::new_with_index(ifindex).alias(alias), || {
            format!("name the interface of index {ifindex} {alias}")
        })
        .await
    }

    pub async fn set_mac(&self, ifindex: u32, mac: [u8; 6]) -> Result<(), NetError> {
        self.set(
            LinkUnspec::new_with_index(ifindex).address(mac.to_vec()),
            || format!("give the interface of index {ifindex} another MAC address"),
        )
        .await
    }

    pub async fn set_mtu(&self, ifindex: u32, mtu: u32) -> Result<(), NetError> {
        self.set(LinkUnspec::new_with_index(ifindex).mtu(mtu), || {
            format!("set the MTU of the interface of index {ifindex} to {mtu}")
        })
        .await
    }

    async fn set(
        &self,
        change: LinkMessageBuilder<LinkUnspec>,
        asked: impl Fn() -> String,
    ) -> Result<(), NetError> {
        self.handle
            .link()
            .set(change.build())
            .execute()
            .await
            .map_err(|error| NetError::netlink(asked(), error))
    }

    /// Gives the interface an address; the prefix's host bits are the address. It is usable at once:
    /// whoever gives it knows that nobody else has it, so an IPv6 address skips duplicate address
    /// detection, which would never end on a bridge without a carrier.
    pub async fn add_address(&self, ifindex: u32, net: IpNet) -> Result<(), NetError> {
        let mut request = self
            .handle
            .address()
            .add(ifindex, net.addr(), net.prefix_len());
        if net.addr().is_ipv6() {
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        unless(request.execute().await, &[Errno::EEXIST], || {
            format!("add address {net} to the interface of index {ifindex}")
        })
    }

    pub async fn delete_address(&self, ifindex: u32, net: IpNet) -> Result<(), NetError> {
        let mut message = AddressMessage::default();
        message.header.family = address_family(net.addr());
        message.header.index = ifindex;
        message.header.prefix_len = net.prefix_len();
        message.attributes = vec![
            AddressAttribute::Local(net.addr()),
            AddressAttribute::Address(net.addr()),
        ];
        let done = self.handle.address().del(message).execute().await;
        unless(done, &[Errno::EADDRNOTAVAIL, Errno::ENODEV], || {
            format!("delete address {net} from the interface of index {ifindex}")
        })
    }

    /// Adds a route; one that is there already is an error, as it may lead elsewhere, but for tables that
    /// are the caller's own (all but [`Route::MAIN`]).
    pub async fn add_route(&self, route: &Route, gateway: Option<IpAddr>) -> Result<(), NetError> {
        let mut message = message_of(route);
        let via = match gateway {
            Some(IpAddr::V4(gateway)) => Some(RouteAddress::Inet(gateway)),
            Some(IpAddr::V6(gateway)) => Some(RouteAddress::Inet6(gateway)),
            None => None,
        };
        if via.is_none() && route.dst.addr().is_ipv4() {
            message.header.scope = RouteScope::Link;
        }
        message.attributes.extend(via.map(RouteAttribute::Gateway));
        let fine: &[Errno] = if route.table == Route::MAIN {
            &[]
        } else {
            &[Errno::EEXIST]
        };
        let done = self.handle.route().add(message).execute().await;
        unless(done, fine, || {
            let via = gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
            format!("add a route to {}{via}", route.dst)
        })
    }

    pub async fn delete_route(&self, route: &Route) -> Result<(), NetError> {
        let mut message = message_of(route);
        // Of whatever scope.
        message.header.scope = RouteScope::NoWhere;
        let done = self.handle.route().del(message).execute().await;
        unless(done, &[Errno::ESRCH, Errno::ENODEV], || {
            format!("delete the route to {}", route.dst)
        })
    }

    /// What is sent from `ip` goes by `table`.
    pub async fn add_source_rule(&self, ip: IpAddr, table: u32) -> Result<(), NetError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = source_rule(ip, table);
        unless(request.execute().await, &[Errno::EEXIST], || {
            format!("add a rule for what is sent from {ip}")
        })
    }

    pub async fn delete_source_rule(&self, ip: IpAddr, table: u32) -> Result<(), NetError> {
        let done = self
            .handle
            .rule()
            .del(source_rule(ip, table))
            .execute()
            .await;
        unless(done, &[Errno::ENOENT], || {
            format!("delete the rule for what is sent from {ip}")
        })
    }

    pub async fn delete_link(&self, ifindex: u32) -> Result<(), NetError> {
        let done = self.handle.link().del(ifindex).execute().await;
        unless(done, &[Errno::ENODEV], || {
            format!("delete the interface of index {ifindex}")
        })
    }

    /// Deletes many, in groups: each deletion waits for what still uses an interface (RCU), some 20 ms.
    /// Those that are gone already do not matter. Goes on past errors, and returns the first.
    pub async fn delete_links(&self, ifindexes: &[u32]) -> Result<(), NetError> {
        let mut first = Ok(());
        for some in ifindexes.chunks(TOGETHER) {
            first = first.and(self.delete_group(some).await);
        }
        first
    }

    async fn delete_group(&self, ifindexes: &[u32]) -> Result<(), NetError> {
        // Not 0, the group of those that are in none, and nobody else's but by a chance of 2^-31.
        let random = getrandom::u32().map_err(|error| NetError::System {
            asked: "choose a group of interfaces".into(),
            source: io::Error::other(error),
        })?;
        let group = LinkAttribute::Group(random | 1 << 31);
        for &ifindex in ifindexes {
            let change = LinkUnspec::new_with_index(ifindex).append_extra_attribute(group.clone());
            let done = self.handle.link().set(change.build()).execute().await;
            unless(done, &[Errno::ENODEV], || {
                format!("put the interface of index {ifindex} into a group")
            })?;
        }
        let mut request = self.handle.link().del(0);
        request.message_mut().attributes.push(group);
        unless(request.execute().await, &[Errno::ENODEV], || {
            "delete a group of interfaces".into()
        })
    }
}

fn message_of(route: &Route) -> RouteMessage {
    let (addr, length) = (route.dst.addr(), route.dst.prefix_len());
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = address_family(addr);
    header.destination_prefix_length = length;
    header.protocol = RouteProtocol::Static;
    header.scope = RouteScope::Universe;
    header.kind = RouteType::Unicast;
    header.table = RouteHeader::RT_TABLE_UNSPEC;
    let destination = match addr {
        IpAddr::V4(addr) => RouteAddress::Inet(addr),
        IpAddr::V6(addr) => RouteAddress::Inet6(addr),
    };
    if length > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(destination));
    }
    // The header's field has 8 bits only.
    message.attributes.push(RouteAttribute::Table(route.table));
    message
        .attributes
        .extend(route.oif.map(RouteAttribute::Oif));
    message
}

/// Before the kernel's own rules for the tables main and default.
const RULE_PRIORITY: u32 = 20_000;

fn source_rule(ip: IpAddr, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(ip);
    message.header.src_len = if ip.is_ipv4() { 32 } else { 128 };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(ip),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Table(table),
    ];
    message
}

fn address_family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// `Ok` where the kernel's answer is one of `fine`.
fn unless(
    done: Result<(), rtnetlink::Error>,
    fine: &[Errno],
    asked: impl Fn() -> String,
) -> Result<(), NetError> {
    match done.map_err(|error| NetError::netlink(asked(), error)) {
        Err(error) if error.errno().is_some_and(|errno| fine.contains(&errno)) => Ok(()),
        other => other,
    }
}

fn present(
    found: Result<Option<LinkMessage>, rtnetlink::Error>,
    asked: impl Fn() -> String,
) -> Result<Option<Link>, NetError> {
    match found.map_err(|error| NetError::netlink(asked(), error)) {
        Ok(message) => Ok(message.map(Link::from)),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets the loopback interface of the calling thread's namespace up, without a runtime: a thread
/// that has just made its namespace has none.
pub(super) fn raise_loopback() -> io::Result<()> {
    let mut link = LinkMessage::default();
    // The first device of every namespace, by LOOPBACK_IFINDEX.
    link.header.index = 1;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    exchange(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(drop)
}
