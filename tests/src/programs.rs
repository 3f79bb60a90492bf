//! The real programs that end-to-end tests run in namespaces: servers, and tcpdump to see the wire.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::{signal::Signal, socket::sockopt};
use tempfile::TempDir;

use crate::{
    load::{End, pace},
    netns::{Namespace, Running},
    reaper,
    sockets::set,
    wait::{wait_for, wait_until},
};

const SOON: Duration = Duration::from_secs(10);
/// How often a server looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(50);

/// nginx on some ports of every address. `/` tells the port that it was asked on; `/files/` is
/// [`files`](Self::files).
pub struct Nginx {
    // Dropped in this order: the program before its files.
    _running: Running,
    directory: TempDir,
    role: String,
}

impl Nginx {
    #[track_caller]
    pub fn start(namespace: &Namespace, role: &str, ports: &[u16]) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("netfw-nginx-")
            .tempdir()
            .expect("a temporary directory can be made");
        let path = directory.path().display().to_string();
        reaper::at_end(&format!("rm -rf {path}"));
        fs::create_dir(directory.path().join("files")).expect("a new directory");
        let listen: String = ports
            .iter()
            .map(|port| {
                format!("listen {port} reuseport; listen [::]:{port} ipv6only=on reuseport;\n")
            })
            .collect();
        let config = format!(
            "daemon off; user root; pid {path}/pid; worker_processes 1;
             error_log stderr;
             events {{ worker_connections 1024; }}
             http {{
                 log_format seen '$remote_addr $remote_port $server_port $request_uri';
                 access_log {path}/access.log seen;
                 client_body_temp_path {path}/t1; proxy_temp_path {path}/t2;
                 fastcgi_temp_path {path}/t3; uwsgi_temp_path {path}/t4; scgi_temp_path {path}/t5;
                 sendfile on; tcp_nopush on;
                 server {{
                     {listen}
                     location / {{ return 200 '{role} on $server_port\\n'; }}
                     location /files/ {{ root {path}; }}
                 }}
             }}\n"
        );
        let file = directory.path().join("nginx.conf");
        fs::write(&file, config).expect("a file in our own directory");
        let file = file.display().to_string();
        let mut running =
            namespace.spawn(&["nginx", "-e", "stderr", "-p", path.as_str(), "-c", &file]);
        wait_until("nginx to listen", SOON, || {
            if let Some(status) = running.ended() {
                panic!("nginx ended with {status}\n{}", running.stderr());
            }
            namespace.enter(|| TcpStream::connect(("127.0.0.1", ports[0])).is_ok())
        });
        Self {
            _running: running,
            directory,
            role: role.to_owned(),
        }
    }

    /// What it answers on a port.
    pub fn page(&self, port: u16) -> String {
        format!("{} on {port}\n", self.role)
    }

    /// What it serves below `/files/`.
    pub fn files(&self) -> std::path::PathBuf {
        self.directory.path().join("files")
    }

    /// A line a request so far: the client's address and port, the server's port, the path.
    pub fn log(&self) -> Vec<String> {
        fs::read_to_string(self.directory.path().join("access.log"))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// The line of the one request for `path`; it is written after the answer.
    #[track_caller]
    pub fn logged(&self, path: &str) -> String {
        wait_for(&format!("{path} in the access log"), SOON, || {
            let mut log = self.log();
            log.retain(|line| line.ends_with(path));
            log.pop()
        })
    }
}

/// `curl` of an address and port; None unless it got an answer, and then the test's output tells why.
pub fn curl(from: &Namespace, to: IpAddr, port: u16, path: &str) -> Option<String> {
    let answer = curl_with(from, to, port, path, &["--max-time", "5"]);
    answer.inspect_err(|error| eprintln!("{error}")).ok()
}

/// As [`curl`], for what must not be answered: it gives up soon.
pub fn curl_in_vain(from: &Namespace, to: IpAddr, port: u16) -> bool {
    curl_with(from, to, port, "/in-vain", &["--max-time", "0.5"]).is_err()
}

