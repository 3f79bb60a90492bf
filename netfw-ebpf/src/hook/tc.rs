//! TC (TCX, or clsact where the kernel has none).

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_hdr_start_off::BPF_HDR_START_NET, bpf_redir_neigh,
        bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::generated::{
        bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_load_bytes_relative,
    },
    macros::classifier,
    programs::TcContext,
};
use netfw_common::{
    addr::{Address as _, Ip4, Ip6},
    drop::Drop,
};

use crate::{
    event,
    family::V4,
    maps::ENDPOINTS,
    nat,
    packet::{Packet, Skb},
    parse::{Arp, ETH_LEN, Ethernet, ethertype},
    verdict::Verdict,
};

/// Headers that the engine reads and writes: Ethernet, IPv4 with all options, TCP.
const HEADERS: usize = ETH_LEN + 60 + 20;

/// Offset of source and destination in an IPv6 header (RFC 8200 3).
const IPV6_ADDRESSES: usize = 8;

/// Ingress of an uplink: what comes from the world.
#[classifier]
pub fn netfw_uplink(ctx: TcContext) -> i32 {
    let mut packet = Skb::new(ctx);
    let verdict = match packet.protocol() {
        ethertype::IPV4 => {
            packet.make_linear(HEADERS);
            nat::world::receive::<_, V4>(&mut packet)
        }
        _ => Verdict::Pass,
    };
    act(&packet, verdict)
}

/// Ingress of an uplink whose frames have no link-layer header (tun, WireGuard, IP tunnels).
#[classifier]
pub fn netfw_tunnel(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Ingress of the host side of a container's veth pair: what a container sends.
#[classifier]
pub fn netfw_container(ctx: TcContext) -> i32 {
    let mut packet = Skb::new(ctx);
    let verdict = from_container(&mut packet);
    act(&packet, verdict)
}

#[inline(always)]
fn from_container(packet: &mut Skb) -> Verdict {
    // SAFETY: integers, written by the agent alone.
    let Some(sender) = (unsafe { ENDPOINTS.get(packet.ifindex()) }) else {
        // On its way in or out: nothing may pass unchecked.
        return Verdict::Drop(Drop::NoEndpoint);
    };
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
        // Containers have no IPv6 address yet: what is not the link's own chatter would leave the node
        // by nobody's rules.
        ethertype::IPV6 => match packet.read::<[Ip6; 2]>(ETH_LEN + IPV6_ADDRESSES) {
            Some([src, dst]) if (src.is_link_scope() || src == Ip6::ANY) && dst.is_link_scope() => {
                Verdict::Pass
            }
            _ => Verdict::Drop(Drop::SpoofedAddress),
        },
        _ => Verdict::Pass,
    }
}

/// Egress of an uplink: the last look, so that no container's own address ever leaves the node.
#[classifier]
pub fn netfw_guard(ctx: TcContext) -> i32 {
    let packet = Skb::new(ctx);
    let verdict = match packet.protocol() {
        ethertype::IPV4 => {
            const SOURCE: u32 = 12;
            let mut src = Ip4::default();
            // Relative to the network header: uplinks differ in what lies before it.
            // SAFETY: a helper call with a buffer of the size it is told.
            let read = unsafe {
                bpf_skb_load_bytes_relative(
                    packet.context(),
                    SOURCE,
                    (&raw mut src).cast(),
                    size_of::<Ip4>() as u32,
                    BPF_HDR_START_NET,
                )
            };
            if read == 0 {
                nat::guard::send::<V4>(src)
            } else {
                Verdict::Pass
            }
        }
        _ => Verdict::Pass,
    };
    act(&packet, verdict)
}

/// The verdict as TC's action.
#[inline(always)]
fn act(packet: &Skb, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop(reason) => {
            event::dropped(reason, packet.ifindex());
            TC_ACT_SHOT
        }
        Verdict::Peer { ifindex } => {
            packet.set_for_host();
            // SAFETY: a helper call that notes where the packet goes.
            unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
        }
        // SAFETY: as above.
        Verdict::Redirect { ifindex } => unsafe { bpf_redirect(ifindex, 0) as i32 },
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
