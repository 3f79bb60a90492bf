//! Programs that tell of every packet: those of the object, loaded once more with another constant, over the
//! same maps. Nobody pays for them who does not trace.
//!
//! They take the others' place in the links that are there, as those of a new agent do: no packet sees none
//! of them, and a flow does not notice. Whatever becomes of the agent, the next one puts the others back.

use aya::Ebpf;

use super::{BpfError, DataPlane, Options, load, pin::Pins};

/// Loaded, and attached nowhere yet.
pub struct Traced {
    pub(super) ebpf: Ebpf,
    /// Why the kernel does not take the XDP program, once it was asked and does not.
    pub(super) xdp_refused: Option<String>,
}

impl Traced {
    /// Takes a second, most of it the verifier's.
    pub fn load(options: &Options) -> Result<Self, BpfError> {
        let quiet = Options {
            log_level: None,
            ..options.clone()
        };
        Ok(Self {
            ebpf: load::load(&quiet, &Pins::of(&options.instance)?, &[], true)?,
            xdp_refused: None,
        })
    }
}

impl DataPlane {
    /// Puts these programs in the place of those that run, everywhere; None: the ordinary ones. Goes on past
    /// errors, and returns the first: where there is one, both kinds may be running.
    pub fn set_traced(&mut self, traced: Option<Traced>) -> Result<(), BpfError> {
        // What is attached until it has been swapped lives by its link.
        self.traced = traced;
        self.swap_all()
    }

    pub fn is_traced(&self) -> bool {
        self.traced.is_some()
    }

    /// The programs that run, for whoever attaches more of them.
    pub(super) fn running(&mut self) -> &mut Ebpf {
        match &mut self.traced {
            Some(traced) => &mut traced.ebpf,
            None => &mut self.ebpf,
        }
    }

    pub(super) fn now_running(&self) -> &Ebpf {
        self.traced
            .as_ref()
            .map_or(&self.ebpf, |traced| &traced.ebpf)
    }
}
