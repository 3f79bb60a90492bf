//! [`Packet`] for TC: an skb, perhaps non-linear, perhaps a GSO super-packet with its checksum
//! still to be filled in by hardware.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_hdr_start_off::BPF_HDR_START_NET,
    },
    helpers::generated::{
        bpf_clone_redirect, bpf_csum_update, bpf_l4_csum_replace, bpf_skb_adjust_room,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes,
        bpf_skb_load_bytes_relative, bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skb_vlan_pop,
    },
    programs::TcContext,
};
use netfw_common::{
    addr::{Be16, MacPair},
    csum::fold,
    tuple::proto,
};

use super::Packet;
use crate::{
    family::Family,
    parse::{ETH_LEN, Ethernet, Sctp, Tcp, Udp},
    work::Work,
};

/// `skb->pkt_type` of a frame addressed to the interface that received it.
const PACKET_HOST: u32 = 0;

/// Of a VLAN tag, the VLAN's number.
const VID: u32 = 0xfff;

/// `gso_size` of SCTP: packets that were rolled into one, each in a part of its own behind the common
/// header. To make bytes of them linear would move them from one to another (`skb_segment`).
const GSO_BY_FRAGS: u32 = 0xffff;

/// What a packet that netfw translated bears on its way to the uplink, so that the guard need not look
/// at it again: random, lest what the stack keeps in the same place (`skb->cb`) could ever be made to
/// look like it. 0: none does.
#[unsafe(no_mangle)]
static VOUCHER: Global<u64> = Global::new(0);

/// `L2` is the length of the link-layer header: Ethernet's, or 0 on an interface that has none.
pub struct Skb<const L2: usize>(TcContext);

impl<const L2: usize> Skb<L2> {
    pub fn new(ctx: TcContext) -> Self {
        Self(ctx)
    }

    /// A frame that its sender addressed to another MAC than this interface's is not for this host,
    /// as the kernel sees it, and a container behind [`crate::verdict::Verdict::Peer`] would drop it
    /// (kernels before 6.15, c43272299488, do not scrub that).
    #[inline(always)]
    pub fn set_for_host(&self) {
        // SAFETY: the kernel's context, and a helper call.
        unsafe {
            if (*self.raw()).pkt_type != PACKET_HOST {
                bpf_skb_change_type(self.raw(), PACKET_HOST);
            }
        }
    }

    /// Makes the first `len` bytes of the frame directly accessible, where they exist. What was rolled
    /// up has its headers there, and may have segments behind them whose bytes must stay where they
    /// are (a list of them, of UDP or SCTP).
    #[inline(always)]
    pub fn make_linear(&mut self, len: usize) {
        let len = len.min(self.len());
        let (start, end) = self.bounds();
        // SAFETY: the kernel's context, valid for the program's run.
        let segment = unsafe { (*self.raw()).gso_size };
        if start + len > end && segment == 0 {
            // SAFETY: a helper call. A failure shows as reads that find nothing.
            unsafe { bpf_skb_pull_data(self.raw(), len as u32) };
        }
    }

    /// Is the frame part of a VLAN? The kernel keeps a tag beside the frame's bytes from its receipt on.
    #[inline(always)]
    pub fn has_vlan_tag(&self) -> bool {
        // SAFETY: the kernel's context, valid for the program's run.
        unsafe { (*self.raw()).vlan_present != 0 }
    }

    /// Tells the tag a priority, and no VLAN (IEEE 802.1Q, VID 0)?
    #[inline(always)]
    pub fn has_priority_tag(&self) -> bool {
        // SAFETY: as above.
        self.has_vlan_tag() && unsafe { (*self.raw()).vlan_tci } & VID == 0
    }

    /// Takes the tag off. One behind it takes its place.
    #[inline(always)]
    pub fn untag(&mut self) -> bool {
        // SAFETY: a helper call.
        unsafe { bpf_skb_vlan_pop(self.raw()) == 0 }
    }

    /// Marks a translated packet. Nothing between here and the uplink's egress writes that field.
    #[inline(always)]
    pub fn vouch(&self) {
        let voucher = VOUCHER.load();
        // SAFETY: the kernel's context, valid for the program's run.
        unsafe {
            (*self.raw()).cb[0] = voucher as u32;
            (*self.raw()).cb[1] = (voucher >> 32) as u32;
        }
    }

