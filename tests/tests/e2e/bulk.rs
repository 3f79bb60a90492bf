//! Much data: it arrives whole, with and without segmentation offloads, and both ways.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
};

use netfw_tests::{
    Namespace,
    programs::{Nginx, sha256},
    reaper,
    topology::{NODE, WORLD},
};

use crate::{
    network::{iperf3, iperf3_server},
    setting::Site,
};

const GIB: u64 = 1 << 30;

/// 1 GiB of noise, and its SHA-256; made once, gone with the process.
fn noise() -> &'static (PathBuf, String) {
    static NOISE: OnceLock<(PathBuf, String)> = OnceLock::new();
    NOISE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("netfw-noise-{}", std::process::id()));
        reaper::at_end(&format!("rm -f {}", path.display()));
        let status = Command::new("head")
            .args(["-c", &GIB.to_string(), "/dev/urandom"])
            .stdout(File::create(&path).expect("a new file"))
            .status();
        assert!(status.is_ok_and(|status| status.success()), "1 GiB of disk");
        let hash = sha256(&path);
        (path, hash)
    })
}

fn offloads(namespace: &Namespace, device: &str, state: &str) {
    let mut words = vec!["ethtool", "-K", device];
    for feature in ["tso", "gso", "gro", "tx"] {
        words.extend([feature, state]);
    }
    namespace.run(&words);
}

/// What `from` gets from `url`, by hash.
fn download(from: &Namespace, url: &str) -> String {
    let mut shell = from.command("bash");
    shell.args([
        "-c",
        "set -o pipefail; curl -sS --noproxy '*' --max-time 60 \"$0\" | sha256sum",
        url,
    ]);
    let printed = netfw_tests::netns::stdout(&mut shell);
    printed.split(' ').next().unwrap_or_default().to_owned()
}

/// Sends the noise from `from` to a socket of `to`'s; what arrived, by hash.
fn upload(from: &Namespace, to: &Namespace, at: (IpAddr, u16)) -> String {
    let listener = to.enter(|| TcpListener::bind(at).expect("the port is free"));
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut hash = Command::new("sha256sum")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("sha256sum can be started");
            let mut pipe = hash.stdin.take().expect("a pipe");
            io::copy(&mut stream, &mut pipe).expect("all of it");
            drop(pipe);
            let output = hash.wait_with_output().expect("a hash");
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        let mut stream = from.enter(|| {
            TcpStream::connect_timeout(&SocketAddr::from(at), crate::setting::SOON)
                .expect("the receiver is reached")
        });
        let mut file = File::open(&noise().0).expect("the noise");
        io::copy(&mut file, &mut stream).expect("all of it");
        drop(stream);
        let printed = receiver.join().expect("the receiver ends");
        printed.split(' ').next().unwrap_or_default().to_owned()
    })
}

#[test]
fn a_gibibyte_arrives_whole_with_and_without_offloads() {
    let (file, hash) = noise();
    let site = Site::new(&["8080:80"]);
    let Site {
        lab, web, nginx, ..
    } = &site;
    let world = Nginx::start(&lab.world, "world", &[80]);
    for server in [nginx, &world] {
        std::os::unix::fs::symlink(file, server.files().join("noise")).expect("a new link");
    }
    for state in ["on", "off"] {
        for namespace in [&lab.client, &lab.world, web] {
            offloads(namespace, "eth0", state);
        }
        let publish = download(&lab.client, &format!("http://{NODE}:8080/files/noise"));
        assert_eq!(&publish, hash, "through the publish, offloads {state}");
        let masquerade = download(web, &format!("http://{WORLD}/files/noise"));
        assert_eq!(&masquerade, hash, "into the container, offloads {state}");
        let out = upload(web, &lab.world, (WORLD, 9000));
        assert_eq!(&out, hash, "out of the container, offloads {state}");
    }
}

#[test]
fn iperf3_runs_both_ways_over_tcp_and_udp() {
    let site = Site::new(&["5201:5201", "5201:5201/udp"]);
    let _inside = iperf3_server(&site.web);
    let _outside = iperf3_server(&site.lab.world);
    // So slow that a receiver who waits for a CPU loses none: 200 ms fit into its buffer.
    let udp = ["-u", "-b", "5M", "-l", "1400"];
    let udp_back = ["-u", "-b", "5M", "-l", "1400", "-R"];
    for (options, least) in [
        (&[] as &[&str], 100e6),
        (&["-R"], 100e6),
        (&["-P", "4"], 100e6),
        (&udp, 4e6),
        (&udp_back, 4e6),
    ] {
        for (what, from, to) in [
            ("publish", &site.lab.client, NODE),
            ("masquerade", &site.web, WORLD),
        ] {
            let bits = iperf3(from, to, options);
            assert!(bits > least, "{what} {options:?}: {bits} bit/s");
        }
    }
}
