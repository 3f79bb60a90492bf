//! The node's own processes reach publishes at every address of the node, without a proxy.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
    time::Duration,
};

use netfw_tests::{
    Namespace,
    programs::{Fountain, Nginx, UdpEcho, ask, ask_in_vain, curl, curl_in_vain},
    topology::{NODE, NODE_OUTSIDE, NODE6, NODE6_OUTSIDE},
    wait_until,
};

use nix::libc;

use crate::setting::{SOON, Site, attach, text};

const PATIENCE: Duration = Duration::from_secs(5);

/// As long as an answer would hardly take.
const IN_VAIN: Duration = Duration::from_secs(1);

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// An IPv4 address as a socket of IPv6 has it.
fn mapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        IpAddr::V6(ip) => panic!("{ip} is none of IPv4"),
    }
}

/// Asks a web server for a page: the page, and whom the socket says that it talks to.
fn get(from: &Namespace, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
    from.enter(|| {
        let mut connection = TcpStream::connect_timeout(&to, PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let peer = connection.peer_addr()?;
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        let page = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        Ok((page.to_owned(), peer))
    })
}

/// Is refused at once, by the node itself.
fn is_refused(from: &Namespace, to: IpAddr, port: u16) -> bool {
    matches!(get(from, (to, port).into()), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A link-local address of the node, with the interface that it is of.
fn link_local(node: &Namespace, link: &str) -> (Ipv6Addr, u32) {
    // `2: up0    inet6 fe80::1/64 scope link …`
    let line = node.ip(&["-6", "-o", "addr", "show", "dev", link, "scope", "link"]);
    let index = line.split(':').next().expect("a line");
    let words: Vec<_> = line.split([' ', '/']).collect();
    let at = words.iter().position(|word| *word == "inet6");
    let addr = words[at.expect("an address") + 1];
    (
        addr.parse().expect("an address"),
        index.parse().expect("a number"),
    )
}

#[test]
fn a_process_of_the_node_reaches_publishes_on_every_local_address() {
    let site = Site::new(&["8080:80"]);
    let Site {
        agent, nginx, lab, ..
    } = &site;
    let node = &lab.node;
    let endpoint = agent.json(&["endpoint", "inspect", "web"]);
    let gateway = |field: &str| text(&endpoint[field]).parse().expect("an address");
    let all = [
        LOCALHOST,
        Ipv4Addr::new(127, 1, 2, 3).into(),
        NODE,
        NODE_OUTSIDE,
        gateway("gateway"),
        LOCALHOST6,
        NODE6,
        NODE6_OUTSIDE,
        gateway("gateway6"),
        mapped(LOCALHOST),
        mapped(NODE),
    ];
    for ip in all {
        let to = SocketAddr::new(ip, 8080);
        let (page, peer) = get(node, to).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(page, nginx.page(80), "{to}");
        assert_eq!(peer, to, "getpeername tells what was asked for");
        // What is not published is refused, as before.
        assert!(is_refused(node, ip, 8081), "{ip}");
    }
    // "This host", to the kernel.
    for (any, localhost) in [
        (Ipv4Addr::UNSPECIFIED.into(), LOCALHOST),
        (Ipv6Addr::UNSPECIFIED.into(), LOCALHOST6),
    ] {
        let (page, peer) = get(node, SocketAddr::new(any, 8080)).expect("published");
        assert_eq!((page, peer.ip()), (nginx.page(80), localhost));
    }
    let (ip, scope) = link_local(node, "up0");
    let to = SocketAddrV6::new(ip, 8080, 0, scope).into();
    let (page, peer) = get(node, to).expect("published");
    assert_eq!(
        (page, peer.ip(), peer.port()),
        (nginx.page(80), to.ip(), 8080)
    );

    // Other namespaces have a localhost of their own.
    let other = Nginx::start(&lab.client, "other", &[8080]);
    for ip in [LOCALHOST, LOCALHOST6, mapped(LOCALHOST)] {
        let (page, _) = get(&lab.client, SocketAddr::new(ip, 8080)).expect("it is there");
        assert_eq!(page, other.page(8080), "{ip}");
        assert!(is_refused(&lab.world, ip, 8080), "{ip}");
        assert!(is_refused(&site.web, ip, 8080), "{ip}");
    }
}

#[test]
fn a_publish_on_localhost_is_the_nodes_alone() {
    let site = Site::new(&["127.0.0.1:8080:80", "[::1]:8081:81"]);
    let Site { nginx, lab, .. } = &site;
    assert_eq!(curl(&lab.node, LOCALHOST, 8080, "/"), Some(nginx.page(80)));
    assert_eq!(curl(&lab.node, LOCALHOST6, 8081, "/"), Some(nginx.page(81)));
    let to = SocketAddr::new(mapped(LOCALHOST), 8080);
    assert_eq!(get(&lab.node, to).expect("published"), (nginx.page(80), to));
    // Each is of its own address.
    for (ip, port) in [
        (LOCALHOST6, 8080),
        (Ipv4Addr::new(127, 0, 0, 2).into(), 8080),
        (NODE, 8080),
        (LOCALHOST, 8081),
        (mapped(LOCALHOST), 8081),
        (NODE6, 8081),
    ] {
        assert!(is_refused(&lab.node, ip, port), "{ip} {port}");
    }

    // From outside: not even for one who routes localhost to the node.
    lab.client.sysctl("ipv4/conf/all/route_localnet", "1");
    for (family, localhost, via) in [("-4", "127.0.0.1", NODE), ("-6", "::1", NODE6)] {
        let via = via.to_string();
        lab.client.ip(&[
            family, "route", "add", localhost, "via", &via, "table", "77",
        ]);
        lab.client.ip(&[
            family, "rule", "add", "to", localhost, "lookup", "77", "pref", "0",
        ]);
    }
    for (ip, port) in [
        (NODE, 8080),
        (LOCALHOST, 8080),
        (NODE6, 8081),
        (LOCALHOST6, 8081),
    ] {
        assert!(curl_in_vain(&lab.client, ip, port), "{ip} {port}");
        assert!(curl_in_vain(&site.web, ip, port), "{ip} {port}");
    }
}

#[test]
fn datagrams_of_the_node_come_back_from_where_they_were_sent() {
    let site = Site::new(&["5300:53/udp"]);
    let Site { lab, web, .. } = &site;
    let _four = UdpEcho::start(web, (site.ip, 53));
    let _six = UdpEcho::start(web, (site.ip6, 53));
    for (own, all) in [
        ("0.0.0.0:0", &[LOCALHOST, NODE][..]),
        (
            "[::]:0",
            &[LOCALHOST6, NODE6, mapped(LOCALHOST), mapped(NODE)],
        ),
    ] {
        let socket = lab.node.enter(|| UdpSocket::bind(own).expect("a socket"));
        // One socket for all: `ask` looks where each answer comes from.
        for &ip in all {
            assert!(ask(&socket, (ip, 5300), "x").is_some(), "{ip}");
        }
        for &ip in all {
            let socket = lab.node.enter(|| UdpSocket::bind(own).expect("a socket"));
            lab.node
                .enter(|| socket.connect((ip, 5300)).expect("connected"));
            assert_eq!(socket.peer_addr().expect("a peer"), (ip, 5300).into());
            socket.set_read_timeout(Some(PATIENCE)).expect("not 0");
            let mut buffer = [0; 256];
            socket.send(b"x").expect("sent");
            let (_, from) = socket.recv_from(&mut buffer).expect("an answer");
            assert_eq!(from, (ip, 5300).into());
            // With an address, though it is connected.
            assert!(ask(&socket, (ip, 5300), "x").is_some(), "{ip}");
        }
    }
    // The kernel has chosen the link by the scope: that is no way to a container.
    let (ip, scope) = link_local(&lab.node, "up0");
    let to: SocketAddr = SocketAddrV6::new(ip, 5300, 0, scope).into();
    let socket = lab
        .node
        .enter(|| UdpSocket::bind("[::]:0").expect("a socket"));
    socket.set_read_timeout(Some(IN_VAIN)).expect("not 0");
    socket.send_to(b"x", to).expect("sent");
    let error = socket
        .recv_from(&mut [0; 256])
        .expect_err("nobody is there");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

    // Elsewhere it is not published.
    let socket = lab
        .world
        .enter(|| UdpSocket::bind("[::]:0").expect("a socket"));
    for ip in [LOCALHOST6, mapped(LOCALHOST)] {
        assert!(ask_in_vain(&socket, (ip, 5300), "x"), "{ip}");
    }
}

#[test]
fn a_publish_that_comes_and_goes_is_seen_by_the_next_call() {
    let site = Site::new(&["8080:80", "5300:53/udp"]);
    let Site {
        agent, nginx, lab, ..
    } = &site;
    let _echo = UdpEcho::start(&site.web, (site.ip6, 53));
    let other = lab.container("other");
    let second = Nginx::start(&other, "other", &[80]);
    attach(agent, "other", &other, &[]);
    let at = agent.json(&["endpoint", "inspect", "other"]);
    let _other_echo = UdpEcho::start(&other, (text(&at["ip6"]).parse().expect("an address"), 53));

    let socket = lab
        .node
        .enter(|| UdpSocket::bind("[::]:0").expect("a socket"));
    assert!(ask(&socket, (LOCALHOST6, 5300), "x").is_some());

    for publish in ["8080:80", "5300:53/udp"] {
        agent.netfw(&["unpublish", "web", publish]);
    }
    for ip in [LOCALHOST, LOCALHOST6, NODE6, mapped(NODE)] {
        assert!(is_refused(&lab.node, ip, 8080), "{ip}");
    }
    assert!(ask_in_vain(&socket, (LOCALHOST6, 5300), "x"));

    // The same socket, another container.
    agent.netfw(&["publish", "other", "8080:80"]);
    agent.netfw(&["publish", "other", "5300:53/udp"]);
    for ip in [LOCALHOST, LOCALHOST6, NODE6] {
        assert_eq!(
            curl(&lab.node, ip, 8080, "/"),
            Some(second.page(80)),
            "{ip}"
        );
    }
    assert!(ask(&socket, (LOCALHOST6, 5300), "x").is_some());
    agent.netfw(&["endpoint", "rm", "other"]);
    assert!(is_refused(&lab.node, LOCALHOST6, 8080));

    // The node may lose an address, and get it back.
    agent.netfw(&["publish", "web", "8080:80"]);
    let own = format!("{NODE6_OUTSIDE}/64");
    lab.node.ip(&["addr", "del", &own, "dev", "up1"]);
    wait_until("the address to be a stranger's", SOON, || {
        curl_in_vain(&lab.node, NODE6_OUTSIDE, 8080)
    });
    lab.node.ip(&["addr", "add", &own, "dev", "up1", "nodad"]);
    wait_until("the address to be served again", SOON, || {
        curl(&lab.node, NODE6_OUTSIDE, 8080, "/") == Some(nginx.page(80))
    });
}

/// Has the socket no peer any more, and does it say why?
#[track_caller]
fn is_aborted(socket: &UdpSocket) {
    let error = socket.take_error().expect("a socket");
    assert_eq!(
        error.map(|error| error.kind()),
        Some(io::ErrorKind::ConnectionAborted)
    );
    let error = socket.send(b"x").expect_err("no peer");
    assert_eq!(error.raw_os_error(), Some(libc::EDESTADDRREQ));
}

/// Whoever gets the container's address next is not the one that they were connected to.
#[test]
fn what_is_connected_to_a_publish_ends_with_it() {
    let site = Site::new(&["7000:70", "5300:53/udp", "5400:53/udp", "53:53"]);
    let Site { agent, lab, .. } = &site;
    let fountain = Fountain::start(&site.web, 70);
    let _four = UdpEcho::start(&site.web, (site.ip, 53));
    let _six = UdpEcho::start(&site.web, (site.ip6, 53));
    let connected = |ip: IpAddr, port: u16| {
        let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = lab.node.enter(|| {
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.connect((ip, port)).expect("connected");
            socket
        });
        socket.set_read_timeout(Some(PATIENCE)).expect("not 0");
        socket
    };
    let is_answered = |socket: &UdpSocket| {
        socket.send(b"x").expect("sent");
        socket.recv(&mut [0; 256]).expect("an answer");
    };
    let locals = [LOCALHOST, LOCALHOST6, mapped(NODE)];
    let [first, second, direct] = [5300, 5400, 0].map(|port| {
        locals.map(|ip| match port {
            0 => connected(if ip.is_ipv4() { site.ip } else { site.ip6 }, 53),
            port => connected(ip, port),
        })
    });
    let streams = locals.map(|ip| {
        let to = SocketAddr::new(ip, 7000);
        lab.node
            .enter(|| TcpStream::connect_timeout(&to, PATIENCE).expect("connected"))
    });
    // Of another protocol, or another publish: not theirs.
    agent.netfw(&["unpublish", "web", "53:53"]);
    agent.netfw(&["unpublish", "web", "5300:53/udp"]);
    first.iter().for_each(is_aborted);
    second.iter().chain(&direct).for_each(is_answered);
    for mut stream in &streams {
        stream.read_exact(&mut [0; 4096]).expect("it goes on");
    }
    agent.netfw(&["endpoint", "rm", "web"]);
    second.iter().for_each(is_aborted);
    for mut stream in &streams {
        stream.set_read_timeout(Some(PATIENCE)).expect("not 0");
        let error = loop {
            match stream.read(&mut [0; 4096]) {
                Ok(bytes) => assert_ne!(bytes, 0, "an end without a word"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
    drop(fountain);
}

#[test]
fn programs_find_localhost_in_both_families() {
    let site = Site::new(&["8080:80", "5201:5201", "5201:5201/udp"]);
    let Site { nginx, lab, .. } = &site;
    for family in ["--ipv4", "--ipv6"] {
        let url = "http://localhost:8080/";
        let peer = "%{remote_ip}";
        let told = lab
            .node
            .run(&["curl", "--silent", family, "--write-out", peer, url]);
        let localhost = if family == "--ipv4" {
            LOCALHOST
        } else {
            LOCALHOST6
        };
        assert_eq!(told, format!("{}{localhost}", nginx.page(80)));
    }
    let server = site.web.spawn(&["iperf3", "--server", "--forceflush"]);
    let mut tests = 0;
    for to in ["127.0.0.1", "::1", "fd00:1::1"] {
        for udp in [&[][..], &["--udp", "--bitrate", "10M"]] {
            tests += 1;
            wait_until("iperf3 to listen", SOON, || {
                server.stdout().contains(&format!("(test #{tests})"))
            });
            let mut words = vec!["iperf3", "--client", to, "--bytes", "1M"];
            words.extend(udp);
            let told = lab.node.run(&words);
            assert!(
                told.contains(&format!("connected to {to} port 5201")),
                "{told}"
            );
            assert!(told.contains("iperf Done."), "{told}");
        }
    }
}

/// curl's exit status where it cannot connect: at once, since it is given no time limit.
const REFUSED: i32 = 7;

/// It would send to the container by that interface, or from that address, in vain.
#[test]
fn a_socket_that_is_bound_where_no_container_is_is_left_alone() {
    let site = Site::new(&["8080:80"]);
    // To the node itself, where nobody has the port.
    for (bound, url) in [
        ("127.0.0.1", "http://127.0.0.1:8080/"),
        ("::1", "http://[::1]:8080/"),
        ("if!up0", "http://10.1.0.1:8080/"),
        ("if!up0", "http://[fd00:1::1]:8080/"),
    ] {
        let words = ["--silent", "--interface", bound, url];
        let curl = site.lab.node.command("curl").args(words).output();
        let status = curl.expect("curl can be started").status;
        assert_eq!(status.code(), Some(REFUSED), "{words:?}");
    }
    // To another address of the node's there is a way back.
    for (bound, url) in [
        ("10.2.0.1", "http://127.0.0.1:8080/"),
        ("fd00:2::1", "http://[::1]:8080/"),
    ] {
        let words = ["curl", "--silent", "--interface", bound, url];
        assert_eq!(site.lab.node.run(&words), site.nginx.page(80), "{words:?}");
    }
}

/// The kernel gives processes ports of their own without knowing what is published.
#[test]
fn an_answer_between_processes_of_the_node_is_no_question_to_a_container() {
    let site = Site::new(&["5300:53/udp"]);
    let node = &site.lab.node;
    node.sysctl("ipv4/ip_local_port_range", "5300 5300");
    for ip in [LOCALHOST, NODE, LOCALHOST6, NODE6] {
        let any: IpAddr = if ip.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let _server = UdpEcho::start(node, (any, 7777));
        let client = node.enter(|| UdpSocket::bind((ip, 0)).expect("one port is left"));
        assert_eq!(client.local_addr().expect("bound").port(), 5300);
        node.enter(|| client.connect((ip, 7777)).expect("connected"));
        client.set_read_timeout(Some(PATIENCE)).expect("not 0");
        client.send(b"x").expect("sent");
        let mut buffer = [0; 256];
        let len = client
            .recv(&mut buffer)
            .unwrap_or_else(|e| panic!("{ip}: {e}"));
        assert!(buffer[..len].ends_with(b" x"));
    }
}