    /// Was it marked by [`Self::vouch`]?
    #[inline(always)]
    pub fn is_vouched_for(&self) -> bool {
        let voucher = VOUCHER.load();
        // SAFETY: as above.
        let [low, high, ..] = unsafe { (*self.raw()).cb };
        voucher != 0 && low == voucher as u32 && high == (voucher >> 32) as u32
    }

    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        self.0.skb.skb
    }
}

impl<const L2: usize> Packet for Skb<L2> {
    const NETWORK: usize = L2;
    const FRAGMENTS: bool = true;

    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len() as usize
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.0.data(), self.0.data_end())
    }

    #[inline(always)]
    fn copy<T>(&self, offset: usize, to: &mut T, len: usize) -> Option<()> {
        let len = bounded(len, size_of::<T>());
        let to = core::ptr::from_mut(to).cast();
        // SAFETY: a helper call that writes `len` bytes, which `to` has.
        let read = unsafe { bpf_skb_load_bytes(self.raw().cast(), offset as u32, to, len) };
        (read == 0).then_some(())
    }

    #[inline(always)]
    fn load<T>(&self, offset: usize, to: &mut T) -> bool {
        let len = size_of::<T>() as u32;
        let to = core::ptr::from_mut(to).cast();
        // SAFETY: a helper call that writes `len` bytes, which `to` has.
        unsafe { bpf_skb_load_bytes(self.raw().cast(), offset as u32, to, len) == 0 }
    }

    #[inline(always)]
    fn load_network<T: Copy>(&self, offset: usize, to: &mut T) -> bool {
        let len = size_of::<T>() as u32;
        let to = core::ptr::from_mut(to).cast();
        let (skb, from) = (self.raw().cast(), BPF_HDR_START_NET);
        // SAFETY: a helper call that writes `len` bytes, which `to` has.
        unsafe { bpf_skb_load_bytes_relative(skb, offset as u32, to, len, from) == 0 }
    }

    #[inline(always)]
    fn store<T>(&mut self, offset: usize, value: &T) -> bool {
        let len = size_of::<T>() as u32;
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: a helper call that reads `len` bytes, which `value` has.
        unsafe { bpf_skb_store_bytes(self.raw(), offset as u32, from, len, 0) == 0 }
    }

    #[inline(always)]
    fn trim(&mut self, len: u32) -> bool {
        // SAFETY: a helper call.
        unsafe { bpf_skb_change_tail(self.raw(), len, 0) == 0 }
    }

    #[inline(always)]
    fn replace<T>(&mut self, frame: &T, len: usize) -> bool {
        let rest = bounded(len.saturating_sub(L2), size_of::<T>() - L2);
        let from: *const u8 = core::ptr::from_ref(frame).cast();
        // A checksum of the whole, if the kernel has one, is made right again; it begins behind the
        // link-layer header.
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        let (l2, packet) = (L2 as u32, self.raw());
        // SAFETY: helper calls; what they read, `frame` has.
        unsafe {
            bpf_skb_change_tail(packet, l2 + rest, 0) == 0
                && (L2 == 0 || bpf_skb_store_bytes(packet, 0, from.cast(), l2, 0) == 0)
                && bpf_skb_store_bytes(packet, l2, from.add(L2).cast(), rest, flags) == 0
        }
    }

    #[inline(always)]
    fn receive_copy(&mut self, ifindex: u32) -> bool {
        // SAFETY: a helper call.
        unsafe { bpf_clone_redirect(self.raw(), ifindex, BPF_F_INGRESS.into()) == 0 }
    }

    #[inline(always)]
    fn insert(&mut self, len: u32) -> bool {
        // Behind the link-layer header, if there is one.
        // SAFETY: a helper call.
        unsafe { bpf_skb_adjust_room(self.raw(), len as i32, BPF_ADJ_ROOM_MAC, 0) == 0 }
    }

    #[inline(always)]
    fn protocol(&self) -> Be16 {
        // SAFETY: the kernel's context, valid for the program's run.
        Be16::from_wire(unsafe { (*self.raw()).protocol } as u16)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel's context, valid for the program's run.
        unsafe { (*self.raw()).ifindex }
    }

    #[inline(always)]
    fn received_on(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw()).ingress_ifindex }
    }

    #[inline(always)]
    fn wire_len(&self, len: u32, l4: usize, proto: u8) -> u16 {
        // SAFETY: as above.
        let segment = unsafe { (*self.raw()).gso_size };
        let len = if segment == 0 {
            len
        } else if segment == GSO_BY_FRAGS {
            // Nothing tells the longest. Where there is much to send all are about as long.
            // SAFETY: as above.
            let segments = unsafe { (*self.raw()).gso_segs }.max(1);
            let header = (l4 + Sctp::LEN - L2) as u32;
            header + len.saturating_sub(header) / segments
        } else {
            // `gso_size` is a segment's payload; the headers stand before each.
            let header = match proto {
                proto::TCP => self
                    .read::<Tcp>(l4)
                    .map_or(0, |header| u32::from(header.offset >> 4) * 4),
                _ => Udp::LEN,
            };
            segment + header + (l4 - L2) as u32
        };
        len.min(u32::from(u16::MAX)) as u16
    }

    #[inline(always)]
    fn is_for_us<A>(&self, _: &mut Work<A>) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw()).pkt_type == PACKET_HOST && (*self.raw()).vlan_present == 0 }
    }

    #[inline(always)]
    fn is_left<F: Family>(&self, _: &Work<F::Addr>) -> bool {
        false
    }

    /// The kernel does not tell. But a partial one is the sum of the pseudo-header; or, of segments
    /// rolled into one, whatever their sender's hardware takes.
    #[inline(always)]
    fn may_be_partial<F: Family>(&self, work: &Work<F::Addr>, field: u16) -> bool {
        // SAFETY: as above.
        let segment = unsafe { (*self.raw()).gso_size };
        match work.pseudo(L2) {
            // 0 and 0xffff are one number.
            Some((_, pseudo)) => segment != 0 || field == pseudo || field == 0,
            None => true,
        }
    }

    /// The kernel knows whether the checksum is complete, partial or to be verified by hardware, and
    /// does what each takes. What covers the whole packet it makes right for an IPv4 header, whose
    /// checksum makes up for the addresses (its flag for IPv6 came with 6.16): IPv6 adds them up.
    #[inline(never)]
    fn update_partial(&mut self, offset: usize, pseudo: u64, header: u64, udp: bool) {
        let mangled = if udp {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        let (packet, offset) = (self.raw(), offset as u32);
        if pseudo != 0 {
            let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled;
            // SAFETY: a helper call; the offset was read from before, so it cannot fail.
            unsafe { bpf_l4_csum_replace(packet, offset, 0, fold(pseudo).into(), flags) };
        }
        if header != 0 {
            // SAFETY: as above.
            unsafe { bpf_l4_csum_replace(packet, offset, 0, fold(header).into(), mangled) };
        }
    }

    #[inline(always)]
    fn changed(&mut self, difference: u64) {
        // SAFETY: a helper call. Where there is no such checksum it does nothing.
        unsafe { bpf_csum_update(self.raw(), fold(difference).into()) };
    }

    #[inline(always)]
    fn set_ethernet<F: Family>(&mut self, macs: MacPair) -> bool {
        if L2 == ETH_LEN {
            return self.write(0, macs);
        }
        let header = Ethernet {
            dst: macs.dst,
            src: macs.src,
            ethertype: F::ETHERTYPE,
        };
        // SAFETY: a helper call.
        let made = unsafe { bpf_skb_change_head(self.raw(), ETH_LEN as u32, 0) };
        made == 0 && self.write(0, header)
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.as_ptr()
    }
}

/// A length of 1 to `max`, in a form that Linux 6.1's verifier follows: it learns a lower bound from
/// no `!= 0`, so the last step adds one. And unseen by the compiler, which drops a bound that it
/// knows from comparisons of another register, as the verifier does not.
#[inline(always)]
pub fn bounded(len: usize, max: usize) -> u32 {
    black_box(len).saturating_sub(1).min(max - 1) as u32 + 1
}
