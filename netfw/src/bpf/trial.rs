//! What this kernel can do for the data plane, tried out: the programs are loaded, and attached in a network
//! namespace that nobody else sees. All of it is gone afterwards.

use std::{fs::File, os::fd::AsFd as _, panic::resume_unwind, thread};

use aya::{
    Ebpf,
    programs::{LinkOrder, SkLookup, Xdp, tc::TcAttachOptions, tc::qdisc_add_clsact},
};
use netfw_common::{
    addr::Ip4,
    record::{Publish, PublishKey},
};
use nix::{
    libc,
    sys::resource::{Resource, getrlimit, rlim_t, setrlimit},
};

use super::{
    BpfError, Hook, XdpMode,
    attach::add_filter,
    btf, cgroup,
    error::{in_short, root_errno},
    insn::{CALL, EXIT, MOV_NUMBER, instruction},
    load, lookup, sys,
    table::Table,
    xdp,
};
use crate::net::Namespace;

/// Why something cannot be done, in a line.
pub type Tried = Result<(), String>;

/// None: it was not, since the kernel refuses the program that it takes.
pub type Attached = Option<Tried>;

/// What was found.
#[derive(Clone, Debug)]
pub struct Features {
    /// The kernel describes itself (BTF).
    pub btf: bool,
    /// Each program, and why the kernel does not take it.
    pub programs: Vec<(&'static str, Tried)>,
    pub tcx: Attached,
    pub clsact: Attached,
    /// A link of XDP, in generic mode; which driver runs it is the driver's.
    pub xdp: Attached,
    /// A program takes another's place in its link.
    pub update: Attached,
    /// The program that hands queries to name servers, on a namespace.
    pub lookup: Attached,
    pub batches: bool,
    /// Who is refused a port is told why (`bpf_set_retval`).
    pub says_why: bool,
    /// It is known whether a socket is `IPV6_V6ONLY`.
    pub v6only: bool,
    /// `bpf_l4_csum_replace` knows addresses of IPv6 (`BPF_F_IPV6`).
    pub ipv6_sums: bool,
    /// The limit, where the kernel counts maps as locked memory.
    pub memlock: Option<rlim_t>,
}

/// Tries, on a thread of its own; a second of work, most of it the verifier's. No other thread may be about to
/// lock memory.
pub fn features() -> Result<Features, BpfError> {
    let tried = thread::spawn(|| {
        let _own = Namespace::leave().map_err(|source| BpfError::Look { source })?;
        try_all()
    });
    tried.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn try_all() -> Result<Features, BpfError> {
    let (mut ebpf, memlock) = load_counted()?;
    let names: Vec<_> = [Hook::Container, Hook::Uplink, Hook::Tunnel, Hook::Guard]
        .map(Hook::program)
        .into_iter()
        .chain([xdp::PROGRAM])
        .chain(cgroup::PROGRAMS)
        .chain([lookup::PROGRAM])
        .collect();
    let programs = load::verify(&mut ebpf, &names);
    let taken = |name: &str| {
        programs
            .iter()
            .any(|(found, loaded)| *found == name && loaded.is_ok())
    };
    let (xdp, update) = taken(xdp::PROGRAM).then(|| try_xdp(&ebpf)).unzip();
    let tcx = taken(Hook::Uplink.program()).then(|| try_tcx(&mut ebpf));
    let clsact = taken(Hook::Container.program()).then(|| try_clsact(&mut ebpf));
    let lookup = taken(lookup::PROGRAM).then(|| try_lookup(&mut ebpf));
    let table = Table::<PublishKey<Ip4>, Publish<Ip4>>::take(&mut ebpf, "PUBLISHES4");
    Ok(Features {
        btf: btf::is_there(),
        programs: programs
            .into_iter()
            .map(|(name, loaded)| (name, loaded.map_err(|error| words(&error))))
            .collect(),
        tcx,
        clsact,
        xdp,
        update,
        lookup,
        batches: table.is_ok_and(|table| table.has_batches()),
        says_why: cgroup::may_say_why(),
        v6only: cgroup::v6only_bit().is_some(),
        ipv6_sums: knows_ipv6_sums(),
        memlock,
    })
}

fn words(error: &dyn std::error::Error) -> String {
    in_short(&crate::chain(error))
}

/// The object, loaded without a byte of locked memory where the kernel does not count maps as such (5.11);
/// where it does, with as much as there is, and how much that is.
fn load_counted() -> Result<(Ebpf, Option<rlim_t>), BpfError> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else {
        return Ok((load::load_unpinned()?, None));
    };
    let limit = |soft| setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard);
    let limited = limit(0).is_ok();
    let loaded = load::load_unpinned();
    let _ = limit(soft);
    match loaded {
        Err(error) if limited && root_errno(&error) == Some(libc::EPERM) => {
            Ok((load::load_unpinned()?, Some(soft)))
        }
        loaded => Ok((loaded?, None)),
    }
}

