//! `netfw demo`: a lab of namespaces, real HTTP through it, and what a sceptic wants to see.
//!
//! | file | what |
//! |---|---|
//! | [`lab`] | namespaces, wires, the agent; all of it goes when the value drops |
//! | [`leftovers`] | what demos that were killed left, removed by the next one |
//! | [`http`] | a server that answers with the address it saw, and a client |
//! | [`rules`] | what netfilter has in a namespace: tables, rules, tracked connections |
//! | [`report`] | the checks, printed |
//!
//! Names carry the process id, so any number of demos run beside each other and beside anything
//! else. Only netlink, sockets and netfw's own API are used: nothing shells out.

mod http;
mod lab;
mod leftovers;
mod report;
mod rules;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    lab::{CLIENT, Lab, NODE_CLIENT_SIDE, NODE_WORLD_SIDE, WORLD},
    report::{Report, say},
};
use crate::{
    api::types::{Endpoint, Stats, Status},
    bpf,
    cli::Format,
};

/// Requests each way: enough for a mean, done within a second or two.
const REQUESTS: usize = 2000;

/// Ends 0 only if everything is right. Interrupted, it cleans up and fails.
pub fn run(keep: bool, format: Format) -> anyhow::Result<()> {
    crate::block_on(async {
        // Registered before anything is made.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut quit = signal(SignalKind::quit())?;
        let signalled = async {
            tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
                _ = hangup.recv() => "SIGHUP",
                _ = quit.recv() => "SIGQUIT",
            }
        };
        tokio::pin!(signalled);
        // Dropped with everything in it, the lab too, when a signal comes first.
        let shown = tokio::select! {
            shown = show(format) => shown?,
            why = &mut signalled => anyhow::bail!("interrupted ({why}); everything is removed"),
        };
        let (lab, report) = shown;
        if keep {
            lab.explain()?;
            tokio::select! {
                result = watch(&lab) => result?,
                _ = &mut signalled => {}
            }
        }
        drop(lab);
        anyhow::ensure!(report.all_right(), "not everything is right, see above");
        Ok(())
    })
}

async fn show(format: Format) -> anyhow::Result<(Lab, Report)> {
    if format == Format::Table {
        say(&format!("{}\n", lab::PICTURE))?;
    }
    leftovers::remove();
    let lab = Lab::build().await?;
    let client = lab.agent();
    let web = client.endpoint(&lab.web).await?;
    // The kernel measures for as long as this lives.
    let measuring = bpf::enable_stats();
    let mut report = Report::default();
    let own: Vec<IpAddr> = [web.ip.map(IpAddr::V4), web.ip6.map(IpAddr::V6)]
        .into_iter()
        .flatten()
        .collect();
    if own.len() == 1 {
        report.note("without IPv6: this machine has none".into());
    }
    for (family, ip) in own.into_iter().enumerate() {
        inbound(&lab, &mut report, family).await?;
        outbound(&lab, &mut report, family).await?;
        direct(&lab, &mut report, ip).await?;
    }
    let (stats, status) = (client.stats().await?, client.status().await?);
    counters(&mut report, &web, &stats)?;
    netfilter(&lab, &mut report).await?;
    match measuring {
        Ok(_) => programs(&mut report, &status),
        Err(error) => report.note(format!("nanoseconds per packet: not measured ({error})")),
    }
    report.print(format)?;
    Ok((lab, report))
}

/// `family` is the place in [`lab::Both`].
async fn inbound(lab: &Lab, report: &mut Report, family: usize) -> anyhow::Result<()> {
    let client = CLIENT[family];
    let to = SocketAddr::new(NODE_CLIENT_SIDE[family], lab::PUBLISHED);
    let bodies = http::get(&lab.client, to, REQUESTS).await?;
    report.check(
        bodies.values().sum::<usize>() == REQUESTS,
        format!(
            "in:  {REQUESTS} HTTP requests ({} connections) from the client to {to}, answered by the container's port {}",
            REQUESTS / http::EACH,
            lab::INSIDE
        ),
    );
    only(report, &lab.web_saw, client, |seen| {
        format!(
            "     the container saw them come from {seen} (the client's own address is {client})"
        )
    });
    Ok(())
}

async fn outbound(lab: &Lab, report: &mut Report, family: usize) -> anyhow::Result<()> {
    let node = NODE_WORLD_SIDE[family];
    let to = SocketAddr::new(WORLD[family], lab::WORLD_PORT);
    let bodies = http::get(&lab.container, to, REQUESTS).await?;
    report.check(
        bodies.values().sum::<usize>() == REQUESTS,
        format!(
            "out: {REQUESTS} HTTP requests ({} connections) from the container to {to} in the outside world",
            REQUESTS / http::EACH
        ),
    );
    only(report, &lab.world_saw, node, |seen| {
        format!("     the outside server saw them come from {seen} (the node's address is {node})")
    });
    Ok(())
}

