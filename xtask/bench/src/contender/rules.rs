//! netfilter's rules for as many publishes, as Docker writes them and as well as they can be written.
//!
//! What Docker adds in the filter table is left out, and `bridge-nf-call-iptables` is off: both would
//! only slow netfilter down. What it adds in the raw table since version 28, against packets that come
//! straight to a container's address, is there: [`crate::load`] measures it.

use std::{fmt::Write as _, io::Write as _, process::Stdio};

use anyhow::{Context as _, Result, bail};
use netfw_tests::Namespace;

use super::{BRIDGE, CONTAINER, FIRST_PUBLISHED, FIRST_SERVED};

/// Docker's layout, for `iptables-restore`: `PREROUTING` jumps to `DOCKER` for addresses of the node,
/// which has one DNAT rule per publish; `POSTROUTING` masquerades.
pub fn iptables(each: u16) -> String {
    let mut rules = format!(
        "*raw\n\
         -A PREROUTING -d {CONTAINER}/32 ! -i {BRIDGE} -j DROP\n\
         COMMIT\n\
         *nat\n\
         :DOCKER - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A POSTROUTING -s {CONTAINER}/16 ! -o {BRIDGE} -j MASQUERADE\n"
    );
    for n in 0..each {
        for protocol in ["tcp", "udp"] {
            let (from, to) = (FIRST_PUBLISHED + n, FIRST_SERVED + n);
            // Writing to a string cannot fail.
            let _ = writeln!(
                rules,
                "-A DOCKER ! -i {BRIDGE} -p {protocol} -m {protocol} --dport {from} -j DNAT --to-destination {CONTAINER}:{to}"
            );
        }
    }
    rules.push_str("COMMIT\n");
    rules
}

/// The same with one rule for all publishes, for `nft`.
pub fn nftables(each: u16) -> String {
    let elements: Vec<String> = (0..each)
        .flat_map(|n| {
            let (from, to) = (FIRST_PUBLISHED + n, FIRST_SERVED + n);
            ["tcp", "udp"].map(|protocol| format!("{protocol} . {from} : {CONTAINER} . {to}"))
        })
        .collect();
    format!(
        "table ip nat {{\n\
           map publishes {{\n\
             type inet_proto . inet_service : ipv4_addr . inet_service;\n\
             elements = {{ {} }}\n\
           }}\n\
           chain raw {{\n\
             type filter hook prerouting priority raw;\n\
             ip daddr {CONTAINER} iifname != \"{BRIDGE}\" drop\n\
           }}\n\
           chain prerouting {{\n\
             type nat hook prerouting priority dstnat;\n\
             iifname != \"{BRIDGE}\" fib daddr type local dnat ip to meta l4proto . th dport map @publishes\n\
           }}\n\
           chain postrouting {{\n\
             type nat hook postrouting priority srcnat;\n\
             ip saddr {CONTAINER}/16 oifname != \"{BRIDGE}\" masquerade\n\
           }}\n\
         }}\n",
        elements.join(", ")
    )
}

/// Has `command` load rules in a namespace.
pub fn load(node: &Namespace, command: &[&str], rules: &str) -> Result<()> {
    let line = command.join(" ");
    let mut child = node
        .command(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    let mut stdin = child.stdin.take().context("stdin is a pipe")?;
    stdin
        .write_all(rules.as_bytes())
        .with_context(|| format!("{line} takes no rules"))?;
    drop(stdin);
    let status = child.wait().with_context(|| line.clone())?;
    if !status.success() {
        bail!("{line} ended with {status}");
    }
    Ok(())
}
