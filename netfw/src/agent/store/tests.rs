//! What the store keeps, and what it makes of trouble; and records for others' tests.

use std::net::Ipv4Addr;

use super::*;
use crate::{
    agent::{
        ipam::Pool,
        record::{Attachment, Mode, Published, Target},
    },
    publish::PortRange,
    rules::Rules,
};

pub fn network() -> Network {
    Network {
        name: "bridge".parse().unwrap(),
        number: 1,
        bridge: "netfw0".into(),
        mac: "02:6e:ac:12:00:01".parse().unwrap(),
        v4: Some(Pool::new("172.18.0.0/16".parse().unwrap(), None).unwrap()),
        v6: Some(Pool::new("fd00:1:2::/64".parse().unwrap(), None).unwrap()),
        mtu: None,
        rules: Rules::default(),
        labels: Default::default(),
        unsettled: false,
    }
}

pub fn endpoint(name: &str) -> Endpoint {
    let spec: crate::publish::Spec = "8080-8090:80-90/udp".parse().unwrap();
    Endpoint {
        name: name.parse().unwrap(),
        mode: Mode::Networks,
        namespace: Target {
            path: "/run/netns/x".into(),
            made: true,
            id: Some((4, 4026531840)),
        },
        attachments: vec![Attachment {
            network: "bridge".parse().unwrap(),
            ip4: Some("172.18.0.2".parse().unwrap()),
            ip6: Some("fd00:1:2::2".parse().unwrap()),
            mac: "02:6e:ac:12:00:02".parse().unwrap(),
            host_interface: "nf1".into(),
            interface: "eth0".into(),
            aliases: Vec::new(),
            owner: None,
            external: false,
            removing: false,
        }],
        counter: 1,
        publishes: vec![Published {
            publish: spec.resolve(Ipv4Addr::UNSPECIFIED.into(), spec.container_ports),
            counter: 2,
            allow_from: vec!["10.0.0.0/8".parse().unwrap()].into(),
            runtime: false,
        }],
        allow_from: vec!["fd00::1".parse().unwrap()].into(),
        exposed: Vec::new(),
        links: Vec::new(),
        removing: false,
        predecessor: None,
    }
}

#[test]
fn what_is_committed_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/state.redb");
    let node = Node {
        netns: Some("/run/netns/n".into()),
        id: (4, 5),
        boot: "b".into(),
        prefix6: Some("fd00:1:2::/48".parse().unwrap()),
    };
    {
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), Wanted::default());
        store
            .commit(&[
                Change::Node(&node),
                Change::Network(&network()),
                Change::Endpoint(&endpoint("a")),
                Change::Endpoint(&endpoint("b")),
            ])
            .unwrap();
        store
            .commit(&[Change::NoEndpoint(&"a".parse().unwrap())])
            .unwrap();
    }
    let wanted = Store::open(&path).unwrap().load().unwrap();
    assert_eq!(wanted.node, Some(node));
    assert_eq!(wanted.networks.values().collect::<Vec<_>>(), [&network()]);
    assert_eq!(
        wanted.endpoints.values().collect::<Vec<_>>(),
        [&endpoint("b")]
    );
    assert_eq!(wanted.counters().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_store_of_an_older_version_becomes_one_of_this() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let version = |store: &mut Store| {
        let transaction = store.database().unwrap().begin_read().unwrap();
        let table = transaction.open_table(META).unwrap();
        let value = table.get("version").unwrap().unwrap();
        String::from_utf8(value.value().to_vec()).unwrap()
    };
    {
        let mut store = Store::open(&path).unwrap();
        let transaction = store.begin_write().unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .insert("version", b"1".as_slice())
            .unwrap();
        transaction.commit().unwrap();
        assert_eq!(version(&mut store), "1");
    }
    assert_eq!(
        version(&mut Store::open(&path).unwrap()),
        VERSION.to_string()
    );
}

/// Word for word what netfw 0.1.0 wrote before it knew IPv6.
#[test]
fn a_store_without_ipv6_is_read() {
    let network: Network = serde_json::from_str(
        r#"{"name":"bridge","number":1,"bridge":"netfw0","mac":"02:6e:ac:12:00:01",
            "subnet":"172.18.0.0/16","gateway":"172.18.0.1","last":"172.18.0.1"}"#,
    )
    .unwrap();
    let want = Network {
        v6: None,
        ..self::network()
    };
    assert_eq!(network, want);
    let endpoint: Endpoint = serde_json::from_str(
        r#"{"name":"a","network":"bridge",
            "namespace":{"path":"/run/netns/x","made":true,"id":[4,4026531840]},
            "ip4":"172.18.0.2","mac":"02:6e:ac:12:00:02","host_interface":"nf1",
            "interface":"eth0","counter":1,"removing":false,"publishes":[{"publish":
            {"protocol":"udp","host_ip":"0.0.0.0","host_ports":{"first":8080,"last":8090},
            "container_ports":{"first":80,"last":90}},"counter":2}]}"#,
    )
    .unwrap();
    let mut want = self::endpoint("a");
    want.attachments[0].ip6 = None;
    // Nor did it know who may use a publish.
    want.allow_from = Default::default();
    want.publishes[0].allow_from = Default::default();
    want.publishes[0].publish.host_ports = PortRange {
        first: 8080,
        last: 8090,
    };
    assert_eq!(endpoint, want);
    let node: Node = serde_json::from_str(r#"{"netns":null,"id":[4,5],"boot":"b"}"#).unwrap();
    assert_eq!(node.prefix6, None);
}

