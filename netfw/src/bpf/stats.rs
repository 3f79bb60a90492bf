//! What the programs cost and what they say: run time, size, log.

use std::{os::fd::OwnedFd, time::Duration};

use aya::sys::Stats;
use aya_log::EbpfLogger;

use super::{BpfError, DataPlane, attach::Hook, xdp};

/// A program's bill. Runs are counted while statistics are enabled, see [`enable_stats`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStats {
    pub name: &'static str,
    pub run_count: u64,
    pub run_time: Duration,
    /// None before kernel 5.16.
    pub verified_instructions: Option<u32>,
}

/// Has the kernel measure the runs of all BPF programs, for as long as the file is open. Costs some
/// 20 ns a run.
pub fn enable_stats() -> Result<OwnedFd, BpfError> {
    aya::sys::enable_stats(Stats::RunTime).map_err(|error| BpfError::Stats {
        source: error.io_error,
    })
}

impl DataPlane {
    /// Of the programs that this value loaded. One that cannot be read is left out.
    pub fn program_stats(&self) -> Vec<ProgramStats> {
        Hook::ALL
            .iter()
            .map(|hook| hook.program())
            .chain([xdp::PROGRAM])
            .filter_map(|name| {
                let info = self.now_running().program(name)?.info().ok()?;
                Some(ProgramStats {
                    name,
                    run_count: info.run_count(),
                    run_time: info.run_time(),
                    verified_instructions: info.verified_instruction_count(),
                })
            })
            .collect()
    }

    /// What the programs log, to be handed to the `log` crate with `flush` whenever it is readable;
    /// None where they were built without logging.
    pub fn logger(&mut self) -> Result<Option<EbpfLogger<&'static dyn log::Log>>, BpfError> {
        if self.ebpf.map("AYA_LOGS").is_none() {
            return Ok(None);
        }
        EbpfLogger::init(&mut self.ebpf)
            .map(Some)
            .map_err(|source| BpfError::Log { source })
    }
}
