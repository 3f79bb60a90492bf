//! What the engine decided. The hook files turn it into the hook's action, and nothing else does.

use netfw_common::drop::Drop;

use crate::redirect::NextHop;

/// Where a frame goes. Whatever it takes to rewrite it has been done.
pub enum Verdict {
    /// Not ours, untouched: to other programs on the hook and the node's stack.
    Pass,
    /// Dropped and counted.
    Drop(Drop),
    /// Dropped and counted. What is at hand now is an ICMP error that goes back to where the packet
    /// came from.
    Answer(Drop),
    /// Kept, to be received once more when the first fragment of its datagram has come.
    Held,
    /// Into the container behind the host side of this veth pair.
    Peer { ifindex: u32 },
    /// Out of this interface; the link-layer header is in place.
    Redirect { ifindex: u32 },
    /// Out of this interface to this neighbour; the kernel writes the link-layer header and sees to
    /// the neighbour entry.
    Neighbour { ifindex: u32, next_hop: NextHop },
}
