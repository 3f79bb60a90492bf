//! A container's namespace, with a netlink socket in it.

use crate::{
    name::Name,
    net::{Link, Namespace, NetError, Netlink, Route, namespace::Beside},
};

/// A container's namespace, and a netlink socket in it.
pub(in crate::agent) struct Inside {
    pub namespace: Namespace,
    pub netlink: Netlink,
}

/// What there is in it.
pub(in crate::agent) struct Has {
    pub links: Vec<Link>,
    pub routes: Vec<Route>,
}

impl Inside {
    /// Begins to make a namespace that has no name yet ([`Namespace::leave`]).
    pub(in crate::agent) fn begin() -> Result<Beside<Result<Self, NetError>>, NetError> {
        let runtime = tokio::runtime::Handle::current();
        Beside::start(move || {
            let _entered = runtime.enter();
            let namespace = Namespace::leave()?;
            let netlink = Netlink::current()?;
            Ok(Self { namespace, netlink })
        })
    }

    pub(in crate::agent) fn bind(self, name: &Name) -> Result<Self, NetError> {
        let namespace = self.namespace.bind(name)?;
        Ok(Self { namespace, ..self })
    }

    pub(in crate::agent) fn of(namespace: Namespace) -> Result<Self, NetError> {
        let netlink = Netlink::within(&namespace)?;
        Ok(Self { namespace, netlink })
    }

    pub(in crate::agent) async fn look(&self) -> Result<Has, NetError> {
        Ok(Has {
            links: self.netlink.links().await?,
            routes: self.netlink.routes().await?,
        })
    }

    pub(in crate::agent) async fn raise_loopback(&self) -> Result<(), NetError> {
        match self.netlink.link("lo").await? {
            Some(lo) if !lo.up => self.netlink.set_up(lo.index).await,
            _ => Ok(()),
        }
    }
}