/// One address was seen, the one that was due.
fn only(report: &mut Report, seen: &http::Seen, due: IpAddr, words: impl FnOnce(String) -> String) {
    let seen = seen.addresses(due);
    let text: Vec<String> = seen.iter().map(ToString::to_string).collect();
    report.check(seen == [due], words(text.join(", ")));
}

/// Past the publish, straight to the container's address: netfw must not let it.
async fn direct(lab: &Lab, report: &mut Report, ip: IpAddr) -> anyhow::Result<()> {
    let to = SocketAddr::new(ip, lab::INSIDE);
    let reached = http::reaches(&lab.client, to, Duration::from_millis(400)).await?;
    report.check(
        !reached,
        format!("     the client, addressing the container itself ({to}), gets no answer"),
    );
    Ok(())
}

fn counters(report: &mut Report, web: &Endpoint, stats: &Stats) -> anyhow::Result<()> {
    let endpoint = stats
        .endpoints
        .iter()
        .find(|e| e.name == web.name)
        .context("the agent has no counters of the container")?;
    let total = endpoint.total;
    // A request takes a packet one way, its answer one the other way.
    let least = |packets: u64| packets >= REQUESTS as u64;
    let words = |what: String, c: crate::api::types::Counter| {
        format!(
            "{what} {} packets, {} bytes in; {} packets, {} bytes out",
            c.rx_packets, c.rx_bytes, c.tx_packets, c.tx_bytes
        )
    };
    // Those of all publishes, one of each family.
    let (mut rx, mut tx) = (0, 0);
    for publish in &endpoint.publishes {
        let p = publish.counter;
        let name = crate::publish::Publish::from(publish.publish.clone());
        report.check(
            least(p.rx_packets) && least(p.tx_packets),
            words(format!("publish {name}:"), p),
        );
        rx += p.rx_packets;
        tx += p.tx_packets;
    }
    report.check(
        least(total.tx_packets - tx) && least(total.rx_packets - rx),
        words(format!("endpoint {} in all:", endpoint.name), total),
    );
    let dropped: Vec<String> = stats
        .drops
        .iter()
        .filter(|d| d.packets > 0)
        .map(|d| format!("{} {}", d.packets, d.reason))
        .collect();
    let direct = stats
        .drops
        .iter()
        .any(|d| d.reason == "direct-access" && d.packets > 0);
    report.check(
        direct && dropped.len() == 1,
        format!("packets dropped: {}", dropped.join(", ")),
    );
    Ok(())
}

async fn netfilter(lab: &Lab, report: &mut Report) -> anyhow::Result<()> {
    let found = rules::of(&lab.node).await?;
    report.check(
        found == rules::Netfilter::default(),
        format!(
            "the node has {} iptables tables, {} nftables rules, {} nf_conntrack entries",
            found.iptables_tables, found.nftables_rules, found.conntrack_entries
        ),
    );
    Ok(())
}

fn programs(report: &mut Report, status: &Status) {
    let (mut runs, mut time) = (0, 0);
    for program in &status.programs {
        if let Some(each) = program.run_time_ns.checked_div(program.runs) {
            report.note(format!(
                "{}: {} packets, {each} ns each",
                program.name, program.runs
            ));
        }
        runs += program.runs;
        time += program.run_time_ns;
    }
    let mean = time.checked_div(runs);
    report.check(
        mean.is_some(),
        match mean {
            Some(mean) => format!("the eBPF programs take {mean} ns per packet on average"),
            None => "the eBPF programs saw no packet".into(),
        },
    );
}

/// Some traffic, and the counters every second, until somebody ends it.
async fn watch(lab: &Lab) -> anyhow::Result<()> {
    let client = lab.agent();
    loop {
        http::get(
            &lab.client,
            (NODE_CLIENT_SIDE[0], lab::PUBLISHED).into(),
            10,
        )
        .await?;
        http::get(&lab.container, (WORLD[0], lab::WORLD_PORT).into(), 10).await?;
        let (stats, status) = (client.stats().await?, client.status().await?);
        for endpoint in &stats.endpoints {
            let c = endpoint.total;
            say(&format!(
                "\r{}: in {} packets {} bytes, out {} packets {} bytes; {} flows, {} dropped  ",
                endpoint.name,
                c.rx_packets,
                c.rx_bytes,
                c.tx_packets,
                c.tx_bytes,
                status.flows,
                status.dropped
            ))?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
