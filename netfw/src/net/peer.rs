//! The other end of a veth pair, which lies in another namespace: does it poll (NAPI)?
//!
//! XDP can send a frame to a veth only where the end that receives it polls, which it does while GRO
//! is on there. The driver (`veth_set_features`) starts polling, and tells that the pair takes frames,
//! when GRO is switched on at an end that is up; so it is switched on there and then.

use rtnetlink::packet_route::link::LinkMessage;

use super::{Link, Namespace, NetError, ethtool, exchange::get_link};

/// What was found when GRO was to be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    pub gro: bool,
}

/// Switches GRO at the other end of the veth `host` of the calling thread's namespace. With `renew`,
/// where it is on already, it goes off and on again: it may have been switched on while the end was
/// down. None where the end is not there or is down, and nothing was done.
pub fn switch_gro(
    host: u32,
    namespace: &Namespace,
    on: bool,
    renew: bool,
) -> Result<Option<Before>, NetError> {
    let look = |index| {
        get_link(index).map_err(|source| NetError::Netlink {
            asked: format!("look up the interface of index {index}"),
            source,
        })
    };
    let Some(peer) = look(host)?.map(link).and_then(|link| link.peer) else {
        return Ok(None);
    };
    namespace.run(move || {
        // Its name may be another one by now, and the index another interface's.
        let Some(end) = look(peer)?.map(link).filter(|end| end.peer == Some(host)) else {
            return Ok(None);
        };
        if !end.up && on {
            return Ok(None);
        }
        let gro = ethtool::gro(&end.name)?;
        if gro && on && renew {
            ethtool::set_gro(&end.name, false)?;
        }
        if gro != on || renew {
            ethtool::set_gro(&end.name, on)?;
        }
        Ok(Some(Before { gro }))
    })?
}

fn link(message: LinkMessage) -> Link {
    message.into()
}
