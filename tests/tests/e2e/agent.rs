//! The agent's life: it starts, answers, dies, comes back, and leaves nothing.

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::Duration};

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::FAILED,
    load::Pings,
    programs::{Drinker, Fountain, Nginx, UdpEcho, ask, curl, curl_in_vain, udp_socket},
    topology::{CLIENT, CLIENT6, NODE, NODE_OUTSIDE, NODE6, WORLD, wire},
    wait_until,
};

use crate::setting::{SOON, Site, attach, text};

#[test]
fn an_agent_answers_and_leaves_nothing_behind() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    agent.netfw(&["status"]);
    assert!(agent.json(&["status"]).is_object());
    // Dropping it checks what is left.
}

#[test]
fn an_agent_that_was_killed_starts_again() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    agent.kill();
    agent.refuses(FAILED, &["status"]);
    agent.start_again();
    agent.stop();
}

#[test]
fn a_filter_that_somebody_removes_is_put_back() {
    let mut site = Site::new(&["8080:80"]);
    let endpoint = site.agent.json(&["endpoint", "inspect", "web"]);
    let veth = text(&endpoint["host_interface"]);
    let filters = |lab: &Lab| {
        lab.node
            .run(&["tc", "filter", "show", "dev", veth, "ingress"])
    };
    let is_served = |site: &Site| {
        wait_until("the filter to be back", SOON, || {
            filters(&site.lab).contains("netfw_container")
        });
        assert_eq!(
            curl(&site.lab.client, NODE, 8080, "/"),
            Some(site.nginx.page(80))
        );
    };
    is_served(&site);
    let filter = ["tc", "filter", "del", "dev", veth, "ingress"];
    let qdisc = ["tc", "qdisc", "del", "dev", veth, "clsact"];
    site.lab.node.run(&filter);
    is_served(&site);
    site.lab.node.run(&qdisc);
    is_served(&site);
    // Nobody was there to be told.
    site.agent.kill();
    site.lab.node.run(&qdisc);
    assert!(!filters(&site.lab).contains("netfw_container"));
    site.agent.start_again();
    is_served(&site);
}

#[test]
fn what_happens_to_interfaces_is_noticed_among_the_agent_s_own_doing() {
    let site = Site::new(&[]);
    let app = site.lab.container("app");
    attach(&site.agent, "app", &app, &[]);
    site.agent.netfw(&["endpoint", "rm", "app"]);
    let endpoint = site.agent.json(&["endpoint", "inspect", "web"]);
    let veth = text(&endpoint["host_interface"]);
    attach(&site.agent, "app", &app, &[]);
    let extra = ["type", "veth", "peer", "name", "extra2"];
    site.lab
        .node
        .ip(&[&["link", "add", "extra"], &extra[..]].concat());
    wait_until("the new interface to be an uplink", SOON, || {
        let status = site.agent.json(&["status"]);
        let uplinks = status["uplinks"].as_array().expect("a list");
        uplinks.iter().any(|uplink| uplink["name"] == "extra")
    });
    site.agent.netfw(&["endpoint", "rm", "app"]);
    site.lab.node.ip(&["link", "del", veth]);
    wait_until("the endpoint to have another one", SOON, || {
        let now = site.agent.json(&["endpoint", "inspect", "web"]);
        now["state"] == "up" && now["host_ifindex"] != endpoint["host_ifindex"]
    });
}

/// What a restart must not change.
fn state(agent: &Agent, lab: &Lab, container: &Namespace) -> Vec<String> {
    vec![
        agent.json(&["endpoint", "ls"]).to_string(),
        agent.json(&["port"]).to_string(),
        agent.json(&["status"])["uplinks"].to_string(),
        agent.json(&["status"])["networks"].to_string(),
        lab.node.ip(&["-o", "link"]),
        container.ip(&["-o", "link"]),
        lab.node.ip(&["-4", "-o", "addr"]),
        lab.node.ip(&["route"]),
    ]
}

