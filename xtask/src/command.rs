//! How xtask starts other programs: shown before they run, an error with the whole command line
//! and its status when they fail, and through sudo where root is needed and we are not root.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

/// The workspace's root: where `Cargo.toml`, `target` and `.ci` lie.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A program on `PATH`, or in one of the system directories that a user's `PATH` often lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The command line as one would type it.
pub fn line(command: &Command) -> String {
    let mut line = String::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value
            && key != OsStr::new("PATH")
        {
            let _ = write!(line, "{}={} ", key.display(), value.display());
        }
    }
    let _ = write!(line, "{}", command.get_program().display());
    for argument in command.get_args() {
        let _ = write!(line, " {}", argument.display());
    }
    line
}

/// Shows the command, runs it, and fails unless it ends with status 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("+ {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// What a command prints on stdout; fails with what it said on stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!(
            "`{line}` ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The words to put before a command that needs root: none for root, sudo otherwise.
///
/// sudo drops the environment, so `env` carries over the variables named by `keep`.
pub fn root_prefix(what: &str, keep: &[(&str, &OsStr)]) -> Result<Vec<std::ffi::OsString>> {
    if is_root() {
        return Ok(Vec::new());
    }
    let Some(sudo) = find("sudo") else {
        bail!("{what} needs root, and there is no sudo here: run it as root");
    };
    println!("not root: using sudo for {what}");
    let mut prefix = vec![sudo.into_os_string()];
    if !keep.is_empty() {
        prefix.push("env".into());
        for (key, value) in keep {
            let mut pair = std::ffi::OsString::from(key);
            pair.push("=");
            pair.push(value);
            prefix.push(pair);
        }
    }
    Ok(prefix)
}

/// A command with `prefix` (see [`root_prefix`]) before it.
pub fn prefixed(prefix: &[std::ffi::OsString], program: impl AsRef<OsStr>) -> Command {
    match prefix {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// Adds what one can do by hand to an error, below it.
pub fn or_by_hand<T>(result: Result<T>, hint: &str) -> Result<T> {
    result.map_err(|error| anyhow!("{error:#}\n{hint}"))
}
