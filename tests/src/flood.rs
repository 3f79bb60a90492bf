//! Packets from many who never sent them, as fast as one thread can.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::net::if_::if_nametoindex;

use crate::{Namespace, netns, packet::Packet, tap::Tap};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Syn,
    Datagram,
}

/// A flood that goes on until the value is dropped.
pub struct Flood {
    end: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// By `from`'s `eth0`, in frames for `mac`. The sources come round after `sources`.
    #[track_caller]
    pub fn start(
        from: &Namespace,
        mac: [u8; 6],
        to: (IpAddr, u16),
        kind: Kind,
        sources: u32,
    ) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU32::new(0));
        let (path, ended, count) = (from.path(), end.clone(), sent.clone());
        let own = crate::topology::mac(from, "eth0");
        let to = SocketAddr::from(to).to_string();
        let thread = thread::spawn(move || {
            let tap = netns::enter(&path, || {
                Tap::on(if_nametoindex("eth0").expect("an interface"))
            });
            for n in 0u32.. {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let source = source(&to, n % sources);
                let packet = match kind {
                    Kind::Syn => Packet::tcp(&source, &to, "S"),
                    Kind::Datagram => Packet::udp(&source, &to),
                };
                tap.send(&packet.macs(own, mac).build());
                count.store(n, Ordering::Relaxed);
            }
        });
        Self {
            end,
            sent,
            thread: Some(thread),
        }
    }

    /// Packets so far.
    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// An address (RFC 6598, 3849) and port of nobody's, of the family of `like`.
fn source(like: &str, n: u32) -> String {
    let [_, b, c, d] = n.to_be_bytes();
    let ip: IpAddr = if like.starts_with('[') {
        let [high, low] = [n >> 16, n & 0xffff].map(|part| part as u16);
        Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, high, low).into()
    } else {
        Ipv4Addr::new(100, 64 | b & 63, c, d).into()
    };
    SocketAddr::new(ip, 1024 + (n % 60_000) as u16).to_string()
}
