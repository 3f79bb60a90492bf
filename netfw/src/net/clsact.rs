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

use super::{NetError, exchange::exchange};

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
    let mut clsact = TcMessage::with_index(ifindex.cast_signed());
    clsact.header.parent = TcHandle::CLSACT;
    match exchange(RouteNetlinkMessage::GetQueueDiscipline(clsact), NLM_F_ACK) {
        Ok(messages) => Ok(messages > 0),
        Err(error) if is_gone(&error) => Ok(false),
        Err(source) => Err(NetError::Netlink {
            asked: format!("look for clsact on the interface of index {ifindex}"),
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
    let mut filter = TcMessage::with_index(ifindex.cast_signed());
    filter.header.parent = TcHandle {
        major: u16::MAX,
        minor: match side {
            Side::Ingress => TcHandle::MIN_INGRESS,
            Side::Egress => TcHandle::MIN_EGRESS,
        },
    };
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

/// No such interface, or no such queueing discipline on it.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL)
    )
}
