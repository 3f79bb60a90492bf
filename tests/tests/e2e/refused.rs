//! Bad input: an exit status, a sentence that says what is in the way, and nothing changed.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::Command,
};

use netfw_tests::{
    Agent, Lab, Namespace, Running,
    agent::{FAILED, USAGE, binary},
    programs::{Nginx, curl, curl_in_vain},
    topology::{NODE, NODE_OUTSIDE, WORLD, wire},
    wait_until,
};

use crate::setting::{SOON, Site, attach};

/// Everything that a refused request must leave as it is.
fn state(site: &Site) -> Vec<String> {
    let Site {
        agent, lab, web, ..
    } = site;
    let pins = format!("/sys/fs/bpf/{}", agent.instance());
    let mut state = vec![
        agent.json(&["endpoint", "ls"]).to_string(),
        agent.json(&["port"]).to_string(),
        agent.json(&["network", "ls"]).to_string(),
        files(Path::new(&pins)).join("\n"),
    ];
    for namespace in [&lab.node, web] {
        state.push(namespace.links().join(" "));
        for family in ["-4", "-6"] {
            // Link-local addresses become usable by themselves.
            state.push(namespace.ip(&[family, "-o", "addr", "show", "scope", "global"]));
            state.push(namespace.ip(&[family, "route", "show", "table", "main"]));
        }
    }
    state
}

fn files(directory: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).expect("pins are there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path.display().to_string());
        }
    }
    all.sort();
    all
}

/// Every line of `table`: exit status, words, phrases that the message must have.
#[track_caller]
fn all_refused(site: &Site, table: &[(i32, &[&str], &[&str])]) {
    let before = state(site);
    for (status, words, phrases) in table {
        let said = site.agent.refuses(*status, words);
        for phrase in *phrases {
            assert!(
                said.contains(phrase),
                "{words:?} must say {phrase:?}, but says: {said}"
            );
        }
        assert!(!said.contains("panicked"), "{words:?}: {said}");
        let after = state(site);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before, after, "{words:?} changed something");
        }
    }
}

#[test]
fn ports_that_cannot_be() {
    let site = Site::new(&["8080:80"]);
    let publish = |spec: &'static str| vec!["publish", "web", spec];
    let table: Vec<(i32, Vec<&str>, &[&str])> = vec![
        (USAGE, publish("0-9:80"), &["1 to 65535"]),
        (USAGE, publish("80:0"), &["1 to 65535"]),
        (USAGE, publish("65536:80"), &["\"65536\"", "1 to 65535"]),
        (USAGE, publish("80:99999999999"), &["1 to 65535"]),
        (USAGE, publish("-1:80"), &[]),
        (USAGE, publish("x:80"), &["is no"]),
        (USAGE, publish(""), &[]),
        (USAGE, publish(":"), &[]),
        (USAGE, publish("90-80:90-80"), &["runs backwards"]),
        (
            USAGE,
            publish("80-90:80-89"),
            &["11 host ports", "10 container ports"],
        ),
        (USAGE, publish("80:80-90"), &["same size"]),
        (USAGE, publish("80:80/icmp"), &["unknown protocol \"icmp\""]),
        (USAGE, publish("300.0.0.1:80:80"), &["no IP address"]),
        (USAGE, publish("::1:80:80"), &["in brackets", "[::1]"]),
        (USAGE, publish("[fe80::1%up0]:80:80"), &["no IP address"]),
        (
            USAGE,
            publish("[ff02::1]:80:80"),
            &["no address of the node"],
        ),
        (
            FAILED,
            publish("[2001:db8::99]:80:80"),
            &["2001:db8::99 is no address of the node", "fd00:1::1"],
        ),
        (
            FAILED,
            publish("[::]:8080:80"),
            &["[::]:8080:80/tcp", "published already"],
        ),
        (FAILED, publish("[::1]:8080:81"), &["published already"]),
        (
            FAILED,
            publish("10.9.9.9:80:80"),
            &["10.9.9.9 is no address of the node", "10.1.0.1"],
        ),
        (FAILED, publish("8080:80"), &["published already", "web"]),
        (
            FAILED,
            publish("8080:81"),
            &["8080:80", "published already"],
        ),
        (FAILED, publish("10.1.0.1:8080:80"), &["published already"]),
        (
            FAILED,
            publish("8000-8090:8000-8090"),
            &["published already"],
        ),
        (
            FAILED,
            vec!["publish", "web", "9000:80", "8080:80"],
            &["published already"],
        ),
        (
            FAILED,
            vec!["publish", "web", "9000:80", "9000:81"],
            &["the same request"],
        ),
        (
            FAILED,
            vec!["publish", "nobody", "9000:80"],
            &["no endpoint \"nobody\""],
        ),
        (
            FAILED,
            vec!["unpublish", "web", "9000:80"],
            &["does not publish", "8080:80"],
        ),
        (
            FAILED,
            vec!["unpublish", "web", "8080:80", "9000:80"],
            &["does not publish"],
        ),
        (
            FAILED,
            vec!["unpublish", "nobody", "8080:80"],
            &["no endpoint \"nobody\""],
        ),
        (USAGE, vec!["publish", "web"], &[]),
    ];
    let table: Vec<_> = table
        .iter()
        .map(|(status, words, phrases)| (*status, words.as_slice(), *phrases))
        .collect();
    all_refused(&site, &table);
    // The half of a request that was in order was not kept either.
    site.agent.netfw(&["publish", "web", "9000:80"]);
}

