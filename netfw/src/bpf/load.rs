//! Loading the programs over maps that may be there already.
//!
//! aya reuses a pinned map without looking at it. A map of another size would then be read past its
//! ends, or hold half of the flows that were asked for; so every pin is compared with what the object
//! wants before aya sees it, and one that differs is an error that says how to get rid of it.

use std::{
    collections::HashMap,
    panic::resume_unwind,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapError, MapInfo},
    programs::{Program, SchedClassifier},
    util::nr_cpus,
};
use aya_obj::Object;

use super::{
    BpfError, Options,
    attach::Hook,
    carry, cgroup,
    error::refused,
    pin::{Layout, Pins},
};

/// The eBPF programs, built by the build script.
pub static PROGRAMS_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netfw-ebpf"));

/// The maps that are pinned. Others (the programs' log, read-only data) go with the programs.
pub const PINNED: &[&str] = &[
    "FLOWS4",
    "FLOWS6",
    "EMBRYOS4",
    "EMBRYOS6",
    "HOLDINGS4",
    "HOLDINGS6",
    "PUBLISHES4",
    "PUBLISHES6",
    "ALLOWED4",
    "ALLOWED6",
    "TAKEN4",
    "TAKEN6",
    "ADDRESSES4",
    "ADDRESSES6",
    "SUBNETS4",
    "SUBNETS6",
    "LOCALS4",
    "LOCALS6",
    "MAPPINGS4",
    "MAPPINGS6",
    "PERMITS4",
    "PERMITS6",
    "FRAGMENTS4",
    "FRAGMENTS6",
    "HELD",
    "SOCKETS4",
    "SOCKETS6",
    "ENDPOINTS",
    "VETHS",
    "UPLINKS",
    "COUNTERS",
    "DROPS",
    "DROPS_OF",
    "EVENTS",
    "FILTERS",
    "LISTENERS",
    "SUPPRESSED",
    "CONFIG",
];

const MAX_FLOWS: &str = "max_flows";
const MAX_EMBRYOS: &str = "max_embryos";

/// The maps whose size is configured, and the option that says it.
const SIZED: [(&str, &str); 4] = [
    ("FLOWS4", MAX_FLOWS),
    ("FLOWS6", MAX_FLOWS),
    ("EMBRYOS4", MAX_EMBRYOS),
    ("EMBRYOS6", MAX_EMBRYOS),
];

/// Small LRU maps, and how many entries they have room for at least, and for each CPU. Before 6.17
/// (d4adf1c9ee77) every CPU that inserts into one keeps 128 free ones to itself.
const SHARED: [(&str, u32, u32); 5] = [
    ("FRAGMENTS4", 1 << 11, 256),
    ("FRAGMENTS6", 1 << 11, 256),
    ("TALKS4", 1 << 13, 256),
    ("TALKS6", 1 << 13, 256),
    // Each CPU has a list of its own (`BPF_F_NO_COMMON_LRU`).
    ("HELD", 1 << 9, 32),
];

/// The sizes of maps that are not what the object says.
fn sizes(max_flows: u32, max_embryos: u32) -> Result<Vec<(&'static str, u32)>, BpfError> {
    let cpus = nr_cpus().map_err(|(path, source)| BpfError::Cpus { path, source })? as u32;
    let flows = SIZED.map(|(name, option)| {
        let flows = match option {
            MAX_FLOWS => max_flows,
            _ => max_embryos,
        };
        // Two entries a flow, one for each direction.
        (name, flows.saturating_mul(2))
    });
    // A multiple, or the kernel makes one of it.
    let shared = SHARED.map(|(name, least, each)| (name, cpus * each.max(least.div_ceil(cpus))));
    Ok(flows.into_iter().chain(shared).collect())
}

/// What the programs are told as they are loaded.
struct Globals {
    /// aya's log filter: 0 is off, and the verifier then removes the log calls as dead code.
    log_level: u8,
    voucher: u64,
    netns: u64,
    says_why: u8,
    v6only_bit: u32,
    /// Do the programs tell what becomes of each packet?
    traces: u8,
}

