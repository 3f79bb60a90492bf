//! Floods from sources that do not exist: what is under way goes on, and what is new begins.

use std::{env, io::Write as _, time::Duration};

use netfw_tests::{
    Agent, Lab,
    flood::{Flood, Kind},
    programs::{Drinker, Drinking, Fountain, UdpEcho, ask, curl, udp_socket_for},
    topology::{NODE, NODE6, mac},
    wait_until,
};

use crate::setting::{SOON, Site};

/// Small, to be full soon.
const MAX_FLOWS: u32 = 4096;
const MAX_EMBRYOS: u32 = 8192;

/// Packets of each kind; `NETFW_FLOOD` names another number.
const PACKETS: u32 = 60_000;

const LONG: Duration = Duration::from_secs(120);

/// How many entries that table has.
fn used(agent: &Agent, table: &str) -> u64 {
    let tables = agent.json(&["status"])["tables"].clone();
    let mut rows = tables.as_array().expect("a list").iter();
    let row = rows.find(|row| row["name"] == table).expect("a table");
    row["used"].as_u64().expect("a number")
}

#[test]
fn a_flood_stops_nobody() {
    let lab = Lab::new();
    let packets = env::var("NETFW_FLOOD").ok();
    let packets = packets.map_or(PACKETS, |text| text.parse().expect("a number"));
    let mut config = tempfile::NamedTempFile::new().expect("a temporary file");
    writeln!(
        config,
        "max_flows = {MAX_FLOWS}\nmax_embryos = {MAX_EMBRYOS}"
    )
    .expect("our own file");
    let options = ["--config", &config.path().display().to_string()];
    let site = Site::in_lab(lab, &options, &["8080:80", "7000:7000", "5300:53/udp"]);
    let Site {
        lab, web, agent, ..
    } = &site;
    let _fountain = Fountain::start(web, 7000);
    let uplink = mac(&lab.node, "up0");
    for (node, own, table) in [(NODE, site.ip, "flows4"), (NODE6, site.ip6, "flows6")] {
        let _echo = UdpEcho::start(web, (own, 53));
        let drinking = Drinking::start(Drinker::connect(&lab.client, (node, 7000)));
        let socket = udp_socket_for(&lab.client, node);
        let begun = ask(&socket, (node, 5300), "before").expect("an answer");

        // The datagrams are answered, and their sources come round: all would be assured.
        let floods = [
            Flood::start(&lab.client, uplink, (node, 8080), Kind::Syn, u32::MAX),
            Flood::start(&lab.client, uplink, (node, 5300), Kind::Datagram, MAX_FLOWS),
        ];
        // A busy machine answers few of them at first.
        let share = u64::from(MAX_FLOWS) * 3 / 4;
        wait_until("the table to be full", LONG, || {
            assert!(curl(&lab.client, node, 8080, "/").is_some(), "a connection");
            drinking.goes_on();
            let listed = agent.json(&["flow", "ls"]);
            assert!(listed.as_array().is_some_and(|flows| !flows.is_empty()));
            floods.iter().all(|flood| flood.sent() >= packets) && used(agent, table) >= share
        });
        drop(floods);

        drinking.finish();
        let used = used(agent, table);
        assert!((share..share + 200).contains(&used), "{used}");
        // The queue of an overwhelmed server is long.
        wait_until("an answer", SOON, || {
            ask(&socket, (node, 5300), "after").is_some_and(|after| after.len() + 1 == begun.len())
        });
    }
}
