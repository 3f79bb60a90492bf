//! What the kernel knows of this process (proc(5)).

use std::{fs, io, time::Duration};

use nix::unistd::{SysconfVar, sysconf};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    pub resident_bytes: u64,
    /// Of user and system time together.
    pub cpu: Duration,
    /// Since the epoch.
    pub started: Duration,
    pub open_fds: u64,
}

impl Process {
    pub fn this() -> io::Result<Self> {
        let units = Units {
            ticks: number(SysconfVar::CLK_TCK)?,
            page: number(SysconfVar::PAGE_SIZE)?,
        };
        let read = |path| fs::read_to_string(path);
        let parsed = parse(&read("/proc/self/stat")?, &read("/proc/stat")?, units);
        let mut process =
            parsed.ok_or_else(|| io::Error::other("/proc/self/stat has another form"))?;
        process.open_fds = fs::read_dir("/proc/self/fd")?.count() as u64;
        Ok(process)
    }
}

fn number(of: SysconfVar) -> io::Result<u64> {
    let number = sysconf(of)?.and_then(|number| number.try_into().ok());
    number.ok_or_else(|| io::Error::other("sysconf(3) does not say"))
}

#[derive(Clone, Copy)]
struct Units {
    /// A second.
    ticks: u64,
    /// Bytes.
    page: u64,
}

/// `/proc/self/stat` and `/proc/stat`.
fn parse(own: &str, machine: &str, units: Units) -> Option<Process> {
    // The name, in parentheses, may have any byte.
    let (_, fields) = own.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // Counted from 1, and from the name, which is the second.
    let field = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    let time = |ticks: u64| Duration::from_millis(ticks * 1000 / units.ticks);
    let boot = machine
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    Some(Process {
        cpu: time(field(14)? + field(15)?),
        started: Duration::from_secs(boot.trim().parse().ok()?) + time(field(22)?),
        resident_bytes: field(24)? * units.page,
        open_fds: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        let own = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 1000 99999 42 \
                   18446744073709551615 1 1 0\n";
        let machine = "cpu  1 2 3\nbtime 1700000000\nprocesses 9\n";
        let units = Units {
            ticks: 100,
            page: 4096,
        };
        let expected = Process {
            resident_bytes: 42 * 4096,
            cpu: Duration::from_secs(2),
            started: Duration::from_secs(1_700_000_010),
            open_fds: 0,
        };
        assert_eq!(parse(own, machine, units), Some(expected));
        assert_eq!(parse("7 (a) S 1", machine, units), None);
        assert_eq!(parse(own, "", units), None);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let this = Process::this().unwrap();
        assert!(this.resident_bytes > 100_000, "{this:?}");
        assert!(this.open_fds >= 3, "{this:?}");
        assert!(
            this.started > Duration::from_secs(1_600_000_000),
            "{this:?}"
        );
    }
}