impl Globals {
    fn find(log_level: Option<log::Level>, traces: bool) -> Result<Self, BpfError> {
        let globals = Self {
            log_level: log_level.map_or(0u8, |level| level as u8),
            // Without one the guard looks at every packet.
            voucher: getrandom::u64().unwrap_or(0),
            netns: cgroup::netns_cookie().map_err(|source| BpfError::Cookie { source })?,
            says_why: u8::from(cgroup::may_say_why()),
            v6only_bit: cgroup::v6only_bit().unwrap_or(0),
            traces: traces.into(),
        };
        let (says_why, v6only_bit) = (globals.says_why, globals.v6only_bit);
        tracing::debug!(says_why, v6only_bit, "of sockets that are refused a port");
        Ok(globals)
    }

    fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global("AYA_LOG_LEVEL", &self.log_level, false);
        loader.override_global("NODE_NETNS", &self.netns, true);
        loader.override_global("VOUCHER", &self.voucher, true);
        loader.override_global("SAYS_WHY", &self.says_why, true);
        loader.override_global("V6ONLY_BIT", &self.v6only_bit, true);
        loader.override_global("TRACES", &self.traces, true);
    }
}

/// Loads maps and programs of an instance; its directories must be there. What an `older` layout has pinned
/// and this one has the same of is used by both then. `traces`: programs that tell what becomes of each packet.
pub fn load(
    options: &Options,
    pins: &Pins,
    older: &[Layout],
    traces: bool,
) -> Result<Ebpf, BpfError> {
    let sizes = sizes(options.max_flows, options.max_embryos)?;
    let directory = pins.maps();
    let adopt = || {
        let wanted = shapes(&sizes)?;
        // All are looked at before any is shared.
        check_pins(&wanted, PINNED, &directory, pins.instance())?;
        let shared = |layout| carry::shared(options.steps, layout);
        for layout in older {
            check_pins(&wanted, &shared(layout), &layout.maps(), pins.instance())?;
        }
        let mut older = older.iter();
        older.try_for_each(|layout| carry::share(&shared(layout), layout, pins))
    };
    // Each parses for a tenth of a second: the object here, the kernel's BTF there.
    let (adopted, mut loader) = thread::scope(|scope| {
        let adopted = scope.spawn(adopt);
        let loader = EbpfLoader::new();
        let adopted = adopted.join();
        (adopted.unwrap_or_else(|panic| resume_unwind(panic)), loader)
    });
    adopted?;

    let globals = Globals::find(options.log_level, traces)?;
    globals.set(&mut loader);
    for (name, size) in sizes {
        loader.map_max_entries(name, size);
    }
    for &name in PINNED {
        loader.map_pin_path(name, directory.join(name));
    }
    let mut ebpf = loader.load(PROGRAMS_OBJECT).map_err(BpfError::object)?;
    load_programs(&mut ebpf)?;
    Ok(ebpf)
}

/// The object as an agent has it, but with room for next to nothing, and pinned nowhere: it goes with the value.
pub fn load_unpinned() -> Result<Ebpf, BpfError> {
    let globals = Globals::find(None, false)?;
    let mut loader = EbpfLoader::new();
    globals.set(&mut loader);
    for (name, size) in sizes(64, 64)? {
        loader.map_max_entries(name, size);
    }
    loader.load(PROGRAMS_OBJECT).map_err(BpfError::object)
}

/// Loads the programs that every node needs; others are loaded when they are first attached.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    // The longest first.
    let hooks = [Hook::Container, Hook::Uplink, Hook::Guard].map(Hook::program);
    let names: Vec<_> = hooks.into_iter().chain(cgroup::PROGRAMS).collect();
    let mut loaded = verify(ebpf, &names).into_iter();
    loaded.try_for_each(|(_, result)| result)
}

/// Loads these programs, in this order. The verifier takes most of a start, and goes through two programs at
/// a time where there are two CPUs. Goes on past those that it refuses.
pub fn verify(
    ebpf: &mut Ebpf,
    names: &[&'static str],
) -> Vec<(&'static str, Result<(), BpfError>)> {
    let mut waiting: Vec<_> = ebpf
        .programs_mut()
        .filter_map(|(found, program)| {
            let rank = names.iter().position(|name| *name == found)?;
            Some((rank, program))
        })
        .collect();
    waiting.sort_by_key(|(rank, _)| *rank);
    let waiting = Mutex::new(waiting.into_iter());
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.next()
    };
    let work = || {
        let mut done = Vec::new();
        while let Some((rank, program)) = next() {
            done.push((rank, verify_one(program, names[rank])));
        }
        done
    };
    let mut done = thread::scope(|scope| {
        let second = scope.spawn(work);
        let mut done = work();
        done.extend(second.join().unwrap_or_else(|panic| resume_unwind(panic)));
        done
    });
    done.sort_by_key(|(rank, _)| *rank);
    done.into_iter()
        .map(|(rank, result)| (names[rank], result))
        .collect()
}

