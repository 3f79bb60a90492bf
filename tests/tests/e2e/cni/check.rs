//! CHECK finds what has become of an attachment.

use netfw_tests::{Namespace, wait::wait_until};
use serde_json::{Value, json};

use super::{At, CONFIG, DRIFT, Plugin, UNKNOWN_CONTAINER, path};
use crate::setting::{SOON, text};

struct Checked {
    plugin: Plugin,
    container: Namespace,
    config: Value,
}

impl Checked {
    #[track_caller]
    fn new() -> Self {
        let plugin = Plugin::new();
        let container = plugin.lab.container("c");
        let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
        let more = json!({"subnets": ["10.77.0.0/24", "fd77::/64"], "runtimeConfig": ports});
        let config = plugin.config("app", more);
        let mut checked = Self {
            plugin,
            container,
            config,
        };
        let netns = checked.netns();
        checked.config["prevResult"] = checked.plugin.done("ADD", at(&netns), &checked.config);
        checked.plugin.done("CHECK", at(&netns), &checked.config);
        checked
    }

    fn netns(&self) -> String {
        path(&self.container)
    }

    /// CHECK must tell of something with this word in it.
    #[track_caller]
    fn tells(&self, word: &str) {
        let said = self
            .plugin
            .refuses(DRIFT, "CHECK", at(&self.netns()), &self.config);
        assert!(said.contains(word), "{word}: {said}");
    }

    #[track_caller]
    fn is_right(&self) {
        self.plugin.done("CHECK", at(&self.netns()), &self.config);
    }
}

fn at(netns: &str) -> At<'_> {
    At::eth0("c1", netns)
}

#[test]
fn what_is_undone_in_the_container_is_told() {
    let checked = Checked::new();
    let c = &checked.container;
    let words = |line: &'static str| line.split(' ').collect::<Vec<_>>();
    let mac = text(&checked.config["prevResult"]["interfaces"][2]["mac"]);
    let back = format!("link set eth0 address {mac}");
    let back: Vec<&str> = back.split(' ').collect();
    for (undo, word, mend) in [
        (
            words("addr del 10.77.0.2/24 dev eth0"),
            "no address 10.77.0.2",
            vec![
                words("addr add 10.77.0.2/24 dev eth0"),
                words("route add default via 10.77.0.1"),
            ],
        ),
        (
            words("addr del fd77::2/64 dev eth0"),
            "no address fd77::2",
            vec![words("addr add fd77::2/64 dev eth0 nodad")],
        ),
        (
            words("route del default"),
            "no route to 0.0.0.0/0",
            vec![words("route add default via 10.77.0.1")],
        ),
        (
            words("route replace default via 10.77.0.9"),
            "no route to 0.0.0.0/0 by 10.77.0.1",
            vec![words("route replace default via 10.77.0.1")],
        ),
        (
            words("-6 route del default"),
            "no route to ::/0",
            vec![words("-6 route add default via fd77::1")],
        ),
        (
            words("link set eth0 address 02:00:00:00:00:99"),
            "02:00:00:00:00:99",
            vec![back],
        ),
        (
            words("link set eth0 mtu 1400"),
            "the MTU of eth0 is 1400, not 1500",
            vec![words("link set eth0 mtu 1500")],
        ),
    ] {
        c.ip(&undo);
        checked.tells(word);
        for mend in mend {
            c.ip(&mend);
        }
        checked.is_right();
    }
    c.ip(&["link", "set", "eth0", "down"]);
    checked.tells("eth0 is down");
    c.ip(&["link", "set", "eth0", "name", "other0"]);
    checked.tells("no interface eth0");
}

#[test]
fn what_is_withdrawn_or_of_another_container_is_told() {
    let checked = Checked::new();
    let plugin = &checked.plugin;
    plugin.agent.netfw(&["unpublish", "c1", "8080:80"]);
    checked.tells("8080:80/tcp is not published");
    plugin.agent.netfw(&["publish", "c1", "8080:80"]);
    checked.is_right();

    let mut previous = checked.config.clone();
    previous["prevResult"]["ips"][0]["address"] = "10.77.0.99/24".into();
    let said = plugin.refuses(DRIFT, "CHECK", at(&checked.netns()), &previous);
    assert!(said.contains("10.77.0.99/24"), "{said}");
    let mut previous = checked.config.clone();
    previous["prevResult"]["interfaces"][1]["name"] = "nf00000000".into();
    plugin.refuses(DRIFT, "CHECK", at(&checked.netns()), &previous);
    let mut previous = checked.config.clone();
    previous["subnets"] = json!(["10.78.0.0/24"]);
    plugin.refuses(DRIFT, "CHECK", at(&checked.netns()), &previous);
    let nothing = plugin.config("app", json!({}));
    plugin.refuses(CONFIG, "CHECK", at(&checked.netns()), &nothing);

    let other = plugin.lab.container("other");
    let netns = path(&other);
    let said = plugin.refuses(DRIFT, "CHECK", at(&netns), &checked.config);
    assert!(said.contains("another namespace"), "{said}");
    let unknown = At {
        container: "c2",
        ..at(&netns)
    };
    plugin.refuses(UNKNOWN_CONTAINER, "CHECK", unknown, &checked.config);
}

/// The agent makes such things again at once; what somebody undoes again and again it leaves alone after a
/// while.
#[test]
fn what_is_undone_in_the_node_is_told_unless_it_is_made_again() {
    for (undo, word) in [
        (
            &["ip", "link", "set", "HOST", "nomaster"][..],
            "is no port of the bridge",
        ),
        (
            &["tc", "qdisc", "del", "dev", "HOST", "clsact"],
            "without netfw's program",
        ),
    ] {
        let checked = Checked::new();
        let host = text(&checked.config["prevResult"]["interfaces"][1]["name"]);
        let undo: Vec<&str> = undo
            .iter()
            .map(|&word| if word == "HOST" { host } else { word })
            .collect();
        wait_until(&format!("CHECK to tell: {word}"), SOON, || {
            checked.plugin.lab.node.succeeds(&undo);
            let netns = checked.netns();
            let said = checked.plugin.call("CHECK", at(&netns), &checked.config);
            said.is_err_and(|error| error["code"] == DRIFT && error.to_string().contains(word))
        });
    }
}