fn curl_with(
    from: &Namespace,
    to: IpAddr,
    port: u16,
    path: &str,
    options: &[&str],
) -> Result<String, String> {
    let output = from
        .command("curl")
        .args(["--silent", "--show-error", "--noproxy", "*"])
        .args(options)
        .arg(format!("http://{}{path}", SocketAddr::new(to, port)))
        .output()
        .expect("curl can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// One echo request. The time is for a busy machine, and for ARP's second try.
pub fn ping(from: &Namespace, to: IpAddr) -> bool {
    from.succeeds(&["ping", "-n", "-c1", "-W3", &to.to_string()])
}

/// As [`ping`], for what must not be answered: it gives up soon.
pub fn ping_in_vain(from: &Namespace, to: IpAddr) -> bool {
    !from.succeeds(&["ping", "-n", "-c1", "-W0.3", &to.to_string()])
}

/// Answers every UDP datagram with `PEER MESSAGE`, where PEER is whom it saw.
pub struct UdpEcho {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    #[track_caller]
    pub fn start(namespace: &Namespace, at: (IpAddr, u16)) -> Self {
        Self::on(namespace.enter(|| UdpSocket::bind(at).expect("the port is free")))
    }

    /// On a socket of whichever namespace.
    pub fn on(socket: UdpSocket) -> Self {
        socket
            .set_read_timeout(Some(GLANCE))
            .expect("a timeout that is not 0");
        let end = Arc::new(AtomicBool::new(false));
        let told = end.clone();
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    let mut answer = format!("{peer} ").into_bytes();
                    answer.extend(&buffer[..length]);
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        Self {
            end,
            thread: Some(thread),
        }
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[track_caller]
pub fn udp_socket(namespace: &Namespace) -> UdpSocket {
    namespace.enter(|| UdpSocket::bind(("0.0.0.0", 0)).expect("any port"))
}

/// As [`udp_socket`], to ask `to`, of either family.
#[track_caller]
pub fn udp_socket_for(namespace: &Namespace, to: IpAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    namespace.enter(|| UdpSocket::bind(any).expect("any port"))
}

/// Sends `message` once and returns what came back, from where it was sent to. The time is for a
/// busy machine: whoever loses a packet fails.
pub fn ask(socket: &UdpSocket, to: (IpAddr, u16), message: &str) -> Option<String> {
    ask_within(Duration::from_secs(5), socket, to, message)
}

/// As [`ask`], for what may or must not be answered: it gives up soon.
pub fn ask_in_vain(socket: &UdpSocket, to: (IpAddr, u16), message: &str) -> bool {
    ask_within(Duration::from_millis(300), socket, to, message).is_none()
}

pub fn ask_within(
    time: Duration,
    socket: &UdpSocket,
    to: (IpAddr, u16),
    message: &str,
) -> Option<String> {
    socket.set_read_timeout(Some(time)).expect("not 0");
    socket.send_to(message.as_bytes(), to).ok()?;
    let mut buffer = vec![0; 1 << 16];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    (from == SocketAddr::from(to)).then(|| String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A TCP server (IPv4 and IPv6) that pours numbers, counted up from 0, into each connection until it closes.
/// Its thread ends with the connection; the listener with the value.
pub struct Fountain {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fountain {
    #[track_caller]
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        let listener =
            namespace.enter(|| TcpListener::bind(("::", port)).expect("the port is free"));
        listener.set_nonblocking(true).expect("a listener");
        let end = Arc::new(AtomicBool::new(false));
        let told = end.clone();
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => pour(stream),
                    Err(_) => thread::sleep(GLANCE),
                }
            }
        });
        Self {
            end,
            thread: Some(thread),
        }
    }
}

/// For who does not drink for a while, as an agent is restarted on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(60);

fn pour(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_write_timeout(Some(PATIENCE));
    for block in 0u64.. {
        let mut bytes = [0; 8192];
        for (number, place) in (block * 1024..).zip(bytes.chunks_exact_mut(8)) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

impl Drop for Fountain {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A connection to a [`Fountain`].
pub struct Drinker {
    stream: TcpStream,
    next: u64,
}

impl Drinker {
    #[track_caller]
    pub fn connect(namespace: &Namespace, to: (IpAddr, u16)) -> Self {
        let stream = namespace.enter(|| {
            TcpStream::connect_timeout(&to.into(), SOON).expect("the fountain is reached")
        });
        stream.set_read_timeout(Some(SOON)).expect("not 0");
        Self { stream, next: 0 }
    }

    /// As [`connect`](Self::connect), with a small window: no queue on the way fills up, from which others' packets
    /// would be dropped. A veth pair's for XDP has 256 places, and TCP finds that out by drops.
    #[track_caller]
    pub fn connect_modestly(namespace: &Namespace, to: (IpAddr, u16)) -> Self {
        let drinker = Self::connect(namespace, to);
        set(&drinker.stream, sockopt::RcvBuf, &(32 << 10));
        drinker
    }

    /// Reads `blocks` of 8 KiB and checks every number in them.
    #[track_caller]
    pub fn drink(&mut self, blocks: u32) {
        let mut bytes = [0; 8192];
        for _ in 0..blocks {
            self.stream
                .read_exact(&mut bytes)
                .expect("the transfer goes on");
            for number in bytes.chunks_exact(8) {
                assert_eq!(number, self.next.to_be_bytes(), "bytes were changed");
                self.next += 1;
            }
        }
    }
}

/// A [`Drinker`] that drinks on, in a thread of its own.
pub struct Drinking {
    end: End,
    blocks: Arc<AtomicU32>,
    thread: JoinHandle<()>,
}

impl Drinking {
    /// As fast as it comes.
    pub fn start(drinker: Drinker) -> Self {
        Self::paced(drinker, u64::MAX)
    }

    /// At most so many bits a second.
    pub fn paced(mut drinker: Drinker, bits_per_second: u64) -> Self {
        let (end, told) = End::new();
        let blocks = Arc::new(AtomicU32::new(0));
        let count = blocks.clone();
        let thread = thread::spawn(move || {
            let start = Instant::now();
            for mebibyte in 0.. {
                for _ in 0..128 {
                    if told.load(Ordering::Relaxed) {
                        return;
                    }
                    drinker.drink(1);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                pace(start, mebibyte, (bits_per_second >> 23).max(1));
            }
        });
        Self {
            end,
            blocks,
            thread,
        }
    }

    /// Waits for another MiB.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.blocks.load(Ordering::Relaxed);
        wait_until("the transfer to go on", SOON, || {
            self.blocks.load(Ordering::Relaxed) >= before + 128
        });
    }

    /// Fails where a byte was wrong or the connection ended.
    #[track_caller]
    pub fn finish(self) {
        drop(self.end);
        self.thread.join().expect("the transfer goes on");
    }
}

/// tcpdump on an interface, from its start on.
pub struct Capture<'a> {
    namespace: &'a Namespace,
    running: Running,
}

/// Length of the echo requests that end a capture; nothing else here has it.
const MARKER: &str = "777";

impl<'a> Capture<'a> {
    #[track_caller]
    pub fn start(namespace: &'a Namespace, device: &str) -> Self {
        Self::start_with(namespace, device, &["-e"])
    }

    /// As [`start`](Self::start), with options of tcpdump's instead of link-layer headers.
    #[track_caller]
    pub fn start_with(namespace: &'a Namespace, device: &str, options: &[&str]) -> Self {
        // -Q inout is the default; -n: no names.
        let mut words = vec!["tcpdump", "-n", "-l", "-i", device, "-B", "16384"];
        words.extend(options);
        let running = namespace.spawn(&words);
        wait_until("tcpdump to listen", SOON, || {
            running.stderr().contains("listening on")
        });
        Self { namespace, running }
    }

    /// A line a packet. All that passed until now is there: a ping of `neighbour`, on this
    /// interface, comes behind it.
    #[track_caller]
    pub fn finish(mut self, neighbour: IpAddr) -> Vec<String> {
        self.namespace.run(&[
            "ping",
            "-n",
            "-c1",
            "-s",
            MARKER,
            "-W2",
            &neighbour.to_string(),
        ]);
        let marked = |line: &str| line.contains("echo reply") && line.contains(" 785");
        wait_until("tcpdump to print everything", SOON, || {
            self.running.stdout().lines().any(marked)
        });
        self.running.signal(Signal::SIGINT);
        self.running.wait(SOON);
        let told = self.running.stderr();
        assert!(
            told.contains("\n0 packets dropped by kernel"),
            "tcpdump did not see everything:\n{told}"
        );
        self.running.stdout().lines().map(str::to_owned).collect()
    }
}

/// The SHA-256 of a file, by `sha256sum`.
#[track_caller]
pub fn sha256(file: &Path) -> String {
    let output = crate::netns::stdout(std::process::Command::new("sha256sum").arg(file));
    output.split(' ').next().unwrap_or_default().to_owned()
}