#[test]
fn endpoints_that_cannot_be() {
    let site = Site::new(&["8080:80"]);
    let free = site.lab.container("free");
    let free = free.name();
    let node = site.lab.node.name();
    let web_ip = site.ip.to_string();
    let inspected = site.agent.json(&["endpoint", "inspect", "web"]);
    let part = |key: &str| inspected[key].as_str().expect("a string").to_owned();
    let (gateway, web_mac) = (part("gateway"), part("mac"));
    let (gateway6, web_ip6) = (part("gateway6"), part("ip6"));
    let anycast = gateway6.strip_suffix('1').expect("the first").to_owned();
    let subnet = site.agent.json(&["status"])["networks"][0]["subnet"].clone();
    let subnet: ipnet::Ipv4Net = subnet
        .as_str()
        .and_then(|s| s.parse().ok())
        .expect("a subnet");
    let (network, broadcast) = (subnet.network().to_string(), subnet.broadcast().to_string());
    let long = "x".repeat(64);
    // Not a namespace's name of this machine.
    let nowhere = format!("nowhere-{}", site.agent.instance());
    let add = |rest: &[&'static str]| -> Vec<&str> {
        [&["endpoint", "add", "app", "--netns", free], rest].concat()
    };
    let with_ip = |ip| vec!["endpoint", "add", "app", "--netns", free, "--ip", ip];
    let table: Vec<(i32, Vec<&str>, Vec<&str>)> = vec![
        (
            USAGE,
            vec!["endpoint", "add", ""],
            vec!["must not be empty"],
        ),
        (
            USAGE,
            vec!["endpoint", "add", &long],
            vec!["64 bytes", "at most 63"],
        ),
        (
            USAGE,
            vec!["endpoint", "add", "a/b"],
            vec!["must not contain '/'"],
        ),
        (
            USAGE,
            vec!["endpoint", "add", ".."],
            vec!["must begin with"],
        ),
        (
            USAGE,
            vec!["endpoint", "add", "a b"],
            vec!["must not contain ' '"],
        ),
        (USAGE, vec!["endpoint", "add", "ä"], vec!["must begin with"]),
        (
            USAGE,
            vec!["endpoint", "rm", "../web"],
            vec!["must begin with"],
        ),
        (
            FAILED,
            vec!["endpoint", "add", "web", "--netns", free],
            vec!["\"web\" exists already"],
        ),
        (
            FAILED,
            vec!["endpoint", "add", free],
            vec!["exists already", "(netns)"],
        ),
        (
            FAILED,
            vec!["endpoint", "add", "app", "--netns", &nowhere],
            vec![&nowhere, "does not exist"],
        ),
        (
            FAILED,
            vec!["endpoint", "add", "app", "--netns", "/no/such"],
            vec!["/no/such does not exist"],
        ),
        (
            FAILED,
            vec!["endpoint", "add", "app", "--netns", "/etc/passwd"],
            vec!["is not a network namespace"],
        ),
        (
            FAILED,
            vec!["endpoint", "add", "app", "--netns", "/proc/self/ns/mnt"],
            vec!["is not a network namespace"],
        ),
        (
            FAILED,
            vec!["endpoint", "add", "app", "--netns", node],
            vec!["is the namespace that the agent serves"],
        ),
        (
            FAILED,
            vec!["endpoint", "add", "app", "--pid", "4194304"],
            vec!["no process 4194304"],
        ),
        (USAGE, vec!["endpoint", "add", "app", "--pid", "0"], vec![]),
        (
            USAGE,
            vec!["endpoint", "add", "app", "--pid", "1", "--netns", free],
            vec!["cannot be used with"],
        ),
        (
            FAILED,
            add(&["--network", "nothing"]),
            vec!["no network \"nothing\"", "bridge"],
        ),
        (
            USAGE,
            add(&["--ip", "fd00::5", "--ip", "fd00::6"]),
            vec!["once for each family"],
        ),
        (
            FAILED,
            with_ip("2001:db8:9::2"),
            vec!["2001:db8:9::2 does not lie in the subnet"],
        ),
        (
            FAILED,
            with_ip(&gateway6),
            vec![&gateway6, "is the gateway"],
        ),
        (FAILED, with_ip(&anycast), vec!["the anycast address"]),
        (
            FAILED,
            with_ip(&web_ip6),
            vec![&web_ip6, "is taken already"],
        ),
        (USAGE, with_ip("300.1.1.1"), vec!["300.1.1.1"]),
        (USAGE, with_ip("x"), vec![]),
        (
            FAILED,
            with_ip("10.77.0.2"),
            vec!["10.77.0.2 does not lie in the subnet"],
        ),
        (FAILED, with_ip(&web_ip), vec![&web_ip, "is taken already"]),
        (FAILED, with_ip(&gateway), vec![&gateway, "is the gateway"]),
        (FAILED, with_ip(&network), vec!["is the network address"]),
        (
            FAILED,
            with_ip(&broadcast),
            vec!["is the broadcast address"],
        ),
        (USAGE, add(&["--mac", "x"]), vec!["is no MAC address"]),
        (
            USAGE,
            add(&["--mac", "01:00:5e:00:00:01"]),
            vec!["multicast"],
        ),
        (USAGE, add(&["--mac", "00:00:00:00:00:00"]), vec![]),
        (
            FAILED,
            vec!["endpoint", "add", "app", "--netns", free, "--mac", &web_mac],
            vec!["endpoint \"web\""],
        ),
        (FAILED, add(&["-p", "8080:80"]), vec!["published already"]),
        (
            FAILED,
            add(&["-p", "9000:80", "-p", "10.9.9.9:9001:80"]),
            vec!["no address of the node"],
        ),
        (USAGE, add(&["-p", "80:0"]), vec!["1 to 65535"]),
        (
            FAILED,
            vec!["endpoint", "rm", "nobody"],
            vec!["no endpoint \"nobody\""],
        ),
        (
            FAILED,
            vec!["endpoint", "inspect", "nobody"],
            vec!["no endpoint \"nobody\""],
        ),
        (
            FAILED,
            vec!["port", "nobody"],
            vec!["no endpoint \"nobody\""],
        ),
        (
            FAILED,
            vec!["flow", "ls", "--endpoint", "nobody"],
            vec!["no endpoint \"nobody\""],
        ),
        (
            FAILED,
            vec!["flow", "flush", "--endpoint", "nobody"],
            vec!["no endpoint \"nobody\""],
        ),
        (USAGE, vec!["endpoint"], vec![]),
        (USAGE, vec!["bogus"], vec!["bogus"]),
        (USAGE, vec!["status", "-o", "yaml"], vec!["yaml", "json"]),
    ];
    let table: Vec<_> = table
        .iter()
        .map(|(status, words, phrases)| (*status, words.as_slice(), phrases.as_slice()))
        .collect();
    all_refused(&site, &table);
    // And the namespace is as empty as it was.
    site.agent
        .netfw(&["endpoint", "add", "app", "--netns", free, "-p", "9000:80"]);
}

