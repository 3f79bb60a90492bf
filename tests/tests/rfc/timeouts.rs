//! How long state lives, by default.

use netfw_common::{
    flow::{TICK_NS, Timeouts, state},
    tuple::proto::{ICMP, ICMPV6, TCP, UDP},
};

/// RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-2.
#[test]
fn none_is_shorter_than_required() {
    let timeouts = Timeouts::default();
    let seconds = |ticks: u32| u64::from(ticks) * TICK_NS / 1_000_000_000;
    for (proto, state, least) in [
        (TCP, state::NEW, 240),
        (TCP, state::REPLIED, 240),
        (TCP, state::ESTABLISHED, 7440),
        (TCP, state::FIN_ORIGINAL, 240),
        (TCP, state::FIN_REPLY, 240),
        (TCP, state::TIME_WAIT, 240),
        (TCP, state::CLOSE, 240),
        (UDP, state::NEW, 120),
        (UDP, state::REPLIED, 300),
        (UDP, state::ESTABLISHED, 300),
        (ICMP, state::NEW, 60),
        (ICMPV6, state::NEW, 60),
    ] {
        let flow = seconds(timeouts.of(proto, state));
        assert!(flow >= least, "{proto} in {state}: {flow} s");
        let mapping = seconds(timeouts.of_mapping(proto, state));
        let least = if proto == UDP { 300 } else { least };
        assert!(
            mapping >= least,
            "a mapping of {proto} in {state}: {mapping} s"
        );
    }
}
