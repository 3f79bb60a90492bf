//! A wire between two interfaces without Ethernet header: a tun device in each of two namespaces, and
//! a thread each way that carries packets from one to the other.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::Namespace;

/// How long a thread takes to notice that the wire is cut, in ms.
const GLANCE: u8 = 50;

/// Gone when dropped, with both interfaces.
pub struct Tunnel {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tunnel {
    /// A namespace and the name of an interface in it, twice.
    #[track_caller]
    pub fn new(left: (&Namespace, &str), right: (&Namespace, &str)) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let [left, right] = [left, right].map(|(namespace, name)| {
            let device = namespace.enter(|| tun(name));
            device.unwrap_or_else(|error| panic!("tun device {name}: {error}"))
        });
        let copy = |file: &File| file.try_clone().expect("a descriptor");
        let ways = [(copy(&left), copy(&right)), (right, left)];
        let threads = ways.map(|(from, to)| {
            let told = end.clone();
            thread::spawn(move || carry(from, to, &told))
        });
        Self {
            end,
            threads: threads.into(),
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn carry(mut from: File, mut to: File, told: &AtomicBool) {
    let mut packet = vec![0; 1 << 16];
    while !told.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut ready, PollTimeout::from(GLANCE)), Ok(1)) {
            continue;
        }
        // An interface that is down has no packets and takes none.
        if let Ok(length) = from.read(&mut packet) {
            let _ = to.write_all(&packet[..length]);
        }
    }
}

/// A new tun device of the calling thread's namespace; it goes with the file.
fn tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: integers and arrays; zero is a valid value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes a struct ifreq.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(file),
    }
}
