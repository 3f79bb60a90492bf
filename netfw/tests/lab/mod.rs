//! What the tests of `net` and `bpf` stand on: namespaces of their own.
//!
//! They need root and a kernel with BPF; without, each says so and passes, so that a bare
//! `cargo test` works for anybody. Everything made here has the process id in its name and goes with
//! the fixture, whatever happens.

use std::sync::atomic::{AtomicU32, Ordering};

use netfw::net::{Namespace, Netlink, Veth};

/// A namespace that goes with its value.
pub struct Lab {
    name: String,
    pub namespace: Namespace,
}

impl Lab {
    pub fn new() -> Self {
        let name = unique();
        let namespace = Namespace::create(&name).unwrap();
        Self { name, namespace }
    }

    /// Runs `f` on a runtime of its own inside the namespace, as the agent runs in the node's.
    pub fn run<T: Send + 'static>(&self, f: impl AsyncFnOnce() -> T + Send + 'static) -> T {
        self.namespace
            .run(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(f())
            })
            .unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        Namespace::delete(&self.name).unwrap();
    }
}

pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "nfn-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

pub async fn dummy_veth(netlink: &Netlink, name: &str, peer: &Namespace) -> (u32, u32) {
    let bridge = match netlink.link("br0").await.unwrap() {
        Some(link) => link.index,
        None => netlink
            .create_bridge("br0", [2, 0, 0, 0, 0, 1], 1500, "netfw test")
            .await
            .unwrap(),
    };
    let made = netlink
        .create_veth(Veth {
            host_name: name,
            host_mac: [2, 0, 0, 0, 1, 1],
            peer_name: "eth0",
            peer_mac: [2, 0, 0, 0, 2, 2],
            peer_ns: peer.as_fd(),
            mtu: 1400,
            master: bridge,
            alias: "netfw test/web",
        })
        .await
        .unwrap();
    netlink.set_up(made.0).await.unwrap();
    made
}
