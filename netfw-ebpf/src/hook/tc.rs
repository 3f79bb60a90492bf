//! TC (TCX, or clsact where the kernel has none).

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

/// Ingress of an uplink: what comes from the world.
#[classifier]
pub fn netfw_uplink(ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Ingress of the host side of a container's veth pair: what a container sends.
#[classifier]
pub fn netfw_container(ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Egress of an uplink: the last look, so that no container's own address ever leaves the node.
#[classifier]
pub fn netfw_guard(ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
