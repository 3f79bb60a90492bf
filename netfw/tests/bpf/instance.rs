//! An instance's pins.

use netfw::bpf::{DataPlane, Options, STEPS};
use netfw_common::record::Config;

use crate::lab::unique;

/// An instance's pins, which go with the value.
pub struct Instance(pub String);

impl Instance {
    pub fn new() -> Self {
        Self(unique())
    }

    pub fn options(&self) -> Options {
        Options {
            instance: self.0.clone(),
            max_flows: 1 << 12,
            max_embryos: 1 << 10,
            log_level: None,
            config: Config::default(),
            steps: STEPS,
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = DataPlane::remove(&self.0);
    }
}
