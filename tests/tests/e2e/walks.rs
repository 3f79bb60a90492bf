//! Walks over big tables: nobody waits for them.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use netfw_common::{
    ABI,
    addr::{Be16, Ip4},
    flow::{Flow4, TICK_SHIFT, flag, state},
    tuple::{Tuple4, proto, zone},
};
use netfw_tests::{
    Agent, Lab, Namespace,
    sockets::{connection, exchange, listen},
    topology::NODE,
    wait_until,
};

use crate::setting::{SOON, attach, text};

/// Enough for a walk of a second; a million takes five.
const FLOWS: u32 = 150_000;

/// What the programs would have made of so many clients of a container.
fn fill(agent: &Agent, container: Ip4) {
    let path = format!("/sys/fs/bpf/{}/v{ABI}/maps/FLOWS4", agent.instance());
    let map = Map::HashMap(MapData::from_pin(path).expect("the map is pinned"));
    let mut map: HashMap<MapData, Tuple4, Flow4> = map.try_into().expect("a hash");
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    let now = (time.tv_sec().cast_unsigned() * 1_000_000_000) >> TICK_SHIFT;
    for n in 0..FLOWS {
        let client = Ip4::new((0x0b00_0000 + n).to_be_bytes());
        let key = Tuple4 {
            src: client,
            dst: Ip4::new([10, 1, 0, 1]),
            sport: Be16::new(40_000),
            dport: Be16::new(8080),
            proto: proto::TCP,
            zone: zone::WORLD,
            scope: 0,
        };
        let half = Flow4 {
            src: client,
            dst: container,
            sport: key.sport,
            dport: Be16::new(80),
            flags: flag::TO_CONTAINER | flag::PUBLISHED,
            state: state::ESTABLISHED,
            seen: now as u32,
            ..Default::default()
        };
        let reply = Flow4 {
            src: key.dst,
            dst: client,
            sport: key.dport,
            dport: key.sport,
            flags: flag::REPLY,
            ..half
        };
        for (key, half) in [(key, half), (half.reverse_key(proto::TCP), reply)] {
            map.insert(key, half, 0).expect("there is room");
        }
    }
}

/// A container `web` that has [`FLOWS`].
fn filled() -> (Lab, Namespace, Agent) {
    let lab = Lab::new();
    let mut config = tempfile::NamedTempFile::new().expect("a temporary file");
    writeln!(config, "max_flows = {}", 2 * FLOWS).expect("our own file");
    let agent = Agent::start_with(&lab, &["--config", &config.path().display().to_string()]);
    let web = lab.container("web");
    let ip = attach(&agent, "web", &web, &["8080:80"]);
    let std::net::IpAddr::V4(ip) = ip else {
        panic!("{ip} is no IPv4 address");
    };
    fill(&agent, ip.into());
    (lab, web, agent)
}

#[test]
fn nobody_waits_while_flows_are_listed_and_removed() {
    let (lab, web, agent) = filled();
    let app = lab.container("app");
    attach(&agent, "app", &app, &[]);
    let status = agent.json(&["status"]);
    let flows = status["flows"].as_u64().expect("a number");
    assert!(
        flows.abs_diff(FLOWS.into()) < u64::from(FLOWS / 20),
        "{flows}"
    );
    for (what, words) in [
        ("listing", &["flow", "ls"] as &[&str]),
        ("removing", &["endpoint", "rm", "web"]),
    ] {
        let mut walk = agent.command(words);
        walk.stdout(std::process::Stdio::null());
        let mut walk = walk.spawn().expect("netfw can be started");
        let mut asked = 0;
        let mut longest = Duration::ZERO;
        while walk.try_wait().expect("our own child").is_none() {
            let one = Instant::now();
            assert_eq!(
                text(&agent.json(&["endpoint", "inspect", "app"])["name"]),
                "app"
            );
            longest = longest.max(one.elapsed());
            asked += 1;
        }
        assert!(walk.wait().expect("our own child").success(), "{what}");
        // The time of a whole process, on a machine where much else runs.
        eprintln!("{what}: {asked} questions, the longest took {longest:?}");
        assert!(
            asked > 3 && longest < Duration::from_millis(500),
            "{what}: {asked}, {longest:?}"
        );
    }
    assert_eq!(agent.json(&["flow", "ls"]), serde_json::json!([]));
    assert_eq!(agent.json(&["status"])["flows"], 0);
    // Name and address are free again.
    attach(&agent, "web", &web, &["8080:80"]);
}

#[test]
fn flows_of_a_veth_pair_made_anew_outlive_the_old_ones() {
    let (lab, web, agent) = filled();
    let listener = listen(&web, 80);
    let inspect = || agent.json(&["endpoint", "inspect", "web"]);
    let before = inspect();
    lab.node
        .ip(&["link", "del", text(&before["host_interface"])]);
    wait_until("another veth pair", SOON, || {
        let now = &inspect()["host_ifindex"];
        now.is_number() && *now != before["host_ifindex"]
    });
    let connection = connection(&listener, &lab.client, (NODE, 8080));
    let mut exchanges = 0;
    wait_until("the old flows to be gone", SOON, || {
        exchange(&connection, 1);
        exchanges += 1;
        agent.json(&["status"])["flows"] == 1
    });
    exchange(&connection, 1);
    assert!(exchanges > 1, "the walk was over before");
}
