use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    agent::{record::Attachment, steps::steps},
    api::types::{Action, Step},
    owner::Owner,
};

fn around<'a>(locals: &'a HashMap<IpAddr, u32>, ipv6: &'a Result<(), String>) -> Around<'a> {
    Around {
        obstacles: &[],
        prefix6: "fd12:3456:789a::/48".parse().unwrap(),
        ipv6,
        locals,
        links: &[],
    }
}

fn try_apply(document: &Document, present: &Wanted) -> Result<Wanted, Vec<Fault>> {
    let locals = HashMap::from([([192, 0, 2, 1].into(), 2)]);
    let ports = Ports::without_sockets(&locals);
    match target(document, present, &around(&locals, &Ok(())), ports) {
        (wanted, faults) if faults.is_empty() => Ok(wanted),
        (_, faults) => Err(faults),
    }
}

/// With what the agent fills in at the moment of making.
fn complete(mut wanted: Wanted) -> Wanted {
    let mut next = wanted.counters().max().unwrap_or(0);
    let mut fill = |counter: &mut u32| {
        if *counter == 0 {
            next += 1;
            *counter = next;
        }
    };
    for endpoint in wanted.endpoints.values_mut() {
        fill(&mut endpoint.counter);
        endpoint
            .publishes
            .iter_mut()
            .for_each(|p| fill(&mut p.counter));
        for attachment in &mut endpoint.attachments {
            if attachment.host_interface.is_empty() {
                attachment.host_interface =
                    crate::agent::record::new_host_interface(&endpoint.name);
            }
        }
    }
    wanted
}

fn apply(text: &str, present: &Wanted) -> Wanted {
    let applied = try_apply(&text.parse().unwrap(), present);
    complete(applied.unwrap_or_else(|faults| panic!("{text}: {faults:?}")))
}

fn plan(present: &Wanted, text: &str) -> Vec<Step> {
    steps(present, &apply(text, present), |_, _| false)
}

/// `add endpoint web`, `remove publish web`, …
fn words(steps: &[Step]) -> Vec<String> {
    let word = |step: &Step| {
        let names = [&step.endpoint, &step.network].into_iter().flatten();
        let names: Vec<&str> = names.map(Name::as_str).collect();
        format!("{:?} {:?} {}", step.action, step.object, names.join(" ")).to_lowercase()
    };
    steps.iter().map(word).collect()
}

const SITE: &str = r#"
    [networks.app]
    subnets = ["10.9.0.0/24"]
    [networks.back]
    [endpoints.db]
    networks = ["back"]
    [endpoints.web]
    networks = ["bridge", { network = "app", ip = "10.9.0.5", aliases = ["www"] }]
    publish = ["8080:80", "443", { publish = "192.0.2.1:53:53/udp", allow_from = ["10.0.0.0/8"] }]
    [endpoints.side]
    network_mode = "container:web"
"#;

#[test]
fn only_what_differs_is_a_step() {
    let site = apply(SITE, &Wanted::default());
    let changed = |from: &str, to: &str| {
        assert!(SITE.contains(from), "{from}");
        SITE.replace(from, to)
    };
    let cases: &[(String, &[&str])] = &[
        (SITE.into(), &[]),
        (
            changed("\"8080:80\"", "\"8081:80\""),
            &["remove publish web", "add publish web"],
        ),
        (changed("10.0.0.0/8", "10.0.0.0/9"), &["change publish web"]),
        (changed(", \"443\"", ""), &["remove publish web"]),
        (changed("\"www\"", "\"w3\""), &["change attachment web app"]),
        (
            changed("10.9.0.5", "10.9.0.6"),
            &["replace attachment web app"],
        ),
        (
            changed("\"bridge\", ", ""),
            &["remove attachment web bridge"],
        ),
        (
            changed("[\"back\"]", "[\"back\", \"app\"]"),
            &["add attachment db app"],
        ),
        (
            changed("[networks.back]", "[networks.back]\nlabels = { a = \"b\" }"),
            &["change network back"],
        ),
        (
            changed("[networks.back]", "[networks.back]\ninternal = true"),
            &["change network back"],
        ),
        (
            changed("[\"10.9.0.0/24\"]", "[\"10.9.0.0/25\"]"),
            &["replace network app", "replace attachment web app"],
        ),
        (
            changed("[networks.back]", "[networks.back]\nmtu = 1400"),
            &["replace network back", "replace attachment db back"],
        ),
        (
            changed("[networks.back]", "[networks.front]").replace("[\"back\"]", "[\"front\"]"),
            &[
                "remove attachment db back",
                "remove network back",
                "add network front",
                "add attachment db front",
            ],
        ),
        (
            changed("container:web", "container:db"),
            &["replace endpoint side"],
        ),
        (
            changed("[endpoints.db]", "[endpoints.db]\nnetns = \"x\""),
            &["replace endpoint db"],
        ),
        (
            String::new(),
            &[
                "remove endpoint db",
                "remove endpoint side",
                "remove endpoint web",
                "remove network app",
                "remove network back",
            ],
        ),
    ];
    for (text, want) in cases {
        assert_eq!(words(&plan(&site, text)), *want, "{text}");
    }
}

