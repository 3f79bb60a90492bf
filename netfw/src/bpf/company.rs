//! What is on the hooks of an interface: netfw's programs, and whoever else's.

use std::{collections::BTreeSet, path::Path};

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};

use nix::libc;

use super::{
    BpfError,
    attach::open_link,
    error::root_errno,
    pin::{self, Pins},
};
use crate::net::{
    clsact::{self, Side},
    xdp,
};

/// Where in a packet's way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum At {
    Xdp,
    Ingress,
    Egress,
}

/// A program, or a filter of another kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnHook {
    pub at: At,
    /// `XDP`, `TCX`, `clsact`.
    pub way: &'static str,
    /// In words, with its id or priority.
    pub what: String,
    /// What `tc filter del` takes to remove this one and no other; of filters.
    pub filter: Option<String>,
    /// The instance's.
    pub own: bool,
}

/// All that is on the hooks of an interface of the calling thread's namespace, in the order in which packets
/// meet it, on each side.
pub fn on_hooks(instance: &str, ifindex: u32, name: &str) -> Result<Vec<OnHook>, BpfError> {
    let own = own_programs(&Pins::of(instance)?.links());
    let mut found = Vec::new();
    if let Some(attached) = xdp::attached(ifindex).map_err(|source| BpfError::Look { source })? {
        found.push(OnHook {
            at: At::Xdp,
            way: "XDP",
            what: program(attached.program, name_of(attached.program)),
            filter: None,
            own: own.contains(&attached.program),
        });
    }
    for (at, direction, side) in [
        (At::Ingress, TcAttachType::Ingress, Side::Ingress),
        (At::Egress, TcAttachType::Egress, Side::Egress),
    ] {
        // A kernel without TCX refuses the question.
        let programs = match SchedClassifier::query_tcx(name, direction) {
            Ok((_, programs)) => programs,
            Err(error) if root_errno(&error).is_some() => Vec::new(),
            Err(source) => {
                return Err(BpfError::Query {
                    interface: name.into(),
                    source: Box::new(source),
                });
            }
        };
        // They are asked before filters are.
        found.extend(programs.iter().map(|info| OnHook {
            at,
            way: "TCX",
            what: program(info.id(), info.name_as_str().map(str::to_owned)),
            filter: None,
            own: own.contains(&info.id()),
        }));
        let filters = clsact::filters(ifindex, side).map_err(|source| BpfError::Look { source })?;
        found.extend(filters.into_iter().map(|filter| OnHook {
            at,
            way: "clsact",
            filter: Some(format!(
                "protocol {} pref {}",
                protocol(filter.protocol),
                filter.priority
            )),
            own: filter.program.is_some_and(|id| own.contains(&id)),
            what: match filter.program {
                Some(id) => program(id, filter.name),
                None => format!("{} filter of priority {}", filter.kind, filter.priority),
            },
        }));
    }
    Ok(found)
}

/// As tc takes it.
fn protocol(ethertype: u16) -> String {
    match i32::from(ethertype) {
        libc::ETH_P_ALL => "all".into(),
        libc::ETH_P_IP => "ip".into(),
        libc::ETH_P_IPV6 => "ipv6".into(),
        other => format!("{other:#06x}"),
    }
}

fn program(id: u32, name: Option<String>) -> String {
    match name.as_deref() {
        None | Some("") => format!("program {id}"),
        Some(name) => format!("program {name} (id {id})"),
    }
}

fn name_of(id: u32) -> Option<String> {
    let found = loaded_programs()
        .flatten()
        .find(|program| program.id() == id);
    found.and_then(|program| program.name_as_str().map(str::to_owned))
}

/// Programs that are pinned, or in a link that is.
fn own_programs(links: &Path) -> BTreeSet<u32> {
    let id = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        if name.ends_with("-clsact") || name.ends_with("-gro") {
            return Some(ProgramInfo::from_pin(path).ok()?.id());
        }
        let (_, info) = open_link(path).ok()??;
        Some(info.program)
    };
    pin::entries(links)
        .iter()
        .filter_map(|path| id(path))
        .collect()
}
