//! The kernel: what it can do for netfw, by trial, and what is done where it cannot.

use super::{Area, Finding, State};
use crate::{
    bpf::{Attached, Features, Hook, features},
    net::{Namespace, diag, release, sysctl},
};

/// The oldest kernel that netfw is made for.
const FLOOR: (u32, u32) = (5, 15);

pub struct Facts {
    release: String,
    /// `net.core.bpf_jit_enable`; None where there is no such.
    jit: Option<String>,
    /// Whether it tells of sockets, and ends them.
    diag: (bool, bool),
    tells_bound: bool,
    features: Result<Features, String>,
}

impl Facts {
    pub fn look() -> Self {
        // It is there in the machine's own namespace alone.
        let jit = || sysctl::get("net/core/bpf_jit_enable").ok();
        Self {
            release: release::release(),
            jit: Namespace::of_machine().and_then(|machine| machine.run(jit).ok().flatten()),
            diag: diag::abilities(),
            tells_bound: diag::tells_bound(),
            features: features().map_err(|error| crate::chain(&error)),
        }
    }
}

fn ok(check: &str, found: impl Into<String>) -> Finding {
    Finding::ok(Area::Kernel, check, found)
}

pub fn judge(facts: &Facts) -> Vec<Finding> {
    let works = facts.features.as_ref().is_ok_and(Features::suffice);
    let mut findings = vec![version(&facts.release, works), jit(facts.jit.as_deref())];
    match &facts.features {
        Ok(features) => findings.extend(by_trial(features)),
        Err(error) => findings.push(ok("programs", error).but(
            State::Fail,
            "boot a kernel of 5.15 or newer with CONFIG_BPF_SYSCALL and CONFIG_NET, and let root use bpf(2)",
        )),
    }
    findings.extend(sockets(facts.diag, facts.tells_bound));
    findings
}

/// Some distributions put what is needed into an older one, and keep its number.
fn version(release: &str, works: bool) -> Finding {
    let (major, minor) = FLOOR;
    let found = ok(
        "version",
        format!("Linux {release}, {major}.{minor} or newer is needed"),
    );
    match release::parse(release) {
        Some(version) if version >= FLOOR => found,
        _ if works => found.but(
            State::Note,
            "nothing: all that was tried works here. netfw is not tested with such a kernel",
        ),
        _ => found.but(State::Fail, format!("boot Linux {major}.{minor} or newer")),
    }
}

fn jit(jit: Option<&str>) -> Finding {
    match jit {
        Some("1" | "2") => ok("jit", "programs are compiled (net.core.bpf_jit_enable)"),
        Some(_) => ok("jit", "off (net.core.bpf_jit_enable is 0)")
            .but(
                State::Note,
                "`sysctl -w net.core.bpf_jit_enable=1`, and start the agent again",
            )
            .instead("the kernel interprets the programs, several times slower"),
        None => ok("jit", "this kernel has none, or does not tell")
            .but(State::Note, "boot a kernel with CONFIG_BPF_JIT")
            .instead("the kernel may interpret the programs, several times slower"),
    }
}

