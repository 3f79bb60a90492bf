//! Flow entries: all that it takes to rewrite and redirect a packet, found by one lookup.
//!
//! A flow is two entries, one for each direction, each under the tuple that packets of its
//! direction have when they are received. The entries are created and removed together; an entry
//! whose other half is missing counts as absent.
//!
//! Embryonic flows (a question and its answer at most, or a TCP handshake under way) lie in an LRU
//! map, and so do closed ones; assured ones lie in a hash that never evicts. A flood can only push
//! out embryos and what is over.

use core::ptr::addr_of;

use crate::{
    addr::{Address, Be16, Ip4, Ip6, MacPair},
    tuple::{Tuple, proto, zone},
};

/// Time in the data plane: 2^30 ns of `CLOCK_MONOTONIC` (1.07 s), so that a packet takes it from
/// the clock by a shift. It wraps after 146 years.
pub const TICK_NS: u64 = 1 << TICK_SHIFT;
pub const TICK_SHIFT: u32 = 30;

/// Ticks for a number of seconds, rounded up.
pub const fn ticks(seconds: u32) -> u32 {
    (seconds as u64 * 1_000_000_000).div_ceil(TICK_NS) as u32
}

/// What a flow has seen. The names are nf_conntrack's where it has one. SCTP's are TCP's: see
/// [`sctp::flags`].
pub mod state {
    /// The first packet; no reply yet. Embryonic.
    pub const NEW: u8 = 0;
    /// TCP: SYN-ACK seen. UDP, ICMP: a reply seen, and no more than the one question. Embryonic.
    pub const REPLIED: u8 = 1;
    /// TCP: handshake complete. UDP, ICMP: the talk goes on after a reply. Assured.
    pub const ESTABLISHED: u8 = 2;
    /// TCP: FIN seen from the side that opened the flow.
    pub const FIN_ORIGINAL: u8 = 3;
    /// TCP: FIN seen from the side that answered.
    pub const FIN_REPLY: u8 = 4;
    /// TCP: FIN seen from both. Over, and with the embryos again: closed connections must not
    /// fill the table of those that are open.
    pub const TIME_WAIT: u8 = 5;
    /// TCP: RST seen. Over likewise; but a segment that follows without RST shows that it was
    /// forged or refused, and makes the flow established again.
    pub const CLOSE: u8 = 6;
    /// TCP: the first SYN was answered by a RST. Gone in [`super::REFUSED`] ticks, unless the client
    /// asks again.
    pub const REFUSED: u8 = 7;
}

/// How long a refused connection keeps its embryo: nf_conntrack's 10 s.
pub const REFUSED: u32 = ticks(10);

/// Bits of [`Flow::flags`].
pub mod flag {
    /// The entry of the reply direction.
    pub const REPLY: u8 = 1 << 0;
    /// Leaves through the veth pair `ifindex` (its host side) into a container; otherwise it is
    /// routed, and leaves through an uplink.
    pub const TO_CONTAINER: u8 = 1 << 1;
    /// `ifindex` and `macs` are known: always for a container, and for the world in the
    /// tick in which the route was looked up ([`Flow::routed`]).
    pub const L2_CACHED: u8 = 1 << 2;
    /// The flow was made by a publish, or came in through a mapping; otherwise by masquerade.
    pub const PUBLISHED: u8 = 1 << 3;
    /// The container's end takes frames from XDP ([`crate::record::endpoint_flag::NAPI`]).
    pub const NAPI: u8 = 1 << 4;
    /// Its source port belongs to an endpoint-independent mapping, which lives as long as this.
    pub const MAPPED: u8 = 1 << 5;
}

