//! The targets themselves (DESIGN, section 7), by the measures that show them, and what is known of those
//! that are missed.

/// By a target's id: why it is missed, as far as is known. Shown only where it is.
pub const REASONS: &[(&str, &str)] = &[
    ("limit-tc", LIMIT),
    ("limit-xdp", LIMIT),
    (
        "limit-driver",
        "As of a publish by XDP, where no skb is made: the bare redirect takes 240 ns, so 90 % would allow \
         27, which is the flow's look-up alone.",
    ),
    (
        "limit-out",
        "77 % with one flow. Who sends is looked for as well, and the source is checked. Beyond some \
         thousand flows they lie in main memory, see packets to a publish.",
    ),
    (
        "limit-both",
        "Two ways, one after the other: what netfw adds to both, of which the limit has neither.",
    ),
    ("iptables-tc", COLD),
    (
        "iptables-xdp",
        "The bare redirect by XDP is 3.0 times as fast as iptables here, and leaves nothing: into a veth, an \
         skb is made of the frame all the same. Beyond some thousand flows, see packets by TC.",
    ),
    ("routing-tc", COLD),
    ("routing-out", COLD),
    ("flat-flows-tc", COLD),
    ("flat-flows-xdp", COLD),
    (
        "attach",
        "A fifth of it or more is the start of a process; of the rest most is the kernel's: a namespace, a \
         veth pair, its filter, addresses (ARCHITECTURE, The agent's speed).",
    ),
];

const LIMIT: &str = "83 to 88 % up to 1,000 flows. netfw adds some 80 ns to a packet, 54 are allowed: 27 are the \
    flow's look-up in the kernel's hash, 11 bpf_csum_update, 11 parsing, 12 rewriting (ARCHITECTURE, The hot path). \
    Beyond, flows lie in main memory, and the limit has none.";

const COLD: &str = "A matter of memory: where flows are many, each packet finds its own in none of the caches, and \
    waits for a bucket and for the two lines of an entry, some 100 ns each here. conntrack waits as well (iptables: \
    250 ns more with 100,000 flows than with one), but is slower to begin with. Other ways to keep the table made no \
    difference (ARCHITECTURE, The hot path).";

pub struct Rule {
    pub id: &'static str,
    pub what: &'static str,
    pub judged: Judged,
}

pub enum Judged {
    /// At every point `of` has at least `least` times the rate of `to`.
    Share {
        measure: &'static str,
        of: &'static str,
        to: &'static str,
        least: f64,
    },
    /// At no point any contender of these is more than [`super::FLAT`] behind its figure at the first point.
    Flat {
        measure: &'static str,
        of: &'static [&'static str],
        /// A measure that has but one figure, and where on the axis that lies.
        further: Option<(&'static str, u64)>,
    },
    /// No figure of netfw's is above `limit`, at the point `at` or at any.
    Most {
        measure: &'static str,
        at: Option<u64>,
        limit: f64,
        unit: &'static str,
    },
}

pub const TC: &str = "netfw (TC)";
pub const XDP: &str = "netfw (XDP)";
pub const REDIRECT_TC: &str = "bare redirect (TC)";
pub const REDIRECT_XDP: &str = "bare redirect (XDP)";
pub const ROUTING: &str = "routing, no NAT";
pub const IPTABLES: &str = "iptables (nft)";