#[test]
fn what_is_gone_is_made_again() {
    let site = apply(SITE, &Wanted::default());
    let after = apply(SITE, &site);
    let gone = |e: &Endpoint, a: Option<&Attachment>| {
        e.name.as_str() == "web" && a.is_some_and(|a| a.network.as_str() == "app")
    };
    let steps = steps(&site, &after, gone);
    assert_eq!(words(&steps), ["replace attachment web app"]);
    assert!(steps[0].what[0].contains("gone"), "{steps:?}");
}

#[test]
fn what_was_chosen_stays() {
    let site = apply(SITE, &Wanted::default());
    let name = |text: &str| text.parse::<Name>().unwrap();
    let back = site.networks[&name("back")].v4.unwrap().subnet;
    let web = &site.endpoints[&name("web")];
    let chosen = web
        .publishes
        .iter()
        .find(|p| p.publish.container_ports.first == 443);
    let chosen = chosen.unwrap().publish.host_ports;
    // Somebody comes first by name, and would get what is free.
    let more = format!("{SITE}\n[networks.aaa]\n[endpoints.aaa]\npublish = [\"443\"]");
    let after = apply(&more, &site);
    assert_eq!(after.networks[&name("back")].v4.unwrap().subnet, back);
    assert_ne!(after.networks[&name("aaa")].v4.unwrap().subnet, back);
    let now = &after.endpoints[&name("web")];
    assert!(now.publishes.iter().any(|p| p.publish.host_ports == chosen));
    assert_eq!(now.attachments, web.attachments);
    let aaa = &after.endpoints[&name("aaa")];
    assert_ne!(aaa.publishes[0].publish.host_ports, chosen);
}

