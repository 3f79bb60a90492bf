//! Serving one gateway address by TCP (RFC 7766): queries may come one after the other without
//! waiting, and are answered in the order in which answers are found.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use super::{
    message::Transport,
    resolver::{Outcome, Resolver},
    upstream::framed,
};
use crate::name::Name;

/// How long a connection may be silent, or an answer may take to be taken.
const IDLE: Duration = Duration::from_secs(10);
/// Answers of one connection that are not sent yet; no more queries are read before they are.
const PIPELINE: usize = 32;

/// Serves connections until it is dropped, and they with it.
pub async fn serve(listener: TcpListener, network: Name, resolver: Arc<Resolver>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let Some(pass) = resolver.connect(&network, from.ip()) else {
                        tracing::debug!(%from, %network, "too many connections");
                        continue;
                    };
                    let (network, resolver) = (network.clone(), resolver.clone());
                    connections.spawn(async move {
                        talk(stream, from.ip(), network, resolver, IDLE).await;
                        drop(pass);
                    });
                }
                Err(error) => {
                    tracing::debug!(%network, %error, "no connection");
                    // No file descriptors, at worst.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn talk(
    stream: TcpStream,
    from: IpAddr,
    network: Name,
    resolver: Arc<Resolver>,
    idle: Duration,
) {
    let _ = stream.set_nodelay(true);
    let (mut reader, mut writer) = stream.into_split();
    let (answers, mut outbox) = mpsc::channel(PIPELINE);
    let read = async move {
        // Until it ends, or is silent; what was asked is still answered.
        while let Ok(Ok(query)) = timeout(idle, receive(&mut reader)).await {
            let outcome = resolver.consider(&network, from, &query, Transport::Tcp);
            // A place for the answer, before the next query is read.
            let Ok(place) = answers.clone().reserve_owned().await else {
                break;
            };
            match outcome {
                Outcome::Silence => {}
                Outcome::Answer(answer) => drop(place.send(answer)),
                Outcome::Forward(forwarded) => {
                    tokio::spawn(async move { place.send(forwarded.answer().await) });
                }
            }
        }
    };
    let write = async move {
        while let Some(answer) = outbox.recv().await {
            if !matches!(timeout(idle, send(&mut writer, &answer)).await, Ok(Ok(()))) {
                break;
            }
        }
    };
    tokio::join!(read, write);
}

async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut query = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), answer: &[u8]) -> io::Result<()> {
    stream.write_all(&framed(answer)).await
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Instant};

    use hickory_proto::{
        op::{Message, ResponseCode},
        rr::RecordType,
    };

    use super::*;
    use crate::dns::{
        limit::Limits,
        message::{set_id, tests::query},
        resolver::tests::{LIMITS, resolver},
    };

    async fn listen(limits: &Limits) -> (SocketAddr, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let resolver = resolver(directory.path(), limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, "front".parse().unwrap(), resolver));
        (addr, directory)
    }

    async fn answer(stream: &mut TcpStream) -> Message {
        let bytes = timeout(Duration::from_secs(5), receive(stream)).await;
        Message::from_vec(&bytes.expect("in time").unwrap()).unwrap()
    }

    #[tokio::test]
    async fn queries_may_come_all_at_once_and_in_pieces() {
        let (addr, _directory) = listen(&LIMITS).await;
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let mut bytes = Vec::new();
        for id in 0..100 {
            let mut query = query("web.", RecordType::A, None);
            set_id(&mut query, id);
            bytes.extend(framed(&query));
        }
        for piece in bytes.chunks(7) {
            stream.write_all(piece).await.unwrap();
        }
        // No more to come, but answers are due.
        stream.shutdown().await.unwrap();
        for id in 0..100 {
            let answer = answer(&mut stream).await;
            assert_eq!((answer.metadata.id, answer.answers.len()), (id, 1));
        }
        assert!(receive(&mut stream).await.is_err(), "the end");
    }

    #[tokio::test]
    async fn what_is_forwarded_keeps_nothing_waiting_behind_it() {
        let (addr, _directory) = listen(&LIMITS).await;
        let mut stream = TcpStream::connect(addr).await.unwrap();
        for (id, name) in [(1, "example.org."), (2, "web.")] {
            let mut query = query(name, RecordType::A, None);
            set_id(&mut query, id);
            stream.write_all(&framed(&query)).await.unwrap();
        }
        let mut told = [answer(&mut stream).await, answer(&mut stream).await];
        told.sort_by_key(|message| message.metadata.id);
        assert_eq!(told[0].metadata.response_code, ResponseCode::ServFail);
        assert_eq!(told[1].answers.len(), 1);
    }

    #[tokio::test]
    async fn one_asker_has_so_many_connections_and_no_more() {
        let (addr, _directory) = listen(&LIMITS).await;
        let ask = async |stream: &mut TcpStream| {
            let query = framed(&query("web.", RecordType::A, None));
            stream.write_all(&query).await?;
            receive(stream).await
        };
        let mut first = TcpStream::connect(addr).await.unwrap();
        let mut second = TcpStream::connect(addr).await.unwrap();
        ask(&mut first).await.unwrap();
        ask(&mut second).await.unwrap();
        let mut third = TcpStream::connect(addr).await.unwrap();
        assert!(ask(&mut third).await.is_err());
        drop(first);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut fourth = TcpStream::connect(addr).await.unwrap();
            if ask(&mut fourth).await.is_ok() {
                break;
            }
            assert!(Instant::now() < deadline, "its place is still taken");
        }
    }

    #[tokio::test]
    async fn a_silent_connection_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let resolver = resolver(directory.path(), &LIMITS);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        // Half a query is as good as none.
        client.write_all(&[0]).await.unwrap();
        let idle = Duration::from_millis(50);
        let network = "front".parse().unwrap();
        let talk = talk(stream, from.ip(), network, resolver, idle);
        timeout(Duration::from_secs(5), talk).await.expect("an end");
        assert!(receive(&mut client).await.is_err());
    }
}
