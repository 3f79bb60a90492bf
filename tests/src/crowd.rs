//! Many empty namespaces at once: made in half a second for a thousand, where one by one takes many
//! times that.

use std::{
    fmt::Write as _,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{reaper, require_root, serial};

/// Nobody runs a program in them: dropping it does not look for any.
pub struct Crowd {
    prefix: String,
    count: u32,
}

impl Crowd {
    pub fn new(role: &str, count: u32) -> Result<Self> {
        require_root();
        let prefix = format!("nft-{}-{}-{role}-", std::process::id(), serial());
        reaper::at_end(&format!(
            "ls /run/netns | sed -n 's/^{prefix}/netns del &/p' | ip -force -batch -"
        ));
        let crowd = Self { prefix, count };
        batch(&[], &crowd.lines("netns add"))?;
        Ok(crowd)
    }

    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.count).map(|number| format!("{}{number}", self.prefix))
    }

    pub fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.names()
            .map(|name| PathBuf::from("/run/netns").join(name))
    }

    fn lines(&self, command: &str) -> String {
        self.names().fold(String::new(), |mut lines, name| {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{command} {name}");
            lines
        })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Err(error) = batch(&["-force"], &self.lines("netns del")) {
            eprintln!("cannot delete namespaces {}*: {error:#}", self.prefix);
        }
    }
}

/// Has one `ip`, with these options, do what the lines say: commands without their `ip`.
pub fn batch(options: &[&str], lines: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start ip")?;
    let mut stdin = ip.stdin.take().context("stdin is a pipe")?;
    // Where ip ends early, its status tells.
    let written = stdin.write_all(lines.as_bytes());
    drop(stdin);
    let status = ip.wait().context("ip -batch")?;
    ensure!(status.success(), "ip -batch ended with {status}");
    written.context("writing to ip -batch")
}
