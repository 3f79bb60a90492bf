//! Sockets of the node's own processes: whoever asks for a publish at an address of the node is
//! connected to the container itself. There is nothing to translate per packet, and no proxy.
//!
//! The programs sit on the root of the cgroup hierarchy and see the whole machine; sockets of other
//! network namespaces are left alone.
//!
//! Nor does a process of the node get a port that is published: see [`bind`].
//!
//! A socket of IPv6 speaks IPv4 by mapped addresses (`::ffff:a.b.c.d`). Those go by the publishes of
//! IPv4, and the process sees mapped ones in return.

mod bind;

use core::ptr::addr_of_mut;

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use netfw_common::{
    addr::{Address as _, Be16, Be32, Ip4, Ip6},
    event::Hook,
    record::{SocketKey, SocketPeer},
    tuple::{Tuple, proto, zone},
};

use crate::{
    event::watch,
    family::{Family, V4, V6},
    nat::world::published,
    socket,
};

/// `SO_NETNS_COOKIE` of the namespace that the agent serves.
#[unsafe(no_mangle)]
static NODE_NETNS: Global<u64> = Global::new(0);

/// The call goes on, whatever we made of its address.
const GO_ON: i32 = 1;

/// `connect(2)`.
#[cgroup_sock_addr(connect4)]
pub fn netfw_connect4(ctx: SockAddrContext) -> i32 {
    Call(ctx).connect::<Plain4>()
}

#[cgroup_sock_addr(connect6)]
pub fn netfw_connect6(ctx: SockAddrContext) -> i32 {
    let call = Call(ctx);
    if call.is_mapped() {
        call.connect::<Mapped>()
    } else {
        call.connect::<Plain6>()
    }
}

/// `sendto(2)` and `sendmsg(2)` with an address, on UDP sockets.
#[cgroup_sock_addr(sendmsg4)]
pub fn netfw_sendmsg4(ctx: SockAddrContext) -> i32 {
    Call(ctx).send::<Plain4>()
}

/// Never with a mapped address: the kernel has made it one of IPv4, and called the other program.
#[cgroup_sock_addr(sendmsg6)]
pub fn netfw_sendmsg6(ctx: SockAddrContext) -> i32 {
    Call(ctx).send::<Plain6>()
}

/// `recvfrom(2)` and `recvmsg(2)` on UDP sockets: whom the datagram is said to come from.
#[cgroup_sock_addr(recvmsg4)]
pub fn netfw_recvmsg4(ctx: SockAddrContext) -> i32 {
    Call(ctx).tell::<Plain4>()
}

#[cgroup_sock_addr(recvmsg6)]
pub fn netfw_recvmsg6(ctx: SockAddrContext) -> i32 {
    Call(ctx).tell_either()
}

/// `getpeername(2)`.
#[cgroup_sock_addr(getpeername4)]
pub fn netfw_getpeername4(ctx: SockAddrContext) -> i32 {
    Call(ctx).tell::<Plain4>()
}

#[cgroup_sock_addr(getpeername6)]
pub fn netfw_getpeername6(ctx: SockAddrContext) -> i32 {
    Call(ctx).tell_either()
}

/// `bind(2)`.
#[cgroup_sock_addr(bind4)]
pub fn netfw_bind4(ctx: SockAddrContext) -> i32 {
    Call(ctx).bind::<Plain4>()
}

#[cgroup_sock_addr(bind6)]
pub fn netfw_bind6(ctx: SockAddrContext) -> i32 {
    let call = Call(ctx);
    if call.is_mapped() {
        call.bind::<Mapped>()
    } else {
        call.bind6()
    }
}

/// How a call has the addresses of a family.
trait Form {
    type Family: Family<Addr = Self::Addr>;
    type Addr: netfw_common::addr::Address;

    fn addr(call: &Call) -> Self::Addr;
    fn set_addr(call: &Call, addr: Self::Addr);
}

/// In a call of IPv4.
struct Plain4;