fn by_trial(features: &Features) -> Vec<Finding> {
    let mut findings = vec![programs(features)];
    let attached = |check: &str, tried: &Attached, found: &str| {
        Some(match tried.as_ref()? {
            Ok(()) => (ok(check, found), true),
            Err(why) => (ok(check, format!("not here: {why}")), false),
        })
    };
    // What was not tried is among the programs that are refused.
    let neither =
        "boot a kernel with CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF and CONFIG_NET_CLS_ACT";
    let lacks = |tried: &Attached| tried.as_ref().is_some_and(Result::is_err);
    let (lacks_clsact, lacks_tcx) = (lacks(&features.clsact), lacks(&features.tcx));
    findings.extend(
        attached("tcx", &features.tcx, "uplinks are attached to by it").map(|(tcx, there)| match (there, lacks_clsact) {
            (true, _) => tcx,
            (false, false) => tcx
                .but(State::Note, "Linux 6.6 or newer has it; nothing has to be done")
                .instead("uplinks are attached to by clsact filters, which others may take off (the agent puts them back)"),
            (false, true) => tcx.but(State::Fail, neither),
        }),
    );
    let clsact = attached(
        "clsact",
        &features.clsact,
        "containers are attached to by it",
    );
    findings.extend(clsact.map(|(clsact, there)| {
        match (there, lacks_tcx) {
            (true, _) => clsact,
            (false, false) => clsact
                .but(State::Note, neither)
                .instead("containers are attached to by TCX, some 15 ms slower each"),
            (false, true) => clsact.but(State::Fail, neither),
        }
    }));
    let xdp = attached("xdp", &features.xdp, "XDP links can be made");
    findings.extend(xdp.map(|(xdp, there)| {
        if there {
            return xdp;
        }
        xdp.but(
            State::Note,
            "a newer kernel may take it; `xdp = \"off\"` in the agent's file does not ask",
        )
        .instead("TC does it all")
    }));
    if !lacks(&features.xdp) {
        let update = attached(
            "links",
            &features.update,
            "programs are swapped in their links",
        );
        findings.extend(update.map(|(update, there)| {
            if there {
                return update;
            }
            update.but(
                State::Fail,
                "boot Linux 5.15 or newer: a new agent could not take over",
            )
        }));
    }
    let lookup = attached(
        "sk_lookup",
        &features.lookup,
        "name servers leave port 53 to others",
    );
    findings.extend(lookup.map(|(lookup, there)| {
        if there {
            return lookup;
        }
        lookup
            .but(
                State::Note,
                "Linux 5.17 or newer takes it; keep port 53 of gateways free until then",
            )
            .instead("name servers bind port 53 of the gateways")
    }));
    let choose = |check: &str, there: bool, found: &str, since: &str, instead: &str| {
        if there {
            return ok(check, found);
        }
        ok(check, "not here")
            .but(State::Note, since)
            .instead(instead)
    };
    findings.extend([
        choose(
            "map batches",
            features.batches,
            "maps are read and written in batches",
            "Linux 5.6 or newer has them",
            "one entry at a time: ranges of ports and walks over flows take longer",
        ),
        choose(
            "bpf_set_retval",
            features.says_why,
            "who binds a published port hears EADDRINUSE",
            "Linux 6.1 or newer has it; nothing has to be done",
            "who binds a published port hears EPERM",
        ),
        choose(
            "btf",
            features.btf,
            "/sys/kernel/btf/vmlinux is there",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF",
            "what is asked of it is taken as unknown: see ipv6_v6only",
        ),
        choose(
            "ipv6_v6only",
            features.v6only,
            "programs see whether a socket on [::] is for IPv4 too",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF, not locked down for confidentiality",
            "a process may bind [::] and a port that is published for IPv4 alone",
        ),
        match features.ipv6_sums {
            true => ok("BPF_F_IPV6", "there, and not needed: the programs change checksums themselves"),
            false => ok("BPF_F_IPV6", "not here")
                .but(State::Note, "Linux 6.16 or newer has it; nothing has to be done")
                .instead("the programs change checksums themselves, and add addresses of IPv6 up (bpf_csum_update)"),
        },
    ]);
    if let Some(limit) = features.memlock {
        findings.push(ok("memlock", format!("the kernel counts maps as locked memory, of which {limit} bytes are allowed")).but(
            State::Warn,
            "start the agent with `ulimit -l unlimited`, or `LimitMEMLOCK=infinity` in its unit",
        ));
    }
    findings
}

/// How bad it is that the kernel refuses a program: some have lines of their own, one is for one kind of
/// interface.
fn refusal(name: &str) -> State {
    match name {
        "netfw_uplink_xdp" | "netfw_resolver" => State::Note,
        _ if name == Hook::Tunnel.program() => State::Warn,
        _ => State::Fail,
    }
}

impl Features {
    /// Does netfw work with them, by one way or another?
    fn suffice(&self) -> bool {
        let works = |tried: &Attached| matches!(tried, Some(Ok(())));
        let mut refused = self.programs.iter().filter(|(_, tried)| tried.is_err());
        refused.all(|(name, _)| refusal(name) < State::Fail)
            && (works(&self.tcx) || works(&self.clsact))
            && !matches!(self.update, Some(Err(_)))
    }
}

/// Which programs of the object the kernel takes.
fn programs(features: &Features) -> Finding {
    let refused: Vec<_> = features
        .programs
        .iter()
        .filter_map(|(name, tried)| Some((*name, tried.as_ref().err()?)))
        .collect();
    let (all, taken) = (
        features.programs.len(),
        features.programs.len() - refused.len(),
    );
    let found = ok("programs", format!("the kernel takes {taken} of {all}"));
    if refused.is_empty() {
        return found;
    }
    let state = refused.iter().map(|(name, _)| refusal(name)).max();
    let list: Vec<String> = refused
        .iter()
        .map(|(name, why)| format!("not {name} ({why})"))
        .collect();
    let found = ok("programs", format!("{}; {}", found.found, list.join("; ")));
    found.but(
        state.unwrap_or(State::Fail),
        "boot a newer kernel, or one with the features that it names",
    )
}

