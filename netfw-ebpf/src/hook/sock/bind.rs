//! A port that is published is taken: a process of the node that binds it is refused, as by a socket
//! that listens there.
//!
//! The rule is the kernel's own for sockets that do not share (`inet_csk_get_port`, `udp_lib_get_port`):
//! a socket of every address stands in the way of each address, and each in its. One on `::` is of IPv4
//! too, unless it is `IPV6_V6ONLY`. No helper tells that option (`bpf_getsockopt` knows two of IPv6, and
//! not this one), so it is read from the socket itself, where the agent could find out that it is; if
//! it could not, such a socket is not refused for a publish of IPv4.
//!
//! Ports that container runtimes have published are theirs to keep: they bind them themselves, as podman and
//! dockerd do ([`publish_flag::UNRESERVED`]).
//!
//! Not asked about: what the kernel chooses itself (port 0, `connect` without `bind`), and protocols whose
//! sockets have a `bind` of their own, which calls no program (`inet_bind_sk`): SCTP, raw sockets, ping.

use core::mem::MaybeUninit;

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_probe_read_kernel, bpf_set_retval},
};
use netfw_common::{
    addr::{Address as _, Be16, Ip4},
    record::publish_flag,
    taken,
};

use super::{Call, Form, GO_ON, Plain6};
use crate::{
    family::{Family, V4, V6},
    nat::world::publish_at,
};

/// Whether a program here may say why it refuses: from 6.1 on (bed89185af0d). Before that the kernel says
/// `EPERM`.
#[unsafe(no_mangle)]
static SAYS_WHY: Global<u8> = Global::new(0);

/// Which bit of the kernel's `struct sock` is `skc_ipv6only`; 0: not known.
#[unsafe(no_mangle)]
static V6ONLY_BIT: Global<u32> = Global::new(0);

/// The words of `struct sock` that are read to find it.
const HEAD: usize = 8;

const EADDRINUSE: i32 = 98;
const REFUSE: i32 = 0;

impl Call {
    #[inline(always)]
    pub fn bind<F: Form>(&self) -> i32 {
        let at = self.peer::<F>();
        answer(self.is_of_node() && is_taken::<F::Family>(at.addr, at.port, self.proto()))
    }

    /// The same for an address of IPv6 proper.
    #[inline(always)]
    pub fn bind6(&self) -> i32 {
        if !self.is_of_node() {
            return GO_ON;
        }
        let at = self.peer::<Plain6>();
        let in_the_way = is_taken::<V6>(at.addr, at.port, self.proto())
            || at.addr == <V6 as Family>::Addr::ANY
                && is_taken::<V4>(Ip4::ANY, at.port, self.proto())
                && self.is_of_both();
        answer(in_the_way)
    }

    /// Would this socket of IPv6 get what is sent to the same port over IPv4? No, where that is not known.
    #[inline(always)]
    fn is_of_both(&self) -> bool {
        let at = V6ONLY_BIT.load() as usize;
        let word = at / u64::BITS as usize;
        if at == 0 || word >= HEAD {
            return false;
        }
        let mut head = MaybeUninit::<[u64; HEAD]>::uninit();
        let (to, size) = (head.as_mut_ptr().cast(), size_of::<[u64; HEAD]>() as u32);
        // SAFETY: the helper writes all of `head`: what it cannot read, as zeros.
        let (failed, head) = unsafe {
            let failed = bpf_probe_read_kernel(to, size, self.socket().cast());
            (failed, head.assume_init_ref())
        };
        failed == 0 && head[word] >> (at as u32 % u64::BITS) & 1 == 0
    }
}

#[inline(always)]
fn is_taken<F: Family>(addr: F::Addr, port: Be16, proto: u8) -> bool {
    let Some((word, bit)) = taken::bit(proto, port.get()) else {
        return false;
    };
    let is_somewhere = match F::taken().get(word) {
        Some(word) => word & bit != 0,
        None => false,
    };
    if !is_somewhere {
        return false;
    }
    // A publish on any address is no other than one on the address that stands for any.
    match publish_at::<F>(addr, port, proto) {
        Some(publish) => publish.flags & publish_flag::UNRESERVED == 0,
        None => addr == F::Addr::ANY,
    }
}

#[inline(always)]
fn answer(refuse: bool) -> i32 {
    if !refuse {
        return GO_ON;
    }
    if SAYS_WHY.load() != 0 {
        // SAFETY: a helper call, where the kernel has that helper.
        unsafe { bpf_set_retval(-EADDRINUSE) };
    }
    REFUSE
}
