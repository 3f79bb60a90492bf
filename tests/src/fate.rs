//! A process that is killed at a chosen step: before the n-th of its system calls that change something
//! outside of it. So each instant at which the kernel, or a file, could be told apart from the one before has
//! a number, and a test can go through them.

use std::{
    fs,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

/// The end that waits for a process. Its threads stop at each system call, so it is slow meanwhile.
pub struct Fate {
    pid: Pid,
    tracer: JoinHandle<End>,
}

/// How it ended.
#[derive(Debug)]
pub struct End {
    /// The steps that it took.
    pub steps: usize,
    /// What it was about to do when its step came; none if that was not so far.
    pub struck: Option<String>,
}

impl Fate {
    /// Kills `pid` when it is about to take its step number `step`, from 0, counted from now.
    pub fn of(pid: Pid, step: usize) -> Self {
        let (seized, wait) = mpsc::channel();
        let tracer = thread::spawn(move || {
            seize(pid);
            seized.send(()).expect("somebody waits for this");
            follow(pid, step)
        });
        wait.recv().expect("the tracer has begun");
        Self { pid, tracer }
    }

    /// Has its step come?
    pub fn is_over(&self) -> bool {
        self.tracer.is_finished()
    }

    /// Kills it if it still lives. Its parent must not have waited for it yet, and has to now.
    pub fn fulfil(self) -> End {
        kill(self.pid, Signal::SIGKILL).expect("its parent has not waited for it");
        self.tracer.join().expect("the tracer ends")
    }
}

/// All its threads, those included that appear meanwhile.
fn seize(pid: Pid) {
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_TRACECLONE;
    let mut known = Vec::new();
    loop {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
        let new: Vec<Pid> = threads
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .map(Pid::from_raw)
            .filter(|tid| !known.contains(tid))
            .collect();
        if new.is_empty() {
            return;
        }
        for tid in new {
            // EPERM: one that we seized has started it, so it is ours already. ESRCH: it has ended.
            match ptrace::seize(tid, options) {
                // It may end before that.
                Ok(()) => match ptrace::interrupt(tid) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => panic!("thread {tid} does not stop: {errno}"),
                },
                Err(Errno::EPERM | Errno::ESRCH) => {}
                Err(errno) => panic!("thread {tid} cannot be traced: {errno}"),
            }
            known.push(tid);
        }
    }
}

fn follow(pid: Pid, step: usize) -> End {
    let mut steps = 0;
    let late_end = |steps| End {
        steps,
        struck: None,
    };
    loop {
        // This thread's tracees only: other threads have children of their own.
        let mine = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        let next = match waitid(Id::All, mine | peek) {
            // The process itself is its parent's to wait for, which is another thread of ours.
            Ok(WaitStatus::Exited(who, _) | WaitStatus::Signaled(who, ..)) if who == pid => {
                return late_end(steps);
            }
            Ok(status) => status.pid().expect("it is about one"),
            Err(Errno::ECHILD) => return late_end(steps),
            Err(errno) => panic!("waiting for the threads of {pid}: {errno}"),
        };
        // It may have been killed since.
        let what = match next == pid {
            true => WaitPidFlag::WSTOPPED,
            false => WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED,
        };
        let (tid, signal) = match waitid(Id::Pid(next), mine | what | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::PtraceSyscall(tid)) => {
                if let Some(what) = change(tid) {
                    if steps == step {
                        kill(pid, Signal::SIGKILL).expect("it lives");
                        return End {
                            steps,
                            struck: Some(what),
                        };
                    }
                    steps += 1;
                }
                (tid, None)
            }
            Ok(WaitStatus::PtraceEvent(tid, ..)) => (tid, None),
            Ok(WaitStatus::Stopped(tid, signal)) => (tid, Some(signal)),
            // A thread of it has ended.
            Ok(_) | Err(Errno::ECHILD) => continue,
            Err(errno) => panic!("waiting for the threads of {pid}: {errno}"),
        };
        match ptrace::syscall(tid, signal) {
            // Killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => panic!("thread {tid} does not go on: {errno}"),
        }
    }
}

