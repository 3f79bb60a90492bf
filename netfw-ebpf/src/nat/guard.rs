//! The last look at what leaves an uplink: whatever went wrong before, no packet leaves with the
//! own address of a masqueraded container as its source. What the node says itself is noted, where
//! nothing else tells ([`talk`]).

use netfw_common::{
    addr::Be16,
    drop::Drop,
    record::network_flag,
    tuple::{Tuple, proto},
};

use crate::{family::Family, maps::ENDPOINTS, packet::Packet, parse::Icmp, talk, verdict::Verdict};

/// Decides about an IP packet by its source address.
#[inline(always)]
pub fn send<P: Packet, F: Family>(packet: &P) -> Verdict {
    let mut key = Tuple::default();
    let Some((l4, whole)) = F::glance(packet, 0, &mut key) else {
        return Verdict::Pass;
    };
    match F::subnet(key.src) {
        // The gateway's address is the node's own.
        Some(subnet) if subnet.flags & network_flag::MASQUERADE != 0 && !F::is_local(&key.src) => {
            return Verdict::Drop(Drop::Leak);
        }
        _ => {}
    }
    if whole && (key.proto == proto::UDP || talk::is_of_kind::<F>(key.proto)) {
        note::<P, F>(packet, &mut key, l4);
    }
    Verdict::Pass
}

/// Notes the packet where it is the node's own, and none of a container's that was translated.
#[inline(always)]
fn note<P: Packet, F: Family>(packet: &P, key: &mut Tuple<F::Addr>, l4: usize) {
    // The container's first: there are more of them.
    let from = packet.received_on();
    if (from != 0 && ENDPOINTS.get_ptr(from).is_some()) || !F::is_local(&key.src) {
        return;
    }
    if matches!(key.proto, proto::UDP | proto::SCTP) {
        let mut ports = [Be16::new(0); 2];
        if !packet.load_network(l4, &mut ports) {
            return;
        }
        [key.sport, key.dport] = ports;
    }
    if key.proto == F::ICMP {
        let mut header = Icmp::default();
        if !packet.load_network(l4, &mut header) || header.kind != F::ECHO_REQUEST {
            return;
        }
        key.sport = header.id;
    }
    if key.proto == proto::UDP {
        talk::take_back::<F>(key);
    } else {
        talk::note::<F>(key);
    }
}
