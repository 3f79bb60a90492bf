//! Serving the metrics on an address of their own, in the node's network namespace.
//!
//! There is no password and no encryption: whoever reaches the address may read, but for containers, who would
//! reach any address of the node that is not a loopback one. What a peer can hold is bounded: so many connections,
//! one request each, for so long.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{fs::FileTypeExt as _, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket, UnixListener},
    sync::Mutex,
};

use super::Address;
use crate::{
    agent::{Agent, AgentError, run::listen},
    api::connections::{Connections, Limits, PAUSE},
};

const LIMITS: Limits = Limits {
    at_a_time: 16,
    head: Duration::from_secs(10),
    life: Some(Duration::from_secs(30)),
};

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "metrics cannot be served at {address}: somebody has that port: a process (`ss -ltnp`) or a publish \
         (`netfw port`); end that, or choose another port (--metrics, or `metrics` in the configuration)"
    )]
    Taken { address: Address },
    #[error(
        "metrics cannot be served at {address}: there is no directory {directory}: make it (`RuntimeDirectory=` of a \
         unit does), or choose another path (--metrics, or `metrics` in the configuration)"
    )]
    NoDirectory {
        address: Address,
        directory: PathBuf,
    },
    #[error(
        "metrics cannot be served at {address}: {path} is there, and no socket that nobody serves; remove it, or choose another path"
    )]
    InTheWay { address: Address, path: PathBuf },
    #[error("metrics cannot be served at {address}: {source}")]
    Io { address: Address, source: io::Error },
}

/// Where metrics will be served.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// Its file goes with the value.
    Unix(UnixListener, PathBuf),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self
            && let Err(error) = fs::remove_file(&*path)
        {
            tracing::debug!(%error, "the metrics' socket was gone already");
        }
    }
}

impl Listener {
    /// In the calling thread's network namespace, which need not have the address (yet). `group` may open a unix
    /// socket, beside root.
    pub fn bind(address: &Address, group: Option<&str>) -> Result<Self, AgentError> {
        match address {
            Address::Tcp(addr) => match bind_ahead(*addr) {
                Ok(listener) => Ok(Self::Tcp(listener)),
                Err(source) => {
                    let address = address.clone();
                    Err(match source.kind() {
                        io::ErrorKind::AddrInUse => ServeError::Taken { address },
                        _ => ServeError::Io { address, source },
                    }
                    .into())
                }
            },
            Address::Unix(path) => {
                let directory = path.parent().unwrap_or(path);
                if !directory.is_dir() {
                    return Err(ServeError::NoDirectory {
                        address: address.clone(),
                        directory: directory.to_owned(),
                    }
                    .into());
                }
                if !is_free(path) {
                    return Err(ServeError::InTheWay {
                        address: address.clone(),
                        path: path.clone(),
                    }
                    .into());
                }
                Ok(Self::Unix(listen(path, group)?, path.clone()))
            }
        }
    }

    /// Until it is dropped.
    pub async fn serve(self, app: Router, agent: Arc<Mutex<Agent>>) {
        let mut connections = Connections::new(app, LIMITS);
        loop {
            let accepted = match &self {
                Self::Tcp(listener) => match listener.accept().await {
                    Ok((_, peer)) if agent.lock().await.is_container(peer.ip()) => {
                        tracing::debug!(%peer, "a container is told no metrics");
                        continue;
                    }
                    Ok((stream, _)) => {
                        connections.take(stream);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                Self::Unix(listener, _) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| connections.take(stream)),
            };
            if let Err(error) = accepted {
                tracing::debug!(%error, "nobody for metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A listener for an address that may come later, with the interface or a DHCP lease.
fn bind_ahead(addr: SocketAddr) -> io::Result<TcpListener> {
    /// As many as std asks the kernel to keep.
    const BACKLOG: u32 = 128;
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // One flag for both families (`inet_can_nonlocal_bind`).
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Nothing is there, or what somebody left who died.
fn is_free(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(meta) => meta.file_type().is_socket() && StdUnixStream::connect(path).is_err(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Does anybody but processes of this machine reach it?
pub fn is_open(address: &Address) -> bool {
    match address {
        Address::Tcp(addr) => !addr.ip().to_canonical().is_loopback(),
        Address::Unix(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_needs_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.sock");
        assert!(is_free(&path));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(!is_free(&path), "it is served");
        drop(listener);
        assert!(is_free(&path), "it is a leftover");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(!is_free(&path), "it is a file");
    }

    #[test]
    fn loopback_is_closed_and_all_else_open() {
        for (address, open) in [
            ("127.0.0.1:1", false),
            ("[::1]:1", false),
            ("unix:/m", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("192.0.2.1:1", true),
        ] {
            assert_eq!(is_open(&address.parse().unwrap()), open, "{address}");
        }
    }
}