#[test]
fn transfers_go_on_while_the_agent_is_killed_and_restarted() {
    let mut site = Site::new(&["8080:80", "7000:7000"]);
    let _inside = Fountain::start(&site.web, 7000);
    let _outside = Fountain::start(&site.lab.world, 7000);
    let _echo = UdpEcho::start(&site.lab.world, (WORLD, 53));
    let mut published = Drinker::connect(&site.lab.client, (NODE, 7000));
    let mut masqueraded = Drinker::connect(&site.web, (WORLD, 7000));
    let socket = udp_socket(&site.web);
    let mut go_on = || {
        // 16 MiB each: more than all buffers on the way hold.
        published.drink(2048);
        masqueraded.drink(2048);
    };
    go_on();
    let mapped = ask(&socket, (WORLD, 53), "x").expect("answered");
    let before = state(&site.agent, &site.lab, &site.web);
    let unchanged = |site: &Site| {
        let now = state(&site.agent, &site.lab, &site.web);
        for (before, now) in before.iter().zip(&now) {
            assert_eq!(before, now);
        }
    };
    let flows = site.agent.json(&["flow", "ls"]).as_array().map(Vec::len);
    let pings = Pings::start(&site.web, WORLD, Duration::from_millis(10));

    site.agent.kill();
    go_on();
    assert_eq!(ask(&socket, (WORLD, 53), "x").as_ref(), Some(&mapped));
    assert_eq!(
        curl(&site.lab.client, NODE, 8080, "/"),
        Some(site.nginx.page(80)),
        "new connections are served without an agent, too"
    );
    site.agent.start_again();
    go_on();
    assert_eq!(ask(&socket, (WORLD, 53), "x").as_ref(), Some(&mapped));
    unchanged(&site);
    let now = site.agent.json(&["flow", "ls"]).as_array().map(Vec::len);
    assert!(now >= flows, "{flows:?} flows before, {now:?} now");

    site.agent.stop();
    go_on();
    site.agent.start_again();
    go_on();
    unchanged(&site);

    pings.finish();
}

#[test]
fn a_stopped_agent_leaves_the_data_plane_and_says_so() {
    let mut site = Site::new(&["8080:80"]);
    let process = site.agent.process();
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(process.wait(SOON).success());
    let said = process.stderr();
    assert!(said.contains("the data plane keeps running"), "{said}");
    let down = format!("`netfw down --instance {}`", site.agent.instance());
    assert!(said.contains(&down), "{said}");
    let socket = format!("/run/netfw/{}/agent.sock", site.agent.instance());
    assert!(!std::path::Path::new(&socket).exists());
    assert_eq!(
        curl(&site.lab.client, NODE, 8080, "/"),
        Some(site.nginx.page(80))
    );
    let world = Nginx::start(&site.lab.world, "world", &[80]);
    assert_eq!(curl(&site.web, WORLD, 80, "/"), Some(world.page(80)));
    let said = site.agent.refuses(FAILED, &["status"]);
    assert!(said.contains("no agent is running"), "{said}");
}

/// The sysctls of the interfaces that are not netfw's.
fn sysctls(node: &Namespace) -> BTreeMap<String, String> {
    node.enter(|| {
        let mut all = BTreeMap::new();
        for device in ["all", "default", "lo", "up0", "up1"] {
            for family in ["ipv4", "ipv6"] {
                let directory = format!("/proc/sys/net/{family}/conf/{device}");
                for entry in fs::read_dir(&directory).expect("sysctls").flatten() {
                    let path = entry.path();
                    if let Ok(value) = fs::read_to_string(&path) {
                        all.insert(path.display().to_string(), value);
                    }
                }
            }
        }
        let forward = "/proc/sys/net/ipv4/ip_forward";
        all.insert(
            forward.into(),
            fs::read_to_string(forward).expect("a sysctl"),
        );
        all
    })
}

#[test]
fn down_leaves_the_node_as_it_was() {
    let lab = Lab::new();
    let web = lab.container("web");
    let look = || {
        [&lab.node, &web].map(|namespace| {
            [
                namespace.links().join(" "),
                namespace.ip(&["-4", "-o", "addr"]),
                namespace.ip(&["-4", "route", "show", "table", "all"]),
                namespace.run(&["tc", "qdisc"]),
            ]
        })
    };
    let (before, settings) = (look(), sysctls(&lab.node));
    let agent = Agent::start(&lab);
    attach(&agent, "web", &web, &["8080:80"]);
    let made = format!("made-{}", agent.instance());
    agent.netfw(&["endpoint", "add", &made]);
    assert_ne!(before, look());
    let said = agent.netfw(&["down"]);
    for what in [
        "agent (process ",
        "interface netfw0",
        "programs and maps",
        &made,
    ] {
        assert!(said.contains(what), "{what} is missing in: {said}");
    }
    assert_eq!(before, look());
    assert_eq!(settings, sysctls(&lab.node));
    assert!(!std::path::Path::new("/run/netns").join(&made).exists());
    for directory in ["/run/netfw", "/var/lib/netfw", "/sys/fs/bpf"] {
        let directory = format!("{directory}/{}", agent.instance());
        assert!(!std::path::Path::new(&directory).exists(), "{directory}");
    }
    let again = agent.netfw(&["down"]);
    assert!(again.contains("nothing to remove"), "{again}");
}

