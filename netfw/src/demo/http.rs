//! HTTP, as much as it takes: a server that answers with the address that it saw, and a client
//! that makes several requests a connection.
//!
//! A socket belongs to the namespace that it was made in, so only the making needs a thread there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::net::Namespace;

/// For any one step of a request; nothing here takes a hundredth of it when all is well.
const PATIENCE: Duration = Duration::from_secs(3);

/// Requests that one connection carries.
pub const EACH: usize = 20;

/// The addresses that requests came from.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<BTreeSet<IpAddr>>>);

impl Seen {
    /// Those of the family of `like`.
    pub fn addresses(&self, like: IpAddr) -> Vec<IpAddr> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = seen.iter().copied();
        all.filter(|ip| ip.is_ipv4() == like.is_ipv4()).collect()
    }

    fn note(&self, from: IpAddr) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(from);
    }
}

/// Serves on `port` in `namespace` until the runtime ends.
pub fn serve(namespace: &Namespace, port: u16) -> anyhow::Result<Seen> {
    let listener = namespace
        // Both families, where there are two.
        .run(move || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        })?
        .with_context(|| format!("port {port} in {}", namespace.label()))?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let seen = Seen::default();
    let shared = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            let from = from.ip().to_canonical();
            shared.note(from);
            // A client that went away is its own business.
            tokio::spawn(async move {
                let _ = tokio::time::timeout(PATIENCE, answer(stream, from)).await;
            });
        }
    });
    Ok(seen)
}

async fn answer(mut stream: tokio::net::TcpStream, from: IpAddr) -> io::Result<()> {
    let body = format!("you are {from}\n");
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut request = Vec::new();
    loop {
        // Clients of this demo send the next request after the answer to the last, and none has a
        // body; curl's have neither.
        while !request.ends_with(b"\r\n\r\n") && request.len() < 8192 {
            if stream.read_buf(&mut request).await? == 0 {
                return stream.shutdown().await;
            }
        }
        request.clear();
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// Makes `count` requests from within `namespace`, one after the other, [`EACH`] a connection.
/// Returns the bodies of those that were answered 200, and how often each came.
pub async fn get(
    namespace: &Namespace,
    to: SocketAddr,
    count: usize,
) -> anyhow::Result<BTreeMap<String, usize>> {
    within(namespace, move || {
        let mut bodies = BTreeMap::new();
        let mut left = count;
        while left > 0 {
            let few = left.min(EACH);
            for body in requests(to, few).with_context(|| format!("a request to {to}"))? {
                *bodies.entry(body).or_default() += 1;
            }
            left -= few;
        }
        Ok(bodies)
    })
    .await?
}

/// Does anybody answer there?
pub async fn reaches(
    namespace: &Namespace,
    to: SocketAddr,
    patience: Duration,
) -> anyhow::Result<bool> {
    within(namespace, move || {
        TcpStream::connect_timeout(&to, patience).is_ok()
    })
    .await
}

/// Runs blocking code in the namespace, and leaves this thread to the servers meanwhile.
pub async fn within<T: Send + 'static>(
    namespace: &Namespace,
    f: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let namespace = namespace.try_clone()?;
    Ok(tokio::task::spawn_blocking(move || namespace.run(f)).await??)
}

fn requests(to: SocketAddr, count: usize) -> anyhow::Result<Vec<String>> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    (0..count).map(|_| request(&mut reader, to)).collect()
}

fn request(stream: &mut BufReader<TcpStream>, to: SocketAddr) -> anyhow::Result<String> {
    let request = format!("GET / HTTP/1.1\r\nHost: {to}\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    anyhow::ensure!(line.starts_with("HTTP/1.1 200 "), "answered {line:?}");
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse()?,
            Some(_) => {}
            None => break,
        }
    }
    anyhow::ensure!(length < 8192, "a body of {length} bytes");
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(String::from_utf8(body)?)
}