fn verify_one(program: &mut Program, name: &'static str) -> Result<(), BpfError> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => {
            return Err(BpfError::Lacks {
                kind: "program",
                name,
            });
        }
    };
    loaded.map_err(|error| refused(name, &error))
}

/// What the object wants each map to be that is pinned.
fn shapes(sizes: &[(&str, u32)]) -> Result<HashMap<&'static str, Shape>, BpfError> {
    let object = Object::parse(PROGRAMS_OBJECT).map_err(|error| BpfError::object(error.into()))?;
    let shape = |name: &'static str| {
        let map = object.maps.get(name);
        let map = map.ok_or(BpfError::Lacks { kind: "map", name })?;
        let size = sizes.iter().find(|(sized, _)| *sized == name);
        let shape = Shape {
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            entries: size.map_or(map.max_entries(), |(_, size)| *size),
            flags: map.map_flags(),
        };
        Ok((name, shape))
    };
    PINNED.iter().copied().map(shape).collect()
}

/// Is each of these that is pinned in `directory` what the object wants?
fn check_pins(
    wanted: &HashMap<&str, Shape>,
    names: &[&str],
    directory: &Path,
    instance: &str,
) -> Result<(), BpfError> {
    names
        .iter()
        .try_for_each(|name| check(name, &directory.join(name), &wanted[name], instance))
}

/// The program of a hook, loaded.
pub fn program(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, BpfError> {
    let lacks = BpfError::Lacks {
        kind: "program",
        name: hook.program(),
    };
    let Some(program) = ebpf.program_mut(hook.program()) else {
        return Err(lacks);
    };
    let program: &mut SchedClassifier = program.try_into().map_err(|_| lacks)?;
    if program.fd().is_err() {
        let loaded = program.load();
        loaded.map_err(|error| refused(hook.program(), &error))?;
    }
    Ok(program)
}

/// `BPF_MAP_TYPE_DEVMAP_HASH`, `BPF_F_RDONLY_PROG` (linux/bpf.h).
const DEVMAP_HASH: u32 = 25;
const RDONLY_PROG: u32 = 1 << 7;

/// What must agree between a map and the programs that use it.
struct Shape {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

/// Is the pin at `path` missing, or a map of this shape?
fn check(name: &str, path: &Path, wanted: &Shape, instance: &str) -> Result<(), BpfError> {
    if !path.exists() {
        return Ok(());
    }
    let pinned = |error| BpfError::Pinned {
        path: path.into(),
        source: match error {
            MapError::SyscallError(error) => error.io_error,
            other => std::io::Error::other(other),
        },
    };
    let found = MapInfo::from_pin(path).map_err(pinned)?;
    let kind = found.map_type().map_err(pinned)? as u32;
    // The kernel adds it to maps of devices by itself (dev_map_init_map).
    let flags = match kind {
        DEVMAP_HASH => found.map_flags() & !RDONLY_PROG,
        _ => found.map_flags(),
    };
    for (what, found, wanted) in [
        ("type", kind, wanted.kind),
        ("key size", found.key_size(), wanted.key),
        ("value size", found.value_size(), wanted.value),
        ("room for", found.max_entries(), wanted.entries),
        ("flags", flags, wanted.flags),
    ] {
        if found == wanted {
            continue;
        }
        let option = SIZED.iter().find(|(sized, _)| *sized == name);
        if let ("room for", Some((_, option))) = (what, option) {
            return Err(BpfError::FlowRoom {
                option,
                found: found / 2,
                wanted: wanted / 2,
                instance: instance.into(),
            });
        }
        return Err(BpfError::IncompatibleMap {
            path: path.into(),
            what,
            found: found.to_string(),
            wanted: wanted.to_string(),
            instance: instance.into(),
        });
    }
    Ok(())
}