/// One direction of a flow.
///
/// Layout, no padding: the rewritten tuple (`src, dst, sport, dport`), then fixed fields; 48 bytes
/// for IPv4, 72 for IPv6. Aligned, so that the programs copy it by words of 64 bits.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Flow<A> {
    /// What the packet is rewritten to.
    pub src: A,
    pub dst: A,
    pub sport: Be16,
    pub dport: Be16,
    /// The interface through which it leaves, see [`flag::TO_CONTAINER`].
    pub ifindex: u32,
    /// Ethernet addresses that it leaves with.
    pub macs: MacPair,
    /// The tick of the flow's last packet, in either direction. Written once a tick; of packets of the other
    /// direction, [`lag`] ticks late at most.
    pub seen: u32,
    /// TCP: the sequence number behind the last segment of this direction, host order. SCTP: the
    /// verification tag of this direction's packets, host order; 0: not known.
    pub end: u32,
    /// TCP: the last acknowledgment number of this direction, host order.
    pub ack: u32,
    /// Index into `COUNTERS` of the publish or, where there is none, the endpoint.
    pub counter: u16,
    /// Low bits of the tick and epoch ([`crate::record::Config::epoch`]) in which the way to the
    /// world was looked up, see [`flag::L2_CACHED`]. From the world into a container there is none to
    /// look up: the same of the last look for a socket of the node that the packets are for.
    pub routed: u16,
    /// The largest IP packet that this way takes, in bytes.
    pub mtu: u16,
    /// One of [`state`].
    pub state: u8,
    /// Of [`flag`].
    pub flags: u8,
}

pub type Flow4 = Flow<Ip4>;
pub type Flow6 = Flow<Ip6>;

const _: () = assert!(size_of::<Flow4>() == 48 && size_of::<Flow6>() == 72);

impl<A: Address> Flow<A> {
    /// Both ports as they lie in a header, the source's first.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        // SAFETY: `sport` and `dport` are these four bytes, aligned as addresses are.
        unsafe { addr_of!(self.sport).cast::<u32>().read() }
    }

    /// The tuple under which the other half lies: what an answer to the rewritten packet looks
    /// like when it is received.
    #[inline(always)]
    pub fn reverse_key(&self, proto: u8) -> Tuple<A> {
        let mut key = Tuple::default();
        self.write_reverse_key(proto, &mut key);
        key
    }

    /// As [`Self::reverse_key`], in place: the programs' stack has little room for tuples.
    #[inline(always)]
    pub fn write_reverse_key(&self, proto: u8, key: &mut Tuple<A>) {
        key.src = self.dst;
        key.dst = self.src;
        key.sport = self.dport;
        key.dport = self.sport;
        key.proto = proto;
        key.zone = if self.has(flag::TO_CONTAINER) {
            zone::CONTAINER
        } else {
            zone::WORLD
        };
        // A peer on the link is answered on its link.
        key.scope = if self.dst.is_link_local() && !self.has(flag::TO_CONTAINER) {
            self.ifindex as u16
        } else {
            0
        };
    }

    /// Does `other` (found under [`Self::reverse_key`]) belong to the same flow as this entry,
    /// which lies under `key`?
    #[inline(always)]
    pub fn is_half_of(&self, key: &Tuple<A>, other: &Self) -> bool {
        other.src == key.dst
            && other.dst == key.src
            && other.sport == key.dport
            && other.dport == key.sport
            && (other.flags ^ self.flags) & flag::REPLY != 0
    }

    #[inline(always)]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Expired means absent, whether or not the sweep has come by. `proto` is the flow's.
    #[inline(always)]
    pub fn is_expired(&self, proto: u8, now: u32, timeouts: &Timeouts) -> bool {
        let timeout = timeouts.of(proto, self.state);
        is_past(self.seen, now, timeout + lag(timeout))
    }

    /// Over, and in nobody's way who needs its tuples?
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        self.state >= state::TIME_WAIT
    }
}

/// By how many ticks one half of a settled flow may fall behind the other: to look for it at every tick
/// costs as much as all else where flows are many, and neither is in the cache. Less than an eighth of the
/// timeout; one less than a power of two.
#[inline(always)]
pub const fn lag(timeout: u32) -> u32 {
    if timeout >= ticks(60) { 7 } else { 0 }
}

/// Has more than `timeout` gone by since the tick `seen`?
#[inline(always)]
pub fn is_past(seen: u32, now: u32, timeout: u32) -> bool {
    // `seen` may lie a tick ahead: another CPU read the clock a moment later.
    now.wrapping_sub(seen).wrapping_sub(1) < u32::MAX / 2 && now.wrapping_sub(seen) > timeout
}

