//! Which XDP program an interface runs and how, as the kernel tells it (`IFLA_XDP`): whoever
//! attached it, and whatever mode was asked for.

use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};

use super::{NetError, exchange::get_link};

/// How an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before there is an skb.
    Native,
    /// On skbs, with any driver, and at the price of one.
    Generic,
    /// On the device itself, or several of these.
    Other,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    pub mode: Mode,
    /// The program's id.
    pub program: u32,
}

/// The program on an interface of the calling thread's namespace, if there is one.
pub fn attached(ifindex: u32) -> Result<Option<Attached>, NetError> {
    let asked = format!("ask for the XDP program of the interface of index {ifindex}");
    match get_link(ifindex) {
        Ok(message) => Ok(message.as_ref().and_then(of)),
        Err(source) => Err(NetError::Netlink { asked, source }),
    }
}

fn of(message: &LinkMessage) -> Option<Attached> {
    let attributes = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::Xdp(attributes) => Some(attributes),
        _ => None,
    })?;
    let mut mode = None;
    let mut program = 0;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(XdpAttached::None) => {}
            LinkXdp::Attached(XdpAttached::Driver) => mode = Some(Mode::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(Mode::Generic),
            LinkXdp::Attached(_) => mode = Some(Mode::Other),
            LinkXdp::ProgId(id) => program = *id,
            _ => {}
        }
    }
    mode.map(|mode| Attached { mode, program })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(xdp: Vec<LinkXdp>) -> Option<Attached> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Xdp(xdp));
        of(&message)
    }

    #[test]
    fn the_kernel_says_how_a_program_runs() {
        assert_eq!(with(vec![LinkXdp::Attached(XdpAttached::None)]), None);
        assert_eq!(of(&LinkMessage::default()), None);
        for (attached, mode) in [
            (XdpAttached::Driver, Mode::Native),
            (XdpAttached::SocketBuffer, Mode::Generic),
            (XdpAttached::Hardware, Mode::Other),
            (XdpAttached::Multiple, Mode::Other),
        ] {
            let found = with(vec![LinkXdp::Attached(attached), LinkXdp::ProgId(7)]);
            assert_eq!(found, Some(Attached { mode, program: 7 }));
        }
    }
}
