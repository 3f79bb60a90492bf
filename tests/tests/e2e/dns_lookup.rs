//! Names at a network's gateway, where port 53 of the node is somebody else's: with `dig`, a bridge
//! made by hand, and the name server in a thread of this process.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use netfw::{
    bpf::{DataPlane, Lookup, Options as DataPlaneOptions, STEPS},
    dns::{Bridge, Member, Network, Options, Server, View},
};
use netfw_common::record::Config;
use netfw_tests::{Namespace, netns::enter, wait::wait_for, wait_until};
use nix::net::if_::if_nametoindex;

use crate::setting::SOON;

const BRIDGE: &str = "br-names";
const GATEWAY: &str = "10.77.0.1";
const GATEWAY6: &str = "fd77::1";
/// In the world, where the node's resolver is.
const RESOLVER: &str = "192.0.2.2";
/// Another one, and one that is not there.
const SECOND: &str = "192.0.2.3";
const DEAD: &str = "192.0.2.99";

/// What the resolver says, what it says a hundred times of `many`, and what the process says that has
/// the node's port 53.
pub const FORWARDED: [u8; 4] = [198, 51, 100, 7];
const SQUATTED: [u8; 4] = [203, 0, 113, 99];

/// A node with a bridge, a container on it, and the world behind an interface.
struct Site {
    node: Namespace,
    app: Namespace,
    other: Namespace,
    world: Namespace,
}

impl Site {
    fn new() -> Self {
        let (node, app, other, world) = (
            Namespace::new("node"),
            Namespace::new("app"),
            Namespace::new("other"),
            Namespace::new("world"),
        );
        node.ip(&["link", "add", BRIDGE, "type", "bridge"]);
        for (outside, inside, addresses) in [
            (&app, "app", ["10.77.0.2/24", "fd77::2/64"]),
            (&other, "other", ["10.77.0.3/24", "fd77::3/64"]),
            (&world, "world", ["192.0.2.2/24", "2001:db8::2/64"]),
        ] {
            node.ip(&[
                "link",
                "add",
                inside,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                outside.name(),
            ]);
            for address in addresses {
                outside.ip(&["addr", "add", address, "dev", "eth0", "nodad"]);
            }
            outside.ip(&["link", "set", "eth0", "up"]);
            node.ip(&["link", "set", inside, "up"]);
        }
        for port in ["app", "other"] {
            node.ip(&["link", "set", port, "master", BRIDGE]);
        }
        node.ip(&["link", "set", BRIDGE, "up"]);
        for (address, device) in [
            ("10.77.0.1/24", BRIDGE),
            ("fd77::1/64", BRIDGE),
            ("192.0.2.1/24", "world"),
            ("2001:db8::1/64", "world"),
        ] {
            node.ip(&["addr", "add", address, "dev", device, "nodad"]);
        }
        world.ip(&["addr", "add", "192.0.2.3/24", "dev", "eth0"]);
        world.ip(&["route", "add", "10.77.0.0/24", "via", "192.0.2.1"]);
        Self {
            node,
            app,
            other,
            world,
        }
    }

    /// The bridge's own, which the node may ask from, too.
    fn link_local(&self) -> SocketAddr {
        let shown = self
            .node
            .ip(&["-6", "-o", "addr", "show", "dev", BRIDGE, "scope", "link"]);
        let mut words = shown.split_whitespace().skip_while(|&word| word != "inet6");
        let addr = words.nth(1).and_then(|word| word.split('/').next());
        let addr = addr.expect("the bridge has one").parse();
        SocketAddrV6::new(addr.expect("an address"), 0, 0, self.ifindex()).into()
    }

    fn ifindex(&self) -> u32 {
        self.node
            .enter(|| if_nametoindex(BRIDGE).expect("the bridge is there"))
    }