#[test]
fn an_endpoint_comes_back_with_all_its_attachments() {
    let mut endpoint = endpoint("a");
    let mut second = endpoint.attachments[0].clone();
    second.network = "app".parse().unwrap();
    second.removing = true;
    second.aliases = vec!["www".parse().unwrap()];
    endpoint.attachments.push(second);
    endpoint.removing = true;
    endpoint.links = vec!["db:database".parse().unwrap()];
    endpoint.exposed = vec!["53/udp".parse().unwrap()];
    let mut sharing = endpoint.clone();
    sharing.mode = Mode::Container("web".parse().unwrap());
    sharing.attachments.clear();
    for endpoint in [endpoint, sharing] {
        let text = serde_json::to_string(&endpoint).unwrap();
        let read: Endpoint = serde_json::from_str(&text).unwrap();
        assert_eq!(read, endpoint, "{text}");
    }
}

#[test]
fn a_network_of_one_family_stays_one() {
    for (v4, v6) in [(true, false), (false, true)] {
        let mut network = network();
        network.v4 = network.v4.filter(|_| v4);
        network.v6 = network.v6.filter(|_| v6);
        let text = serde_json::to_string(&network).unwrap();
        assert_eq!(
            serde_json::from_str::<Network>(&text).unwrap(),
            network,
            "{text}"
        );
    }
}

#[test]
fn a_newer_store_and_a_broken_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    {
        let mut store = Store::open(&path).unwrap();
        let transaction = store.begin_write().unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .insert("version", (VERSION + 1).to_string().as_bytes())
            .unwrap();
        transaction.commit().unwrap();
    }
    assert!(matches!(
        Store::open(&path),
        Err(StoreError::Version { found, .. }) if found == VERSION + 1
    ));
    std::fs::write(&path, b"not a store").unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
}

/// As where only the flush of a commit failed.
#[test]
fn what_was_refused_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let mut store = Store::open(&path).unwrap();
    let (a, b) = (endpoint("a"), endpoint("b"));
    let leaving = Endpoint {
        removing: true,
        ..a.clone()
    };
    store.commit(&[Change::Endpoint(&a)]).unwrap();
    let wanted = store.load().unwrap();
    let mut before = Vec::new();
    let changes = [Change::Endpoint(&leaving), Change::Endpoint(&b)];
    store.try_commit(&changes, &mut before).unwrap();
    assert_ne!(store.load().unwrap(), wanted);
    (store.database, store.doubtful) = (None, before);
    assert_eq!(store.load().unwrap(), wanted);
    // And no empty one takes the place of one that is gone.
    store.database = None;
    std::fs::remove_file(&path).unwrap();
    let refused = store.commit(&[Change::Endpoint(&b)]);
    assert!(matches!(refused, Err(StoreError::Closed { .. })));
    assert!(!path.exists());
}

#[test]
fn what_can_be_read_is_saved_and_nothing_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    {
        let mut store = Store::open(&path).unwrap();
        let (network, a, b) = (network(), endpoint("a"), endpoint("b"));
        let all = [
            Change::Network(&network),
            Change::Endpoint(&a),
            Change::Endpoint(&b),
        ];
        store.commit(&all).unwrap();
        let transaction = store.begin_write().unwrap();
        transaction
            .open_table(ENDPOINTS)
            .unwrap()
            .insert("b", b"{".as_slice())
            .unwrap();
        transaction.commit().unwrap();
    }
    assert!(Store::open(&path).unwrap().load().is_err());
    let bytes = std::fs::read(&path).unwrap();
    let (wanted, broken) = Store::examine(&path).unwrap();
    let names: Vec<&str> = wanted.endpoints.keys().map(Name::as_str).collect();
    assert_eq!((wanted.networks.len(), names), (1, vec!["a"]));
    assert!(
        matches!(&broken[..], [StoreError::Record { key, .. }] if key == "b"),
        "{broken:?}"
    );
    assert!(std::fs::read(&path).unwrap() == bytes);

    // And put in its place.
    let old = Store::replace(&path, &wanted).unwrap().unwrap();
    assert!(std::fs::read(&old).unwrap() == bytes);
    assert_eq!(Store::open(&path).unwrap().load().unwrap(), wanted);
    Store::replace(&path, &Wanted::default()).unwrap();
    assert_eq!(
        Store::open(&path).unwrap().load().unwrap(),
        Wanted::default()
    );
    let other = dir.path().join("other.redb");
    assert_eq!(Store::replace(&other, &wanted).unwrap(), None);
}