#[test]
fn down_works_without_an_agent_and_after_a_kill() {
    let mut site = Site::new(&["8080:80"]);
    site.agent.kill();
    assert!(curl(&site.lab.client, NODE, 8080, "/").is_some());
    site.agent.netfw(&["down"]);
    assert!(curl_in_vain(&site.lab.client, NODE, 8080));
    assert_eq!(site.web.links(), ["lo"]);
    site.agent.start_again();
    assert_eq!(site.agent.json(&["endpoint", "ls"]), serde_json::json!([]));
}

#[test]
fn a_second_agent_for_an_instance_is_refused() {
    let mut site = Site::new(&["8080:80"]);
    let pid = site.agent.process().pid();
    let node = site.lab.node.name();
    let said = site.agent.refuses(FAILED, &["agent", "--netns", node]);
    assert!(said.contains("is running already"), "{said}");
    assert!(said.contains(&format!("(process {pid})")), "{said}");
    assert_eq!(
        curl(&site.lab.client, NODE, 8080, "/"),
        Some(site.nginx.page(80)),
        "the first one's work is untouched"
    );
    site.agent.stop();
    let other = site.lab.client.name();
    let said = site.agent.refuses(FAILED, &["agent", "--netns", other]);
    assert!(said.contains("serves another namespace"), "{said}");
    site.agent.start_again();
}

#[test]
fn a_second_instance_for_a_namespace_is_refused() {
    let mut site = Site::new(&["8080:80"]);
    let node = site.lab.node.name().to_owned();
    let instance = site.agent.instance().to_owned();
    let other = format!("{instance}-2");
    for running in [true, false] {
        if !running {
            site.agent.stop();
        }
        let words = ["agent", "--netns", &node];
        let refused = Command::new(netfw_tests::agent::binary())
            .args(words)
            .args(["--instance", &other])
            .output()
            .expect("netfw runs");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            said.contains(&format!("instance \"{instance}\" serves this namespace")),
            "{said}"
        );
        let page = curl(&site.lab.client, NODE, 8080, "/");
        assert_eq!(page, Some(site.nginx.page(80)));
    }
    for left in ["/run/netfw", "/var/lib/netfw", "/sys/fs/bpf"] {
        let left = Path::new(left).join(&other);
        assert!(!left.exists(), "{} is left behind", left.display());
    }
    site.agent.start_again();
}

/// Whether the agent says that it serves `uplink`.
fn serves(agent: &Agent, uplink: &str) -> bool {
    agent.json(&["status"])["uplinks"]
        .as_array()
        .expect("a list")
        .iter()
        .any(|one| one["name"] == uplink && one["hook"].is_string())
}

#[test]
fn an_uplink_that_goes_and_comes_back_is_served() {
    let Site {
        agent,
        nginx,
        lab,
        web,
        ..
    } = &Site::new(&["8080:80"]);
    assert!(curl(&lab.client, NODE, 8080, "/").is_some());
    lab.node.ip(&["link", "del", "up0"]);
    wait_until("the agent to notice", SOON, || !serves(agent, "up0"));
    // Without it the rest goes on.
    assert_eq!(
        curl(&lab.world, NODE_OUTSIDE, 8080, "/"),
        Some(nginx.page(80))
    );
    wire(
        (&lab.node, "up0", [NODE, NODE6]),
        (&lab.client, "eth0", [CLIENT, CLIENT6]),
    );
    wait_until("the new up0 to be served", SOON, || serves(agent, "up0"));
    assert_eq!(curl(&lab.client, NODE, 8080, "/"), Some(nginx.page(80)));
    let client = Nginx::start(&lab.client, "client", &[80]);
    assert_eq!(curl(web, CLIENT, 80, "/out"), Some(client.page(80)));
    assert!(client.logged("/out").starts_with(&format!("{NODE} ")));
}