#[test]
fn a_fault_names_its_place() {
    let site = apply(SITE, &Wanted::default());
    for (text, at, phrase) in [
        (
            "[networks.a]\nsubnets = [\"10.0.0.1/24\"]",
            "networks.a.subnets",
            "the subnet is 10.0.0.0/24",
        ),
        (
            "[networks.a]\nsubnets = [\"10.1.0.0/24\"]\n[networks.b]\nsubnets = [\"10.1.0.0/16\"]",
            "networks.b.subnets",
            "network \"a\"",
        ),
        ("[networks.a]\nmtu = 10", "networks.a.mtu", "68 to 65535"),
        (
            "[networks.host]",
            "networks.host",
            "stands for something else",
        ),
        (
            "[networks.a]\ninternal = true\nrouted = true",
            "networks.a.internal",
            "contradict",
        ),
        (
            "[endpoints.a]\nnetworks = [\"b\"]",
            "endpoints.a.networks[0].network",
            "there is no network \"b\"",
        ),
        (
            "[endpoints.a]\nnetworks = [\"bridge\", \"bridge\"]",
            "endpoints.a.networks[1].network",
            "already",
        ),
        (
            "[endpoints.a]\nnetworks = [{ network = \"bridge\", ip = \"10.0.0.1\" }]",
            "endpoints.a.networks[0].ip",
            "does not lie in the subnet",
        ),
        (
            "[endpoints.a]\npublish = [\"80:80\"]\n[endpoints.b]\npublish = [\"81:81\", \"80:80\"]",
            "endpoints.b.publish[1]",
            "endpoint \"a\" has",
        ),
        (
            "[endpoints.a]\npublish = [\"192.0.2.9:80:80\"]",
            "endpoints.a.publish[0]",
            "no address of the node",
        ),
        (
            "[networks.i]\ninternal = true\n[endpoints.a]\nnetworks = [\"i\"]\npublish = [\"80:80\"]",
            "endpoints.a.publish[0]",
            "is internal",
        ),
        (
            "[endpoints.a]\nnetns = \"a\"\npid = 1",
            "endpoints.a.netns",
            "either",
        ),
        (
            "[endpoints.a]\nnetns = \"a/b\"",
            "endpoints.a.netns",
            "absolute",
        ),
        (
            "[endpoints.a]\nnetwork_mode = \"container:b\"",
            "endpoints.a.network_mode",
            "not in the document",
        ),
        (
            "[endpoints.a]\nnetwork_mode = \"host\"\npublish = [\"80:80\"]",
            "endpoints.a.publish",
            "do not go together",
        ),
        (
            "[endpoints.a]\nnetns = \"x\"\n[endpoints.b]\nnetns = \"x\"",
            "endpoints.a.netns",
            "attached to network",
        ),
        (
            "[endpoints.a]\n[endpoints.A]",
            "endpoints.a",
            "exists already",
        ),
        (
            "[endpoints.a]\nlinks = [\"b\"]",
            "endpoints.a.links",
            "no endpoint \"b\"",
        ),
        (
            "[endpoints.a]\n[endpoints.b]\nnetworks = [{ network = \"bridge\", aliases = [\"a\"] }]",
            "endpoints.b.networks",
            "has that one already",
        ),
        (
            "[networks.bridge]\nipv6 = false",
            "networks.bridge.ipv6",
            "has IPv6 wherever the node has",
        ),
        (
            "[endpoints.a]\nnetworks = []",
            "endpoints.a.networks",
            "network_mode = \"none\"",
        ),
        // It is removed, with its namespace.
        (
            "[endpoints.a]\nnetns = \"web\"",
            "endpoints.a.netns",
            "shared by a",
        ),
    ] {
        let faults = try_apply(&text.parse().unwrap(), &site).unwrap_err();
        let found = faults.iter().map(Fault::to_string);
        let start = format!("{at}: ");
        let found: Vec<String> = found.collect();
        assert!(
            found
                .iter()
                .any(|f| f.starts_with(&start) && f.contains(phrase)),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn all_faults_come_at_once_and_each_once() {
    let text = "
        [networks.a]
        mtu = 10
        [networks.b]
        subnets = [\"10.1.0.1/24\"]
        [endpoints.e]
        networks = [\"a\"]
        publish = [\"[fd00::9]:80:80\"]
        [endpoints.f]
        publish = [\"80:80\", \"192.0.2.9:81:81\"]
        [endpoints.g]
        netns = \"a/b\"
        publish = [\"80:80\"]
        [endpoints.h]
        publish = [\"80:80\"]
        links = [\"nobody\"]
        [endpoints.i]
        publish = [\"80:80\"]
    ";
    let faults = try_apply(&text.parse().unwrap(), &Wanted::default()).unwrap_err();
    let mut places: Vec<String> = faults.iter().map(|fault| fault.at.join(".")).collect();
    places.sort();
    let want = [
        "endpoints.f.publish.1",
        "endpoints.g.netns",
        "endpoints.h.links",
        "endpoints.i.publish.0",
        "networks.a.mtu",
        "networks.b.subnets",
    ];
    assert_eq!(places, want, "{faults:#?}");
}

#[test]
fn faults_speak_of_keys() {
    let options = [
        "[networks.a]\nfilter = \"address-dependent\"",
        "[networks.a]\nnat = \"endpoint-independent\"\nmasquerade = false",
        "[networks.a]\ninternal = true\nrouted = true",
        "[networks.host]",
        "[endpoints.a]\nnetwork_mode = \"host\"\npublish = [\"80:80\"]",
        "[endpoints.a]\nnetwork_mode = \"host\"\nnetns = \"x\"",
        "[endpoints.a]\nnetwork_mode = \"none\"\nlinks = [\"x\"]",
        "[endpoints.a]\nnetns = \"x\"\npid = 1",
        "[endpoints.a]\n[endpoints.b]\nnetwork_mode = \"container:a\"\n[endpoints.c]\nnetwork_mode = \"container:b\"",
    ];
    for text in options {
        let faults = try_apply(&text.parse().unwrap(), &Wanted::default()).unwrap_err();
        for fault in faults {
            let said = fault.to_string();
            assert!(!said.contains("--") && !said.contains("request"), "{said}");
        }
    }
}

#[test]
fn who_goes_is_not_said_to_lose_connections() {
    let site = apply(SITE, &Wanted::default());
    let moved = SITE.replace("10.9.0.", "10.8.0.");
    let ends = |text: &str| plan(&site, text)[0].what.join("; ");
    assert!(ends(&moved).ends_with("connections of web end"));
    let (before, _) = moved.split_once("[endpoints.web]").unwrap();
    let steps = plan(&site, before);
    let step = steps
        .iter()
        .find(|step| step.object == crate::api::types::Object::Network);
    let what = step.unwrap().what.join("; ");
    assert!(!what.contains("end"), "{what}");
}

/// Documents of few names, so that they meet.
fn document() -> impl Strategy<Value = String> {
    let networks =
        proptest::collection::vec((0..3usize, 0..3u8, any::<bool>(), any::<bool>()), 0..3);
    let endpoint = (
        0..4usize,
        proptest::collection::vec((0..4usize, 0..4u8), 0..3),
        proptest::collection::vec(0..4usize, 0..3),
        0..4u8,
    );
    let endpoints = proptest::collection::vec(endpoint, 0..4);
    (networks, endpoints).prop_map(|(networks, endpoints)| {
        const NETWORKS: [&str; 4] = ["n0", "n1", "n2", "bridge"];
        const PORTS: [&str; 4] = ["8080:80", "80", "8080-8090:80", "192.0.2.1:9000:90/udp"];
        let mut text = String::new();
        let networks: BTreeMap<_, _> = networks.into_iter().map(|n| (n.0, n)).collect();
        for (n, subnet, six, internal) in networks.values() {
            text += &format!("[networks.n{n}]\nipv6 = {six}\ninternal = {internal}\n");
            if *subnet > 0 {
                text += &format!("subnets = [\"10.{n}.{subnet}.0/24\"]\n");
            }
        }
        let endpoints: BTreeMap<_, _> = endpoints.into_iter().map(|e| (e.0, e)).collect();
        for (n, attached, publish, mode) in endpoints.values() {
            text += &format!("[endpoints.e{n}]\n");
            match mode {
                0 => text += &format!("netns = \"x{n}\"\n"),
                1 => {
                    text += "network_mode = \"none\"\n";
                    continue;
                }
                _ => {}
            }
            let attached: BTreeMap<_, _> = attached.iter().copied().collect();
            let all = attached.iter().map(|(network, alias)| {
                let network = NETWORKS[*network];
                format!("{{ network = \"{network}\", aliases = [\"a{alias}\"] }}")
            });
            if !attached.is_empty() {
                text += &format!("networks = [{}]\n", all.collect::<Vec<_>>().join(", "));
            }
            let publish = publish.iter().map(|p| format!("{:?}", PORTS[*p]));
            text += &format!("publish = [{}]\n", publish.collect::<Vec<_>>().join(", "));
        }
        text
    })
}

#[test]
fn what_container_runtimes_have_is_left_alone() {
    let both = "[networks.app]\n[networks.old]\n[networks.docker-0123]\nlabels = { docker = \"0123\" }\n\
                [endpoints.web]\nnetworks = [{ network = \"app\" }]\npublish = [\"8080:80\"]\n\
                [endpoints.db]\n";
    let mut present = apply(both, &Wanted::default());
    let web: Name = "web".parse().unwrap();
    let endpoint = present.endpoints.get_mut(&web).unwrap();
    endpoint.attachments[0].owner = Some(Owner::Cni {
        container: "0123".into(),
        network: "app".into(),
    });
    let document: Document = "[endpoints.cache]\n".parse().unwrap();
    let document = document.beside_runtimes(&present);
    let after = complete(try_apply(&document, &present).unwrap());
    assert_eq!(after.endpoints[&web], present.endpoints[&web]);
    let planned = steps(&present, &after, |_, _| false);
    assert_eq!(
        words(&planned),
        [
            "remove endpoint db",
            "remove network old",
            "add endpoint cache"
        ]
    );
    // Whoever names it has it changed.
    let named: Document = "[networks.app]\n[endpoints.web]\nnetworks = [{ network = \"app\" }]\n"
        .parse()
        .unwrap();
    let after = try_apply(&named.beside_runtimes(&present), &present).unwrap();
    assert!(after.endpoints[&web].publishes.is_empty());
    let exported = Document::from(&present);
    assert!(!exported.endpoints.contains_key(&web));
    assert_eq!(exported.networks.len(), 4);
}

proptest! {
    /// Whatever there was: once applied, nothing is left to do, also for what is exported of it; and what
    /// comes about is the same whether or not the steps are counted.
    #[test]
    fn twice_changes_nothing(first in document(), second in document()) {
        let mut present = Wanted::default();
        for text in [&first, &second] {
            let document: Document = text.parse().unwrap();
            let Ok(after) = try_apply(&document, &present) else { continue };
            let after = complete(after);
            prop_assert_eq!(crate::agent::saved::faults(&after), [""; 0], "{}", text);
            let planned = steps(&present, &after, |_, _| false);
            let again = try_apply(&document, &after).unwrap();
            let left = steps(&after, &again, |_, _| false);
            prop_assert!(left.is_empty(), "{}: {:?}", text, left);
            prop_assert_eq!(&again, &after);
            let exported = Document::from(&after).to_string();
            let imported = try_apply(&exported.parse().unwrap(), &after).unwrap();
            let left = steps(&after, &imported, |_, _| false);
            prop_assert!(left.is_empty(), "{}: {:?}", exported, left);
            // A removal never comes after what may need its port, its address or its subnet.
            let made = planned.iter().position(|s| s.action != Action::Remove);
            let removed = planned.iter().rposition(|s| s.action == Action::Remove);
            prop_assert!(made.is_none() || removed < made, "{:?}", planned);
            present = after;
        }
    }
}
