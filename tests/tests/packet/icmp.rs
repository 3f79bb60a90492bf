//! ICMP echo, by identifier.

use netfw_common::drop::Drop;

use crate::rig::{At, ping, pong, with_rig};

#[test]
fn two_containers_ping_one_host_with_one_identifier() {
    with_rig(|rig| {
        let (first, _) = rig.send(At::Web, ping("web", "server", 2000)).sent();
        let (second, _) = rig.send(At::Peer, ping("peer", "server", 2000)).sent();
        assert_ne!(first, second);
        for (translated, container) in [(&first, "web:2000"), (&second, "peer:2000")] {
            let id = translated.strip_prefix("node:").unwrap().parse().unwrap();
            let (_, to) = rig.send(At::World, pong("server", "node", id)).sent();
            assert_eq!(to, container);
        }
    });
}

#[test]
fn identifier_zero_is_an_identifier() {
    with_rig(|rig| {
        let (from, _) = rig.send(At::Web, ping("web", "server", 0)).sent();
        let id = from.strip_prefix("node:").unwrap().parse().unwrap();
        let (_, to) = rig.send(At::World, pong("server", "node", id)).sent();
        assert_eq!(to, "web:0");
        rig.send(At::Web, pong("web", "client", 0))
            .dropped(Drop::NoFlow);
    });
}

#[test]
fn the_node_answers_pings_for_itself() {
    with_rig(|rig| rig.send(At::World, ping("client", "node", 7)).passed());
}