#[test]
fn an_uplink_added_while_the_agent_runs_is_served() {
    let Site {
        agent,
        nginx,
        lab,
        web,
        ..
    } = &Site::new(&["8080:80"]);
    let late = Namespace::new("late");
    let address = |text: &str| text.parse().expect("an address");
    let (here, there) = (address("10.3.0.1"), address("10.3.0.2"));
    wire(
        (&lab.node, "up2", [here, address("fd00:3::1")]),
        (&late, "eth0", [there, address("fd00:3::2")]),
    );
    wait_until("up2 to be served", SOON, || serves(agent, "up2"));
    assert_eq!(curl(&late, here, 8080, "/late"), Some(nginx.page(80)));
    assert!(nginx.logged("/late").starts_with(&format!("{there} ")));
    let outside = Nginx::start(&late, "late", &[80]);
    assert_eq!(curl(web, there, 80, "/"), Some(outside.page(80)));
    assert!(outside.logged("/").starts_with(&format!("{here} ")));
}

#[test]
fn a_deleted_namespace_is_told_and_cleared_away() {
    let Site {
        agent, lab, nginx, ..
    } = &Site::new(&["8080:80"]);
    let app = lab.container("app");
    attach(agent, "app", &app, &["9000:80"]);
    let interfaces = lab.node.links().len();
    app.delete();
    let state = || text(&agent.json(&["endpoint", "inspect", "app"])["state"]).to_owned();
    wait_until("the agent to notice", SOON, || state() == "gone");
    let table = agent.netfw(&["endpoint", "ls"]);
    assert!(
        table
            .lines()
            .any(|line| line.starts_with("app ") && line.contains("gone")),
        "{table}"
    );
    assert_eq!(agent.json(&["status"])["endpoints_gone"], 1);
    assert!(lab.node.links().len() < interfaces, "its veth went along");
    assert!(curl_in_vain(&lab.client, NODE, 9000));
    let said = agent.refuses(FAILED, &["publish", "app", "9001:80"]);
    assert!(said.contains("gone"), "{said}");
    let said = agent.refuses(FAILED, &["endpoint", "add", "app"]);
    assert!(said.contains("netfw endpoint rm app"), "{said}");
    // Others are none the worse.
    assert_eq!(curl(&lab.client, NODE, 8080, "/"), Some(nginx.page(80)));
    agent.netfw(&["endpoint", "rm", "app"]);
    agent.netfw(&["publish", "web", "9000:81"]);
    assert_eq!(curl(&lab.client, NODE, 9000, "/"), Some(nginx.page(81)));
}

#[test]
fn a_namespace_deleted_while_no_agent_runs_is_told_by_the_next() {
    let mut site = Site::new(&["8080:80"]);
    let app = site.lab.container("app");
    attach(&site.agent, "app", &app, &["9000:80"]);
    site.agent.kill();
    app.delete();
    site.agent.start_again();
    let endpoint = site.agent.json(&["endpoint", "inspect", "app"]);
    assert_eq!(text(&endpoint["state"]), "gone");
    site.agent.netfw(&["endpoint", "rm", "app"]);
    site.agent.netfw(&["publish", "web", "9000:81"]);
    assert_eq!(
        curl(&site.lab.client, NODE, 9000, "/"),
        Some(site.nginx.page(81))
    );
}

#[test]
fn two_instances_serve_two_nodes_at_once() {
    let sites = [Site::new(&["8080:80"]), Site::new(&["8080:81"])];
    for (site, port) in sites.iter().zip([80, 81]) {
        assert_eq!(
            curl(&site.lab.client, NODE, 8080, "/"),
            Some(site.nginx.page(port))
        );
        assert_eq!(
            site.agent
                .json(&["endpoint", "ls"])
                .as_array()
                .map(Vec::len),
            Some(1)
        );
    }
    let [first, second] = sites;
    first.agent.netfw(&["down"]);
    assert!(curl_in_vain(&first.lab.client, NODE, 8080));
    assert_eq!(
        curl(&second.lab.client, NODE, 8080, "/"),
        Some(second.nginx.page(81))
    );
    second.agent.netfw(&["status"]);
}

/// A unit takes its end for what was asked for, and does not start it again.
#[test]
fn a_hangup_ends_no_agent_without_a_terminal() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    agent.process().signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the agent to say so", SOON, || {
        agent.process().stderr().contains("SIGHUP: nothing is done")
    });
    agent.netfw(&["status"]);
}
