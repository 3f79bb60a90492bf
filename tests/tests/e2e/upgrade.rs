//! The agent is replaced again and again while much goes on, by its like and by one of another map layout:
//! nothing is lost.
//!
//! `NETFW_OLD_BIN` names an older netfw's binary, to begin with that one.

use std::{collections::BTreeMap, fs, path::Path};

use netfw_common::ABI;
use netfw_tests::{
    Agent, Lab,
    load::{Connections, Greeter, Numbered},
    programs::{Drinker, Drinking, Fountain},
    topology::{NODE, NODE6, WORLD},
};

use crate::setting::attach;

/// How an agent ends and the next comes.
#[derive(Clone, Copy, Debug)]
enum Change {
    Killed,
    Stopped,
    /// What the one before left is of the layout before.
    Layout,
}

use Change::{Killed, Layout, Stopped};

const CHANGES: [Change; 10] = [
    Killed, Stopped, Layout, Killed, Layout, Stopped, Killed, Layout, Killed, Stopped,
];

const BITS_PER_SECOND: u64 = 1_000_000_000;
const DATAGRAMS_PER_SECOND: u64 = 1_000;
const CONNECTIONS_PER_SECOND: u64 = 1_000;

impl Change {
    fn carry_out(self, agent: &mut Agent) {
        match self {
            Stopped => agent.stop(),
            Killed | Layout => agent.kill(),
        }
        if let Layout = self {
            let pins = Path::new("/sys/fs/bpf").join(agent.instance());
            let [own, older] = [ABI, ABI - 1].map(|abi| pins.join(format!("v{abi}")));
            fs::rename(own, older).expect("one data plane, of this layout");
        }
        agent.start_again();
    }
}

/// How many programs there are of each kind on each interface of the node, and how many pins.
fn programs(agent: &Agent, lab: &Lab) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for link in lab.node.links() {
        for side in ["ingress", "egress"] {
            let filters = lab.node.run(&["tc", "filter", "show", "dev", &link, side]);
            let count = filters.matches("netfw_").count();
            found.insert(format!("{link} {side} filters"), count);
        }
        let shown = lab.node.ip(&["-d", "link", "show", "dev", &link]);
        found.insert(format!("{link} xdp"), shown.matches("prog/xdp").count());
    }
    let tcx = lab.node.enter(|| {
        use aya::programs::{SchedClassifier, TcAttachType};
        let sides = [TcAttachType::Ingress, TcAttachType::Egress];
        let places = ["up0", "up1"].map(|link| sides.map(|side| (link, side)));
        places
            .into_iter()
            .flatten()
            .map(|(link, side)| {
                let programs = SchedClassifier::query_tcx(link, side);
                (
                    format!("{link} {side:?} tcx"),
                    programs.map_or(0, |(_, found)| found.len()),
                )
            })
            .collect::<Vec<_>>()
    });
    found.extend(tcx);
    for part in ["maps", "links"] {
        let directory = format!("/sys/fs/bpf/{}/v{ABI}/{part}", agent.instance());
        let pins = fs::read_dir(directory).expect("the data plane is pinned");
        found.insert(part.to_owned(), pins.count());
    }
    let versions = fs::read_dir(format!("/sys/fs/bpf/{}", agent.instance()));
    found.insert("layouts".to_owned(), versions.expect("pins").count());
    found
}

#[test]
fn ten_agents_in_a_row_and_nothing_is_lost() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let older = std::env::var_os("NETFW_OLD_BIN");
    if let Some(older) = &older {
        agent.netfw(&["down"]);
        agent.set_binary(older.as_ref());
        agent.start_again();
    }
    let web = lab.container("web");
    let publishes = ["7000:7000", "7001:7001", "7002:7002/udp"];
    attach(&agent, "web", &web, &publishes);
    let _inside = Fountain::start(&web, 7000);
    let _outside = Fountain::start(&lab.world, 7000);
    let greeter = Greeter::start(&web, 7001);
    let there = Greeter::start(&lab.world, 7001);

    let transfers = [
        Drinker::connect(&lab.client, (NODE, 7000)),
        Drinker::connect(&web, (WORLD, 7000)),
    ]
    .map(|drinker| Drinking::paced(drinker, BITS_PER_SECOND / 2));
    let streams = [
        Numbered::start(
            &lab.client,
            (NODE, 7002),
            (&web, 7002),
            DATAGRAMS_PER_SECOND,
        ),
        Numbered::start(
            &web,
            (WORLD, 7002),
            (&lab.world, 7002),
            DATAGRAMS_PER_SECOND,
        ),
    ];
    let calls = [
        (&lab.client, (NODE, 7001)),
        (&lab.client, (NODE6, 7001)),
        (&web, (WORLD, 7001)),
        (&lab.node, (NODE, 7001)),
    ]
    .map(|(from, to)| Connections::start(from, to, CONNECTIONS_PER_SECOND / 4));

    // An older netfw's may be others.
    let mut before = older.is_none().then(|| programs(&agent, &lab));
    agent.set_binary(&netfw_tests::agent::binary());
    for change in CHANGES {
        change.carry_out(&mut agent);
        transfers.iter().for_each(Drinking::goes_on);
        let now = programs(&agent, &lab);
        assert_eq!(before.get_or_insert(now.clone()), &now, "after {change:?}");
    }

    transfers.into_iter().for_each(Drinking::finish);
    for (what, stream) in ["in", "out"].into_iter().zip(streams) {
        let (sent, wrong) = stream.finish();
        eprintln!("datagrams {what}: {sent} sent, {} lost", wrong.len());
        assert_eq!(wrong, [0u64; 0], "{what}: of {sent}");
    }
    for calls in calls.map(Connections::finish) {
        eprintln!(
            "{} connections, the slowest {:?}",
            calls.made, calls.slowest
        );
        assert_eq!(calls.failed, [""; 0], "of {}", calls.made);
    }
    greeter.finish(&web, 7001);
    there.finish(&lab.world, 7001);
}
