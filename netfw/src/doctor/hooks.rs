//! Uplinks: how netfw's programs are attached to them, and what else is on their hooks.

use super::{Area, Finding, Node, State, Told};
use crate::{
    agent::{config::XDP_OFF, node},
    api::types,
    bpf::{At, OnHook},
};

/// An uplink, or what would be one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uplink {
    pub name: String,
    pub ifindex: Option<u32>,
    /// What the agent says of it, if there is one.
    pub told: Option<types::Uplink>,
}

/// Those that the agent knows; without one, those that it would serve.
pub fn uplinks(seen: &Node, told: Option<&Told>) -> Vec<Uplink> {
    if let Some(told) = told {
        let known = told.status.uplinks.iter().map(|uplink| Uplink {
            name: uplink.name.clone(),
            ifindex: uplink.ifindex,
            told: Some(uplink.clone()),
        });
        return known.collect();
    }
    let view = node::observe(&seen.links, &seen.addresses, &[]);
    view.uplinks
        .into_iter()
        .map(|(ifindex, uplink)| Uplink {
            name: uplink.name,
            ifindex: Some(ifindex),
            told: None,
        })
        .collect()
}

/// What was found on the hooks of an uplink, where it is there.
type Found = Option<Result<Vec<OnHook>, String>>;

pub fn judge(uplink: &Uplink, found: Found) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = &uplink.name;
    let on_hooks = match found {
        Some(Ok(found)) => found,
        Some(Err(error)) => {
            findings.push(ok(uplink, "programs on", error).but(
                State::Note,
                "it may have gone just now: run `netfw doctor` again",
            ));
            Vec::new()
        }
        None => Vec::new(),
    };
    if let Some(told) = &uplink.told {
        findings.push(served(uplink, told, &on_hooks));
    }
    let strangers = on_hooks.iter().filter(|found| !found.own);
    findings.extend(strangers.map(|found| stranger(uplink, found, &on_hooks)));
    if findings.iter().all(|found| found.state == State::Ok) {
        let found = match on_hooks.is_empty() {
            true => "none",
            false => "none but netfw's",
        };
        findings.push(Finding::ok(
            Area::Hooks,
            format!("programs on {name}"),
            found,
        ));
    }
    findings
}

fn ok(uplink: &Uplink, check: &str, found: impl Into<String>) -> Finding {
    Finding::ok(Area::Hooks, format!("{check} {}", uplink.name), found)
}

/// Is it served as the agent says?
fn served(uplink: &Uplink, told: &types::Uplink, on_hooks: &[OnHook]) -> Finding {
    let check = |found: String| ok(uplink, "uplink", found);
    let name = &uplink.name;
    let Some(hook) = &told.hook else {
        let why = told.error.as_deref().unwrap_or("not attached");
        let remedy = match told.ifindex {
            None => format!("add interface {name}, or leave it out of `--uplink` and `uplinks`"),
            Some(_) => "look into the agent's log; it tries again within 30 s".into(),
        };
        return check(format!("not served: {why}")).but(State::Warn, remedy);
    };
    let xdp = match (&told.xdp, &told.xdp_why) {
        (Some(mode), why) => format!(", xdp {mode} ({})", why.as_deref().unwrap_or("as asked")),
        (None, Some(why)) if why != XDP_OFF => format!(", no xdp ({why})"),
        _ => ", no xdp".into(),
    };
    let found = check(match &told.error {
        None => format!("{hook}{xdp}"),
        Some(why) => format!("{hook}, closed: {why}"),
    });
    let lacks = [At::Ingress, At::Egress]
        .into_iter()
        .find(|at| !on_hooks.iter().any(|found| found.own && found.at == *at));
    match lacks {
        Some(at) => found.but(
            State::Warn,
            format!(
                "netfw's program is not at {}: start the agent again, which attaches it",
                side(at)
            ),
        ),
        None => found,
    }
}

fn side(at: At) -> &'static str {
    match at {
        At::Xdp => "XDP",
        At::Ingress => "ingress",
        At::Egress => "egress",
    }
}

