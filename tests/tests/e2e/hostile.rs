//! One container that takes whatever it can get, beside others that want little: they get it.

use std::{
    io::Write as _,
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use netfw_tests::{
    Lab, Namespace,
    netns::enter,
    programs::{Nginx, UdpEcho, ask, curl, udp_socket},
    topology::{FAR, NODE, WORLD},
    wait_until,
};

use crate::setting::{SOON, Site, attach, drops, text};

/// Small, to be full soon.
const MAX_FLOWS: u32 = 256;
const MAX_EMBRYOS: u32 = 1024;
const ROUNDS: u16 = 10;
const PAUSE: Duration = Duration::from_micros(100);

/// Something that a container does again and again until the value is dropped.
struct Mischief {
    end: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Mischief {
    /// `deed` returns what is done with a number, counted up.
    fn start<D: FnMut(u32)>(by: &Namespace, deed: impl FnOnce() -> D + Send + 'static) -> Self {
        let (end, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let (path, ended, count) = (by.path(), end.clone(), done.clone());
        let thread = thread::spawn(move || {
            enter(&path, move || {
                let mut deed = deed();
                for n in 0.. {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    deed(n);
                    count.store(n, Ordering::Relaxed);
                    // Of the CPUs it takes no more than others: that is not netfw's to share.
                    thread::sleep(PAUSE);
                }
            });
        });
        Self {
            end,
            done,
            thread: Some(thread),
        }
    }

    fn reaches(&self, count: u32) {
        wait_until("the mischief", SOON, || {
            self.done.load(Ordering::Relaxed) >= count
        });
    }
}

impl Drop for Mischief {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A socket of any port.
fn any() -> UdpSocket {
    UdpSocket::bind(("0.0.0.0", 0)).expect("any port")
}

/// Opens connections and keeps them all.
fn hoard() -> impl FnMut(u32) {
    let mut kept = Vec::new();
    move |_| {
        let patience = Duration::from_millis(50);
        if kept.len() < 2 * MAX_FLOWS as usize
            && let Ok(stream) = TcpStream::connect_timeout(&(WORLD, 7100).into(), patience)
        {
            stream.set_nonblocking(true).expect("a socket");
            kept.push(stream);
        }
        // A word now and then.
        for stream in &mut kept {
            let _ = stream.write(b"x");
        }
    }
}

/// Sends to where nobody answers, each time elsewhere.
fn scan() -> impl FnMut(u32) {
    let socket = any();
    move |n| {
        let _ = socket.send_to(b"?", (FAR, 1024 + (n % 60_000) as u16));
    }
}

/// Sends datagrams in fragments.
fn shatter() -> impl FnMut(u32) {
    let socket = any();
    let datagram = vec![7; 4000];
    move |_| {
        let _ = socket.send_to(&datagram, (WORLD, 9));
    }
}

/// Asks a name server for names that there are not, and does not wait.
fn pester(server: IpAddr) -> impl FnMut(u32) {
    let socket = any();
    move |n| {
        let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query[..2].copy_from_slice(&(n as u16).to_be_bytes());
        let label = format!("n{n}");
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
        query.extend(b"\x07example\0\0\x01\0\x01");
        let _ = socket.send_to(&query, (server, 53));
    }
}

#[test]
fn a_hostile_container_starves_nobody() {
    let lab = Lab::new();
    let mut config = tempfile::NamedTempFile::new().expect("a temporary file");
    writeln!(
        config,
        "max_flows = {MAX_FLOWS}\nmax_embryos = {MAX_EMBRYOS}"
    )
    .expect("our own file");
    let options = ["--config", &config.path().display().to_string()];
    let site = Site::in_lab(lab, &options, &["8080:80"]);
    let Site {
        lab, web, agent, ..
    } = &site;
    let bad = lab.container("bad");
    attach(agent, "bad", &bad, &[]);
    let world = Nginx::start(&lab.world, "world", &[80]);
    let _echo = UdpEcho::start(&lab.world, (WORLD, 5300));
    // Whoever connects there is kept.
    let accepting = lab
        .world
        .enter(|| TcpListener::bind((WORLD, 7100)).expect("a free port"));
    let mut kept = Vec::new();
    accepting.set_nonblocking(true).expect("a listener");
    let accept = Mischief::start(&lab.world, move || {
        move |_| match accepting.accept() {
            Ok((stream, _)) => kept.push(stream),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    });
    let network = agent.json(&["network", "inspect", "bridge"]);
    let gateway: IpAddr = text(&network["gateway"]).parse().expect("an address");

    let hoarding = Mischief::start(&bad, hoard);
    hoarding.reaches(2 * MAX_FLOWS);
    // One scan, and it begins no connections any more.
    let mischief = [
        Mischief::start(&bad, scan),
        Mischief::start(&bad, shatter),
        Mischief::start(&bad, move || pester(gateway)),
    ];
    mischief[0].reaches(4 * MAX_EMBRYOS);
    for _ in 0..ROUNDS {
        assert_eq!(
            curl(&lab.client, NODE, 8080, "/"),
            Some(site.nginx.page(80)),
            "a publish"
        );
        assert_eq!(curl(web, WORLD, 80, "/"), Some(world.page(80)), "the world");
        let socket = udp_socket(web);
        assert!(ask(&socket, (WORLD, 5300), "x").is_some(), "a datagram");
        let name = ["dig", "+short", "+tries=1", &format!("@{gateway}"), "web"];
        assert_eq!(web.run(&name).trim(), site.ip.to_string(), "a name");
    }
    drop((hoarding, mischief, accept));
    for reason in ["flow-share", "unanswered"] {
        assert!(drops(agent, reason) > 0, "{reason}");
    }
}

/// As many ports as there are groups of, in each half.
const PORTS: std::ops::Range<u16> = 20480..20992;

/// An agent that has those for masquerade.
fn with_few_ports() -> Site {
    let mut config = tempfile::NamedTempFile::new().expect("a temporary file");
    writeln!(config, "ports = \"{}-{}\"", PORTS.start, PORTS.end - 1).expect("our own file");
    let options = ["--config", &config.path().display().to_string()];
    Site::in_lab(Lab::new(), &options, &[])
}

/// Sends to `server` from each of the ports, from a socket that stays.
fn take_ports(by: &Namespace, server: (IpAddr, u16)) -> Vec<UdpSocket> {
    let sockets = by.enter(|| {
        PORTS
            .map(|port| UdpSocket::bind(("0.0.0.0", port)).expect("a free port"))
            .collect::<Vec<_>>()
    });
    assert!(ask(&sockets[0], server, "x").is_some(), "the first of many");
    for socket in &sockets {
        socket.send_to(b"x", server).expect("a datagram sent");
    }
    sockets
}

#[test]
fn a_hostile_container_leaves_ports_towards_its_peer() {
    let site = with_few_ports();
    let Site {
        lab, web, agent, ..
    } = &site;
    let _echo = UdpEcho::start(&lab.world, (WORLD, 5300));
    let bad = lab.container("bad");
    attach(agent, "bad", &bad, &[]);
    let kept = take_ports(&bad, (WORLD, 5300));
    for round in 0..ROUNDS {
        let socket = udp_socket(web);
        assert!(ask(&socket, (WORLD, 5300), "x").is_some(), "{round}");
    }
    assert!(drops(agent, "ports-exhausted") > 0, "nobody was refused");
    assert!(ask(&kept[1], (WORLD, 5300), "x").is_some(), "what it has");
}

#[test]
fn a_hostile_container_leaves_mappings_to_its_neighbours() {
    let site = with_few_ports();
    let Site { lab, agent, .. } = &site;
    let _echoes = [5300, 5301].map(|port| UdpEcho::start(&lab.world, (WORLD, port)));
    let words = [
        "network",
        "create",
        "games",
        "--nat",
        "endpoint-independent",
    ];
    agent.json(&words);
    let [bad, good] = ["bad", "good"].map(|name| {
        let container = lab.container(name);
        let words = ["endpoint", "add", name, "--network", "games", "--netns"];
        agent.json(&[&words[..], &[container.name()]].concat());
        container
    });
    let _kept = take_ports(&bad, (WORLD, 5300));
    for round in 0..ROUNDS {
        // Elsewhere: what is in its way are mappings, not flows.
        let socket = udp_socket(&good);
        assert!(ask(&socket, (WORLD, 5301), "x").is_some(), "{round}");
    }
    assert!(drops(agent, "ports-exhausted") > 0, "nobody was refused");
}
