//! TC (TCX, or clsact where the kernel has none).

use aya_ebpf::{
    bindings::{
        BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    macros::classifier,
    programs::TcContext,
};
use netfw_common::{
    drop::Drop,
    event::{Hook, Why},
    record::Endpoint,
};

use crate::{
    event::{self, watch},
    family::{V4, V6},
    maps::ENDPOINTS,
    nat,
    packet::{Packet, Skb},
    parse::{Arp, ETH_LEN, Ethernet, ethertype},
    verdict::Verdict,
};

/// Headers that the engine reads and writes: Ethernet, IPv4 with all options or IPv6, TCP.
const HEADERS: usize = ETH_LEN + 60 + 20;

/// Ingress of an uplink: what comes from the world.
#[classifier]
pub fn netfw_uplink(ctx: TcContext) -> i32 {
    from_world(Skb::<ETH_LEN>::new(ctx), Hook::Uplink)
}

/// Ingress of an uplink whose frames have no link-layer header (tun, WireGuard, IP tunnels).
#[classifier]
pub fn netfw_tunnel(ctx: TcContext) -> i32 {
    from_world(Skb::<0>::new(ctx), Hook::Tunnel)
}

#[inline(always)]
fn from_world<const L2: usize>(mut packet: Skb<L2>, hook: Hook) -> i32 {
    watch::begin(&packet);
    if packet.has_priority_tag() {
        return receive_untagged(&mut packet, hook);
    }
    packet.make_linear(HEADERS);
    let verdict = match packet.protocol() {
        ethertype::IPV4 => nat::world::receive::<_, V4>(&mut packet),
        ethertype::IPV6 => nat::world::receive::<_, V6>(&mut packet),
        _ => Verdict::Pass,
    };
    act(&packet, hook, None, verdict)
}

/// Ingress of the host side of a container's veth pair: what a container sends.
#[classifier]
#[inline(always)]
pub fn netfw_container(ctx: TcContext) -> i32 {
    let mut packet = Skb::<ETH_LEN>::new(ctx);
    watch::begin(&packet);
    if packet.has_priority_tag() {
        return receive_untagged(&mut packet, Hook::Container);
    }
    // SAFETY: integers, written by the agent alone.
    let sender = unsafe { ENDPOINTS.get(packet.ifindex()) };
    let verdict = match sender {
        Some(sender) => from_container(&mut packet, sender),
        // On its way in or out: nothing may pass unchecked.
        None => Verdict::Drop(Drop::NoEndpoint),
    };
    act(&packet, Hook::Container, sender, verdict)
}

#[inline(always)]
fn from_container(packet: &mut Skb<ETH_LEN>, sender: &Endpoint) -> Verdict {
    packet.make_linear(HEADERS);
    let Some(ethernet) = packet.read::<Ethernet>(0) else {
        return Verdict::Drop(Drop::Malformed);
    };
    if ethernet.src != sender.mac {
        return Verdict::Drop(Drop::SpoofedMac);
    }
    if packet.has_vlan_tag() {
        // A network of its own on the bridge, without an address of netfw's.
        return Verdict::Pass;
    }
    match ethernet.ethertype {
        ethertype::IPV4 => nat::container::receive::<_, V4>(packet, &ethernet, sender),
        ethertype::ARP => match packet.read::<Arp>(ETH_LEN) {
            // A probe (RFC 5227) has no sender address.
            Some(arp)
                if arp.sender_mac == sender.mac
                    && (arp.sender_ip == sender.ip4.octets() || arp.sender_ip == [0; 4]) =>
            {
                Verdict::Pass
            }
            _ => Verdict::Drop(Drop::SpoofedAddress),
        },
        ethertype::IPV6 => nat::container::receive::<_, V6>(packet, &ethernet, sender),
        _ => Verdict::Pass,
    }
}

/// Has a frame whose tag names no VLAN received once more, without that tag: to the kernel it is an
/// untagged one, and so it must be to us.
#[inline(always)]
fn receive_untagged<const L2: usize>(packet: &mut Skb<L2>, hook: Hook) -> i32 {
    // One tag: who sends two has no good reason.
    if !packet.untag() || packet.has_priority_tag() {
        return act(packet, hook, None, Verdict::Drop(Drop::Malformed));
    }
    watch::again(packet, hook);
    // SAFETY: a helper call that notes where the packet goes.
    unsafe { bpf_redirect(packet.ifindex(), BPF_F_INGRESS.into()) as i32 }
}

/// Egress of an uplink: the last look, so that no container's own address ever leaves the node.
#[classifier]
pub fn netfw_guard(ctx: TcContext) -> i32 {
    let packet = Skb::<ETH_LEN>::new(ctx);
    watch::begin(&packet);
    if packet.is_vouched_for() {
        watch::note(Why::Vouched);
        return act(&packet, Hook::Guard, None, Verdict::Pass);
    }
    watch::note(Why::NoLeak);
    let verdict = match packet.protocol() {
        ethertype::IPV4 => nat::guard::send::<_, V4>(&packet),
        ethertype::IPV6 => nat::guard::send::<_, V6>(&packet),
        _ => Verdict::Pass,
    };
    act(&packet, Hook::Guard, None, verdict)
}

/// The verdict as TC's action. `sender`: the container that the packet is from.
#[inline(always)]
fn act<const L2: usize>(
    packet: &Skb<L2>,
    hook: Hook,
    sender: Option<&Endpoint>,
    verdict: Verdict,
) -> i32 {
    watch::end(packet, hook, &verdict);
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop(reason) => {
            event::dropped(reason, packet.ifindex(), sender);
            TC_ACT_SHOT
        }
        Verdict::Answer(reason) => {
            event::dropped(reason, packet.ifindex(), sender);
            // SAFETY: a helper call that notes where the packet goes.
            unsafe { bpf_redirect(packet.ifindex(), 0) as i32 }
        }
        Verdict::Held => TC_ACT_SHOT,
        Verdict::Peer { ifindex } => {
            packet.set_for_host();
            // SAFETY: a helper call that notes where the packet goes.
            unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
        }
        Verdict::Redirect { ifindex } => {
            packet.vouch();
            // SAFETY: as above.
            unsafe { bpf_redirect(ifindex, 0) as i32 }
        }
        Verdict::Neighbour { ifindex, next_hop } => {
            let mut to = bpf_redir_neigh {
                nh_family: next_hop.family,
                __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                    ipv6_nh: next_hop.addr,
                },
            };
            // SAFETY: as above.
            unsafe {
                bpf_redirect_neigh(ifindex, &mut to, size_of::<bpf_redir_neigh>() as i32, 0) as i32
            }
        }
    }
}