#[test]
fn a_port_that_a_process_of_the_node_holds_is_refused_by_name() {
    let site = Site::new(&[]);
    let node = &site.lab.node;
    let tcp = node.enter(|| TcpListener::bind((NODE, 8080)).expect("free"));
    let udp = node.enter(|| UdpSocket::bind("0.0.0.0:5300").expect("free"));
    let (tcp, udp) = (Running::holding(tcp), Running::holding(udp));
    let [of_tcp, of_udp] = [&tcp, &udp].map(|holder| format!("sleep (process {})", holder.pid()));
    let (of_tcp, of_udp) = (of_tcp.as_str(), of_udp.as_str());
    all_refused(
        &site,
        &[
            (
                FAILED,
                &["publish", "web", "8080:80"],
                &[of_tcp, "holds 10.1.0.1:8080/tcp"],
            ),
            (
                FAILED,
                &["publish", "web", "10.1.0.1:8080:80"],
                &[of_tcp, "stop it"],
            ),
            (
                FAILED,
                &["publish", "web", "8000-8100:8000-8100"],
                &[of_tcp, ":8080/tcp"],
            ),
            (
                FAILED,
                &["publish", "web", "5300:53/udp"],
                &[of_udp, ":5300/udp"],
            ),
            (
                FAILED,
                &["publish", "web", "10.2.0.1:5300:53/udp"],
                &[of_udp, ":5300/udp"],
            ),
        ],
    );
    // Another address, another protocol: nobody is in the way.
    site.agent.netfw(&[
        "publish",
        "web",
        "10.2.0.1:8080:80",
        "5300:53",
        "8080:80/udp",
    ]);
    site.agent.netfw(&["unpublish", "web", "10.2.0.1:8080:80"]);
    drop((tcp, udp));
    site.agent
        .netfw(&["publish", "web", "8080:80", "5300:53/udp"]);
}

