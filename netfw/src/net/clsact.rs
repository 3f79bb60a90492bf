//! The `clsact` queueing discipline, to which filters are attached on containers' interfaces, and where
//! the kernel has no TCX.

use nix::{errno::Errno, libc};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcHandle, TcMessage},
    },
};

use super::{
    NetError,
    attribute::Attributes,
    exchange::{exchange, exchange_route},
};

/// Removes the interface's clsact unless a filter is left on it. Returns whether it did. To be called
/// by who added it; another's filter that comes between the look and the removal would go with it.
pub fn remove_unused(ifindex: u32) -> Result<bool, NetError> {
    let asked = || format!("remove clsact from the interface of index {ifindex}");
    let failed = |source| NetError::Netlink {
        asked: asked(),
        source,
    };
    let index = i32::try_from(ifindex).map_err(|_| NetError::Answer {
        asked: asked(),
        found: "no interface has that index".into(),
    })?;
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        let mut filters = TcMessage::with_index(index);
        filters.header.parent = TcHandle {
            major: u16::MAX,
            minor,
        };
        let found = exchange(RouteNetlinkMessage::GetTrafficFilter(filters), NLM_F_DUMP);
        match found {
            Ok(0) => {}
            Ok(_) => return Ok(false),
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
    }
    let mut clsact = TcMessage::with_index(index);
    clsact.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    clsact.header.parent = TcHandle::CLSACT;
    match exchange(RouteNetlinkMessage::DelQueueDiscipline(clsact), NLM_F_ACK) {
        Ok(_) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Has the interface one? Or an `ingress`, which has its place.
pub fn is_there(ifindex: u32) -> Result<bool, NetError> {
    Ok(kinds(ifindex)?
        .iter()
        .any(|k| k == CLSACT || k == "ingress"))
}

/// Has the interface a clsact, and no `ingress`?
fn has_egress(ifindex: u32) -> Result<bool, NetError> {
    Ok(kinds(ifindex)?.iter().any(|kind| kind == CLSACT))
}

/// The interface's queueing disciplines. Listed: asked for a single one, the kernel answers nobody but monitors
/// before 6.8 (qdisc_notify).
fn kinds(ifindex: u32) -> Result<Vec<String>, NetError> {
    let mut found = Vec::new();
    let all = TcMessage::with_index(ifindex.cast_signed());
    let asked = exchange_route(
        RouteNetlinkMessage::GetQueueDiscipline(all),
        NLM_F_DUMP,
        |payload| {
            // The kernel lists those of all interfaces.
            if payload.get(4..8) == Some(&ifindex.to_ne_bytes()[..]) {
                let attributes = Attributes::of(payload.get(TCMSG..).unwrap_or_default());
                found.extend(attributes.text(TCA_KIND));
            }
        },
    );
    match asked {
        Ok(()) => Ok(found),
        Err(source) => Err(NetError::Netlink {
            asked: "list the queueing disciplines".into(),
            source,
        }),
    }
}

/// Where filters are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Ingress,
    Egress,
}

/// Is there a filter of this priority and handle, for all protocols?
pub fn has_filter(ifindex: u32, side: Side, priority: u16, handle: u32) -> Result<bool, NetError> {
    let mut filter = message_of(ifindex, side);
    filter.header.handle = handle.into();
    let every = (libc::ETH_P_ALL as u16).to_be();
    filter.header.info = u32::from(priority) << 16 | u32::from(every);
    let found = exchange(RouteNetlinkMessage::GetTrafficFilter(filter), NLM_F_ACK);
    match found {
        Ok(messages) => Ok(messages > 0),
        Err(error) if is_gone(&error) => Ok(false),
        Err(source) => Err(NetError::Netlink {
            asked: format!("look for the filter on the interface of index {ifindex}"),
            source,
        }),
    }
}

fn message_of(ifindex: u32, side: Side) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle {
        major: u16::MAX,
        minor: match side {
            Side::Ingress => TcHandle::MIN_INGRESS,
            Side::Egress => TcHandle::MIN_EGRESS,
        },
    };
    message
}

