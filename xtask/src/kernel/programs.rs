//! The programs that run in the guest, each with the shared libraries it takes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::initramfs::Archive;
use crate::{
    command::{find, output},
    packages::{FOR_GUESTS, FOR_TESTS},
    toolchain::Toolchain,
};

/// Where our own programs lie in the guest.
pub const OWN: &str = "/netfw";

/// Whom programs give up root for: busybox has no users of its own.
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\n\
                     nobody:x:65534:65534:nobody:/:/bin/false\n\
                     tcpdump:x:100:100::/:/bin/false\n";
const GROUPS: &str = "root:x:0:\nnogroup:x:65534:\ntcpdump:x:100:\n";

/// By the names that `ip rule` and nft know them by.
const PROTOCOLS: &str = "icmp 1\ntcp 6\nudp 17\nipv6-icmp 58\nsctp 132\n";

/// Compiles the test programs of those names; name and file of each.
pub fn build_tests(toolchain: &Toolchain, names: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut build = toolchain.cargo();
    build.args(["test", "--release", "--package", "netfw-tests", "--no-run"]);
    for name in names {
        build.args(["--test", name]);
    }
    build.arg("--message-format=json-render-diagnostics");
    println!("+ {}", crate::command::line(&build));
    let messages = run_with_stdout(&mut build)?;
    names
        .iter()
        .map(|name| {
            let file = messages
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter(|message| message["target"]["name"] == **name)
                .find_map(|message| message["executable"].as_str().map(PathBuf::from))
                .with_context(|| format!("cargo names no program of the tests {name}"))?;
            Ok(((*name).to_owned(), file))
        })
        .collect()
}

/// What it prints on stdout, while stderr (cargo's progress and errors) is seen at once.
fn run_with_stdout(command: &mut Command) -> Result<String> {
    let line = crate::command::line(command);
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        anyhow::bail!("`{line}` ended with {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Busybox for everything, and the real ones where the tests need them.
pub fn add_system(archive: &mut Archive) -> Result<()> {
    for directory in ["/proc", "/sys", "/dev", "/tmp", "/run", "/root"] {
        archive.directory(directory);
    }
    archive.file("/etc/passwd", USERS.as_bytes(), 0o644);
    archive.file("/etc/group", GROUPS.as_bytes(), 0o644);
    archive.file("/etc/nsswitch.conf", b"hosts: files dns\n", 0o644);
    archive.file("/etc/protocols", PROTOCOLS.as_bytes(), 0o644);
    // `netfw exec` puts a container's own over them.
    for file in ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"] {
        archive.file(file, b"", 0o644);
    }
    let busybox = Path::new("/bin/busybox");
    for (program, _) in FOR_GUESTS.iter().copied().chain(FOR_TESTS.iter().copied()) {
        let file = find(program).with_context(|| format!("there is no {program} here"))?;
        let name = Path::new(program)
            .file_name()
            .context("a program has a name")?;
        let place = match Path::new(program).is_absolute() {
            true => PathBuf::from(program),
            false => Path::new("/bin").join(name),
        };
        archive.copy(&file, place)?;
        add_libraries(archive, &file)?;
    }
    archive.copy(
        &find("busybox").context("there is no busybox here")?,
        busybox,
    )?;
    add_python(archive)?;
    add_xtables(archive)?;
    // Where the kernel looks for it (kernel.modprobe).
    archive.link("/sbin/modprobe", busybox);
    for applet in output(Command::new("busybox").arg("--list"))?.lines() {
        archive.link(Path::new("/bin").join(applet), busybox);
    }
    Ok(())
}

/// Matches and targets, which iptables opens by their names.
fn add_xtables(archive: &mut Archive) -> Result<()> {
    const DIRECTORY: &str = "/usr/lib/x86_64-linux-gnu/xtables";
    let failed = || format!("cannot read {DIRECTORY}");
    for entry in fs::read_dir(DIRECTORY).with_context(failed)? {
        let file = entry.with_context(failed)?.path();
        archive.copy(&file, &file)?;
        add_libraries(archive, &file)?;
    }
    Ok(())
}

/// What the tests' scripts import, and all that it takes: as a Python that has imported it names the files.
fn add_python(archive: &mut Archive) -> Result<()> {
    const IMPORTED: &str = "http.client, json, socket, prometheus_client.openmetrics.parser";
    let script = format!(
        "import sys, {IMPORTED}\n\
         for module in list(sys.modules.values()):\n  \
           print(getattr(module, '__file__', None) or '')\n"
    );
    let files = output(Command::new("/usr/bin/python3").args(["-c", &script]))?;
    for file in files.lines().map(Path::new).filter(|f| f.is_absolute()) {
        archive.copy(file, file)?;
        if file.extension().is_some_and(|extension| extension == "so") {
            add_libraries(archive, file)?;
        }
    }
    Ok(())
}

/// netfw and the test programs, without what only debuggers read: it is the most of them.
pub fn add_own(
    archive: &mut Archive,
    netfw: &Path,
    tests: &[(String, PathBuf)],
    scratch: &Path,
) -> Result<()> {
    let tests = tests.iter().map(|(name, file)| (name.as_str(), &**file));
    for (name, file) in tests.chain([("netfw", netfw)]) {
        let stripped = scratch.join(name);
        // From binutils, as the linker.
        output(
            Command::new("strip")
                .args(["--strip-debug", "-o"])
                .args([&*stripped, file]),
        )?;
        archive.copy(&stripped, Path::new(OWN).join(name))?;
        fs::remove_file(&stripped)?;
        add_libraries(archive, file)?;
    }
    Ok(())
}

fn add_libraries(archive: &mut Archive, program: &Path) -> Result<()> {
    for library in libraries(&output(Command::new("ldd").arg(program))?) {
        archive.copy(Path::new(library), library)?;
    }
    Ok(())
}

/// The files in what ldd(1) prints: `libc.so.6 => /lib/libc.so.6 (0x…)`, or the file alone.
fn libraries(listed: &str) -> Vec<&str> {
    listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .collect()
}

#[cfg(test)]
mod unit {
    use super::libraries;

    #[test]
    fn libraries_are_the_files_that_ldd_names() {
        let listed = "\tlinux-vdso.so.1 (0x00007fd72f2dc000)\n\
                      \tlibc.so.6 => /lib/libc.so.6 (0x00007fd72e61e000)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007fd72f2de000)\n";
        assert_eq!(
            libraries(listed),
            ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(libraries("\tstatically linked\n"), [""; 0]);
    }
}