/// What turns out to be impossible after the namespace, the interface and the half of it were made.
#[test]
fn what_does_not_fit_is_undone() {
    let site = Site::new(&[]);
    let every = |ip: &str| ["tcp", "udp"].map(|p| format!("{ip}:1-65535:1-65535/{p}"));
    let add = |name: &str, ip: &str| {
        let [tcp, udp] = every(ip);
        ["endpoint", "add", name, "-p", &tcp, "-p", &udp].map(str::to_owned)
    };
    // The table has room for 2^18: two of these.
    let made = |n: u32| format!("full{n}-{}", std::process::id());
    for (n, ip) in [(1, "10.1.0.1"), (2, "10.2.0.1")] {
        let words = add(&made(n), ip);
        site.agent.netfw(&words.each_ref().map(String::as_str));
    }
    let before = state(&site);
    let words = add(&made(3), "127.0.0.1");
    for _ in 0..2 {
        let said = site
            .agent
            .refuses(FAILED, &words.each_ref().map(String::as_str));
        assert!(said.contains("PUBLISHES4 is full"), "{said}");
        assert_eq!(state(&site), before);
        for left in [
            format!("/run/netns/{}", made(3)),
            format!("/etc/netns/{}", made(3)),
            format!("/run/netfw/{}/etc/{}", site.agent.instance(), made(3)),
        ] {
            assert!(fs::symlink_metadata(&left).is_err(), "{left}");
        }
    }
    // Its name and what it asked for are free.
    for n in [1, 2] {
        site.agent.netfw(&["endpoint", "rm", &made(n)]);
    }
    site.agent.netfw(&words.each_ref().map(String::as_str));
}