/// A filter, whosever and of whatever kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// The lowest is asked first.
    pub priority: u16,
    /// Which packets it is asked for: an EtherType, `ETH_P_ALL`.
    pub protocol: u16,
    /// `bpf`, `flower`, `u32`, …
    pub kind: String,
    /// Of a BPF program.
    pub program: Option<u32>,
    /// As its maker called it, of a BPF program.
    pub name: Option<String>,
}

/// The filters of an interface, in the order in which they are asked.
pub fn filters(ifindex: u32, side: Side) -> Result<Vec<Filter>, NetError> {
    let mut found = Vec::new();
    // An `ingress` in clsact's place has one list, and shows it whichever side is asked for.
    if side == Side::Egress && !has_egress(ifindex)? {
        return Ok(found);
    }
    let message = message_of(ifindex, side);
    let asked = exchange_route(
        RouteNetlinkMessage::GetTrafficFilter(message),
        NLM_F_DUMP,
        |payload| found.extend(filter(payload)),
    );
    match asked {
        Ok(()) => {}
        Err(error) if is_gone(&error) => {}
        Err(source) => {
            return Err(NetError::Netlink {
                asked: format!("list the filters of the interface of index {ifindex}"),
                source,
            });
        }
    }
    // A filter may have many parts.
    found.sort_by_key(|filter| filter.priority);
    found.dedup();
    Ok(found)
}

// linux/rtnetlink.h, linux/pkt_cls.h
const CLSACT: &str = "clsact";
/// The length of `struct tcmsg`.
const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// `struct tcmsg`: family, interface, at 8 the handle, parent, at 16 priority and protocol; then attributes.
/// None of one without a handle, which stands for all of its kind and priority.
fn filter(message: &[u8]) -> Option<Filter> {
    let (head, attributes) = message.split_first_chunk::<TCMSG>()?;
    let word = |at: usize| head[at..].first_chunk().copied().map(u32::from_ne_bytes);
    if word(8)? == 0 {
        return None;
    }
    let attributes = Attributes::of(attributes);
    let kind = attributes.text(TCA_KIND)?;
    let options = attributes.within(TCA_OPTIONS);
    let is_bpf = kind == "bpf";
    Some(Filter {
        priority: (word(16)? >> 16) as u16,
        protocol: u16::from_be(word(16)? as u16),
        program: options.ne32(TCA_BPF_ID).filter(|_| is_bpf),
        name: options.text(TCA_BPF_NAME).filter(|_| is_bpf),
        kind,
    })
}

/// No such interface, or no such queueing discipline on it.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::attribute::made::{attribute, nested, text};

    fn message(handle: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let words = [0, 2, handle, 0, 0x6e66_0300];
        let head = words.iter().flat_map(|word: &u32| word.to_ne_bytes());
        head.chain(attributes.concat()).collect()
    }

    #[test]
    fn filters_are_told_apart() {
        let options = nested(
            TCA_OPTIONS,
            &[
                attribute(TCA_BPF_ID, &7u32.to_ne_bytes()),
                text(TCA_BPF_NAME, "sniffer"),
            ],
        );
        let found = filter(&message(1, &[text(TCA_KIND, "bpf"), options.clone()]));
        let wanted = Filter {
            priority: 0x6e66,
            protocol: libc::ETH_P_ALL as u16,
            kind: "bpf".into(),
            program: Some(7),
            name: Some("sniffer".into()),
        };
        assert_eq!(found, Some(wanted));
        // The same numbers mean something else there.
        let other = filter(&message(1, &[text(TCA_KIND, "flower"), options])).unwrap();
        assert_eq!((other.program, other.name), (None, None));
        assert_eq!(filter(&message(0, &[text(TCA_KIND, "bpf")])), None);
        assert_eq!(filter(&[0; 19]), None);
    }
}
