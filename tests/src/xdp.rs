//! What shows that packets go by XDP.

use crate::{Agent, Namespace};

/// An uplink's XDP mode, and why that or none, as the status tells them.
#[track_caller]
pub fn told(agent: &Agent, uplink: &str) -> (Option<String>, String) {
    let status = agent.json(&["status"]);
    let uplinks = status["uplinks"].as_array().expect("a list");
    let one = uplinks.iter().find(|one| one["name"] == uplink);
    let one = one.unwrap_or_else(|| panic!("no uplink {uplink} in {status}"));
    let word = |field: &str| one[field].as_str().map(str::to_owned);
    (word("xdp"), word("xdp_why").unwrap_or_default())
}

/// The host side of an endpoint's veth pair.
#[track_caller]
pub fn host_side(agent: &Agent, endpoint: &str) -> String {
    let endpoint = agent.json(&["endpoint", "inspect", endpoint]);
    let host = endpoint["host_interface"].as_str();
    host.expect("an interface").to_owned()
}

/// How many packets the endpoint's veth has sent from its host side: XDP's of either mode and the
/// bridge's. Those that TC redirects into the container are not among them.
#[track_caller]
pub fn entered(agent: &Agent, node: &Namespace, endpoint: &str) -> u64 {
    let host = host_side(agent, endpoint);
    let shown = node.ip(&["-s", "-j", "link", "show", "dev", &host]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    shown[0]["stats64"]["tx"]["packets"]
        .as_u64()
        .expect("a number")
}
