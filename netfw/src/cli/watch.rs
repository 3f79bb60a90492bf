//! What `netfw monitor` and `netfw trace` have in common: options, the agent's stream, lines.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Format, Global};
use crate::{
    api::{
        client::Lines,
        types::Tuple,
        watch::{Decision, Line, Packet},
    },
    filter::{IpProtocol, Place, WatchFilter},
    name::Name,
};

/// What an agent gets to begin: programs that trace are verified first.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom the packets are from and for; all that is said must hold.
#[derive(Clone, Debug, clap::Args)]
pub struct Which {
    /// Of this endpoint.
    #[arg(long, value_name = "NAME")]
    pub endpoint: Option<Name>,
    /// tcp, udp, sctp, icmp, icmpv6, or a number.
    #[arg(long, visible_alias = "protocol", value_name = "PROTOCOL")]
    pub proto: Option<IpProtocol>,
    /// From there: 192.0.2.1, 10.0.0.0/8:53, [2001:db8::1]:443, :80.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub from: Option<Place>,
    /// To there. Of a ping, the identifier is the port of who asks.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub to: Option<Place>,
}

/// When to end; otherwise Ctrl-C.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Until {
    /// End after so many events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so many seconds of listening. An agent that has not begun to tell by then (after ten seconds at
    /// least) is given up on.
    #[arg(long = "for", value_name = "SECONDS", value_parser = whole_seconds)]
    pub seconds: Option<u64>,
}

fn whole_seconds(text: &str) -> Result<u64, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0);
    seconds.ok_or_else(|| "write whole seconds, 1 at least".into())
}

impl Which {
    pub fn filter(self) -> WatchFilter {
        WatchFilter {
            reasons: None,
            endpoint: self.endpoint,
            protocol: self.proto,
            from: self.from,
            to: self.to,
        }
    }
}

/// Prints what the agent tells under `path`, until it is enough.
pub fn follow(
    global: &Global,
    path: &str,
    filter: &WatchFilter,
    until: Until,
) -> anyhow::Result<()> {
    crate::block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let client = match until.seconds {
            // Not for ever for an agent that hangs either.
            Some(seconds) => {
                let patience = Duration::from_secs(seconds).max(PATIENCE);
                global.client().with_patience(patience)
            }
            None => global.client(),
        };
        let told = async {
            let mut lines = client.watch(&format!("{path}{}", filter.query())).await?;
            // Whatever happens from now on is told.
            eprintln!("netfw: listening; Ctrl-C ends");
            match until.seconds {
                Some(seconds) => {
                    let all = print(global.output, &mut lines, until.count);
                    let end = tokio::time::timeout(Duration::from_secs(seconds), all).await;
                    end.unwrap_or(Ok(()))
                }
                None => print(global.output, &mut lines, until.count).await,
            }
        };
        tokio::select! {
            told = told => told,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    })
}

/// So many events, or as long as there are some.
async fn print(format: Format, lines: &mut Lines, count: Option<u64>) -> anyhow::Result<()> {
    let mut left = count;
    while left != Some(0) {
        let line = lines.next().await?;
        if !matches!(line, Line::Suppressed { .. }) {
            left = left.map(|left| left - 1);
        }
        show(format, &line)?;
    }
    Ok(())
}

fn show(format: Format, line: &Line) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string(line)?)?,
        Format::Table => writeln!(out, "{}", text(line))?,
    }
    out.flush()
}

fn text(line: &Line) -> String {
    match line {
        Line::Drop {
            packet,
            reason,
            answered,
        } => {
            let answered = if *answered { ", sender told" } else { "" };
            format!("{}  {reason}{answered}", packet_text(packet, None))
        }
        Line::Packet { packet, decision } => {
            let Decision {
                translated,
                sentence,
                ..
            } = &**decision;
            format!("{}  {sentence}", packet_text(packet, translated.as_ref()))
        }
        Line::Suppressed { events } => format!("({events} more, too many to tell)"),
    }
}

/// `12:30:01.123456 uplink eth0 web tcp 192.0.2.9:4000 -> 192.0.2.1:8080, 60 bytes`.
fn packet_text(packet: &Packet, translated: Option<&Tuple>) -> String {
    let time = packet.time.split_once('T').map_or("", |(_, time)| time);
    let mut words = vec![time.trim_end_matches('Z').to_owned(), packet.hook.clone()];
    words.extend(packet.interface.clone());
    words.extend(packet.endpoint.as_ref().map(|name| format!("({name})")));
    words.push(packet.protocol.clone());
    let ends = |t: &Tuple| ends(t, &packet.protocol);
    words.extend(packet.tuple.as_ref().map(ends));
    words.extend(translated.map(|t| format!("=> {}", ends(t))));
    let mut text = words.join(" ");
    if let Some(icmp) = packet.icmp {
        text += &format!(", type {} code {}", icmp.r#type, icmp.code);
    }
    if packet.length > 0 {
        text += &format!(", {} bytes", packet.length);
    }
    text
}

fn ends(t: &Tuple, protocol: &str) -> String {
    match protocol {
        "tcp" | "udp" | "sctp" => {
            let (src, dst) = (
                SocketAddr::new(t.src, t.sport),
                SocketAddr::new(t.dst, t.dport),
            );
            format!("{src} -> {dst}")
        }
        _ => {
            // One of the two is a ping's identifier, the other is 0.
            let id = match t.sport | t.dport {
                0 => String::new(),
                id => format!(" id={id}"),
            };
            format!("{} -> {}{id}", t.src, t.dst)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_tcpdumps_do() {
        let drop = |protocol: &str, icmp: &str, length: u32| -> String {
            let json = format!(
                r#"{{"event":"drop","time":"2026-11-22T05:45:07.240788Z","hook":"uplink","interface":"eth0",
                    "endpoint":"web","protocol":"{protocol}","icmp":{icmp},"length":{length},
                    "tuple":{{"src":"192.0.2.9","dst":"172.18.0.2","sport":4000,"dport":0}},
                    "reason":"direct-access","answered":true}}"#
            );
            text(&serde_json::from_str(&json).unwrap())
        };
        assert_eq!(
            drop("udp", "null", 29),
            "05:45:07.240788 uplink eth0 (web) udp 192.0.2.9:4000 -> 172.18.0.2:0, 29 bytes  direct-access, sender told"
        );
        assert_eq!(
            drop("icmp", r#"{"type":8,"code":0}"#, 0),
            "05:45:07.240788 uplink eth0 (web) icmp 192.0.2.9 -> 172.18.0.2 id=4000, type 8 code 0  direct-access, sender told"
        );
        let suppressed = Line::Suppressed { events: 7 };
        assert_eq!(text(&suppressed), "(7 more, too many to tell)");
        let json = serde_json::to_string(&suppressed).unwrap();
        assert_eq!(json, r#"{"event":"suppressed","events":7}"#);
    }
}
