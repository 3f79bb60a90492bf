//! Lists of what a namespace has, over `NETLINK_ROUTE`: interfaces, addresses, routes, what bridges have learned.
//!
//! A list that changes while the kernel writes it down may lack what is there, or have it twice; the kernel says so
//! (`NLM_F_DUMP_INTR`), and it is asked for again.

use futures::StreamExt as _;
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::{LinkAttribute, LinkExtentMask, LinkMessage},
        neighbour::NeighbourMessage,
    },
};

use super::{
    Address, Forwarding, Link, NetError, Netlink, Route,
    exchange::{self, DUMP_INTERRUPTED, TRIES},
};

impl Netlink {
    pub async fn links(&self) -> Result<Vec<Link>, NetError> {
        let mut message = LinkMessage::default();
        // A third of each message, and most of the kernel's work.
        let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        message.attributes.push(mask);
        let request = RouteNetlinkMessage::GetLink(message);
        self.list("interfaces", request, |message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
            _ => None,
        })
        .await
    }

    pub async fn addresses(&self) -> Result<Vec<Address>, NetError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.list("addresses", request, |message| match message {
            RouteNetlinkMessage::NewAddress(message) => Address::from_message(&message),
            _ => None,
        })
        .await
    }

    /// The unicast routes of all tables, IPv4 and IPv6.
    pub async fn routes(&self) -> Result<Vec<Route>, NetError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessageBuilder::<std::net::IpAddr>::new().build();
            message.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(message);
            let found = self.list("routes", request, |message| match message {
                RouteNetlinkMessage::NewRoute(message) => Route::from_message(&message),
                _ => None,
            });
            routes.extend(found.await?);
        }
        Ok(routes)
    }

    /// What bridges know to be behind their port of this index: `bridge fdb show dev …`.
    pub async fn forwarding(&self, ifindex: u32) -> Result<Vec<Forwarding>, NetError> {
        // All ports' entries: kernels take no filter in this request that older ones do not refuse.
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let request = RouteNetlinkMessage::GetNeighbour(message);
        let learned = self.list(
            "what bridges have learned",
            request,
            |message| match message {
                RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == ifindex => {
                    Forwarding::from_message(&message)
                }
                _ => None,
            },
        );
        let mut all = learned.await?;
        // One for each VLAN, and one without.
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// The whole of a list, or an error ([`std::io::ErrorKind::Interrupted`]) where it does not stop changing.
    async fn list<T>(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetError> {
        let asked = || format!("list the {what}");
        let failed = |error| NetError::netlink(asked(), error);
        for _ in 0..TRIES {
            let mut request = NetlinkMessage::from(request.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut answer = self.handle.clone().request(request).map_err(failed)?;
            let (mut found, mut interrupted) = (Vec::new(), false);
            while let Some(message) = answer.next().await {
                interrupted |= message.header.flags & DUMP_INTERRUPTED != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => found.extend(read(message)),
                    NetlinkPayload::Error(error) => {
                        return Err(failed(rtnetlink::Error::NetlinkError(error)));
                    }
                    _ => {}
                }
            }
            if !interrupted {
                return Ok(found);
            }
        }
        Err(NetError::Netlink {
            asked: asked(),
            source: exchange::never_still(),
        })
    }
}