pub const RULES: &[Rule] = &[
    share(
        "limit-tc",
        "Packets to a publish, TC: to the bare redirect",
        "packets-in",
        TC,
        REDIRECT_TC,
        0.9,
    ),
    share(
        "limit-xdp",
        "Packets to a publish, XDP: to the bare redirect",
        "packets-in",
        XDP,
        REDIRECT_XDP,
        0.9,
    ),
    share(
        "limit-driver",
        "Packets to a container that takes frames by XDP: to the bare redirect",
        "packets-in-xdp",
        XDP,
        REDIRECT_XDP,
        0.9,
    ),
    share(
        "limit-out",
        "Packets from a container: to the bare redirect",
        "packets-out",
        TC,
        REDIRECT_TC,
        0.9,
    ),
    share(
        "limit-both",
        "Packets to a publish, and answers: to the bare redirect",
        "packets-both",
        TC,
        REDIRECT_TC,
        0.9,
    ),
    share(
        "iptables-tc",
        "Packets to a publish, TC: to iptables",
        "packets-in",
        TC,
        IPTABLES,
        2.0,
    ),
    share(
        "iptables-xdp",
        "Packets to a publish, XDP: to iptables",
        "packets-in",
        XDP,
        IPTABLES,
        3.0,
    ),
    share(
        "iptables-driver",
        "Packets to a container that takes frames by XDP: to iptables",
        "packets-in-xdp",
        XDP,
        IPTABLES,
        3.0,
    ),
    share(
        "routing-tc",
        "Packets to a publish, TC: to routing without NAT",
        "packets-in",
        TC,
        ROUTING,
        1.0,
    ),
    share(
        "routing-out",
        "Packets from a container: to routing without NAT",
        "packets-out",
        TC,
        ROUTING,
        1.0,
    ),
    flat(
        "flat-flows-tc",
        "Packets to a publish, TC: from fewest to most flows",
        "packets-in",
        &[TC],
        Some(("million-packets", 1_000_000)),
    ),
    flat(
        "flat-flows-xdp",
        "Packets to a publish, XDP: from fewest to most flows",
        "packets-in",
        &[XDP],
        Some(("million-packets", 1_000_000)),
    ),
    share(
        "connections-tc",
        "New HTTP connections, TC: to routing without NAT",
        "connections",
        TC,
        ROUTING,
        0.9,
    ),
    share(
        "connections-xdp",
        "New HTTP connections, XDP: to routing without NAT",
        "connections",
        XDP,
        ROUTING,
        0.9,
    ),
    flat(
        "flat-connections",
        "New HTTP connections: from fewest to most publishes",
        "connections",
        &[TC, XDP],
        None,
    ),
    flat(
        "flat-udp-flows",
        "New UDP flows: from fewest to most publishes",
        "udp-flows",
        &[TC, XDP],
        None,
    ),
    share(
        "bulk-in",
        "TCP stream to a publish: to routing without NAT",
        "bulk-in",
        TC,
        ROUTING,
        0.97,
    ),
    share(
        "bulk-out",
        "TCP stream out of a container: to routing without NAT",
        "bulk-out",
        TC,
        ROUTING,
        0.97,
    ),
    share(
        "bulk-between",
        "TCP stream between containers: to routing without NAT",
        "bulk-between",
        TC,
        ROUTING,
        0.97,
    ),
    most(
        "attach",
        "Attaching a container",
        "attach",
        None,
        10.0,
        "ms",
    ),
    most(
        "publish-range",
        "Publishing a range of 10,000 ports",
        "publish-range",
        Some(10_000),
        50.0,
        "ms",
    ),
    most(
        "withdraw-range",
        "Withdrawing a range of 10,000 ports",
        "withdraw-range",
        Some(10_000),
        50.0,
        "ms",
    ),
    most(
        "million-memory",
        "Memory for 1,000,000 flows",
        "million-memory",
        None,
        256.0,
        "MiB",
    ),
];

const fn share(
    id: &'static str,
    what: &'static str,
    measure: &'static str,
    of: &'static str,
    to: &'static str,
    least: f64,
) -> Rule {
    let judged = Judged::Share {
        measure,
        of,
        to,
        least,
    };
    Rule { id, what, judged }
}

const fn flat(
    id: &'static str,
    what: &'static str,
    measure: &'static str,
    of: &'static [&'static str],
    further: Option<(&'static str, u64)>,
) -> Rule {
    let judged = Judged::Flat {
        measure,
        of,
        further,
    };
    Rule { id, what, judged }
}

const fn most(
    id: &'static str,
    what: &'static str,
    measure: &'static str,
    at: Option<u64>,
    limit: f64,
    unit: &'static str,
) -> Rule {
    let judged = Judged::Most {
        measure,
        at,
        limit,
        unit,
    };
    Rule { id, what, judged }
}
