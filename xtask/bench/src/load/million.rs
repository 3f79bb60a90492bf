//! A million UDP flows at a time: how fast they are set up, how fast packets go when each is of another
//! flow, what memory they take, and what it costs to keep them.
//!
//! * **Set-up**: a question, its answer, and a question again for each of them, one core for all; the
//!   flow is established then.
//! * **Packets**: one way, as in [`super::packets`], where this is the last point on the axis.
//! * **Memory**: netfw's tables are as large as they are configured, from the start: what the kernel
//!   says that the one takes in which the million lie (`memlock` of `FLOWS4` in `/proc/PID/fdinfo`). It
//!   does not count what is there for any number of flows: the tables of half-open ones (38 MiB by
//!   default), and the empty one for IPv6 (its buckets: 32 MiB). conntrack allocates an object for each flow: those of the slab `nf_conntrack`,
//!   and the buckets of the hash that a million flows are given, 8 bytes each. What extensions take
//!   (accounting, timestamps, masquerading) comes from slabs that serve the whole kernel, and is not in
//!   the figure; the flows here need none.
//! * **Sweep**: CPU time of the agent's process while nothing happens, in which it walks through the
//!   flows to find those that have expired; its system calls are in it. conntrack's is left out: it walks
//!   in a kernel worker that also does others' work, for some milliseconds at a time and up to a minute
//!   apart (`gc_worker`), which a few seconds show by chance or not at all.
//!
//! A contender has its flows during its own round only. The hash of conntrack is one for all namespaces:
//! with the flows of several in it, chains would be longer than any has to bear.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::MapData;
use nix::{
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use super::{Lane, Load, heading, packets};
use crate::{
    contender::{Contender, Kind, room},
    frames::{Direction, Frames},
    plan::Plan,
    report::{Better, Heading},
};

const FLOWS: u32 = 1_000_000;

/// As many rounds show what there is to see, and each takes long.
const ROUNDS: usize = 3;

/// How long the sweep is watched: it goes through all tables in 24 seconds, evenly but for the end of each.
const WATCHED: Duration = Duration::from_secs(8);

/// Not measured, or there is no such thing.
const NONE: f64 = f64::NAN;

/// netfw's map of assured IPv4 flows.
const MAP: &str = "FLOWS4";

/// Seconds that conntrack keeps a UDP flow, whether it has seen an answer or not: as long as netfw does
/// once there was one, and longer than a round. Its own 30 would end before the last flow is there.
const TIMEOUT: &str = "300";

pub struct Million {
    duration: Duration,
}

pub fn loads(plan: &Plan) -> Vec<Box<dyn Load>> {
    let mut loads: Vec<Box<dyn Load>> = Vec::new();
    if plan.million {
        loads.push(Box::new(Million {
            duration: plan.packets,
        }));
    }
    loads
}

impl Load for Million {
    fn name(&self) -> &'static str {
        "million"
    }

    fn measures(&self) -> Vec<Heading> {
        let heading =
            |id, title, unit, better| heading(&format!("million-{id}"), title, unit, better, None);
        vec![
            heading(
                "setup",
                "Setting up a million UDP flows, on one core",
                "flows/s",
                Better::Higher,
            ),
            heading(
                "packets",
                "Small UDP packets of a million flows in turn, on one core",
                "packets/s",
                Better::Higher,
            ),
            packets::heading_of(Direction::In),
            heading(
                "memory",
                "Kernel memory for a million UDP flows",
                "MiB",
                Better::Lower,
            ),
            heading(
                "sweep",
                "CPU time to keep a million idle flows",
                "ms/s",
                Better::Lower,
            ),
        ]
    }

    fn at(&self) -> Option<u64> {
        Some(FLOWS.into())
    }

    fn suits(&self, kind: Kind) -> bool {
        !matches!(kind, Kind::Host | Kind::IptablesLegacy)
    }

    fn flows(&self) -> Option<u32> {
        Some(FLOWS)
    }

    fn most_rounds(&self) -> usize {
        ROUNDS
    }

    fn lane<'a>(&self, contender: &'a Contender) -> Result<Box<dyn Lane + 'a>> {
        if contender.kind.is_netfilter() {
            for timeout in ["udp_timeout", "udp_timeout_stream"] {
                let name = format!("netfilter/nf_conntrack_{timeout}");
                contender.lab.node.sysctl(&name, TIMEOUT);
            }
        }
        let mut frames = Frames::attach(contender, Direction::In, FLOWS)?;
        frames.wait_for_neighbours()?;
        Ok(Box::new(Running {
            contender,
            frames,
            duration: self.duration,
        }))
    }

    fn seconds(&self) -> f64 {
        /// To set them up and to forget them.
        const FLOWS: f64 = 9.0;
        FLOWS + self.duration.as_secs_f64() + WATCHED.as_secs_f64()
    }
}

