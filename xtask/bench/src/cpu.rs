//! Which CPU does what. The kernel forwards a veth's packet on the CPU that sent it, so pinning
//! the sender pins the forwarding.

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The CPUs that we may use, in order.
fn usable() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    Ok((0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}

/// The CPU for packets and for clients: the last, as the first ones serve most interrupts.
pub fn sender() -> Result<usize> {
    usable()?.last().copied().context("no CPU to run on")
}

/// The CPU for servers: another one, where there is another.
pub fn server() -> Result<usize> {
    usable()?.first().copied().context("no CPU to run on")
}

/// Keeps the calling thread on `cpu`.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("staying on CPU {cpu}"))
}

/// Has the calling thread run as soon as it wants to, whatever else does. Niceness would not do: it
/// counts within a session only (`sched_autogroup_enabled`).
pub fn hurry() -> Result<()> {
    let least = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters outlive the call; thread 0 is the calling one.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &least) };
    Errno::result(result).context("sched_setscheduler")?;
    Ok(())
}
