//! Tells who started the agent how it is getting on: sd_notify(3), for units with `Type=notify`.
//!
//! The socket is connected before the agent enters the node's namespace: one whose address is
//! abstract belongs to a network namespace.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Nobody to tell, as a rule.
pub struct ServiceManager(Option<UnixDatagram>);

impl ServiceManager {
    /// To whom `NOTIFY_SOCKET` says, if it is set.
    pub fn from_environment() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
            return Self(None);
        };
        match connect(&address) {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                tracing::warn!(address = %address.display(), %error, "NOTIFY_SOCKET cannot be reached");
                Self(None)
            }
        }
    }

    /// `READY=1`, `STOPPING=1`. Who does not listen misses it.
    pub fn tell(&self, state: &str) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::debug!(%error, "{state} was not told");
        }
    }
}

/// An absolute path, or an abstract address behind `@`.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(address)?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_addresses_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("netfw-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (listener, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into()),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            let address: std::ffi::OsString = address;
            ServiceManager(Some(connect(&address).unwrap())).tell("READY=1");
            let mut buffer = [0; 64];
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
        assert!(connect(OsStr::new("/no/such/socket")).is_err());
        ServiceManager(None).tell("READY=1");
    }
}
