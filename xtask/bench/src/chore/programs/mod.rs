//! Nanoseconds per packet in each of netfw's programs, without stack, wire and driver.
//!
//! A program is run on one packet by `BPF_PROG_TEST_RUN`, in the packet tests' own little world. That
//! it is run again by the kernel itself (`repeat`) would not do: the second run had the first one's
//! translated packet. So each run is a system call, whose way to the program is not what is
//! measured: the kernel's own clock is read right before and right after the program. What those
//! readings cost shows with a program that does nothing, and is subtracted.
//!
//! Runs come in blocks, of which the median counts: a block with nothing, one with a reference (a
//! fixed amount of similar work, see `ebpf/src/reference.rs`), one with the program. All are on one
//! CPU and within a millisecond or two, so that the multiple of the reference says how much work a
//! program does, on slow machines and busy ones too: [`budget`] holds it. New flows have a reference of
//! their own, which takes new memory as they do: how much slower that is differs from machine to
//! machine.

pub mod budget;
mod packet;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::HashMap,
    programs::{SchedClassifier, Xdp},
};
use netfw_tests::{
    site::Site,
    testrun::{Ran, RunOn},
};

pub use self::packet::{Case, Hook};
use super::{Chore, Stage, count};
use crate::{
    cpu, frames,
    plan::Plan,
    report::{Better, Heading, stats},
};

/// Runs in a block: short enough that the machine is the same at its end.
const BLOCK: u32 = 250;

/// As `ebpf/src/reference.rs` looks up, and some more.
const KEYS: u32 = 64;

pub struct Programs {
    /// For each program and packet, in a round.
    blocks: usize,
}

impl Programs {
    pub fn new(plan: &Plan) -> Self {
        Self {
            blocks: plan.blocks,
        }
    }
}

impl Chore for Programs {
    fn name(&self) -> &'static str {
        "programs"
    }

    fn seconds(&self, rounds: usize) -> f64 {
        /// To load and verify them.
        const START: f64 = 3.0;
        START + count(rounds * Case::all().len() * self.blocks) * SECONDS_PER_BLOCK
    }

    fn run(&self, stage: &mut Stage) -> Result<()> {
        let heading = Heading {
            id: "ns-per-packet".to_owned(),
            title: "Time in the program, per packet".to_owned(),
            unit: "ns".to_owned(),
            better: Better::Lower,
            axis: None,
        };
        let seconds = self.seconds(stage.rounds);
        stage.progress.say("programs: loading");
        in_site(|bench| {
            for round in 1..=stage.rounds {
                let words = format!("programs, round {round} of {}", stage.rounds);
                stage.progress.say(&words);
                for case in Case::all() {
                    let cost = bench.cost(case, self.blocks)?;
                    let name = case.to_string();
                    stage.report.add(&heading, &name, None, cost.nanoseconds);
                }
                stage.progress.advance(seconds / count(stage.rounds));
            }
            Ok(())
        })
    }
}

/// Of three kinds of run.
const SECONDS_PER_BLOCK: f64 = 0.004;

/// What a packet costs in a program.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub nanoseconds: f64,
    /// Of the reference's time.
    pub multiple: f64,
}

/// The programs, and those that they are compared with.
pub struct Bench {
    site: Site,
    own: Ebpf,
}

/// Runs `work` where the programs and their devices are.
pub fn in_site<T: Send>(work: impl FnOnce(&mut Bench) -> Result<T> + Send) -> Result<T> {
    // With tables as large as the agent's: those of the tests fit into a cache.
    let mut bench = Bench {
        site: Site::load(None),
        own: frames::loader()
            .load(frames::PROGRAMS)
            .context("loading the bench's programs")?,
    };
    let node = bench.site.devices.node.path();
    netfw_tests::netns::enter(&node, || {
        cpu::pin(cpu::sender()?)?;
        bench.get_ready()?;
        work(&mut bench)
    })
}

impl Bench {
    fn get_ready(&mut self) -> Result<()> {
        let map = self.own.map_mut("KEYS").context("map KEYS")?;
        let mut keys: HashMap<_, [u32; 4], u64> = HashMap::try_from(map)?;
        for number in 0..KEYS {
            keys.insert([number; 4], 0, 0)?;
        }
        for name in ["nothing", "reference", "reference_new"] {
            frames::classifier(&mut self.own, name)?;
        }
        let nothing: &mut Xdp = self
            .own
            .program_mut("nothing_xdp")
            .context("program nothing_xdp")?
            .try_into()?;
        nothing.load().context("loading nothing_xdp")?;
        self.site.reset();
        packet::open_flows(&self.site)
    }

    /// What the reference for new flows has put there.
    fn forget_entries(&mut self) -> Result<()> {
        let map = self.own.map_mut("ENTRIES").context("map ENTRIES")?;
        let mut entries: HashMap<_, [u32; 4], [u64; 8]> = HashMap::try_from(map)?;
        let keys: Vec<[u32; 4]> = entries.keys().collect::<Result<_, _>>()?;
        for key in keys {
            entries.remove(&key)?;
        }
        Ok(())
    }

    /// The median of so many blocks.
    pub fn cost(&mut self, case: Case, blocks: usize) -> Result<Cost> {
        let packets = case.packets(&self.site, BLOCK);
        let device = case.device(&self.site);
        let reference = match case.opens_flows() {
            true => "reference_new",
            false => "reference",
        };
        let (mut nanoseconds, mut multiples) = (Vec::new(), Vec::new());
        for _ in 0..blocks {
            if case.opens_flows() {
                self.site.forget_embryos();
                self.forget_entries()?;
            }
            let first = &packets[..1];
            let nothing = block(classifier(&self.own, "nothing")?, first, device, None)?;
            let reference = block(classifier(&self.own, reference)?, first, device, None)?;
            let wanted = Some(case.verdict());
            let (nothing_there, took) = match case.hook {
                Hook::UplinkXdp => (
                    block(xdp(&self.own, "nothing_xdp")?, first, device, None)?,
                    block(
                        xdp(&self.site.ebpf, case.program())?,
                        &packets,
                        device,
                        wanted,
                    )?,
                ),
                Hook::Uplink | Hook::Container => (
                    nothing,
                    block(
                        classifier(&self.site.ebpf, case.program())?,
                        &packets,
                        device,
                        wanted,
                    )?,
                ),
            };
            let took = took - nothing_there;
            nanoseconds.push(took);
            multiples.push(took / (reference - nothing));
        }
        Ok(Cost {
            nanoseconds: stats::median(&nanoseconds),
            multiple: stats::median(&multiples),
        })
    }
}

/// Runs a program [`BLOCK`] times, on these packets in turns: the median of the nanoseconds.
fn block(
    program: &dyn RunOn,
    packets: &[Vec<u8>],
    device: u32,
    verdict: Option<u32>,
) -> Result<f64> {
    let mut times = Vec::new();
    for frame in packets.iter().cycle().take(BLOCK as usize) {
        let Ran {
            verdict: found,
            took,
            ..
        } = program.run_on(frame, device)?;
        ensure!(
            verdict.is_none_or(|wanted| wanted == found),
            "the verdict was {found}, and should be {verdict:?}"
        );
        times.push(took.as_secs_f64() * 1e9);
    }
    Ok(stats::median(&times))
}

fn classifier<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a SchedClassifier> {
    let program = ebpf.program(name);
    let program = program.with_context(|| format!("program {name}"))?;
    Ok(program.try_into()?)
}

fn xdp<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    let program = ebpf.program(name);
    let program = program.with_context(|| format!("program {name}"))?;
    Ok(program.try_into()?)
}
