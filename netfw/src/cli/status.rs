//! `netfw status`.

use std::fmt::Write;

use super::{
    Global,
    output::{Table, joined, print},
};
use crate::{
    agent::config::XDP_OFF,
    api::types::{Status, Uplink},
};

pub fn run(global: &Global) -> anyhow::Result<()> {
    let status = crate::block_on(global.client().status())?;
    print(global.output, &status, show)
}

/// What runs on an uplink that is served.
fn with_xdp(hook: &str, uplink: &Uplink) -> String {
    match (&uplink.xdp, &uplink.xdp_why) {
        (Some(mode), Some(why)) => format!("{hook}+xdp {mode} ({why})"),
        (Some(mode), None) => format!("{hook}+xdp {mode}"),
        (None, Some(why)) if why != XDP_OFF => format!("{hook} (xdp: {why})"),
        _ => hook.to_owned(),
    }
}

fn show(s: &Status) -> String {
    let mut head = Table::new(&["agent", &format!("netfw {} (process {})", s.version, s.pid)]);
    let mut row = |key: &str, value: String| head.row([key.to_owned(), value]);
    row("instance", s.instance.to_string());
    row(
        "netns",
        s.netns
            .as_ref()
            .map_or_else(|| "the agent's own".into(), |p| p.display().to_string()),
    );
    row("uptime", format!("{}s", s.uptime));
    row(
        "endpoints",
        match s.endpoints_gone {
            0 => s.endpoints.to_string(),
            gone => format!("{} ({gone} gone)", s.endpoints),
        },
    );
    row(
        "publishes",
        format!("{} ({} ports)", s.publishes, s.published_ports),
    );
    for (key, table) in [
        ("IPv4 flows", "flows4"),
        ("IPv6 flows", "flows6"),
        ("IPv4 mappings", "mappings4"),
        ("IPv6 mappings", "mappings6"),
    ] {
        let Some(table) = s.tables.iter().find(|t| t.name == table) else {
            continue;
        };
        // Few networks have mappings.
        if table.name.starts_with("mappings") && table.used == 0 {
            continue;
        }
        let share = 100.0 * table.used as f64 / table.max.max(1) as f64;
        row(
            key,
            format!("{} of {} ({share:.1} %)", table.used, table.max),
        );
    }
    if let Some(why) = &s.ipv6_missing {
        row("IPv6", format!("none: {why}"));
    }
    let reasons: Vec<String> = s
        .drops
        .iter()
        .map(|d| format!("{} {}", d.packets, d.reason))
        .collect();
    row(
        "dropped",
        match s.dropped {
            0 => "0 packets".into(),
            n => format!("{n} packets: {}", reasons.join(", ")),
        },
    );
    let mut text = head.to_string();
    for warning in &s.warnings {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "warning: {warning}");
    }

    let mut uplinks = Table::new(&["UPLINK", "INDEX", "HOOK"]);
    for u in &s.uplinks {
        uplinks.row([
            u.name.clone(),
            u.ifindex.map_or_else(|| "-".into(), |i| i.to_string()),
            match (&u.hook, &u.error) {
                (Some(hook), None) => with_xdp(hook, u),
                (Some(hook), Some(why)) => format!("{hook}, closed: {why}"),
                (None, Some(error)) => format!("not served: {error}"),
                (None, None) => "not served".into(),
            },
        ]);
    }
    let mut networks = Table::new(&["NETWORK", "BRIDGE", "SUBNET", "GATEWAY", "ENDPOINTS"]);
    for n in &s.networks {
        networks.row([
            n.name.to_string(),
            n.bridge.clone(),
            joined([n.subnet, n.subnet6]),
            joined([n.gateway, n.gateway6]),
            n.endpoints.to_string(),
        ]);
    }
    let _ = write!(text, "\n{uplinks}\n{networks}");
    text
}
