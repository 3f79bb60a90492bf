//! [`Packet`] for XDP: the bytes that the driver received, before the kernel knows of them.
//!
//! XDP does what is many: whole TCP, UDP and SCTP packets and echoes, without IP options or extension
//! headers, into containers that take frames. The rest is left to TC behind it.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{EbpfContext as _, programs::XdpContext};
use netfw_common::{
    addr::{Be16, MacPair},
    flow::flag,
    tuple::proto,
};

use super::Packet;
use crate::{
    family::Family,
    maps::UPLINKS,
    parse::{ETH_LEN, Ethernet, Sctp},
    work::{KeptUplink, Work},
};

pub struct Frame(XdpContext);

impl Frame {
    /// Largest offset from the network header that is read at.
    const MAX_OFFSET: usize = 0x1ff;

    pub fn new(ctx: XdpContext) -> Self {
        Self(ctx)
    }

    /// Is the TCP or UDP checksum the bare sum of the pseudo-header, or SCTP's 0? So it is in packets
    /// of this machine whose checksum hardware should have filled in (`CHECKSUM_PARTIAL`): veth and
    /// virtio hand them to XDP without a word. Of others, one in 2^16 looks so as well.
    #[inline(always)]
    fn is_partial<F: Family>(&self, work: &Work<F::Addr>) -> bool {
        if work.key.proto == proto::SCTP {
            return self.read::<u32>(work.transport() + Sctp::CHECKSUM) == Some(0);
        }
        work.pseudo(ETH_LEN)
            .is_some_and(|(at, pseudo)| self.read::<u16>(at) == Some(pseudo))
    }
}

/// Looks up the uplink's MAC address; false where it is no uplink.
#[inline(never)]
fn keep_uplink<A>(work: &mut Work<A>, ifindex: u32) -> bool {
    // SAFETY: integers, written by the agent alone.
    let Some(uplink) = (unsafe { UPLINKS.get(ifindex) }) else {
        return false;
    };
    let [a, b, c, d, e, f] = uplink.mac;
    work.uplink = KeptUplink {
        ifindex,
        now: work.now,
        epoch: work.epoch,
        mac: [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes),
    };
    true
}

impl Packet for Frame {
    const NETWORK: usize = ETH_LEN;
    const FRAGMENTS: bool = false;

    #[inline(always)]
    fn len(&self) -> usize {
        let (start, end) = self.bounds();
        end - start
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.0.data(), self.0.data_end())
    }

    #[inline(always)]
    fn copy<T>(&self, _: usize, _: &mut T, _: usize) -> Option<()> {
        None
    }

    #[inline(always)]
    fn load<T>(&self, _: usize, _: &mut T) -> bool {
        false
    }

    #[inline(always)]
    fn load_network<T: Copy>(&self, offset: usize, to: &mut T) -> bool {
        if offset > Self::MAX_OFFSET {
            return false;
        }
        // What stands behind headers of varying length; the verifier wants to know how far that is.
        let Some(value) = self.read(ETH_LEN + (black_box(offset) & Self::MAX_OFFSET)) else {
            return false;
        };
        *to = value;
        true
    }

    #[inline(always)]
    fn store<T>(&mut self, _: usize, _: &T) -> bool {
        false
    }

    #[inline(always)]
    fn trim(&mut self, _: u32) -> bool {
        false
    }

    #[inline(always)]
    fn replace<T>(&mut self, _: &T, _: usize) -> bool {
        false
    }

    #[inline(always)]
    fn receive_copy(&mut self, _: u32) -> bool {
        false
    }

    #[inline(always)]
    fn insert(&mut self, _: u32) -> bool {
        false
    }

    #[inline(always)]
    fn protocol(&self) -> Be16 {
        self.read::<Ethernet>(0)
            .map_or(Be16::new(0), |header| header.ethertype)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context, valid for the program's run.
        unsafe { (*self.0.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn received_on(&self) -> u32 {
        self.ifindex()
    }

    #[inline(always)]
    fn wire_len(&self, len: u32, _: usize, _: u8) -> u16 {
        len.min(u32::from(u16::MAX)) as u16
    }

    #[inline(always)]
    fn is_for_us<A>(&self, work: &mut Work<A>) -> bool {
        let kept = &work.uplink;
        let known = (kept.ifindex, kept.now, kept.epoch) == (self.ifindex(), work.now, work.epoch);
        (known || keep_uplink(work, self.ifindex())) && self.read(0) == Some(work.uplink.mac)
    }

    #[inline(always)]
    fn is_left<F: Family>(&self, work: &Work<F::Addr>) -> bool {
        // TC answers where the time to live ends, and takes what is larger than a veth's frame. What a
        // protocol without ports carries may have a checksum yet to be filled in.
        work.ttl <= 1
            || !proto::has_ports(work.key.proto)
            || !work.flow.has(flag::NAPI)
            || work.len > u32::from(work.flow.mtu)
            || self.is_partial::<F>(work)
    }

    #[inline(always)]
    fn may_be_partial<F: Family>(&self, _: &Work<F::Addr>, _: u16) -> bool {
        // That is left to TC.
        false
    }

    #[inline(always)]
    fn update_partial(&mut self, _: usize, _: u64, _: u64, _: bool) {}

    #[inline(always)]
    fn changed(&mut self, _: u64) {}

    #[inline(always)]
    fn set_ethernet<F: Family>(&mut self, macs: MacPair) -> bool {
        self.write(0, macs)
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.as_ptr()
    }
}
