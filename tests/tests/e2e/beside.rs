//! netfw beside the bridges of others, on one node: all serve, none touches what is another's, and a port belongs to
//! one of them.

use std::{net::IpAddr, os::unix::fs::symlink, path::Path};

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::FAILED,
    docker::Docker,
    programs::{Nginx, curl, curl_in_vain, ping},
    runtime::{self, IMAGE, PAGE, serves_on},
    topology::{CLIENT, NODE, WORLD},
    wait::{wait_at_most, wait_until},
};

use crate::{
    podman::Site,
    setting::{SOON, attach},
};

/// What the reference plugins of CNI need.
const PLUGINS: [(&str, &str); 3] = [
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
];

/// The ports that serve: another's container, and ours.
const THEIRS: u16 = 8090;
const OURS: u16 = 8080;

/// What others have in the node: rules, without their counters and times, links, addresses and routes, without ours.
fn others(node: &Namespace) -> Vec<String> {
    let mut all = Vec::new();
    for look in [
        &["iptables-save"][..],
        &["ip6tables-save"],
        &["ip", "-o", "link"],
        &["ip", "-o", "address"],
        &["ip", "route"],
        &["ip", "-6", "route"],
        &["ip", "rule"],
        &[
            "sysctl",
            "net.ipv4.ip_forward",
            "net.ipv6.conf.all.forwarding",
        ],
    ] {
        let said = node.run(look);
        let lines = said.lines().filter(|line| {
            // Bridges and host sides of veth pairs of ours; when it was said.
            let ours = ["netfw", ": nf"].iter().any(|name| line.contains(name));
            !ours && !line.starts_with('#')
        });
        // A chain's counters stand behind it.
        all.extend(lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned()));
    }
    all
}

/// The client has both pages.
#[track_caller]
fn both_serve(lab: &Lab, ours: &Nginx) {
    they_serve(lab);
    let page = ours.page(80);
    wait_until("our page", SOON, || {
        curl(&lab.client, NODE, OURS, "/").as_ref() == Some(&page)
    });
    asked_by(ours, CLIENT);
}

/// nginx notes a request after its answer.
#[track_caller]
fn asked_by(nginx: &Nginx, client: IpAddr) {
    wait_until(&format!("{client} in the log"), SOON, || {
        let last = nginx.log().pop();
        last.is_some_and(|last| last.starts_with(&client.to_string()))
    });
}

#[track_caller]
fn they_serve(lab: &Lab) {
    serves_on(lab, NODE, THEIRS);
}

/// Each serves, also while our agent comes and goes; nothing of theirs is touched.
#[track_caller]
fn side_by_side(lab: &Lab, agent: &mut Agent, ours: &Nginx, before: &[String]) {
    both_serve(lab, ours);
    assert_eq!(others(&lab.node), before);
    agent.stop();
    both_serve(lab, ours);
    agent.start_again();
    both_serve(lab, ours);
    assert_eq!(others(&lab.node), before);
}