fn sockets((tells, ends): (bool, bool), tells_bound: bool) -> [Finding; 3] {
    let tells = match tells {
        true => ok("sock_diag", "the kernel tells who holds a port"),
        false => ok("sock_diag", "not here")
            .but(State::Note, "boot a kernel with CONFIG_INET_DIAG")
            .instead("/proc/net/tcp is read, which takes milliseconds for each publish"),
    };
    let ends = match ends {
        true => ok("sock_destroy", "processes' connections end with a publish"),
        false => ok("sock_destroy", "not here")
            .but(State::Note, "boot a kernel with CONFIG_INET_DIAG_DESTROY")
            .instead("connections that the node's processes have to a publish live on when it is withdrawn"),
    };
    let bound = match tells_bound {
        true => ok(
            "bound sockets",
            "a port that a process has bound and does not listen on is seen",
        ),
        false => ok("bound sockets", "the kernel does not tell of them")
            .but(
                State::Note,
                "Linux 6.8 or newer does; nothing has to be done",
            )
            .instead("a port that a process has bound and does not listen on is taken for free"),
    };
    [tells, ends, bound]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> Features {
        let names = [
            "netfw_uplink",
            "netfw_guard",
            "netfw_container",
            "netfw_tunnel",
        ];
        let more = ["netfw_uplink_xdp", "netfw_bind4", "netfw_resolver"];
        Features {
            btf: true,
            programs: names
                .into_iter()
                .chain(more)
                .map(|name| (name, Ok(())))
                .collect(),
            tcx: Some(Ok(())),
            clsact: Some(Ok(())),
            xdp: Some(Ok(())),
            update: Some(Ok(())),
            lookup: Some(Ok(())),
            batches: true,
            says_why: true,
            v6only: true,
            ipv6_sums: true,
            memlock: None,
        }
    }

    fn old() -> Features {
        Features {
            tcx: Some(Err("this kernel does not know it".into())),
            lookup: Some(Err("no".into())),
            says_why: false,
            ipv6_sums: false,
            ..new()
        }
    }

    fn judged(features: Features) -> Vec<Finding> {
        judge(&Facts {
            release: "6.18.1".into(),
            jit: Some("1".into()),
            diag: (true, true),
            tells_bound: true,
            features: Ok(features),
        })
    }

    fn of<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
        findings.iter().find(|found| found.check == check).unwrap()
    }

    #[test]
    fn a_new_kernel_has_all() {
        for finding in judged(new()) {
            assert_eq!(finding.state, State::Ok, "{finding:?}");
            assert_eq!(finding.remedy, None);
        }
    }

    #[test]
    fn an_old_kernel_has_ways_round() {
        let findings = judged(old());
        for check in ["tcx", "sk_lookup", "bpf_set_retval", "BPF_F_IPV6"] {
            let finding = of(&findings, check);
            assert_eq!(finding.state, State::Note, "{finding:?}");
            assert!(finding.instead.is_some() && finding.remedy.is_some());
        }
        assert!(findings.iter().all(|found| found.state <= State::Note));
    }

    #[test]
    fn what_has_no_way_round_is_a_failure() {
        let no = || Some(Err("no".to_owned()));
        let neither = Features {
            clsact: no(),
            ..old()
        };
        let findings = judged(neither);
        assert_eq!(of(&findings, "tcx").state, State::Fail);
        assert_eq!(of(&findings, "clsact").state, State::Fail);
        let only_tcx = judged(Features {
            clsact: no(),
            ..new()
        });
        assert_eq!(of(&only_tcx, "clsact").state, State::Note);
        assert_eq!(version("5.14.0", false).state, State::Fail);
        assert_eq!(version("5.14.0-570.el9", true).state, State::Note);
        assert_eq!(version("5.15.0-rc1", false).state, State::Ok);
        assert_eq!(version("", false).state, State::Fail);
        assert!(new().suffice() && old().suffice());
        assert!(
            !Features {
                clsact: no(),
                ..old()
            }
            .suffice()
        );
        assert_eq!(jit(Some("0")).state, State::Note);
        // What was not tried is not missing.
        let refused = judged(Features {
            tcx: None,
            lookup: None,
            ..new()
        });
        assert!(
            refused
                .iter()
                .all(|found| found.state == State::Ok && found.check != "tcx")
        );
    }

    #[test]
    fn a_program_that_is_refused_is_named() {
        for (name, state) in [
            ("netfw_uplink", State::Fail),
            ("netfw_bind4", State::Fail),
            ("netfw_tunnel", State::Warn),
            ("netfw_uplink_xdp", State::Note),
            ("netfw_resolver", State::Note),
        ] {
            let mut features = new();
            for (program, tried) in &mut features.programs {
                if *program == name {
                    *tried = Err("too many instructions".into());
                }
            }
            assert_eq!(features.suffice(), state < State::Fail, "{name}");
            let finding = programs(&features);
            assert_eq!(finding.state, state, "{finding:?}");
            assert!(finding.found.contains(name), "{finding:?}");
        }
    }

    #[test]
    fn locked_memory_is_told_where_it_is_counted() {
        let findings = judged(Features {
            memlock: Some(65536),
            ..new()
        });
        assert_eq!(of(&findings, "memlock").state, State::Warn);
    }
}
