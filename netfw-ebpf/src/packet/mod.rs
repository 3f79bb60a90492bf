//! The only packet access.
//!
//! [`Packet`] is the seam between the hooks: the engine is written on it once. Offsets count from
//! the start of the frame. A read returns a copy; no reference into the packet lives on, because
//! helpers that change the packet make the verifier forget every pointer into it.

mod frame;
mod skb;

pub use frame::Frame;
pub use skb::{Skb, bounded};

use netfw_common::{
    addr::{Be16, MacPair},
    csum,
};

use crate::{family::Family, work::Work};

/// A frame at a hook.
pub trait Packet {
    /// Offset of the network header: what the link-layer header takes.
    const NETWORK: usize;

    /// Does the hook look at fragments? Otherwise they are left to the one behind it.
    const FRAGMENTS: bool;

    /// Bytes in the frame, those outside the linear part included.
    fn len(&self) -> usize;

    /// Start and end of the bytes that may be read and written directly.
    fn bounds(&self) -> (usize, usize);

    /// Copies `len` bytes from `offset` to the start of `to`, where the frame has them and `T` room
    /// for them. `len` is not 0.
    ///
    /// For lengths that vary; [`Packet::read`] is quicker for those that do not.
    fn copy<T>(&self, offset: usize, to: &mut T, len: usize) -> Option<()>;

    /// Copies bytes from `offset` to `to`, where the frame has them and the hook reads other than
    /// directly.
    fn load<T>(&self, offset: usize, to: &mut T) -> bool;

    /// Copies bytes from `offset`, counted from the network header, to `to`, where the frame has them:
    /// for hooks that see frames of several kinds.
    fn load_network<T: Copy>(&self, offset: usize, to: &mut T) -> bool;

    /// Writes `value` at `offset`, where the frame has room and the hook writes other than directly.
    fn store<T>(&mut self, offset: usize, value: &T) -> bool;

    /// Cuts the frame off behind `len` bytes.
    fn trim(&mut self, len: u32) -> bool;

    /// Makes the frame another one: the first `len` bytes of `frame`. `len` is not 0.
    fn replace<T>(&mut self, frame: &T, len: usize) -> bool;

    /// Has the kernel receive a copy of the frame, as it is now, on an interface: it comes to the
    /// hook there.
    fn receive_copy(&mut self, ifindex: u32) -> bool;

    /// Makes room for `len` bytes between link-layer and network header.
    fn insert(&mut self, len: u32) -> bool;

    /// EtherType of the packet, behind tags that the kernel keeps beside the frame.
    fn protocol(&self) -> Be16;

    /// Interface of the hook: on which it was received, or by which it leaves.
    fn ifindex(&self) -> u32;

    /// Interface on which it was received, wherever it is now; 0 for the node's own.
    fn received_on(&self) -> u32;

    /// Bytes of the IP packet on the wire: `len`, or where the packet is one of many rolled into
    /// one (GSO), what each of them will have. `l4` is the offset of the transport header.
    fn wire_len(&self, len: u32, l4: usize, proto: u8) -> u16;

    /// Would the node's own stack take it: addressed to this interface's MAC, and without a VLAN tag
    /// outside the frame? `work` knows the time, and nothing of the packet.
    fn is_for_us<A>(&self, work: &mut Work<A>) -> bool;

    /// Is this packet of the flow in `work` better left to the hook behind this one?
    fn is_left<F: Family>(&self, work: &Work<F::Addr>) -> bool;

    /// Is the L4 checksum of the packet in `work`, which is now `field`, perhaps one that hardware has
    /// yet to fill in (`CHECKSUM_PARTIAL`)?
    fn may_be_partial<F: Family>(&self, work: &Work<F::Addr>, field: u16) -> bool;

    /// [`Self::update_l4_checksum`] for one that may be partial, by whoever knows: address changes
    /// count for those that are, changes of the header do not. All direct access ends here.
    fn update_partial(&mut self, offset: usize, pseudo: u64, header: u64, udp: bool);

    /// Updates the L4 checksum at `offset` for a change of addresses (where the protocol has a
    /// pseudo-header, else 0) and of bytes of the L4 header, both as [`csum::difference`]. `udp`: a
    /// checksum of 0 means "none" and stays, one that comes out as 0 is written as 0xffff (RFC 768).
    ///
    /// Returns by how much that changed the sum of the bytes from the L4 header on, for
    /// [`Self::changed`].
    #[inline(always)]
    fn update_l4_checksum<F: Family>(
        &mut self,
        work: &Work<F::Addr>,
        offset: usize,
        pseudo: u64,
        header: u64,
        udp: bool,
    ) -> u64 {
        match self.read::<u16>(offset) {
            Some(0) if udp => header,
            Some(old) if !self.may_be_partial::<F>(work, old) => {
                let new = csum::update(old, pseudo + header);
                self.write(offset, if udp && new == 0 { 0xffff } else { new });
                csum::negated(pseudo)
            }
            // Or behind so many headers that it cannot be reached directly.
            _ => {
                self.update_partial(offset, pseudo, header, udp);
                0
            }
        }
    }

    /// Takes note that bytes changed by `difference` in all: what covers the whole packet
    /// (`CHECKSUM_COMPLETE`) is made right again.
    fn changed(&mut self, difference: u64);

    /// Writes both Ethernet addresses; the EtherType stays. False where there is no room. The last
    /// thing to be done to a packet: offsets may be others behind it.
    fn set_ethernet<F: Family>(&mut self, macs: MacPair) -> bool;

    /// What helpers call the context.
    fn context(&self) -> *mut core::ffi::c_void;

    /// Copies a `T` from `offset`.
    ///
    /// `T` must be plain bytes or integers in network order. Loads need no alignment on the
    /// architectures that eBPF programs run on as netfw builds them.
    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        let (start, end) = self.bounds();
        let at = start + offset;
        if at + size_of::<T>() > end {
            return None;
        }
        // SAFETY: the bounds were checked just now; the verifier checks that they were.
        Some(unsafe { *(at as *const T) })
    }

    /// Writes a `T` at `offset`; false where the frame does not reach that far.
    #[inline(always)]
    fn write<T: Copy>(&mut self, offset: usize, value: T) -> bool {
        let (start, end) = self.bounds();
        let at = start + offset;
        if at + size_of::<T>() > end {
            return false;
        }
        // SAFETY: as in `read`.
        unsafe { *(at as *mut T) = value };
        true
    }
}