/// Timeouts in ticks: the record of RFC 5382 (TCP), 4787 (UDP) and 5508 (ICMP). SCTP has TCP's, and
/// other protocols UDP's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, handshake not complete (RFC 5382 REQ-5: at least 4 min for transitory connections;
    /// embryos are pushed out earlier under pressure).
    pub tcp_embryonic: u32,
    /// TCP, established (RFC 5382 REQ-5: at least 2 h 4 min).
    pub tcp_established: u32,
    /// TCP, closing or reset (RFC 5382 REQ-5: at least 4 min).
    pub tcp_closing: u32,
    /// UDP before the first reply (RFC 4787 REQ-5: at least 2 min).
    pub udp_unreplied: u32,
    /// UDP once replied to (RFC 4787 REQ-5: 5 min recommended).
    pub udp_replied: u32,
    /// ICMP queries (RFC 5508 REQ-2: at least 60 s).
    pub icmp: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_embryonic: ticks(240),
            tcp_established: ticks(7440),
            tcp_closing: ticks(240),
            udp_unreplied: ticks(120),
            udp_replied: ticks(300),
            icmp: ticks(60),
        }
    }
}

impl Timeouts {
    /// The timeout of a flow of `proto` in `state`.
    #[inline(always)]
    pub fn of(&self, proto: u8, state: u8) -> u32 {
        match (proto, state) {
            (proto::TCP | proto::SCTP, state::NEW | state::REPLIED) => self.tcp_embryonic,
            (proto::TCP | proto::SCTP, state::ESTABLISHED) => self.tcp_established,
            (proto::TCP | proto::SCTP, state::REFUSED) => REFUSED,
            (proto::TCP | proto::SCTP, _) => self.tcp_closing,
            (proto::ICMP | proto::ICMPV6, _) => self.icmp,
            (_, state::NEW) => self.udp_unreplied,
            _ => self.udp_replied,
        }
    }

    /// The timeout of an endpoint-independent mapping whose last flow was in `state`: that of a
    /// connection goes by it, else each of a busy client's would hold a port for two hours after it is
    /// closed. Whether a query was answered makes no difference to the port it came from.
    #[inline(always)]
    pub fn of_mapping(&self, proto: u8, state: u8) -> u32 {
        if crate::tuple::proto::has_connections(proto) {
            self.of(proto, state)
        } else {
            self.of(proto, state::ESTABLISHED)
        }
    }
}

/// TCP flags of the engine's concern, as in the header's 14th byte.
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// SCTP's chunks of the engine's concern (RFC 9260 3.2).
pub mod sctp {
    use super::tcp;

    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;

    /// TCP's flags that mean the same to a flow's state as a packet whose first chunk is `chunk`. An
    /// INIT, an INIT ACK or a COOKIE ECHO is always the first; another that ends an association and
    /// is not goes unnoticed.
    #[inline(always)]
    pub fn flags(chunk: u8) -> u8 {
        match chunk {
            INIT => tcp::SYN,
            INIT_ACK => tcp::SYN | tcp::ACK,
            ABORT => tcp::RST,
            SHUTDOWN | SHUTDOWN_ACK => tcp::FIN | tcp::ACK,
            _ => tcp::ACK,
        }
    }
}

/// Does a flow in `state` belong to the table that never evicts?
#[inline(always)]
pub fn is_assured(state: u8) -> bool {
    (state::ESTABLISHED..state::TIME_WAIT).contains(&state)
}

/// The maps `HOLDINGS4` and `HOLDINGS6`: how many entries of the table of assured flows are whose. Arrays of
/// `u64`, two elements for each holder, their difference being those that are there: each has one side that
/// writes it. One more element, [`EXACT`](holdings::EXACT).
pub mod holdings {
    use crate::record::COUNTERS;

    /// Everybody's. Holders in general are indexes of counters, see [`super::Flow::counter`], and this one is
    /// nobody's.
    pub const ALL: u32 = 0;
    /// Of flows without connections (UDP, ICMP, …), whoever has them.
    pub const QUERIES: u32 = COUNTERS;

    /// The element that is 1 where the others are right: an agent that removes entries clears it until they are
    /// counted. Where it is 0 at a start, all are counted anew.
    pub const EXACT: u32 = 2 * (COUNTERS + 1);

    pub const ELEMENTS: u32 = EXACT + 1;

    /// The element that counts what programs inserted, less what they removed.
    #[inline(always)]
    pub const fn made(holder: u32) -> u32 {
        2 * holder
    }

    /// The element that counts what the agent removed.
    #[inline(always)]
    pub const fn removed(holder: u32) -> u32 {
        2 * holder + 1
    }

