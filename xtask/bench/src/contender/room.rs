//! Room for more flows than contenders have by themselves.
//!
//! conntrack's limit and the size of its hash are the machine's, not a namespace's: they are set back
//! when the value is dropped, and by the tests' reaper if it never is.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use netfw_common::flow::holdings;
use netfw_tests::reaper;
use tempfile::NamedTempFile;

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// Buckets of conntrack's hash for so many flows: one each, as the kernel has it by default.
pub fn buckets(flows: u32) -> u32 {
    flows.next_power_of_two()
}

pub struct Room {
    config: NamedTempFile,
    _limits: [Limit; 2],
}

impl Room {
    /// For so many UDP flows on one contender at a time.
    pub fn new(flows: u32) -> Result<Self> {
        let mut config = NamedTempFile::new().context("cannot make a temporary file")?;
        config
            .write_all(configuration(flows).as_bytes())
            .context("writing netfw's configuration")?;
        let raise = |file: &str| Limit::raise(Path::new(file), buckets(flows));
        Ok(Self {
            config,
            _limits: [raise(BUCKETS)?, raise(MAX)?],
        })
    }

    /// netfw's configuration file.
    pub fn config(&self) -> &Path {
        self.config.path()
    }
}

/// Room for so many flows without connections, which get three quarters of a table by default, behind one
/// publish, which leaves a part to others.
fn configuration(flows: u32) -> String {
    let room = flows + flows.div_ceil(holdings::SHARE as u32);
    format!("max_flows = {room}\nmax_udp_flows = {room}\n")
}

/// A number in a file of the kernel's that is larger than it was.
struct Limit {
    file: PathBuf,
    before: Option<u32>,
}

impl Limit {
    /// Leaves it alone where it is high enough.
    fn raise(file: &Path, wanted: u32) -> Result<Self> {
        let shown = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
        let before: u32 = text
            .trim()
            .parse()
            .with_context(|| format!("{shown} holds {text:?}"))?;
        if before >= wanted {
            return Ok(Self {
                file: file.to_owned(),
                before: None,
            });
        }
        reaper::at_end(&format!(
            "[ \"$(cat {shown})\" = {wanted} ] && echo {before} > {shown}"
        ));
        fs::write(file, wanted.to_string())
            .with_context(|| format!("cannot raise {shown} from {before} to {wanted}"))?;
        Ok(Self {
            file: file.to_owned(),
            before: Some(before),
        })
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let Some(before) = self.before else {
            return;
        };
        if let Err(error) = fs::write(&self.file, before.to_string()) {
            eprintln!("{} stays raised: {error}", self.file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_as_it_was_when_its_value_is_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("limit");
        let value = || fs::read_to_string(&file).expect("readable");
        fs::write(&file, "100\n").expect("written");
        drop(Limit::raise(&file, 50).expect("high enough"));
        assert_eq!(value(), "100\n");
        let limit = Limit::raise(&file, 200).expect("raised");
        assert_eq!(value(), "200");
        drop(limit);
        assert_eq!(value(), "100");
        fs::write(&file, "many").expect("written");
        assert!(Limit::raise(&file, 200).is_err());
    }

    #[test]
    fn there_is_room_for_all() {
        assert_eq!(
            configuration(1_000_000),
            "max_flows = 1031250\nmax_udp_flows = 1031250\n"
        );
        assert_eq!(buckets(1_000_000), 1 << 20);
    }
}
