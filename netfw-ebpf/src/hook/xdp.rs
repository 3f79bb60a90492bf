//! XDP, on uplinks with Ethernet: what comes from the world and goes into a container.

use aya_ebpf::{bindings::xdp_action::XDP_PASS, macros::xdp, programs::XdpContext};

/// What comes from the world, before the kernel makes an skb of it.
#[xdp]
pub fn netfw_uplink_xdp(_ctx: XdpContext) -> u32 {
    XDP_PASS
}