/// What the thread is about to change; none where it has just been back from the kernel, or only asks.
fn change(tid: Pid) -> Option<String> {
    let info = ptrace::syscall_info(tid).ok()?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that it is this one.
    let entry = unsafe { info.u.entry };
    let [first, second, third, ..] = entry.args;
    let name = match entry.nr as libc::c_long {
        libc::SYS_bpf => return bpf(first).map(str::to_owned),
        libc::SYS_sendto => return netlink(tid, second),
        libc::SYS_write => {
            let link = fs::read_link(format!("/proc/{tid}/fd/{first}")).ok()?;
            let told = ["/proc", "/run", "/etc"]
                .iter()
                .any(|home| link.starts_with(home));
            return told.then(|| format!("write to {}", link.display()));
        }
        libc::SYS_openat if third & libc::O_CREAT as u64 != 0 => "open a new file",
        libc::SYS_pwrite64 => "write to the store",
        libc::SYS_fdatasync => "fdatasync",
        libc::SYS_unshare => "unshare",
        libc::SYS_mount => "mount",
        libc::SYS_umount2 => "umount",
        libc::SYS_mkdir => "mkdir",
        libc::SYS_rmdir => "rmdir",
        libc::SYS_unlink | libc::SYS_unlinkat => "unlink",
        libc::SYS_rename => "rename",
        libc::SYS_symlink => "symlink",
        _ => return None,
    };
    Some(name.into())
}

/// Commands of bpf(2) (linux/bpf.h, `enum bpf_cmd`) that change something.
fn bpf(command: u64) -> Option<&'static str> {
    Some(match command {
        0 => "BPF_MAP_CREATE",
        2 => "BPF_MAP_UPDATE_ELEM",
        3 => "BPF_MAP_DELETE_ELEM",
        5 => "BPF_PROG_LOAD",
        6 => "BPF_OBJ_PIN",
        8 => "BPF_PROG_ATTACH",
        9 => "BPF_PROG_DETACH",
        21 => "BPF_MAP_LOOKUP_AND_DELETE_ELEM",
        25 => "BPF_MAP_LOOKUP_AND_DELETE_BATCH",
        26 => "BPF_MAP_UPDATE_BATCH",
        27 => "BPF_MAP_DELETE_BATCH",
        28 => "BPF_LINK_CREATE",
        29 => "BPF_LINK_UPDATE",
        34 => "BPF_LINK_DETACH",
        _ => return None,
    })
}

/// A message of rtnetlink at `address`, unless it only asks: types come in fours, NEW, DEL, GET and SET
/// (linux/rtnetlink.h).
fn netlink(tid: Pid, address: u64) -> Option<String> {
    let word = ptrace::read(tid, address as ptrace::AddressType).ok()?;
    let kind = (word as u64 >> 32) as u16;
    let changes = (16..128).contains(&kind) && kind % 4 != 2;
    changes.then(|| format!("rtnetlink message {kind}"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
        time::Duration,
    };

    use super::*;
    use crate::wait::wait_until;

    #[test]
    fn nothing_is_done_from_its_step_on() {
        for (step, want) in [(0, [false, false]), (1, [true, false]), (2, [true, true])] {
            let directory = tempfile::tempdir().unwrap();
            let there = |name: &str| directory.path().join(name).exists();
            let mut shell = Command::new("bash")
                .args(["-c", "read; > a; > b; read"])
                .current_dir(directory.path())
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let fate = Fate::of(Pid::from_raw(shell.id() as i32), step);
            shell.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            if want[1] {
                wait_until("the last file", Duration::from_secs(10), || there("b"));
            } else {
                wait_until("its end", Duration::from_secs(10), || fate.is_over());
            }
            let end = fate.fulfil();
            assert_eq!(end.struck.is_some(), !want[1], "{end:?}");
            assert_eq!(end.steps, step);
            shell.wait().unwrap();
            assert_eq!([there("a"), there("b")], want, "step {step}");
        }
    }
}
