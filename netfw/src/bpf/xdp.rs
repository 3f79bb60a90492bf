//! Attaching the XDP program to uplinks.
//!
//! Its link is pinned as `links/<ifindex>-xdp` and outlives the agent, as those of TCX do; a new agent
//! puts its program into the link in place. A link has the mode it was made with, so another mode is
//! another link: for a moment, TC does all.
//!
//! The program is loaded when it is first attached: where XDP is not used, its verification, the
//! longest of all, costs nothing. A kernel that refuses it is not asked again.

use std::{
    fmt, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::Xdp};
use nix::libc;

use super::{
    BpfError, DataPlane,
    attach::{detach_link, open_link},
    error, pin, sys,
};
use crate::net::xdp::{self, Mode};

pub const PROGRAM: &str = "netfw_uplink_xdp";

/// In the names of pins.
pub const WORD: &str = "xdp";

// linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// How the XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// On skbs: slower than TC, but with any driver.
    Generic,
}

impl XdpMode {
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::Native => XDP_FLAGS_DRV_MODE,
            Self::Generic => XDP_FLAGS_SKB_MODE,
        }
    }

    /// What the kernel says it is.
    fn is(self, mode: Mode) -> bool {
        matches!(
            (self, mode),
            (Self::Native, Mode::Native) | (Self::Generic, Mode::Generic)
        )
    }

    pub const fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

pub fn pin_of(links: &Path, ifindex: u32) -> PathBuf {
    links.join(format!("{ifindex}-{WORD}"))
}

/// The program, loaded. `refused` is what the kernel said when it was asked before.
fn loaded<'a>(ebpf: &'a mut Ebpf, refused: &mut Option<String>) -> Result<&'a mut Xdp, BpfError> {
    let lacks = BpfError::Lacks {
        kind: "program",
        name: PROGRAM,
    };
    let Some(program) = ebpf.program_mut(PROGRAM) else {
        return Err(lacks);
    };
    let program: &mut Xdp = program.try_into().map_err(|_| lacks)?;
    if program.fd().is_ok() {
        return Ok(program);
    }
    if let Some(reason) = refused {
        return Err(BpfError::Refused {
            program: PROGRAM,
            reason: reason.clone(),
        });
    }
    program.load().map_err(|error| {
        let error = error::refused(PROGRAM, &error);
        *refused = Some(error.to_string());
        error
    })?;
    Ok(program)
}

/// Which of our programs run on the interface, by the kernel's word: the link's and no other.
fn runs(pin: &Path, ifindex: u32) -> Result<Option<Mode>, BpfError> {
    let Some((_, info)) = open_link(pin)? else {
        return Ok(None);
    };
    let attached = xdp::attached(ifindex).map_err(|source| BpfError::Look { source })?;
    Ok(attached
        .filter(|found| info.ifindex == ifindex && found.program == info.program)
        .map(|found| found.mode))
}

impl DataPlane {
    /// The XDP program on an uplink, in that mode and no other; in place of ours that is there.
    pub fn attach_xdp(&mut self, ifindex: u32, name: &str, mode: XdpMode) -> Result<(), BpfError> {
        let pin = pin_of(&self.pins.links(), ifindex);
        let (ebpf, refused) = match &mut self.traced {
            Some(traced) => (&mut traced.ebpf, &mut traced.xdp_refused),
            None => (&mut self.ebpf, &mut self.xdp_refused),
        };
        let program = loaded(ebpf, refused)?;
        let failed = |source: io::Error| BpfError::AttachXdp {
            interface: name.into(),
            mode,
            why: why(&source, mode),
            source,
        };
        let program = program.fd().map_err(|e| failed(io::Error::other(e)))?;
        if let Some((link, _)) = open_link(&pin)? {
            if runs(&pin, ifindex)?.is_some_and(|found| mode.is(found)) {
                match sys::update_link(link.as_fd(), program.as_fd()) {
                    Ok(()) => return Ok(()),
                    // The interface went away just now.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            // Another mode's, or of an interface that had this index before.
            detach_link(&link, PROGRAM, ifindex)?;
            pin::remove(&pin)?;
        }
        let link = sys::create_xdp_link(program.as_fd(), ifindex, mode.flags()).map_err(failed)?;
        // Until it is pinned the link lives with us only; killed here, nothing stays behind.
        sys::pin(link.as_fd(), &pin).map_err(|source| BpfError::PinLink { path: pin, source })
    }

    /// Takes the XDP program off an interface, which may be gone already.
    pub fn detach_xdp(&mut self, ifindex: u32) -> Result<(), BpfError> {
        detach(&self.pins.links(), ifindex)
    }

    /// How our XDP program runs on the interface, by the kernel's word; None where it does not.
    pub fn xdp_mode(&self, ifindex: u32) -> Result<Option<XdpMode>, BpfError> {
        let found = runs(&pin_of(&self.pins.links(), ifindex), ifindex)?;
        Ok(found.and_then(|mode| match mode {
            Mode::Native => Some(XdpMode::Native),
            Mode::Generic => Some(XdpMode::Generic),
            Mode::Other => None,
        }))
    }

    /// Is another XDP program on the interface than ours?
    pub fn is_xdp_taken(&self, ifindex: u32) -> Result<bool, BpfError> {
        let ours = runs(&pin_of(&self.pins.links(), ifindex), ifindex)?;
        let found = xdp::attached(ifindex).map_err(|source| BpfError::Look { source })?;
        Ok(ours.is_none() && found.is_some())
    }

    /// The interfaces whose XDP link is pinned, whether or not it still is on them.
    pub fn xdp_pinned(&self) -> Vec<u32> {
        pin::entries(&self.pins.links())
            .iter()
            .filter_map(|path| {
                let (ifindex, word) = path.file_name()?.to_str()?.split_once('-')?;
                (word == WORD).then(|| ifindex.parse().ok()).flatten()
            })
            .collect()
    }
}

pub fn detach(links: &Path, ifindex: u32) -> Result<(), BpfError> {
    let pin = pin_of(links, ifindex);
    let detached = match open_link(&pin) {
        Ok(Some((link, _))) => detach_link(&link, PROGRAM, ifindex),
        Ok(None) => return Ok(()),
        Err(error) => Err(error),
    };
    // Past an error too: without its pin the link goes when nobody holds it any more.
    pin::remove(&pin).and(detached)
}

/// What the kernel means (`dev_xdp_attach`; drivers' `ndo_bpf`), as far as it can be told: it has the
/// words for it, but does not give them to who makes links.
fn why(error: &io::Error, mode: XdpMode) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another XDP program is on it",
        Some(libc::EEXIST) => {
            "an XDP program of another mode is on it, or one on an interface that it is a port of"
        }
        Some(libc::EOPNOTSUPP) if mode == XdpMode::Native => {
            "its driver cannot, or not with the offloads that are on"
        }
        Some(libc::EINVAL | libc::ERANGE) => {
            "its driver does not want to, which mostly means that the MTU is too large for XDP"
        }
        Some(libc::ENOMEM | libc::ENOSPC) => "its driver lacks queues or memory for it",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_what_the_kernel_says() {
        assert!(XdpMode::Native.is(Mode::Native));
        assert!(!XdpMode::Native.is(Mode::Generic));
        assert!(!XdpMode::Native.is(Mode::Other));
        assert!(XdpMode::Generic.is(Mode::Generic));
    }
}
