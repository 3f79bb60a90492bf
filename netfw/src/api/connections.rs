//! Connections to the agent's listeners, and what a peer can hold of them: so many at a time, one request each, whose
//! head must come soon.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

/// What peers can hold.
#[derive(Clone, Copy)]
pub struct Limits {
    pub at_a_time: usize,
    /// From a connection's begin to the end of its request's head.
    pub head: Duration,
    /// And to its own end.
    pub life: Option<Duration>,
}

/// Of the API, for those of root, and for those of all others: nobody else keeps root out. A request may take long,
/// and `monitor` goes on for as long as somebody listens.
const ROOTS: Limits = Limits {
    at_a_time: 1024,
    head: Duration::from_secs(10),
    life: None,
};
const OTHERS: Limits = Limits {
    at_a_time: 128,
    ..ROOTS
};
/// After a connection that could not be accepted: no file descriptors, at worst.
pub const PAUSE: Duration = Duration::from_millis(100);

/// Those of one kind.
pub struct Connections {
    app: Router,
    limits: Limits,
    room: Arc<Semaphore>,
    open: JoinSet<()>,
    /// Closed when no more requests are taken.
    end: watch::Sender<()>,
}

impl Connections {
    pub fn new(app: Router, limits: Limits) -> Self {
        Self {
            app,
            limits,
            room: Arc::new(Semaphore::new(limits.at_a_time)),
            open: JoinSet::new(),
            end: watch::Sender::new(()),
        }
    }

    /// Answers one request, in a task of its own; hangs up where there is no room.
    pub fn take(&mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        while self.open.try_join_next().is_some() {}
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            tracing::debug!("too many connections at a time");
            return;
        };
        let Limits { head, life, .. } = self.limits;
        let answered = answer(stream, self.app.clone(), head, self.end.subscribe());
        self.open.spawn(async move {
            let answered = match life {
                Some(life) => timeout(life, answered).await,
                None => Ok(answered.await),
            };
            if !matches!(answered, Ok(Ok(()))) {
                tracing::debug!("a connection came to nothing");
            }
            drop(place);
        });
    }

    /// Until the requests that are there are answered.
    pub async fn finish(mut self) {
        drop(self.end);
        while self.open.join_next().await.is_some() {}
    }
}

/// One request.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    app: Router,
    head: Duration,
    mut end: watch::Receiver<()>,
) -> hyper::Result<()> {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = pin!(connection);
    tokio::select! {
        done = connection.as_mut() => return done,
        // Nothing is sent: its other end was dropped.
        _ = end.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// The API, until it is told to stop and what was asked is answered.
pub async fn serve(listener: UnixListener, app: Router, stop: Arc<Notify>) {
    let mut roots = Connections::new(app.clone(), ROOTS);
    let mut others = Connections::new(app, OTHERS);
    loop {
        let accepted = tokio::select! {
            () = stop.notified() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if is_roots(&stream) => roots.take(stream),
            Ok((stream, _)) => others.take(stream),
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    tokio::join!(roots.finish(), others.finish());
}

fn is_roots(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: netfw\r\n\r\n";

    fn connections(at_a_time: usize) -> Connections {
        let app = Router::new().route("/", get(async || "yes"));
        let head = Duration::from_millis(50);
        Connections::new(
            app,
            Limits {
                at_a_time,
                head,
                life: None,
            },
        )
    }

    fn connect(connections: &mut Connections) -> DuplexStream {
        let (client, server) = duplex(4096);
        connections.take(server);
        client
    }

    async fn rest(mut client: DuplexStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn who_finds_no_room_is_hung_up_on() {
        let mut connections = connections(1);
        let mut first = connect(&mut connections);
        assert_eq!(rest(connect(&mut connections)).await, "");
        first.write_all(ASK).await.unwrap();
        assert!(rest(first).await.ends_with("yes"));
    }

    #[tokio::test]
    async fn who_asks_for_nothing_makes_room() {
        let mut connections = connections(1);
        let mut slow = connect(&mut connections);
        slow.write_all(&ASK[..20]).await.unwrap();
        rest(slow).await;
        while connections.open.join_next().await.is_some() {}
        let mut next = connect(&mut connections);
        next.write_all(ASK).await.unwrap();
        assert!(rest(next).await.ends_with("yes"));
    }

    #[tokio::test]
    async fn an_end_waits_for_nobody_who_asks_for_nothing() {
        let mut connections = connections(2);
        let idle = connect(&mut connections);
        // Its task is to have begun.
        tokio::task::yield_now().await;
        connections.finish().await;
        assert_eq!(rest(idle).await, "");
    }
}
