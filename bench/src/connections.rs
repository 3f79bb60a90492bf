//! New HTTP connections per second: connect, one request, one answer, closed by the server.
//!
//! The server is nginx in the container, on a CPU of its own where there are two; the client's
//! threads share another. With two cores for client, server and the way between, the figure shows
//! what the way takes from both.
//!
//! The server closes first, so TIME_WAIT is kept in the container, where a newer SYN may reuse it.
//! Every client thread has an address of its own and goes through its ports in turn, so that none
//! is used twice within a round and none is searched for. Flow tables are emptied before a round:
//! entries of closed connections stay for minutes, and no table holds those of a whole run.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netfw_tests::{Running, topology::CLIENT, wait_until};
use nix::sys::{
    socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike as _},
};
use tempfile::TempDir;

use crate::{contender::Contender, cpu};

const THREADS: u8 = 16;
const FIRST_PORT: u16 = 2000;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
/// A connection that takes longer counts as failed.
const PATIENCE: i64 = 2;

pub struct Lane {
    // Dropped in this order: nginx before its files and its namespace.
    _nginx: Running,
    _directory: TempDir,
    contender: Contender,
    /// The next source port of each thread.
    ports: Vec<AtomicU16>,
}

impl Lane {
    pub fn new(contender: Contender) -> Result<Self> {
        // The client's own address serves the first thread.
        for thread in 1..THREADS {
            let address = source(thread);
            contender
                .lab
                .client
                .ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        }
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let nginx = nginx(&contender, &directory)?;
        let lane = Self {
            _nginx: nginx,
            _directory: directory,
            contender,
            ports: (0..THREADS).map(|_| AtomicU16::new(FIRST_PORT)).collect(),
        };
        let target = lane.target()?;
        wait_until("nginx to answer", Duration::from_secs(10), || {
            lane.contender.lab.client.enter(|| {
                let port = lane.ports[0].fetch_add(1, Ordering::Relaxed);
                one(SocketAddrV4::new(source(0), port), target).is_ok()
            })
        });
        Ok(lane)
    }

    /// Connections per second.
    pub fn run(&self, duration: Duration) -> Result<f64> {
        self.contender.forget_flows();
        let target = self.target()?;
        let cpu = cpu::sender()?;
        let start = Instant::now();
        let (done, failed) = self.contender.lab.client.enter(|| {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS)
                    .zip(&self.ports)
                    .map(|(thread, ports)| {
                        // Threads start in the namespace of the one that starts them.
                        scope.spawn(move || {
                            cpu::pin(cpu)?;
                            Ok(client(source(thread), ports, target, start + duration))
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().expect("a client thread does not panic"))
                    .try_fold((0, 0), |(done, failed), result: Result<_>| {
                        let (more_done, more_failed) = result?;
                        anyhow::Ok((done + more_done, failed + more_failed))
                    })
            })
        })?;
        let took = start.elapsed();
        ensure!(
            failed * 1000 <= done,
            "{failed} connections failed, {done} worked"
        );
        Ok(f64::from(done) / took.as_secs_f64())
    }

    fn target(&self) -> Result<SocketAddrV4> {
        match self.contender.http.0 {
            SocketAddr::V4(target) => Ok(target),
            SocketAddr::V6(target) => anyhow::bail!("{target}: the client speaks IPv4"),
        }
    }
}

/// One connection after another; how many worked and how many did not.
fn client(source: Ipv4Addr, ports: &AtomicU16, to: SocketAddrV4, end: Instant) -> (u32, u32) {
    let (mut done, mut failed) = (0, 0);
    while Instant::now() < end {
        let port = ports.fetch_add(1, Ordering::Relaxed);
        if port == u16::MAX {
            ports.store(FIRST_PORT, Ordering::Relaxed);
        }
        match one(SocketAddrV4::new(source, port), to) {
            Ok(()) => done += 1,
            Err(_) => failed += 1,
        }
    }
    (done, failed)
}

/// Connects, asks, and reads to the end.
fn one(from: SocketAddrV4, to: SocketAddrV4) -> Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let patience = TimeVal::seconds(PATIENCE);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(REQUEST)?;
    let mut answer = [0; 1024];
    let mut length = 0;
    loop {
        match stream.read(&mut answer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "no HTTP answer in {length} bytes"
    );
    Ok(())
}

/// The client's address, or the `thread`th after it.
fn source(thread: u8) -> Ipv4Addr {
    match CLIENT {
        IpAddr::V4(first) => {
            let [a, b, c, d] = first.octets();
            Ipv4Addr::new(a, b, c, d + thread)
        }
        IpAddr::V6(_) => unreachable!("the lab's CLIENT is its IPv4 address"),
    }
}

/// nginx in the container, with nothing to write and nothing to read.
fn nginx(contender: &Contender, directory: &TempDir) -> Result<Running> {
    let path = directory.path().display();
    let configuration = format!(
        "daemon off; user root; worker_processes 1; pid {path}/pid; error_log stderr;\n\
         events {{ worker_connections 4096; multi_accept on; }}\n\
         http {{\n\
           access_log off; keepalive_timeout 0;\n\
           client_body_temp_path {path}; proxy_temp_path {path}; fastcgi_temp_path {path};\n\
           uwsgi_temp_path {path}; scgi_temp_path {path};\n\
           server {{ listen {} backlog=4096; return 200 \"netfw\\n\"; }}\n\
         }}\n",
        contender.http.1
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, configuration).with_context(|| format!("cannot write {}", file.display()))?;
    contender.container.sysctl("core/somaxconn", "4096");
    let mut command = contender.container.command("taskset");
    command
        .args(["-c", &cpu::server()?.to_string(), "nginx", "-e", "stderr"])
        .arg("-p")
        .arg(directory.path())
        .arg("-c")
        .arg(&file);
    Ok(Running::start(command))
}