/// The loopback interface, which each namespace has, and its index.
const LO: (&str, u32) = ("lo", 1);

fn try_tcx(ebpf: &mut Ebpf) -> Tried {
    let hook = Hook::Uplink;
    let program = load::program(ebpf, hook).map_err(|error| words(&error))?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    match program.attach_with_options(LO.0, hook.direction(), order) {
        Ok(_) => Ok(()),
        Err(error) if root_errno(&error) == Some(libc::EINVAL) => {
            Err("this kernel does not know it".into())
        }
        Err(error) => Err(words(&error)),
    }
}

fn try_clsact(ebpf: &mut Ebpf) -> Tried {
    let hook = Hook::Container;
    qdisc_add_clsact(LO.0).map_err(|error| words(&error))?;
    let program = load::program(ebpf, hook).map_err(|error| words(&error))?;
    add_filter(program, hook, LO.0).map_err(|error| words(&error))
}

/// A link, and another program in its place.
fn try_xdp(ebpf: &Ebpf) -> (Tried, Tried) {
    let link = || -> Result<_, String> {
        let program: &Xdp = ebpf
            .program(xdp::PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or("netfw was built without it")?;
        let program = program.fd().map_err(|error| words(&error))?.as_fd();
        let link = sys::create_xdp_link(program, LO.1, XdpMode::Generic.flags());
        let link = link.map_err(|error| words(&error))?;
        Ok(sys::update_link(link.as_fd(), program).map_err(|error| words(&error)))
    };
    match link() {
        Ok(updated) => (Ok(()), updated),
        Err(error) => (Err(error.clone()), Err(error)),
    }
}

fn try_lookup(ebpf: &mut Ebpf) -> Tried {
    let program: &mut SkLookup = ebpf
        .program_mut(lookup::PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or("netfw was built without it")?;
    let netns = File::open("/proc/thread-self/ns/net").map_err(|error| words(&error))?;
    let attached = program.attach(&netns);
    attached.map(drop).map_err(|error| words(&error))
}

/// Asked to change what lies at an odd offset, which it refuses in any case, but with another error where it
/// does not know the flag.
fn knows_ipv6_sums() -> bool {
    const L4_CSUM_REPLACE: i32 = 11;
    const F_IPV6: i32 = 1 << 7;
    let ask = [
        instruction(MOV_NUMBER, 2, 0, 1),
        instruction(MOV_NUMBER, 3, 0, 0),
        instruction(MOV_NUMBER, 4, 0, 0),
        instruction(MOV_NUMBER, 5, 0, F_IPV6),
        instruction(CALL, 0, 0, L4_CSUM_REPLACE),
        instruction(EXIT, 0, 0, 0),
    ];
    sys::run_on_packet(&ask).is_ok_and(|answer| answer.cast_signed() == -libc::EFAULT)
}