impl Form for Plain4 {
    type Family = V4;
    type Addr = Ip4;

    #[inline(always)]
    fn addr(call: &Call) -> Ip4 {
        // SAFETY: the kernel's context, valid for the program's run.
        Ip4(Be32::from_wire(unsafe { (*call.context()).user_ip4 }))
    }

    #[inline(always)]
    fn set_addr(call: &Call, addr: Ip4) {
        // SAFETY: as above.
        unsafe { (*call.context()).user_ip4 = addr.0.wire() };
    }
}

/// In a call of IPv6.
struct Plain6;

impl Form for Plain6 {
    type Family = V6;
    type Addr = Ip6;

    #[inline(always)]
    fn addr(call: &Call) -> Ip6 {
        let context = call.context();
        // Word by word, here and below: the verifier knows the fields of the context, not spans.
        // SAFETY: the kernel's context, valid for the program's run.
        let word = |n: usize| unsafe { addr_of_mut!((*context).user_ip6[n]).read_volatile() };
        Ip6([word(0), word(1), word(2), word(3)].map(Be32::from_wire))
    }

    #[inline(always)]
    fn set_addr(call: &Call, addr: Ip6) {
        let context = call.context();
        for (n, word) in addr.0.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { addr_of_mut!((*context).user_ip6[n]).write_volatile(word.wire()) };
        }
    }
}

/// IPv4 in a call of IPv6.
struct Mapped;

impl Form for Mapped {
    type Family = V4;
    type Addr = Ip4;

    #[inline(always)]
    fn addr(call: &Call) -> Ip4 {
        let [.., last] = Plain6::addr(call).0;
        Ip4(last)
    }

    #[inline(always)]
    fn set_addr(call: &Call, addr: Ip4) {
        Plain6::set_addr(call, Ip6::from_mapped(addr));
    }
}

/// A system call that takes or gives an address.
struct Call(SockAddrContext);

impl Call {
    #[inline(always)]
    fn connect<F: Form>(&self) -> i32 {
        if self.is_of_node() {
            self.to_container::<F>(Hook::Connect);
        }
        GO_ON
    }

    #[inline(always)]
    fn send<F: Form>(&self) -> i32 {
        // The kernel has chosen the interface by the address's scope already.
        if self.is_of_node() && !F::addr(self).is_link_local() && !self.is_answer::<F>() {
            self.to_container::<F>(Hook::Send);
        }
        GO_ON
    }

    /// A socket that was given a container is told of the publish.
    #[inline(always)]
    fn tell<F: Form>(&self) -> i32 {
        if self.is_of_node() {
            let key = self.key(self.peer::<F>());
            // SAFETY: integers.
            if let Some(asked) = unsafe { F::Family::sockets().get(key) } {
                self.set_peer::<F>(*asked);
            }
        }
        GO_ON
    }

    #[inline(always)]
    fn tell_either(&self) -> i32 {
        if self.is_mapped() {
            self.tell::<Mapped>()
        } else {
            self.tell::<Plain6>()
        }
    }

    /// A socket that asks for a publish gets the container.
    #[inline(always)]
    fn to_container<F: Form>(&self, hook: Hook) {
        // It goes by that interface, or from that address, which no container answers to.
        let bound = self.bound::<F>();
        // SAFETY: the kernel's context, valid for the program's run.
        if unsafe { (*self.socket()).bound_dev_if } != 0 || bound.is_loopback() {
            return;
        }
        let mut asked = self.peer::<F>();
        if asked.addr == F::Addr::ANY {
            // As the kernel takes it.
            asked.addr = F::Addr::LOOPBACK;
        }
        let Some(publish) = published::<F::Family>(asked.addr, asked.port, self.proto()) else {
            return self.tell_of::<F>(hook, asked, asked);
        };
        let peer = SocketPeer {
            addr: publish.addr,
            port: publish.port,
            reserved: 0,
        };
        let (sockets, key) = (F::Family::sockets(), self.key(peer));
        // An insertion may push another out, even one that changes nothing.
        // SAFETY: integers.
        if unsafe { sockets.get(key) } != Some(&asked) {
            let _ = sockets.insert(key, asked, 0);
        }
        self.set_peer::<F>(peer);
        self.tell_of::<F>(hook, asked, peer);
    }

