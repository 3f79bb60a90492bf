//! What somebody who listens is told of each packet that the rig sends: of a drop, by any programs; of all
//! that becomes of it, by programs that trace.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use netfw_common::{
    drop::Drop,
    event::{Action, Ends, Event, Filter, Hook, wants},
    tuple::proto,
};
use netfw_tests::{packet::Seen, site::Site};

use super::{Outcome, Rig};

/// The filters' numbers.
const DROPS: u32 = 0;
const TRACES: u32 = 1;

/// Headers of IPv6 that an event does not look behind: hop-by-hop, routing, a second one of fragments, AH,
/// destination options, and those of mobility.
const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// Where a transport header may begin, in bytes of the packet: nobody needs to look for it beyond.
const REACH: usize = 400;

/// Has everything told, however much it is.
pub fn listen(site: &mut Site) {
    let traces = Filter {
        wants: wants::TRACES,
        ..Filter::ALL_DROPS
    };
    site.listen(&[Filter::ALL_DROPS, traces]);
}

fn addr(ends: &Ends) -> (SocketAddr, SocketAddr) {
    let ip = |addr| IpAddr::from(Ipv6Addr::from(addr)).to_canonical();
    (
        SocketAddr::new(ip(ends.src), ends.sport.get()),
        SocketAddr::new(ip(ends.dst), ends.dport.get()),
    )
}

/// Are these the ends of the packet?
#[track_caller]
fn check_ends(event: &Event, ends: &Ends, seen: &Seen) {
    let (source, destination) = addr(ends);
    assert_eq!(
        (source.ip(), destination.ip()),
        (seen.source.ip(), seen.destination.ip()),
        "{event:?}"
    );
    if EXTENSIONS.contains(&event.proto) && event.proto != seen.protocol {
        return;
    }
    assert_eq!(event.proto, seen.protocol, "{event:?}");
    match event.proto {
        _ if seen.is_fragment => {}
        proto::TCP | proto::UDP | proto::SCTP => {
            let ports = (seen.source.port(), seen.destination.port());
            let told = (source.port(), destination.port());
            let unread = told == (0, 0) && seen.ip_len - seen.ip_payload.len() > REACH;
            // Of headers cut short, whatever is there.
            if ports != (0, 0) && !unread {
                assert_eq!(told, ports, "{event:?}");
            }
        }
        proto::ICMP | proto::ICMPV6 if seen.is_icmp_error() => {
            assert_eq!((source.port(), destination.port()), (0, 0), "{event:?}");
        }
        _ => {}
    }
}

impl Rig {
    /// The events since the last time: of drops, and of what is traced.
    pub fn told(&mut self) -> (Vec<Event>, Vec<Event>) {
        let events = self.site.events();
        let of = |number: u32| {
            let wanted = move |event: &&Event| event.filters >> number & 1 == 1;
            events.iter().filter(wanted).copied().collect()
        };
        (of(DROPS), of(TRACES))
    }

    /// Has what suits these filters told from now on, and nothing else.
    pub fn listen(&mut self, filters: &[Filter]) {
        self.site.listen(filters);
    }

    /// What was told since the last time.
    pub fn events(&mut self) -> Vec<Event> {
        self.site.events()
    }

    /// See [`Site::suppressed`].
    pub fn suppressed(&self, filter: u32) -> u64 {
        self.site.suppressed(filter)
    }

    /// What came of a packet is what was told, and nothing else.
    #[track_caller]
    pub(super) fn check_told(&mut self, hook: Hook, ifindex: u32, frame: &[u8], outcome: &Outcome) {
        if self.unchecked {
            return;
        }
        let (mut drops, mut traces) = self.told();
        let (reason, actions): (_, &[Action]) = match outcome {
            Outcome::Passed => (None, &[Action::Pass]),
            Outcome::Dropped(reason) => (Some(*reason), &[Action::Drop]),
            // A piece that waited in vain is noticed beside another packet, which goes on.
            Outcome::Answered(Drop::LostFragment, _) => (None, &[Action::Container, Action::Out]),
            Outcome::Answered(reason, _) => (Some(*reason), &[Action::Answer]),
            Outcome::Held => (None, &[Action::Hold]),
            Outcome::Sent(_) | Outcome::Unreadable => {
                (None, &[Action::Container, Action::Out, Action::Again])
            }
        };
        let lost = drops
            .iter()
            .filter(|event| event.drop() == Some(Drop::LostFragment));
        if matches!(outcome, Outcome::Answered(Drop::LostFragment, _)) {
            assert_eq!(lost.count(), 1, "{drops:?}");
        }
        if reason != Some(Drop::LostFragment) {
            drops.retain(|event| event.drop() != Some(Drop::LostFragment));
            traces.retain(|event| event.drop() != Some(Drop::LostFragment));
        }
        let told: Vec<_> = drops.iter().map(Event::drop).collect();
        assert_eq!(
            told,
            Vec::from_iter(reason.map(Some)),
            "{outcome:?}: {drops:?}"
        );
        let before = Seen::try_parse(frame);
        for event in &drops {
            assert_eq!((event.hook, event.ifindex), (hook as u8, ifindex));
            assert_eq!(event.action, actions[0] as u8);
            // SCTP's first fragment is found untranslatable when its addresses have been rewritten.
            let rewritten = reason == Some(Drop::Untranslatable) && event.proto == proto::SCTP;
            if let Ok(seen) = &before
                && is_ip(event)
                && !(seen.is_fragment && rewritten)
            {
                check_ends(event, &event.before, seen);
                assert_eq!(event.len, seen.ip_len as u32, "{event:?}");
            }
        }
        assert_eq!(traces.len(), usize::from(self.site.traces), "{traces:?}");
        for event in &traces {
            assert_eq!((event.hook, event.ifindex), (hook as u8, ifindex));
            let matches = actions.iter().any(|action| *action as u8 == event.action);
            assert!(matches, "{outcome:?}: {event:?}");
            if let Ok(seen) = &before
                && is_ip(event)
            {
                check_ends(event, &event.before, seen);
            }
            match outcome {
                Outcome::Sent(after) if event.action != Action::Again as u8 => {
                    check_ends(event, &event.after, after);
                }
                Outcome::Answered(Drop::LostFragment, _) => {}
                _ => assert_eq!(event.after, event.before),
            }
        }
    }
}

fn is_ip(event: &Event) -> bool {
    matches!(event.ethertype.get(), 0x0800 | 0x86dd)
}