    /// How many times as many as are free one may have.
    pub const SHARE: i64 = 32;

    /// May a holder of `mine` entries have another one, where `free` are free?
    ///
    /// It may have [`SHARE`] times as many as it leaves to others (the dynamic threshold of Choudhury and Hahne):
    /// one that takes all it can get has 97 % of the table, two have 49 % each, and there is room for those who
    /// have little, until one of the great ones ends a flow.
    #[inline(always)]
    pub const fn may_have_more(mine: i64, free: i64) -> bool {
        mine < SHARE * free
    }
}

/// The state of a flow of UDP, ICMP or a protocol without ports after a packet in the reply direction or not.
///
/// An answer alone does not make it assured: else a thousand DNS queries per second would fill the
/// table with talks of two packets (nf_conntrack calls such flows unassured likewise).
#[inline(always)]
pub fn next_query_state(state: u8, reply: bool) -> u8 {
    use state::{ESTABLISHED, NEW, REPLIED};
    match (state, reply) {
        (NEW, true) => REPLIED,
        (REPLIED, false) => ESTABLISHED,
        _ => state,
    }
}

/// Of a TCP segment or SCTP packet: what tells whether it belongs to the talk. Host order.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Segment {
    /// SCTP: the verification tag.
    pub seq: u32,
    /// The sequence number behind it: SYN and FIN count as one.
    pub end: u32,
    /// SCTP: the tag that an INIT or INIT ACK asks for in packets of the other direction.
    pub ack: u32,
}

/// How far a segment may lie from the one before it, in bytes. A burst of loss on a fast path is
/// shorter, and who guesses blindly meets it once in 2^9.
const NEAR: u32 = 1 << 22;

/// The one of two numbers that is further on.
#[inline(always)]
pub fn further(one: u32, other: u32) -> u32 {
    if one.wrapping_sub(other).cast_signed() > 0 {
        one
    } else {
        other
    }
}

/// Does the number `new` go on where `known` is? No number yet (0): it is the first one.
#[inline(always)]
fn is_near(known: u32, new: u32) -> bool {
    known == 0 || new.wrapping_sub(known).wrapping_add(NEAR) <= 2 * NEAR
}

impl Segment {
    /// Does it go on where its direction's segments (`own`) have come to, and does it answer what
    /// they have answered to?
    #[inline(always)]
    pub fn is_near<A>(&self, own: &Flow<A>) -> bool {
        is_near(own.end, self.end) && is_near(own.ack, self.ack)
    }

    /// May it change the flow's state? `own` is the entry of its direction, `other` that of the
    /// opposite one. `trusted`: a container sends it, which can end no talk but its own.
    ///
    /// A RST must name the very next byte that its receiver waits for or its sender would send (RFC
    /// 5961 3.2 lets a receiver heed no other), so that a stranger cannot end a flow by guessing. In
    /// answer to a SYN it acknowledges that (RFC 9293 3.10.7.1). A SYN begins anew; that of a stranger
    /// only where there is no connection yet, and a SYN-ACK if it answers a SYN that waits for that.
    #[inline(always)]
    pub fn is_plausible<A>(
        &self,
        flags: u8,
        trusted: bool,
        own: &Flow<A>,
        other: &Flow<A>,
    ) -> bool {
        let ack = flags & tcp::ACK != 0;
        if flags & tcp::RST != 0 {
            return if own.end == 0 {
                ack && self.ack == other.end
            } else {
                self.seq == own.end || self.seq == other.ack
            };
        }
        if flags & tcp::SYN == 0 {
            return self.is_near(own);
        }
        if trusted {
            return true;
        }
        if ack {
            // What has acknowledged something is no SYN. Of one with data (RFC 7413), perhaps the SYN
            // alone is answered.
            other.ack == 0 && other.end.wrapping_sub(self.ack) <= u32::from(u16::MAX)
        } else {
            matches!(own.state, state::NEW | state::REFUSED)
        }
    }

    /// The same for a packet of SCTP: it must have its direction's tag. An ABORT of somebody who knows
    /// of no association has the tag of what it answers (RFC 9260 8.4).
    #[inline(always)]
    pub fn is_tagged<A>(&self, flags: u8, own: &Flow<A>, other: &Flow<A>) -> bool {
        // An INIT has none, and begins anew.
        flags & (tcp::SYN | tcp::ACK) == tcp::SYN
            || self.seq != 0
                && (self.seq == own.end || flags & tcp::RST != 0 && self.seq == other.end)
    }
}