    fn view(&self) -> View {
        View::of([Network {
            name: "front".parse().expect("a name"),
            internal: false,
            bridge: Bridge {
                ifindex: self.ifindex(),
                name: BRIDGE.into(),
            },
            gateways: vec![ip(GATEWAY), ip(GATEWAY6)],
            subnets: vec![
                "10.77.0.0/24".parse().expect("a subnet"),
                "fd77::/64".parse().expect("a subnet"),
            ],
            members: vec![
                member("web", &["www", "pool"], &["10.77.0.2", "fd77::2"]),
                member("other", &["pool"], &["10.77.0.3", "fd77::3"]),
                member("down", &["idle"], &[]),
            ],
        }])
    }
}

fn member(endpoint: &str, aliases: &[&str], addresses: &[&str]) -> Member {
    let aliases = aliases.iter().map(|name| name.parse().expect("a name"));
    Member {
        endpoint: endpoint.parse().expect("a name"),
        aliases: aliases.collect(),
        addresses: addresses.iter().map(|addr| ip(addr)).collect(),
        links: Vec::new(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The name server, until it is dropped.
struct Names {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Its pins, which go with it.
struct Pins(String);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = DataPlane::remove(&self.0);
    }
}

impl Names {
    fn start(site: &Site, resolv_conf: &Path) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let (node, view) = (site.node.path(), site.view());
        let instance = format!("{}-names", site.node.name());
        let options = Options {
            resolv_conf: resolv_conf.into(),
            ..Options::default()
        };
        let thread = thread::spawn(move || {
            enter(&node, move || {
                let pins = Pins(instance);
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .expect("a runtime");
                let _inside = runtime.enter();
                let mut plane = DataPlane::load(&DataPlaneOptions {
                    instance: pins.0.clone(),
                    max_flows: 1 << 12,
                    max_embryos: 1 << 10,
                    log_level: None,
                    config: Config::default(),
                    steps: STEPS,
                })
                .expect("the programs load");
                let lookup = plane.attach_lookup().expect("it is the first");
                assert!(lookup.is_attached(), "the kernel takes the program");
                let mut server = Server::new(lookup, &options);
                for _ in 0..2 {
                    let errors = server.set(view.clone());
                    assert!(errors.is_empty(), "{errors:?}");
                    assert_eq!(server.served().count(), 2);
                }
                let _ = ready.send(());
                let _ = stopped.recv();
            });
        });
        is_ready.recv().expect("it starts");
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers everything with one address by UDP and TCP. `many` is a hundred of them, of which UDP
/// carries none; `large` is a hundred by UDP, too.
pub struct Fake {
    by_udp: Option<Serving>,
    by_tcp: Option<Serving>,
}

/// A thread, until it is ended.
struct Serving {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    fn start(serve: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let thread = {
            let ended = ended.clone();
            thread::spawn(move || serve(&ended))
        };
        Self {
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Fake {
    pub fn start(namespace: &Namespace, at: SocketAddr, says: [u8; 4]) -> Self {
        let (udp, tcp) = namespace.enter(|| {
            let udp = soon(|| UdpSocket::bind(at));
            let tcp = soon(|| TcpListener::bind(at));
            let glance = Some(Duration::from_millis(20));
            udp.set_read_timeout(glance).expect("not 0");
            tcp.set_nonblocking(true).expect("a listener");
            (udp, tcp)
        });
        let by_udp = move |ended: &AtomicBool| {
            let mut buffer = [0; 4096];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&answer(&buffer[..length], says, false), from);
                }
            }
        };
        let by_tcp = move |ended: &AtomicBool| {
            while !ended.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = tcp.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_ok() {
                    let mut query = vec![0; u16::from_be_bytes(length).into()];
                    if stream.read_exact(&mut query).is_ok() {
                        let answer = answer(&query, says, true);
                        let mut bytes = (answer.len() as u16).to_be_bytes().to_vec();
                        bytes.extend(answer);
                        let _ = stream.write_all(&bytes);
                    }
                }
            }
        };
        Self {
            by_udp: Some(Serving::start(by_udp)),
            by_tcp: Some(Serving::start(by_tcp)),
        }
    }

    /// Nobody listens there any more.
    fn end_udp(&mut self) {
        drop(self.by_udp.take());
    }

    fn end_tcp(&mut self) {
        drop(self.by_tcp.take());
    }
}

/// A port that was closed is free once no process has it that another test is starting.
fn soon<T>(bind: impl Fn() -> std::io::Result<T>) -> T {
    wait_for("a free port", SOON, || bind().ok())
}

fn answer(query: &[u8], says: [u8; 4], tcp: bool) -> Vec<u8> {
    // The question ends behind its name, type and class.
    let name = query[12..].iter().position(|&byte| byte == 0).unwrap_or(0);
    let question = &query[12..12 + name + 5];
    let many = question.starts_with(b"\x04many");
    let large = question.starts_with(b"\x05large");
    let count: u16 = match (many, large, tcp) {
        (true, _, false) => 0,
        (true, _, true) | (_, true, _) => 100,
        _ => 1,
    };
    let cut = if many && !tcp { 0x02 } else { 0 };
    let mut bytes = query[..2].to_vec();
    bytes.extend([0x81 | cut, 0x80, 0, 1]);
    bytes.extend(count.to_be_bytes());
    bytes.extend([0, 0, 0, 0]);
    bytes.extend(question);
    for _ in 0..count {
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend(says);
    }
    bytes
}

/// The lines that `dig +short` prints.
pub fn dig(from: &Namespace, server: &str, words: &[&str]) -> Vec<String> {
    full(from, server, &[words, &["+short"][..]].concat())
        .lines()
        .map(str::to_owned)
        .collect()
}

pub fn full(from: &Namespace, server: &str, words: &[&str]) -> String {
    let server = format!("@{server}");
    let all = [&["+time=3", "+tries=1", &server][..], words].concat();
    let output = from
        .command("dig")
        .args(all)
        .output()
        .expect("dig is there");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn text(addr: [u8; 4]) -> String {
    IpAddr::from(addr).to_string()
}

fn port_53(addr: &str) -> SocketAddr {
    (ip(addr), 53).into()
}

#[test]
fn names_are_served_whoever_has_port_53() {
    let site = Site::new();
    let directory = tempfile::tempdir().expect("a directory");
    let resolv_conf = directory.path().join("resolv.conf");
    // Its own address, which is passed over.
    name_servers(&resolv_conf, &[GATEWAY, RESOLVER]);
    let _resolver = Fake::start(&site.world, port_53(RESOLVER), FORWARDED);
    let before = Fake::start(&site.node, port_53("0.0.0.0"), SQUATTED);
    let names = Names::start(&site, &resolv_conf);

    let (app, v4, v6) = (&site.app, "10.77.0.2", "fd77::2");
    for server in [GATEWAY, GATEWAY6] {
        for by in ["+notcp", "+tcp"] {
            let ask = |words: &[&str]| dig(app, server, &[words, &[by][..]].concat());
            for name in ["web", "WEB.front", "www", "www.Front."] {
                assert_eq!(ask(&[name, "A"]), [v4], "{server} {by} {name}");
                assert_eq!(ask(&[name, "AAAA"]), [v6], "{server} {by} {name}");
            }
            let mut first = BTreeSet::new();
            // That one is missed has a chance of 2^-39.
            for _ in 0..40 {
                let told = ask(&["pool", "A"]);
                assert_eq!(told.len(), 2);
                first.insert(told[0].clone());
                if first.len() == 2 {
                    break;
                }
            }
            assert_eq!(first.len(), 2, "one is always the first");
            assert!(ask(&["web", "MX"]).is_empty());
            assert_eq!(ask(&["-x", v4]), ["web.front."]);
            assert_eq!(ask(&["-x", v6]), ["web.front."]);
            // One that is down; what is around our addresses; how long that may be remembered.
            for (name, kind, status, zone) in [
                ("web", "MX", "NOERROR", "web."),
                ("down.front", "A", "NOERROR", "down.front."),
                ("77.10.in-addr.arpa", "PTR", "NOERROR", ""),
                (
                    "0.77.10.in-addr.arpa",
                    "SOA",
                    "NOERROR",
                    "0.77.10.in-addr.arpa.",
                ),
                (
                    "lb._dns-sd._udp.0.0.77.10.in-addr.arpa",
                    "PTR",
                    "NXDOMAIN",
                    "_dns-sd._udp.0.0.77.10.in-addr.arpa.",
                ),
            ] {
                let told = full(app, server, &[name, kind, by]);
                assert!(told.contains(&format!("status: {status}")), "{told}");
                let mut records = told.lines().filter(|line| !line.starts_with(';'));
                let soa = records.find(|line| line.contains(" SOA\t") || line.contains("\tSOA\t"));
                let owner = soa.and_then(|line| line.split_whitespace().next());
                assert_eq!(owner.unwrap_or(""), zone, "{told}");
                assert_eq!(
                    soa.is_some_and(|line| line.ends_with(" 5")),
                    !zone.is_empty()
                );
            }
            assert_eq!(
                ask(&["example.org", "A"]),
                [text(FORWARDED)],
                "{server} {by}"
            );
        }
        // By TCP, once UDP was cut; and in fragments.
        assert_eq!(dig(app, server, &["many.example", "A"]).len(), 100);
        let cut = full(app, server, &["many.example", "A", "+ignore", "+notcp"]);
        assert!(cut.contains("flags: qr tc rd ra"), "{cut}");
        let large = ["large.example", "A", "+bufsize=4096", "+ignore", "+notcp"];
        assert_eq!(dig(app, server, &large).len(), 100);

        // The kernel takes what the node says to itself there as come in on the bridge.
        for by in ["+notcp", "+tcp"] {
            assert_eq!(dig(&site.node, server, &["web", "A", by]), [v4]);
            let told = full(&site.node, server, &["example.org", "A", by]);
            assert!(told.contains("SERVFAIL"), "{told}");
        }
    }
    let from = site.link_local();
    site.node.enter(|| {
        let socket = UdpSocket::bind(from).expect("an address of the bridge");
        socket.connect(port_53(GATEWAY6)).expect("there is a route");
        socket
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("not 0");
        for (name, code) in [("\x03web", 0), ("\x07example\x03org", 2)] {
            send(&socket, 7, name);
            let mut answer = [0; 512];
            socket.recv(&mut answer).expect("an answer");
            assert_eq!((answer[1], answer[3] & 0xf), (7, code), "{name:?}");
        }
    });

    // What comes in elsewhere is for the node's own.
    assert_eq!(
        dig(&site.world, GATEWAY, &["web", "A", "+tcp"]),
        [text(SQUATTED)]
    );
    // By UDP it answers from another address than it was asked at, which dig does not see.
    let told = full(&site.world, GATEWAY, &["web", "A", "+notcp", "+time=1"]);
    assert!(!told.contains(v4), "{told}");
    // Who comes later has all addresses, or just this one.
    drop(before);
    let after = Fake::start(&site.node, port_53("::"), SQUATTED);
    assert_eq!(dig(app, GATEWAY, &["web", "A"]), [v4]);
    assert_eq!(dig(app, GATEWAY6, &["web", "A"]), [v4]);
    assert_eq!(
        dig(&site.node, "127.0.0.1", &["web", "A"]),
        [text(SQUATTED)]
    );
    drop(after);
    let _after = [GATEWAY, GATEWAY6].map(|at| Fake::start(&site.node, port_53(at), SQUATTED));
    for server in [GATEWAY, GATEWAY6] {
        for by in ["+notcp", "+tcp"] {
            assert_eq!(dig(app, server, &["web", "A", by]), [v4]);
        }
    }

    drop(names);
    assert_eq!(dig(app, GATEWAY, &["web", "A"]), [text(SQUATTED)]);
    assert_eq!(dig(app, GATEWAY6, &["web", "A", "+tcp"]), [text(SQUATTED)]);
}

fn name_servers(resolv_conf: &Path, servers: &[&str]) {
    let lines = servers.iter().map(|addr| format!("nameserver {addr}\n"));
    let new = resolv_conf.with_extension("new");
    std::fs::write(&new, lines.collect::<String>()).expect("our own file");
    std::fs::rename(new, resolv_conf).expect("our own file");
}

#[test]
fn a_dead_resolver_costs_its_first_askers_some_time_and_others_none() {
    let site = Site::new();
    let directory = tempfile::tempdir().expect("a directory");
    let resolv_conf = directory.path().join("resolv.conf");
    name_servers(&resolv_conf, &[DEAD, RESOLVER]);
    let _resolver = Fake::start(&site.world, port_53(RESOLVER), FORWARDED);
    let _second = Fake::start(&site.world, port_53(SECOND), SQUATTED);
    let _names = Names::start(&site, &resolv_conf);
    // More than one asker may have in hand, none of them answered soon.
    site.app.enter(|| {
        let socket = socket();
        for id in 0..3000 {
            // One name alone would say nothing of the resolver.
            send(&socket, id, &format!("\x05n{id:04}\x03org"));
        }
    });
    let timed = |words: &[&str]| {
        let begun = Instant::now();
        // As resolvers do: a datagram among so many may find no room.
        let lines = dig(&site.other, GATEWAY, &[words, &["+tries=3"]].concat());
        (lines, begun.elapsed())
    };
    let (lines, took) = timed(&["web", "A"]);
    assert_eq!(lines, ["10.77.0.2"]);
    println!("a name of ours, while a neighbour waits: {took:?} with dig");
    let (lines, took) = timed(&["example.org", "A"]);
    assert_eq!(lines, [text(FORWARDED)]);
    println!("forwarded, the first resolver dead: {took:?}");
    let (lines, took) = timed(&["example.org", "A"]);
    assert_eq!(lines, [text(FORWARDED)]);
    println!("once it is known to be dead: {took:?}");

    // The file is replaced.
    name_servers(&resolv_conf, &[SECOND]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while dig(&site.other, GATEWAY, &["example.org", "A"]) != [text(SQUATTED)] {
        assert!(Instant::now() < deadline, "the file is not read again");
    }
}

#[test]
fn who_asks_by_tcp_has_no_resolver_rest() {
    let site = Site::new();
    let directory = tempfile::tempdir().expect("a directory");
    let resolv_conf = directory.path().join("resolv.conf");
    name_servers(&resolv_conf, &[RESOLVER, SECOND]);
    // It speaks UDP alone.
    let mut first = Fake::start(&site.world, port_53(RESOLVER), FORWARDED);
    first.end_tcp();
    let _second = Fake::start(&site.world, port_53(SECOND), SQUATTED);
    let _names = Names::start(&site, &resolv_conf);
    for n in 0..5 {
        let name = format!("n{n}.example");
        let by_tcp = dig(&site.app, GATEWAY, &[&name, "A", "+tcp"]);
        assert_eq!(by_tcp, [text(SQUATTED)]);
        let by_udp = dig(&site.other, GATEWAY, &[&name, "A", "+notcp"]);
        assert_eq!(by_udp, [text(FORWARDED)], "it is still the first");
    }
}

#[test]
fn resolvers_may_be_asked_by_tcp_alone() {
    let site = Site::new();
    let directory = tempfile::tempdir().expect("a directory");
    let resolv_conf = directory.path().join("resolv.conf");
    std::fs::write(
        &resolv_conf,
        format!("nameserver {RESOLVER}\noptions use-vc\n"),
    )
    .expect("our own file");
    let mut resolver = Fake::start(&site.world, port_53(RESOLVER), FORWARDED);
    resolver.end_udp();
    let _names = Names::start(&site, &resolv_conf);
    for by in ["+notcp", "+tcp"] {
        let told = dig(&site.app, GATEWAY, &["example.org", "A", by]);
        assert_eq!(told, [text(FORWARDED)], "{by}");
    }
    // As much as the asker takes, who comes by TCP for the rest.
    let words = ["large.example", "A", "+notcp"];
    let cut = full(&site.app, GATEWAY, &[&words[..], &["+ignore"]].concat());
    assert!(cut.contains("flags: qr tc rd ra"), "{cut}");
    assert_eq!(dig(&site.app, GATEWAY, &words).len(), 100);
    let whole = [&words[..], &["+ignore", "+bufsize=4096"]].concat();
    assert_eq!(dig(&site.app, GATEWAY, &whole).len(), 100);
}

/// As on a kernel before 5.17.
#[test]
fn without_the_program_port_53_has_to_be_free() {
    let site = Site::new();
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options {
        resolv_conf: directory.path().join("resolv.conf"),
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let squatter = Fake::start(&site.node, port_53("0.0.0.0"), SQUATTED);
    let view = site.view();
    let mut server = Server::new(Lookup::none(), &options);
    let mut set = || {
        site.node.enter(|| {
            let _inside = runtime.enter();
            let errors = server.set(view.clone());
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        })
    };
    assert_eq!(
        set(),
        [
            "network front has no names at 10.77.0.1: cannot bind port 53: \
          Address already in use (os error 98)"
        ]
    );
    drop(squatter);
    // Tried again each time; a process that another test starts has our files until its exec.
    wait_until("port 53 to be served", SOON, || set().is_empty());
    for server in [GATEWAY, GATEWAY6] {
        for by in ["+notcp", "+tcp"] {
            assert_eq!(dig(&site.app, server, &["web", "A", by]), ["10.77.0.2"]);
        }
    }
}

/// Queries that are under way at a time, and in all.
const WINDOW: u16 = 100;
const QUERIES: u16 = 20_000;

#[test]
fn none_is_lost_among_thousands() {
    let site = Site::new();
    let directory = tempfile::tempdir().expect("a directory");
    let resolv_conf = directory.path().join("resolv.conf");
    name_servers(&resolv_conf, &[RESOLVER]);
    let _resolver = Fake::start(&site.world, port_53(RESOLVER), FORWARDED);
    let _names = Names::start(&site, &resolv_conf);
    for name in ["\x03web\x05front", "\x07example\x03org"] {
        let seconds = site.app.enter(|| flood(name));
        let rate = f64::from(QUERIES) / seconds;
        println!("{rate:.0} queries/s for {name:?}");
    }
}

/// Asks until all are answered; how long that takes.
fn flood(name: &str) -> f64 {
    let socket = socket();
    let send = |id| send(&socket, id, name);
    let begun = Instant::now();
    (0..WINDOW).for_each(send);
    let mut seen = vec![false; QUERIES.into()];
    let mut buffer = [0; 512];
    for next in WINDOW..QUERIES + WINDOW {
        let length = socket.recv(&mut buffer).expect("none is lost");
        let id = u16::from_be_bytes([buffer[0], buffer[1]]);
        assert_eq!(
            (buffer[3] & 0xf, buffer[7]),
            (0, 1),
            "{:?}",
            &buffer[..length]
        );
        assert!(!std::mem::replace(&mut seen[usize::from(id)], true));
        if next < QUERIES {
            send(next);
        }
    }
    begun.elapsed().as_secs_f64()
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.connect(port_53(GATEWAY)).expect("there is a route");
    socket
        .set_read_timeout(Some(Duration::from_secs(3)))
        .expect("not 0");
    socket
}

fn send(socket: &UdpSocket, id: u16, name: &str) {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.extend(name.as_bytes());
    query.extend([0, 0, 1, 0, 1]);
    socket.send(&query).expect("it is sent");
}