#[test]
fn who_is_not_root_is_told_so() {
    let site = Site::new(&["8080:80"]);
    // Where nobody may execute it.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let copy = directory.path().join("netfw");
    fs::copy(binary(), &copy).expect("netfw can be copied");
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        directory.path(),
        nix::sys::stat::Mode::from_bits_truncate(0o755),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .expect("our own directory");
    let before = state(&site);
    let node = site.lab.node.path().display().to_string();
    for words in [
        &["endpoint", "ls"] as &[&str],
        &["publish", "web", "9000:80"],
        &["status"],
        &["exec", "web", "--", "true"],
        &["down"],
        &["agent", "--netns", &node],
        &["demo"],
    ] {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(&copy)
            .args(["--instance", site.agent.instance()])
            .args(words)
            .output()
            .expect("setpriv can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILED), "{words:?}: {said}");
        assert!(said.contains("root"), "{words:?}: {said}");
    }
    assert_eq!(before, state(&site));
    let socket = format!("/run/netfw/{}/agent.sock", site.agent.instance());
    let mode = fs::metadata(socket).expect("the socket").mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn without_an_agent_every_command_says_how_to_start_one() {
    let instance = format!("none{}", std::process::id());
    for words in [
        &["endpoint", "ls"] as &[&str],
        &["endpoint", "add", "web"],
        &["publish", "web", "8080:80"],
        &["flow", "ls"],
        &["status"],
        &["stats"],
        &["exec", "web", "--", "true"],
    ] {
        let output = Command::new(binary())
            .args(["--instance", &instance])
            .args(words)
            .output()
            .expect("netfw can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILED), "{words:?}: {said}");
        assert!(
            said.contains(&format!("netfw agent --instance {instance}")),
            "{words:?}: {said}"
        );
    }
    for directory in ["/run/netfw", "/var/lib/netfw", "/sys/fs/bpf"] {
        assert!(!Path::new(directory).join(&instance).exists());
    }
}

#[test]
fn an_agent_that_cannot_serve_says_why_and_makes_nothing() {
    let lab = Lab::new();
    let instance = format!("bad{}", std::process::id());
    let node = lab.node.path().display().to_string();
    let links = lab.node.links();
    let config = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(config.path(), "max_flow = 5\n").expect("our own file");
    let config = config.path().display().to_string();
    for (status, words, phrase) in [
        (
            FAILED,
            &["--netns", "no-such-namespace"] as &[&str],
            "no network namespace no-such-namespace",
        ),
        (
            FAILED,
            &["--netns", "/etc/passwd"],
            "is not a network namespace",
        ),
        (
            FAILED,
            &["--netns", &node, "--config", "/no/such"],
            "/no/such cannot be read",
        ),
        (FAILED, &["--netns", &node, "--config", &config], "max_flow"),
        (USAGE, &["--netns", &node, "--uplink", "a/b"], "\"a/b\""),
        (USAGE, &["--netns", &node, "--uplink", ""], "no interface"),
        (USAGE, &["--instance", "a.b"], "must not contain a dot"),
        (USAGE, &["--instance", "../x"], "must begin with"),
        (USAGE, &["--instance", ""], "must not be empty"),
    ] {
        let output = Command::new(binary())
            .args(["agent"])
            .args(
                (!words.contains(&"--instance"))
                    .then_some(["--instance", &instance])
                    .into_iter()
                    .flatten(),
            )
            .args(words)
            .output()
            .expect("netfw can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
        assert!(
            said.contains(phrase),
            "{words:?} must say {phrase:?}: {said}"
        );
    }
    assert_eq!(links, lab.node.links());
    for directory in ["/run/netfw", "/var/lib/netfw", "/sys/fs/bpf"] {
        assert!(
            !Path::new(directory).join(&instance).exists(),
            "{directory}"
        );
    }
}

#[test]
fn uplinks_that_were_named_are_served_and_no_others() {
    let lab = Lab::new();
    let agent = Agent::start_with(&lab, &["--uplink", "up0", "--uplink", "later0"]);
    let web = lab.container("web");
    let nginx = Nginx::start(&web, "web", &[80]);
    attach(&agent, "web", &web, &["8080:80"]);
    let line = |name: &str| {
        let status = agent.netfw(&["status"]);
        let line = status.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))
            .to_owned()
    };
    assert!(
        line("later0 ").contains("not served"),
        "{}",
        line("later0 ")
    );
    assert!(line("up1 ").contains("not named"), "{}", line("up1 "));
    assert_eq!(curl(&lab.client, NODE, 8080, "/"), Some(nginx.page(80)));
    assert!(curl_in_vain(&lab.world, NODE_OUTSIDE, 8080));
    // In the other direction, too.
    let world = Nginx::start(&lab.world, "world", &[80]);
    assert!(curl_in_vain(&web, WORLD, 80));
    assert_eq!(world.log().len(), 0);

    let late = Namespace::new("late");
    let address = |text: &str| text.parse().expect("an address");
    wire(
        (
            &lab.node,
            "later0",
            [address("10.3.0.1"), address("fd00:3::1")],
        ),
        (&late, "eth0", [address("10.3.0.2"), address("fd00:3::2")]),
    );
    wait_until("later0 to be served", SOON, || {
        !line("later0 ").contains("not served")
    });
    assert_eq!(
        curl(&late, address("10.3.0.1"), 8080, "/"),
        Some(nginx.page(80))
    );
}
