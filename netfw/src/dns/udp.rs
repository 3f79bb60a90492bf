//! Serving one gateway address by UDP.

use std::{sync::Arc, time::Duration};

use tokio::net::UdpSocket;

use super::{
    message::Transport,
    resolver::{Outcome, Resolver},
    socket::Replies,
};
use crate::name::Name;

/// No query is longer; of one that is, the rest is lost, and it cannot be read.
const QUERY: usize = 4096;

/// Answers queries until it is dropped; those that are under way are answered all the same.
pub async fn serve(socket: UdpSocket, replies: Replies, network: Name, resolver: Arc<Resolver>) {
    let replies = Arc::new(replies);
    let mut buffer = vec![0; QUERY];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%network, %error, "no query");
                // No memory, at worst.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let send = move |replies: &Replies, answer: &[u8]| {
            if let Err(error) = replies.send(answer, from) {
                tracing::debug!(to = %from, %error, "an answer was lost");
            }
        };
        match resolver.consider(&network, from.ip(), &buffer[..length], Transport::Udp) {
            Outcome::Silence => {}
            Outcome::Answer(answer) => send(&replies, &answer),
            Outcome::Forward(forwarded) => {
                let replies = replies.clone();
                tokio::spawn(async move { send(&replies, &forwarded.answer().await) });
            }
        }
    }
}
