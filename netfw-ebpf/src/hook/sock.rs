//! Sockets of the node's own processes: whoever asks for a publish at an address of the node is
//! connected to the container itself. There is nothing to translate per packet, and no proxy.
//!
//! The programs sit on the root of the cgroup hierarchy and see the whole machine; sockets of other
//! network namespaces are left alone.

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use netfw_common::{
    addr::{Be16, Be32, Ip4},
    record::{SocketKey4, SocketPeer4},
};

use crate::{family::V4, maps::SOCKETS4, nat::world::published};

/// `SO_NETNS_COOKIE` of the namespace that the agent serves.
#[unsafe(no_mangle)]
static NODE_NETNS: Global<u64> = Global::new(0);

/// The call goes on, whatever we made of its address.
const GO_ON: i32 = 1;

/// `connect(2)`.
#[cgroup_sock_addr(connect4)]
pub fn netfw_connect4(ctx: SockAddrContext) -> i32 {
    Call(ctx).to_container();
    GO_ON
}

/// `sendto(2)` and `sendmsg(2)` with an address, on UDP sockets.
#[cgroup_sock_addr(sendmsg4)]
pub fn netfw_sendmsg4(ctx: SockAddrContext) -> i32 {
    Call(ctx).to_container();
    GO_ON
}

/// `recvfrom(2)` and `recvmsg(2)` on UDP sockets: whom the datagram is said to come from.
#[cgroup_sock_addr(recvmsg4)]
pub fn netfw_recvmsg4(ctx: SockAddrContext) -> i32 {
    Call(ctx).to_publish();
    GO_ON
}

/// `getpeername(2)`.
#[cgroup_sock_addr(getpeername4)]
pub fn netfw_getpeername4(ctx: SockAddrContext) -> i32 {
    Call(ctx).to_publish();
    GO_ON
}

/// A system call that takes or gives an address.
struct Call(SockAddrContext);

impl Call {
    /// A socket that asks for a publish gets the container.
    #[inline(always)]
    fn to_container(&self) {
        if !self.is_of_node() {
            return;
        }
        let asked = self.peer();
        // SAFETY: the kernel's context, valid for the program's run.
        let proto = unsafe { (*self.0.sock_addr).protocol } as u8;
        let Some(publish) = published::<V4>(asked.addr, asked.port, proto) else {
            return;
        };
        let peer = SocketPeer4 {
            addr: publish.addr,
            port: publish.port,
            reserved: 0,
        };
        let _ = SOCKETS4.insert(self.key(peer), asked, 0);
        self.set_peer(peer);
    }

    /// A socket that was given a container is told of the publish.
    #[inline(always)]
    fn to_publish(&self) {
        if !self.is_of_node() {
            return;
        }
        // SAFETY: integers.
        if let Some(asked) = unsafe { SOCKETS4.get(self.key(self.peer())) } {
            self.set_peer(*asked);
        }
    }

    #[inline(always)]
    fn is_of_node(&self) -> bool {
        // SAFETY: a helper call.
        unsafe { bpf_get_netns_cookie(self.0.as_ptr()) == NODE_NETNS.load() }
    }

    #[inline(always)]
    fn key(&self, peer: SocketPeer4) -> SocketKey4 {
        // SAFETY: a helper call.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.as_ptr()) };
        SocketKey4 {
            cookie: [cookie as u32, (cookie >> 32) as u32],
            peer,
        }
    }

    #[inline(always)]
    fn peer(&self) -> SocketPeer4 {
        // SAFETY: the kernel's context, valid for the program's run.
        let (addr, port) = unsafe { ((*self.0.sock_addr).user_ip4, (*self.0.sock_addr).user_port) };
        SocketPeer4 {
            addr: Ip4(Be32::from_wire(addr)),
            // 16 bits in network order, in a word of 32.
            port: Be16::from_wire(port as u16),
            reserved: 0,
        }
    }

    #[inline(always)]
    fn set_peer(&self, peer: SocketPeer4) {
        // SAFETY: as in `peer`.
        unsafe {
            (*self.0.sock_addr).user_ip4 = peer.addr.0.wire();
            (*self.0.sock_addr).user_port = u32::from(peer.port.wire());
        }
    }
}