#[test]
fn docker_s_bridge_goes_on_beside_netfw() {
    let lab = Lab::new();
    let Some(docker) = Docker::start(&lab.node, &[]) else {
        return;
    };
    let publish = |port: u16| format!("{port}:80");
    docker.serve("theirs", &["-p", &publish(THEIRS)]);
    they_serve(&lab);
    let before = others(&lab.node);
    assert!(
        before.iter().any(|line| line.contains("DNAT")),
        "{before:?}"
    );

    let mut agent = Agent::start(&lab);
    let containers = ["web", "other"].map(|name| lab.container(name));
    let ours = Nginx::start(&containers[0], "web", &[80]);
    attach(&agent, "web", &containers[0], &[&publish(OURS)]);
    let other = attach(&agent, "other", &containers[1], &[]);
    side_by_side(&lab, &mut agent, &ours, &before);

    // A port is the one's or the other's.
    let said = agent.refuses(FAILED, &["publish", "other", &publish(THEIRS)]);
    assert!(said.contains("docker-proxy"), "{said}");
    let refused = docker.output(&["run", "-d", "--name", "late", "-p", &publish(OURS), IMAGE]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("address already in use"), "{said}");
    docker.docker(&["rm", "-f", "late"]);
    both_serve(&lab, &ours);
    // Docker 28 leaves the interface to the kernel, which takes it along with the namespace.
    wait_at_most(SOON, || (others(&lab.node) == before).then_some(()));
    assert_eq!(others(&lab.node), before);

    // Docker drops what it does not know that the node forwards; nothing of ours is forwarded by it.
    assert!(
        before.iter().any(|line| line == ":FORWARD DROP"),
        "{before:?}"
    );
    assert!(ping(&containers[0], other));
    assert!(ping(&containers[0], WORLD));
    // Theirs use our ports as the world does, and ours reach theirs at their own addresses.
    let url = format!("http://{NODE}:{OURS}/");
    let page = docker.docker(&["exec", "theirs", "wget", "-qO-", &url]);
    assert_eq!(page, ours.page(80));
    let inspect = ["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "theirs"];
    let theirs: IpAddr = docker.docker(&inspect).trim().parse().expect("an address");
    asked_by(&ours, theirs);
    assert_eq!(curl(&containers[0], theirs, 80, "/").as_deref(), Some(PAGE));

    // Docker comes and goes, too.
    docker.docker(&["rm", "-f", "theirs"]);
    assert!(curl_in_vain(&lab.client, NODE, THEIRS));
    agent.netfw(&["publish", "web", &publish(THEIRS)]);
    agent.netfw(&["unpublish", "web", &publish(THEIRS)]);
    docker.serve("theirs", &["-p", &publish(THEIRS)]);
    both_serve(&lab, &ours);

    // The rules of the new container; its interface has another name.
    let rules = |all: Vec<String>| {
        let rules = all
            .into_iter()
            .filter(|line| line.starts_with(['-', ':', '*']));
        rules.collect::<Vec<_>>()
    };
    assert_eq!(rules(others(&lab.node)), rules(before));
    let before = others(&lab.node);
    drop(agent);
    they_serve(&lab);
    assert!(curl_in_vain(&lab.client, NODE, OURS));
    assert_eq!(others(&lab.node), before);
}

#[test]
fn podman_s_bridge_goes_on_beside_netfw() {
    if !runtime::are_there(&PLUGINS) {
        return;
    }
    let Some(mut site) = Site::start() else {
        return;
    };
    for (plugin, _) in PLUGINS {
        let name = Path::new(plugin).file_name().expect("a name");
        symlink(plugin, site.podman.path().join("bin").join(name)).expect("a new link");
    }
    let data = site.podman.path().join("addresses");
    site.podman.network(
        "theirs",
        &format!(
            r#"{{"type": "bridge", "bridge": "cni-theirs", "isGateway": true, "ipMasq": true,
                 "ipam": {{"type": "host-local", "dataDir": "{}", "ranges": [[{{"subnet": "10.88.7.0/24"}}]],
                           "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
               {{"type": "portmap", "capabilities": {{"portMappings": true}}}}"#,
            data.display()
        ),
    );
    site.network("ours", "");
    site.podman.serve(
        "theirs",
        &["--network", "theirs", "-p", &format!("{THEIRS}:80")],
    );
    let container = site.lab.container("web");
    let ours = Nginx::start(&container, "web", &[80]);
    let publish = format!("{OURS}:80");
    attach(&site.agent, "web", &container, &[&publish]);
    they_serve(&site.lab);
    let before = others(&site.lab.node);
    assert!(
        before.iter().any(|line| line.contains("DNAT")),
        "{before:?}"
    );
    side_by_side(&site.lab, &mut site.agent, &ours, &before);

    let said = site
        .agent
        .refuses(FAILED, &["publish", "web", &format!("{THEIRS}:80")]);
    assert!(
        said.contains(&THEIRS.to_string()) && said.contains("holds"),
        "{said}"
    );
    // Ours is refused to podman, whichever network its container is in.
    for network in ["ours", "theirs"] {
        let run = ["run", "--rm", "--network", network, "-p", &publish, IMAGE];
        let refused = site.podman.output(&run);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains(&OURS.to_string()),
            "{said}"
        );
    }
    // podman has made tables for the container that did not come about.
    let before = others(&site.lab.node);
    // podman's containers in networks of both kinds.
    site.podman
        .serve("both", &["--network", "ours", "-p", "8081:80"]);
    serves_on(&site.lab, NODE, 8081);
    site.podman.podman(&["rm", "-f", "-t", "0", "both"]);
    both_serve(&site.lab, &ours);
    assert_eq!(others(&site.lab.node), before);
    site.agent.stop();
    site.agent.netfw(&["down"]);
    they_serve(&site.lab);
    assert_eq!(others(&site.lab.node), before);
}