/// Somebody else's.
fn stranger(uplink: &Uplink, found: &OnHook, all: &[OnHook]) -> Finding {
    let name = &uplink.name;
    let finding = |words: &str| {
        let way = match found.at {
            At::Xdp => "XDP".to_owned(),
            at => format!("{} {}", found.way, side(at)),
        };
        ok(
            uplink,
            "programs on",
            format!("{way}: {}{words}", found.what),
        )
    };
    if found.at == At::Xdp {
        return finding("; it sees frames before netfw")
            .but(
                State::Note,
                format!(
                    "let it pass (XDP_PASS) what is for netfw; `ip link set dev {name} xdp off` takes it off, unless \
                     it is in a link (`bpftool link`)"
                ),
            )
            .instead("netfw runs none there, TC does it all");
    }
    let same_side = || all.iter().filter(|other| other.at == found.at);
    let place = |wanted: &OnHook| same_side().position(|other| other == wanted);
    let own = same_side().find(|other| other.own).and_then(place);
    let before = own.is_none_or(|own| place(found).is_some_and(|this| this < own));
    let show = match found.way {
        "TCX" => format!("`bpftool net show dev {name}` lists it"),
        _ => format!(
            "`tc filter show dev {name} {}` lists it, `tc filter del dev {name} {} {}` removes it",
            side(found.at),
            side(found.at),
            found.filter.as_deref().unwrap_or_default()
        ),
    };
    match (before, own) {
        (true, None) => finding("").but(
            State::Note,
            format!("let it hand on (TCX_NEXT, TC_ACT_UNSPEC) what is for netfw; {show}"),
        ),
        (true, Some(_)) => finding("; it sees packets before netfw").but(
            State::Note,
            format!("let it hand on (TCX_NEXT, TC_ACT_UNSPEC) what is for netfw; {show}"),
        ),
        (false, _) => finding("; it sees what netfw leaves to others").but(
            State::Note,
            format!("nothing, unless it is to see translated packets: then attach it before netfw's; {show}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(at: At, way: &'static str, what: &str) -> OnHook {
        OnHook {
            at,
            way,
            what: what.into(),
            filter: (way == "clsact").then(|| "protocol all pref 7".into()),
            own: what.starts_with("netfw"),
        }
    }

    fn own() -> Vec<OnHook> {
        vec![
            on(At::Ingress, "TCX", "netfw_uplink"),
            on(At::Egress, "TCX", "netfw_guard"),
        ]
    }

    fn uplink() -> Uplink {
        Uplink {
            name: "up0".into(),
            ifindex: Some(2),
            told: Some(types::Uplink {
                name: "up0".into(),
                ifindex: Some(2),
                hook: Some("tcx".into()),
                served: true,
                error: None,
                xdp: None,
                xdp_why: Some("veth".into()),
            }),
        }
    }

    fn states(uplink: &Uplink, found: Vec<OnHook>) -> Vec<(String, State)> {
        judge(uplink, Some(Ok(found)))
            .into_iter()
            .map(|finding| (finding.found, finding.state))
            .collect()
    }

    #[test]
    fn an_uplink_of_netfws_own() {
        let found = states(&uplink(), own());
        let wanted = [
            ("tcx, no xdp (veth)".to_owned(), State::Ok),
            ("none but netfw's".to_owned(), State::Ok),
        ];
        assert_eq!(found, wanted);
        let nobody = Uplink {
            told: None,
            ..uplink()
        };
        assert_eq!(
            states(&nobody, Vec::new()),
            [("none".to_owned(), State::Ok)]
        );
    }

    #[test]
    fn others_are_named_and_where_they_are() {
        for (before, at, way, words) in [
            (true, At::Ingress, "TCX", "before netfw"),
            (false, At::Ingress, "clsact", "leaves to others"),
            (false, At::Egress, "clsact", "leaves to others"),
        ] {
            let mut found = own();
            let place = if before { 0 } else { found.len() };
            found.insert(place, on(at, way, "program sniffer (id 7)"));
            if way == "clsact" {
                let judged = judge(&uplink(), Some(Ok(found.clone())));
                let remedy = judged[1].remedy.as_deref().unwrap_or_default();
                let delete = format!("`tc filter del dev up0 {} protocol all pref 7`", side(at));
                assert!(remedy.contains(&delete), "{remedy}");
            }
            let found = states(&uplink(), found);
            assert_eq!(found.len(), 2, "{found:?}");
            let (said, state) = &found[1];
            assert_eq!(*state, State::Note);
            assert!(said.starts_with(way) && said.contains("sniffer"), "{said}");
            assert!(said.contains(words), "{said}");
        }
        let mut found = own();
        found.insert(0, on(At::Xdp, "XDP", "program 9"));
        let found = judge(&uplink(), Some(Ok(found)));
        assert!(found[1].found.starts_with("XDP: program 9"), "{found:?}");
        assert!(found[1].instead.is_some());
    }

    #[test]
    fn an_uplink_that_is_not_served_is_told() {
        let told = |change: &dyn Fn(&mut types::Uplink)| {
            let mut uplink = uplink();
            uplink.told.iter_mut().for_each(change);
            uplink
        };
        let missing = told(&|uplink| {
            uplink.ifindex = None;
            uplink.hook = None;
            uplink.error = Some("there is no such interface (yet)".into());
        });
        let found = judge(&missing, None);
        assert_eq!(found[0].state, State::Warn);
        assert!(found[0].remedy.as_ref().unwrap().contains("--uplink"));
        let closed = told(&|uplink| uplink.error = Some("not named with --uplink".into()));
        let found = states(&closed, own());
        assert_eq!(
            found[0],
            ("tcx, closed: not named with --uplink".into(), State::Ok)
        );
        let found = judge(&uplink(), Some(Ok(own().split_off(1))));
        assert_eq!(found[0].state, State::Warn, "somebody took it off");
    }
}