    /// Whoever traces is told of the call.
    #[inline(always)]
    fn tell_of<F: Form>(&self, hook: Hook, asked: SocketPeer<F::Addr>, given: SocketPeer<F::Addr>) {
        if watch::traces() {
            let from = (self.bound::<F>(), self.bound_port());
            let (asked, given) = ((asked.addr, asked.port), (given.addr, given.port));
            watch::called::<F::Family>(hook, self.proto(), from, asked, given);
        }
    }

    /// Is it to a process of the node that waits for just this datagram, though the kernel chose a
    /// published port for that process?
    #[inline(always)]
    fn is_answer<F: Form>(&self) -> bool {
        let to = self.peer::<F>();
        let bound = self.bound::<F>();
        let datagram = Tuple {
            // From where it was asked, if it may choose.
            src: if bound == F::Addr::ANY {
                to.addr
            } else {
                bound
            },
            dst: to.addr,
            sport: self.bound_port(),
            dport: to.port,
            proto: proto::UDP,
            zone: zone::WORLD,
            scope: 0,
        };
        socket::is_awaited::<F::Family>(self.0.as_ptr(), &datagram)
    }

    #[inline(always)]
    fn is_of_node(&self) -> bool {
        // SAFETY: a helper call.
        unsafe { bpf_get_netns_cookie(self.0.as_ptr()) == NODE_NETNS.load() }
    }

    /// Has a call of IPv6 an address of IPv4?
    #[inline(always)]
    fn is_mapped(&self) -> bool {
        Plain6::addr(self).mapped().is_some()
    }

    #[inline(always)]
    fn context(&self) -> *mut bpf_sock_addr {
        self.0.sock_addr
    }

    #[inline(always)]
    fn socket(&self) -> *const bpf_sock {
        // SAFETY: the kernel's context, valid for the program's run.
        unsafe { (*self.context()).__bindgen_anon_1.sk }
    }

    /// The address that the socket is bound to, or the unspecified one.
    #[inline(always)]
    fn bound<F: Form>(&self) -> F::Addr {
        // SAFETY: the kernel's socket, valid for the program's run.
        unsafe { F::Family::bound(self.socket()) }
    }

    /// The port that the socket is bound to, or 0.
    #[inline(always)]
    fn bound_port(&self) -> Be16 {
        // SAFETY: the kernel's socket, valid for the program's run.
        Be16::new(unsafe { (*self.socket()).src_port } as u16)
    }

    /// The IP protocol number.
    #[inline(always)]
    fn proto(&self) -> u8 {
        // SAFETY: the kernel's context, valid for the program's run.
        unsafe { (*self.context()).protocol as u8 }
    }

    #[inline(always)]
    fn key<A>(&self, peer: SocketPeer<A>) -> SocketKey<A> {
        // SAFETY: a helper call.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.as_ptr()) };
        SocketKey {
            cookie: [cookie as u32, (cookie >> 32) as u32],
            peer,
        }
    }

    #[inline(always)]
    fn peer<F: Form>(&self) -> SocketPeer<F::Addr> {
        // SAFETY: the kernel's context, valid for the program's run.
        let port = unsafe { (*self.context()).user_port };
        SocketPeer {
            addr: F::addr(self),
            // 16 bits in network order, in a word of 32.
            port: Be16::from_wire(port as u16),
            reserved: 0,
        }
    }

    #[inline(always)]
    fn set_peer<F: Form>(&self, peer: SocketPeer<F::Addr>) {
        F::set_addr(self, peer.addr);
        // SAFETY: as in `peer`.
        unsafe { (*self.context()).user_port = u32::from(peer.port.wire()) };
    }
}