/// The state after a plausible TCP segment with `flags`, seen in the reply direction or not.
#[inline(always)]
pub fn next_tcp_state(state: u8, flags: u8, reply: bool) -> u8 {
    use state::{CLOSE, ESTABLISHED, FIN_ORIGINAL, FIN_REPLY, NEW, REFUSED, REPLIED, TIME_WAIT};
    if flags & tcp::RST != 0 {
        return match state {
            NEW | REPLIED | REFUSED => REFUSED,
            _ => CLOSE,
        };
    }
    let syn = flags & tcp::SYN != 0;
    let ack = flags & tcp::ACK != 0;
    let fin = flags & tcp::FIN != 0;
    match (state, reply) {
        // SYN-ACK, or SYN: a simultaneous open (RFC 9293 3.5) has SYNs cross.
        (NEW | REFUSED, true) if syn => REPLIED,
        (REFUSED, false) if syn => NEW,
        (REPLIED, false) if ack => {
            if fin {
                FIN_ORIGINAL
            } else {
                ESTABLISHED
            }
        }
        (REFUSED, _) => REFUSED,
        // A client opens a new connection from the port of an old one. Its SYN alone changes
        // nothing, for anybody can forge one; the answer does.
        (FIN_ORIGINAL.., true) if syn && ack => REPLIED,
        (FIN_ORIGINAL.., false) if syn => state,
        (ESTABLISHED | CLOSE, false) if fin => FIN_ORIGINAL,
        (ESTABLISHED | CLOSE, true) if fin => FIN_REPLY,
        (FIN_ORIGINAL, true) if fin => TIME_WAIT,
        (FIN_REPLY, false) if fin => TIME_WAIT,
        (CLOSE, _) => ESTABLISHED,
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::proto;

    #[test]
    fn a_half_falls_behind_by_less_than_an_eighth() {
        for timeout in [0, 1, 9, ticks(59), ticks(60), ticks(120), ticks(7440)] {
            let lag = lag(timeout);
            assert!(
                (lag + 1).is_power_of_two() && lag * 8 <= timeout,
                "{timeout}"
            );
        }
    }

    #[test]
    fn expiry_is_exact_and_survives_clock_skew() {
        let timeouts = Timeouts {
            udp_unreplied: 10,
            ..Default::default()
        };
        let is_expired = |flow: &Flow4, now| flow.is_expired(proto::UDP, now, &timeouts);
        let flow = Flow4 {
            seen: 100,
            ..Default::default()
        };
        assert!(!is_expired(&flow, 100));
        assert!(!is_expired(&flow, 99), "another CPU's clock ran ahead");
        assert!(!is_expired(&flow, 110));
        assert!(is_expired(&flow, 111));
        // Where one half may fall behind, it is given that much more.
        let long = Timeouts {
            udp_unreplied: 300,
            ..timeouts
        };
        assert!(!flow.is_expired(proto::UDP, 400 + lag(300), &long));
        assert!(flow.is_expired(proto::UDP, 401 + lag(300), &long));
        let wrapped = Flow4 {
            seen: u32::MAX - 1,
            ..Default::default()
        };
        assert!(!is_expired(&wrapped, 3));
        assert!(is_expired(&wrapped, 20));
    }

    #[test]
    fn a_mapping_does_not_expire_before_the_flow_that_it_was_last_used_by() {
        let timeouts = Timeouts::default();
        for proto in [proto::TCP, proto::UDP, proto::ICMP] {
            for state in state::NEW..=state::REFUSED {
                assert!(timeouts.of_mapping(proto, state) >= timeouts.of(proto, state));
            }
        }
    }

    #[test]
    fn tcp_handshake_and_close() {
        use state::*;
        use tcp::*;
        let mut s = NEW;
        for (flags, reply, want) in [
            (SYN, false, NEW),
            (SYN | ACK, true, REPLIED),
            (ACK, true, REPLIED),
            (ACK, false, ESTABLISHED),
            (ACK, true, ESTABLISHED),
            (FIN | ACK, true, FIN_REPLY),
            (ACK, false, FIN_REPLY),
            (FIN | ACK, false, TIME_WAIT),
            (ACK, true, TIME_WAIT),
        ] {
            s = next_tcp_state(s, flags, reply);
            assert_eq!(s, want);
        }
    }

    #[test]
    fn a_reset_is_provisional() {
        use state::*;
        use tcp::*;
        assert_eq!(next_tcp_state(ESTABLISHED, RST, false), CLOSE);
        assert_eq!(
            next_tcp_state(CLOSE, ACK, true),
            ESTABLISHED,
            "the peer ignored a forged RST"
        );
        assert_eq!(
            next_tcp_state(NEW, RST | ACK, true),
            REFUSED,
            "connection refused"
        );
        assert_eq!(next_tcp_state(REFUSED, SYN, false), NEW, "asked again");
        assert_eq!(next_tcp_state(REFUSED, ACK, false), REFUSED);
        assert!(!is_assured(REFUSED));
    }

    #[test]
    fn a_guessed_segment_ends_nothing() {
        use tcp::*;
        let own = Flow4 {
            end: 5000,
            ack: 900,
            state: state::ESTABLISHED,
            ..Default::default()
        };
        let other = Flow4 {
            end: 900,
            ack: 4990,
            ..Default::default()
        };
        let segment = |flags, seq: u32, ack| {
            let end = seq.wrapping_add(u32::from(flags & (SYN | FIN) != 0));
            Segment { seq, end, ack }
        };
        let is_plausible =
            |flags, seq, ack| segment(flags, seq, ack).is_plausible(flags, false, &own, &other);
        let plausible = |flags, seq| is_plausible(flags, seq, 900);
        assert!(plausible(RST, 5000), "the next byte to send");
        assert!(plausible(RST, 4990), "the next byte waited for");
        for guess in [0, 4989, 4991, 5001, 900, u32::MAX] {
            assert!(!plausible(RST, guess), "{guess}");
        }
        assert!(plausible(FIN | ACK, 5000));
        assert!(plausible(ACK, 4000) && plausible(ACK, 6000));
        assert!(!plausible(FIN | ACK, 5000 + 2 * NEAR));
        assert!(!plausible(ACK, 5000_u32.wrapping_sub(2 * NEAR)));
        assert!(!is_plausible(ACK, 5000, 900 + 2 * NEAR));
        assert!(!plausible(SYN, 77_000_000), "anybody can ask");
        assert!(!plausible(SYN | ACK, 77_000_000), "nobody asked");
        let asked = Flow4 { ack: 0, ..other };
        let answer =
            |ack| segment(SYN | ACK, 77_000_000, ack).is_plausible(SYN | ACK, false, &own, &asked);
        assert!(answer(900) && answer(300), "of a SYN with data");
        assert!(!answer(901));
        let syn = segment(SYN, 77_000_000, 0);
        assert!(syn.is_plausible(SYN, true, &own, &other), "of a container");
    }

    #[test]
    fn a_refusal_names_the_syn() {
        use tcp::*;
        let own = Flow4::default();
        let other = Flow4 {
            end: 1001,
            ..Default::default()
        };
        let refusal = |ack| Segment {
            seq: 0,
            end: 0,
            ack,
        };
        assert!(refusal(1001).is_plausible(RST | ACK, false, &own, &other));
        let forged = Segment {
            seq: 7,
            end: 7,
            ack: 5,
        };
        assert!(!forged.is_plausible(RST | ACK, false, &own, &other));
    }

    #[test]
    fn an_association_is_followed_by_its_tags() {
        use sctp::{ABORT, INIT, INIT_ACK};
        const COOKIE_ECHO: u8 = 10;
        let own = Flow4 {
            end: 7,
            ..Default::default()
        };
        let other = Flow4 {
            end: 8,
            ..Default::default()
        };
        let is_tagged = |chunk, tag| {
            let packet = Segment {
                seq: tag,
                ..Default::default()
            };
            packet.is_tagged(sctp::flags(chunk), &own, &other)
        };
        assert!(is_tagged(INIT, 0) && is_tagged(INIT_ACK, 7) && is_tagged(COOKIE_ECHO, 7));
        assert!(is_tagged(ABORT, 7) && is_tagged(ABORT, 8), "reflected");
        for tag in [0, 8, 9] {
            assert!(
                !is_tagged(INIT_ACK, tag) && !is_tagged(COOKIE_ECHO, tag),
                "{tag}"
            );
        }
        assert!(!is_tagged(ABORT, 0) && !is_tagged(ABORT, 9));
        let unknown = Flow4::default();
        assert!(!Segment::default().is_tagged(sctp::flags(ABORT), &unknown, &unknown));
    }

    #[test]
    fn an_association_is_opened_and_shut_down_as_a_connection_is() {
        use sctp::*;
        use state::*;
        const COOKIE_ECHO: u8 = 10;
        const COOKIE_ACK: u8 = 11;
        const SHUTDOWN_COMPLETE: u8 = 14;
        let mut state = NEW;
        for (chunk, reply, want) in [
            (INIT, false, NEW),
            (INIT_ACK, true, REPLIED),
            (COOKIE_ECHO, false, ESTABLISHED),
            (COOKIE_ACK, true, ESTABLISHED),
            (SHUTDOWN, true, FIN_REPLY),
            (SHUTDOWN_ACK, false, TIME_WAIT),
            (SHUTDOWN_COMPLETE, true, TIME_WAIT),
            (INIT, false, TIME_WAIT),
            (INIT_ACK, true, REPLIED),
            (ABORT, false, REFUSED),
        ] {
            state = next_tcp_state(state, sctp::flags(chunk), reply);
            assert_eq!(state, want, "chunk {chunk}");
        }
    }

    #[test]
    fn a_port_is_reused_by_a_new_handshake_and_by_nothing_less() {
        use state::*;
        use tcp::*;
        for over in [FIN_ORIGINAL, FIN_REPLY, TIME_WAIT, CLOSE] {
            assert_eq!(next_tcp_state(over, SYN, false), over);
            assert_eq!(next_tcp_state(over, SYN | ACK, true), REPLIED);
            assert_eq!(next_tcp_state(REPLIED, ACK, false), ESTABLISHED);
        }
        assert_eq!(next_tcp_state(ESTABLISHED, SYN, false), ESTABLISHED);
        assert_eq!(next_tcp_state(ESTABLISHED, SYN | ACK, true), ESTABLISHED);
    }

    #[test]
    fn a_question_and_its_answer_are_no_talk() {
        use state::*;
        assert_eq!(next_query_state(NEW, false), NEW);
        assert_eq!(next_query_state(NEW, true), REPLIED);
        assert_eq!(next_query_state(REPLIED, true), REPLIED);
        assert_eq!(next_query_state(REPLIED, false), ESTABLISHED);
        assert!(!is_assured(REPLIED) && is_assured(ESTABLISHED) && is_assured(FIN_REPLY));
        assert!(!is_assured(TIME_WAIT) && !is_assured(CLOSE));
    }

    #[test]
    fn an_embryo_is_never_assured_by_a_forged_ack() {
        assert_eq!(next_tcp_state(state::NEW, tcp::ACK, false), state::NEW);
        assert_eq!(next_tcp_state(state::NEW, tcp::ACK, true), state::NEW);
    }

    #[test]
    fn halves_know_each_other() {
        use crate::tuple::Tuple4;
        let client = Ip4::new([192, 0, 2, 9]);
        let node = Ip4::new([192, 0, 2, 1]);
        let container = Ip4::new([172, 18, 0, 2]);
        let key = Tuple4 {
            src: client,
            dst: node,
            sport: Be16::new(40000),
            dport: Be16::new(8080),
            proto: proto::TCP,
            zone: zone::WORLD,
            scope: 0,
        };
        let forward = Flow4 {
            src: client,
            dst: container,
            sport: key.sport,
            dport: Be16::new(80),
            flags: flag::TO_CONTAINER,
            ..Default::default()
        };
        let reply = Flow4 {
            src: node,
            dst: client,
            sport: Be16::new(8080),
            dport: key.sport,
            flags: flag::REPLY,
            ..Default::default()
        };
        let reply_key = forward.reverse_key(proto::TCP);
        assert_eq!(reply_key.zone, zone::CONTAINER);
        assert_eq!(reply.reverse_key(proto::TCP), key);
        assert!(forward.is_half_of(&key, &reply));
        assert!(reply.is_half_of(&reply_key, &forward));
        let stranger = Flow4 {
            dport: Be16::new(1),
            ..reply
        };
        assert!(!forward.is_half_of(&key, &stranger));
    }
}