struct Running<'a> {
    contender: &'a Contender,
    frames: Frames<'a>,
    duration: Duration,
}

impl Lane for Running<'_> {
    fn run(&mut self) -> Result<Vec<f64>> {
        let kind = self.contender.kind;
        if !kind.translates() {
            let rate = self.frames.run(self.duration)?;
            return Ok(vec![NONE, rate, rate, NONE, NONE]);
        }
        self.contender.forget_flows();
        let took = self.frames.open()?;
        let memory = match self.contender.agent() {
            Some(agent) => map_of(agent.instance())?,
            None => {
                let held = self.contender.lab.node.run(&["conntrack", "-C"]);
                check(held.trim().parse().context("a count of flows")?)?;
                slab("nf_conntrack")? + 8 * u64::from(room::buckets(FLOWS))
            }
        };
        let rate = self.frames.run(self.duration)?;
        let sweep = self.sweep()?;
        self.contender.forget_flows();
        Ok(vec![
            f64::from(FLOWS) / took.as_secs_f64(),
            rate,
            rate,
            mebibytes(memory),
            sweep,
        ])
    }
}

impl Running<'_> {
    /// Milliseconds of CPU time in a second, once the flows are seen to be there.
    fn sweep(&self) -> Result<f64> {
        let Some(agent) = self.contender.agent() else {
            return Ok(NONE);
        };
        let status = agent.json(&["status"]);
        let number = |field: &str| {
            let number = status[field].as_u64();
            number.with_context(|| format!("no {field} in {status}"))
        };
        check(number("flows")?)?;
        let pid = Pid::from_raw(number("pid")?.try_into().context("the agent's pid")?);
        let clock = ClockId::pid_cpu_clock_id(pid).context("the agent's clock")?;
        let used = || {
            anyhow::Ok(Duration::from(
                clock_gettime(clock).context("clock_gettime")?,
            ))
        };
        let (before, start) = (used()?, Instant::now());
        thread::sleep(WATCHED);
        let (after, took) = (used()?, start.elapsed());
        Ok((after - before).as_secs_f64() / took.as_secs_f64() * 1000.0)
    }
}

/// Are all flows there? netfw counts a sample of them.
fn check(held: u64) -> Result<()> {
    if held < u64::from(FLOWS / 100 * 98) {
        bail!("of {FLOWS} flows only {held} are held");
    }
    Ok(())
}

/// Bytes that an instance's map of flows takes.
fn map_of(instance: &str) -> Result<u64> {
    let file = maps_directory(Path::new("/sys/fs/bpf").join(instance))?.join(MAP);
    let map = MapData::from_pin(&file).with_context(|| file.display().to_string())?;
    let info = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&info).with_context(|| info.clone())?;
    field(&text, "memlock:").with_context(|| format!("no memlock in {text:?}"))
}

/// The pins lie below the ABI's version.
fn maps_directory(instance: PathBuf) -> Result<PathBuf> {
    let entries = fs::read_dir(&instance).with_context(|| instance.display().to_string())?;
    for entry in entries {
        let maps = entry?.path().join("maps");
        if maps.join(MAP).exists() {
            return Ok(maps);
        }
    }
    bail!("no map of flows below {}", instance.display());
}

/// Bytes of the objects in a slab.
fn slab(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?;
    objects(&text, name).with_context(|| format!("no slab {name} in /proc/slabinfo"))
}

fn objects(slabinfo: &str, name: &str) -> Option<u64> {
    let mut lines = slabinfo.lines().map(str::split_whitespace);
    let mut line = lines.find_map(|mut words| (words.next()? == name).then_some(words))?;
    // <name> <active_objs> <num_objs> <objsize>
    let active: u64 = line.next()?.parse().ok()?;
    let size: u64 = line.nth(1)?.parse().ok()?;
    Some(active * size)
}

/// The number behind a name at a line's beginning.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn mebibytes(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_behind_its_name() {
        let text = "map_type:\t1\nmemlock:\t67108864\nmap_id:\t7\n";
        assert_eq!(field(text, "memlock:"), Some(67_108_864));
        assert_eq!(field(text, "lock:"), None);
        assert_eq!(mebibytes(3 << 20), 3.0);
    }

    #[test]
    fn a_slab_is_its_active_objects() {
        let text = "slabinfo - version: 2.1\n\
                    # name            <active_objs> <num_objs> <objsize> <objperslab>\n\
                    nf_conntrack_expect      0      0    208   19    1\n\
                    nf_conntrack         144    208    256   16    1 : tunables    0    0    0\n";
        assert_eq!(objects(text, "nf_conntrack"), Some(144 * 256));
        assert_eq!(objects(text, "kmalloc-64"), None);
    }

    #[test]
    fn flows_that_are_not_held_are_told() {
        assert!(check(1_000_000).is_ok());
        assert!(check(262_144).is_err());
    }
}
