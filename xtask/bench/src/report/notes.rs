//! What each measure means, and what to beware of: a line or two, by the measure's id.

/// None where the title says it all.
pub fn of(id: &str) -> Option<&'static str> {
    NOTES
        .iter()
        .find_map(|&(known, note)| (known == id).then_some(note))
}

const NOTES: &[(&str, &str)] = &[
    (
        "packets-in",
        "Established flows. One core generates, receives, translates, forwards and counts; the bare \
         redirects look at nothing, and are the limit of their hook with this generator. A single flow \
         finds everything in the processor's caches; 100,000 do not.",
    ),
    (
        "packets-in-xdp",
        "As above, 256 flows, but the container counts (and drops) frames in its driver: what the hook \
         itself can do, where no skb is made. A container that talks by sockets gets the figures above. \
         What goes by TC into the container passes its driver by, and has no figure here.",
    ),
    (
        "million-packets",
        "As above, with a million established flows: nearly every packet finds its flow in main memory.",
    ),
    (
        "packets-both",
        "Every packet is answered; counted are answers. Both ways are translated.",
    ),
    (
        "packets-out",
        "Established flows of one container to one address outside. The bare redirect rewrites \
         nothing. netfw is by TC on this way also where its uplink has XDP: XDP sees only what comes \
         in.",
    ),
    (
        "packets-refused",
        "Packets to the container's own address, as a neighbour on the link could send them. None may \
         arrive. What a flood costs before it is dropped.",
    ),
    (
        "udp-flows",
        "Every packet opens a flow: the cost of the first packet, which looks for the publish.",
    ),
    (
        "connections",
        "Connect, one request, one answer, closed by the server (nginx). Client and server have a core \
         each and do most of the work, so the differences between the ways are larger than the \
         figures'. The publish that is asked for is the one in the middle.",
    ),
    (
        "requests",
        "Requests on connections that are already open: what established TCP costs per exchange.",
    ),
    (
        "bulk-in",
        "One TCP stream to a publish. Both ends share the machine's memory and cores, and segments are \
         up to 64 KiB (TSO and GRO work on a veth), which XDP on a veth prevents: the reason why netfw \
         does not choose XDP there by itself.",
    ),
    (
        "bulk-out",
        "One TCP stream out of a container. See the note on the stream to a publish.",
    ),
    (
        "bulk-between",
        "One TCP stream from container to container.",
    ),
    (
        "attach",
        "From the command's start to its end, with so many endpoints there already.",
    ),
    (
        "detach",
        "From the command's start to its end, with so many endpoints there already.",
    ),
    (
        "container-start",
        "From the start of `podman run -d` or `docker run -d` to its end; the container serves by then. What the \
         network takes of it is what is above the same runtime's container without one.",
    ),
    ("container-end", "From the start of `rm -f` to its end."),
    (
        "agent-start",
        "From the agent's start to its first answer, where it takes over so many endpoints of an agent \
         that was killed. Packets go on meanwhile.",
    ),
    (
        "agent-memory",
        "What the agent's process has for itself (Pss), idle.",
    ),
    (
        "ns-per-packet",
        "One run of a program on one packet (BPF_PROG_TEST_RUN), less what an empty program takes. Caches \
         are colder than in a stream of packets.",
    ),
    (
        "latency-p50",
        "64 bytes there and back on one TCP connection, nothing else going on.",
    ),
    (
        "latency-loaded-p50",
        "The same beside 80,000 small UDP packets per second through the same way, on the client's core.",
    ),
    ("publish-range", "A range of so many ports in one command."),
    (
        "withdraw-range",
        "The same range withdrawn again, flows through it looked for and ended.",
    ),
    (
        "million-memory",
        "The table that the flows lie in: netfw's map of IPv4 flows, conntrack's objects and buckets. Not \
         what is there for any number of flows: netfw's tables of half-open flows, 38 MiB by default, and \
         the empty one for IPv6; conntrack's extensions.",
    ),
];

#[cfg(test)]
mod tests {
    #[test]
    fn unknown_measures_have_no_note() {
        assert!(super::of("connections").is_some());
        assert_eq!(super::of("something new"), None);
    }
}
