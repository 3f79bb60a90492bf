//! A flow's entry in its map, which every CPU may be writing at this moment.

use core::ptr::addr_of_mut;

use netfw_common::{
    addr::{Address, MacPair},
    flow::{Flow, flag},
};

/// Copies the whole, by words: between two places in maps, which might overlap for all that the
/// compiler knows, it would call a `memmove` that goes byte by byte. Nor does it keep what it copied
/// on the stack, for a comparison later.
///
/// The last word first: what its flags say of the others was so before those are read.
#[inline(always)]
pub(super) fn copy<A>(from: *const Flow<A>, to: &mut Flow<A>) {
    let (from, to): (*const u64, *mut u64) = (from.cast(), core::ptr::from_mut(to).cast());
    for word in (0..size_of::<Flow<A>>() / size_of::<u64>()).rev() {
        // SAFETY: callers pass an element of a map or a reference; a flow is words without padding.
        // Volatile, lest the loop be taken for what it is.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
    }
}

/// A flow entry in its map, shared with every CPU.
#[derive(Clone, Copy)]
pub(super) struct Entry<A>(pub(super) *mut Flow<A>);

impl<A: Address> Entry<A> {
    #[inline(always)]
    fn flags(self) -> u8 {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).flags).read_volatile() }
    }

    #[inline(always)]
    pub(super) fn copy_to(self, to: &mut Flow<A>) {
        copy(self.0, to);
    }

    /// Notes a packet.
    #[inline(always)]
    pub(super) fn set_seen(self, now: u32) {
        // Field by field, here and below: no reference to the whole may exist while other CPUs write.
        // SAFETY: an element of a map, which lives as long as the program.
        unsafe { addr_of_mut!((*self.0).seen).write_volatile(now) };
    }

    #[inline(always)]
    pub(super) fn set_state(self, state: u8) {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).state).write_volatile(state) };
    }

    #[inline(always)]
    pub(super) fn counter(self) -> u16 {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).counter).read_volatile() }
    }

    /// Notes the tag that the direction's SCTP packets will have.
    #[inline(always)]
    pub(super) fn set_tag(self, tag: u32) {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).end).write_volatile(tag) };
    }

    /// Notes how far the direction's segments have come: the sequence number behind the last, and what
    /// it acknowledged (0: not known).
    #[inline(always)]
    pub(super) fn set_numbers(self, end: u32, ack: u32) {
        // SAFETY: see `set_seen`.
        unsafe {
            addr_of_mut!((*self.0).end).write_volatile(end);
            addr_of_mut!((*self.0).ack).write_volatile(ack);
        }
    }

    #[inline(always)]
    fn set_flags(self, flags: u8) {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).flags).write_volatile(flags) };
    }

    /// Keeps a way to the world for the rest of the tick.
    #[inline(always)]
    pub(super) fn set_route(self, route: &Kept, epoch: u16) {
        let flags = self.flags();
        // The element may have gone to another flow since it was found.
        if flags & flag::TO_CONTAINER != 0 {
            return;
        }
        // Another CPU may be sending by this entry: while the fields change, none is cached.
        self.set_flags(flags & !flag::L2_CACHED);
        let Some(macs) = route.macs else {
            return;
        };
        // SAFETY: see `set_seen`.
        unsafe {
            addr_of_mut!((*self.0).ifindex).write_volatile(route.ifindex);
            addr_of_mut!((*self.0).mtu).write_volatile(route.mtu);
            addr_of_mut!((*self.0).macs).write_volatile(macs);
        }
        self.set_flags(flags | flag::L2_CACHED);
        self.set_routed(epoch);
    }

    /// Is the way to the world that `copy` holds still the entry's? See [`Self::set_route`].
    #[inline(always)]
    pub(super) fn keeps_route_of(self, copy: &Flow<A>) -> bool {
        // SAFETY: see `set_seen`.
        let routed = unsafe { addr_of_mut!((*self.0).routed).read_volatile() };
        self.flags() & flag::L2_CACHED != 0 && routed == copy.routed
    }

    #[inline(always)]
    pub(super) fn set_routed(self, epoch: u16) {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).routed).write_volatile(epoch) };
    }
}

/// A way to the world, to be kept in a flow.
pub struct Kept {
    pub ifindex: u32,
    pub mtu: u16,
    /// Where the neighbour is known.
    pub macs: Option<MacPair>,
}
