//! Attaching the programs to interfaces, and finding out what is attached.
//!
//! XDP has a file of its own, but its pins are found and removed here with the others.
//!
//! A TCX link (kernel 6.6) is pinned as `links/<ifindex>-<hook>`, and runs until it is detached. Where
//! the kernel has no TCX, a filter of the `clsact` queueing discipline stands in its place; it lives
//! with the interface, and the program pinned as `links/<ifindex>-<hook>-clsact` remembers it. Its
//! priority and handle are always the same, so that a restarted agent replaces its own filter in
//! place and never somebody else's.
//!
//! An interface's index alone does not say that a link is on that interface: indexes are reused,
//! and each network namespace counts for itself. So a link is swapped only where the kernel lists its
//! program on the interface; otherwise it is a leftover and goes.

use std::{
    ffi::CStr,
    fmt, fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcError, TcHandle,
        links::{FdLink, Link as _},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact},
    },
};
use nix::{libc, net::if_::if_nametoindex};

use super::{BpfError, error::root_errno, load, pin, sys, xdp};
use crate::net::{NetError, clsact};

/// Of our filters under clsact: "nf".
const PRIORITY: u16 = 0x6e66;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// At the end of a pin's name until it takes the place of the one before.
const NEW: &str = "-new";

/// A place in a packet's way where a program of ours sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What comes from the world.
    Uplink,
    /// The same, without Ethernet header.
    Tunnel,
    /// The last look at what leaves to it.
    Guard,
    /// What a container sends.
    Container,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::Uplink, Self::Tunnel, Self::Guard, Self::Container];

    pub const fn program(self) -> &'static str {
        match self {
            Self::Uplink => "netfw_uplink",
            Self::Tunnel => "netfw_tunnel",
            Self::Guard => "netfw_guard",
            Self::Container => "netfw_container",
        }
    }

    /// In the names of pins.
    const fn word(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Tunnel => "tunnel",
            Self::Guard => "guard",
            Self::Container => "container",
        }
    }

    /// The way to attach it, where the kernel has both.
    ///
    /// Uplinks are other programs' too: TCX has an order among them, and a link that nobody flushes. An
    /// endpoint's veth is netfw's alone, and made while somebody waits: each TCX attachment takes an
    /// RCU grace period (10 to 15 ms) under the RTNL lock, in which nobody on the node gets to change an
    /// interface, where a filter takes an expedited one.
    const fn prefers(self) -> Attachment {
        match self {
            Self::Uplink | Self::Tunnel | Self::Guard => Attachment::Tcx,
            Self::Container => Attachment::Clsact,
        }
    }

    pub(super) const fn direction(self) -> TcAttachType {
        match self {
            Self::Uplink | Self::Tunnel | Self::Container => TcAttachType::Ingress,
            Self::Guard => TcAttachType::Egress,
        }
    }
}

/// How a program was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    Tcx,
    Clsact,
}

impl Attachment {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn tcx_pin(links: &Path, ifindex: u32, hook: Hook) -> PathBuf {
    links.join(format!("{ifindex}-{}", hook.word()))
}

/// Is there where we added the clsact queueing discipline ourselves.
fn qdisc_pin(links: &Path, ifindex: u32) -> PathBuf {
    links.join(format!("{ifindex}-qdisc-clsact"))
}

/// Is there where we switched GRO on at the other end of the veth pair.
pub(super) fn gro_pin(links: &Path, ifindex: u32) -> PathBuf {
    links.join(format!("{ifindex}-gro"))
}

fn clsact_pin(links: &Path, ifindex: u32, hook: Hook) -> PathBuf {
    links.join(format!("{ifindex}-{}-clsact", hook.word()))
}

/// Attaches the hook's program to the interface, in place of the one that is there from us. `only`
/// leaves no choice of the way.
pub fn attach(
    ebpf: &mut Ebpf,
    links: &Path,
    hook: Hook,
    ifindex: u32,
    name: &str,
    only: Option<Attachment>,
) -> Result<Attachment, BpfError> {
    // aya attaches by name, and the name may be another interface's by now.
    if if_nametoindex(name).ok() != Some(ifindex) {
        return Err(BpfError::NoInterface {
            name: name.into(),
            ifindex,
        });
    }
    let program = load::program(ebpf, hook)?;
    let failed = |source| BpfError::Attach {
        program: hook.program(),
        interface: name.into(),
        source: Box::new(source),
    };
    if only != Some(Attachment::Clsact) {
        let pin = tcx_pin(links, ifindex, hook);
        if swap(program, &pin, hook, ifindex, name)? {
            return Ok(Attachment::Tcx);
        }
        if only.is_some() || hook.prefers() == Attachment::Tcx {
            match attach_tcx(program, &pin, hook, name) {
                Ok(()) => return Ok(Attachment::Tcx),
                Err(TcxError::Pin(error)) => return Err(error),
                // EINVAL: the kernel does not know the attach type.
                Err(TcxError::Attach(error))
                    if only.is_none() && root_errno(&error) == Some(libc::EINVAL) => {}
                Err(TcxError::Attach(error)) => return Err(failed(error)),
            }
        }
    }
    match attach_clsact(program, links, hook, ifindex, name) {
        Ok(()) => Ok(Attachment::Clsact),
        // A kernel without clsact or cls_bpf, perhaps.
        Err(error) if only.is_none() && hook.prefers() == Attachment::Clsact => {
            match attach_tcx(program, &tcx_pin(links, ifindex, hook), hook, name) {
                Ok(()) => Ok(Attachment::Tcx),
                Err(_) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Pins the program, only for the name: bpffs holds no plain files. In the place of what is there, so that
/// there is one at any moment.
pub(super) fn remember(program: &mut SchedClassifier, pin: PathBuf) -> Result<(), BpfError> {
    let mut new = pin.clone().into_os_string();
    new.push(NEW);
    let new = PathBuf::from(new);
    pin::remove(&new)?;
    if let Err(source) = program.pin(&new) {
        return Err(BpfError::Pin { path: new, source });
    }
    fs::rename(&new, &pin).map_err(|source| BpfError::Directory {
        call: "rename",
        path: new,
        source,
    })
}

/// Puts the program into the link pinned at `pin`, if there is one and it is on this interface.
fn swap(
    program: &SchedClassifier,
    pin: &Path,
    hook: Hook,
    ifindex: u32,
    name: &str,
) -> Result<bool, BpfError> {
    let Some((link, info)) = open_link(pin)? else {
        return Ok(false);
    };
    // A kernel that does not tell is no reason to detach what runs.
    if is_on(&info, hook, ifindex, name).map_err(|source| BpfError::Attach {
        program: hook.program(),
        interface: name.into(),
        source: Box::new(source),
    })? {
        let swapped = program
            .fd()
            .map_err(io::Error::other)
            .and_then(|program| sys::update_link(link.as_fd(), program.as_fd()));
        match swapped {
            Ok(()) => return Ok(true),
            // The interface went away just now; whatever has its name next gets a new link.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => {
                return Err(BpfError::Attach {
                    program: hook.program(),
                    interface: name.into(),
                    source: Box::new(error.into()),
                });
            }
        }
    }
    detach_link(&link, hook.program(), ifindex)?;
    pin::remove(pin)?;
    Ok(false)
}

/// Does the kernel run this link's program on the interface?
fn is_on(link: &sys::LinkInfo, hook: Hook, ifindex: u32, name: &str) -> Result<bool, ProgramError> {
    if link.ifindex != ifindex {
        return Ok(false);
    }
    let (_, programs) = SchedClassifier::query_tcx(name, hook.direction())?;
    Ok(programs.iter().any(|found| found.id() == link.program))
}

enum TcxError {
    Attach(ProgramError),
    Pin(BpfError),
}

fn attach_tcx(
    program: &mut SchedClassifier,
    pin: &Path,
    hook: Hook,
    name: &str,
) -> Result<(), TcxError> {
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let link = program
        .attach_with_options(name, hook.direction(), order)
        .and_then(|id| program.take_link(id))
        .map_err(TcxError::Attach)?;
    let link = FdLink::try_from(link)
        .map_err(|error| TcxError::Attach(ProgramError::IOError(io::Error::other(error))))?;
    // Until it is pinned the link lives with us only; killed here, nothing stays behind.
    link.pin(pin).map(drop).map_err(|source| {
        TcxError::Pin(BpfError::Pin {
            path: pin.into(),
            source,
        })
    })
}

/// Each pin is there before what it stands for: killed between the two, nothing stays that nobody knows of.
fn attach_clsact(
    program: &mut SchedClassifier,
    links: &Path,
    hook: Hook,
    ifindex: u32,
    name: &str,
) -> Result<(), BpfError> {
    let qdisc = qdisc_pin(links, ifindex);
    // A container's goes with its interface.
    let adds =
        hook != Hook::Container && !qdisc.exists() && !clsact::is_there(ifindex).unwrap_or(false);
    if adds {
        remember(program, qdisc.clone())?;
    }
    if let Err(source) = qdisc_add_clsact(name) {
        if adds {
            forget(&qdisc);
        }
        if tc_errno(&source) != Some(libc::EEXIST) {
            return Err(BpfError::Clsact {
                program: hook.program(),
                interface: name.into(),
                source,
            });
        }
    }
    let pin = clsact_pin(links, ifindex, hook);
    remember(program, pin.clone())?;
    add_filter(program, hook, name).inspect_err(|_| {
        // One that was there before is ours still.
        if matches!(has_filter(ifindex, hook), Ok(false)) {
            forget(&pin);
        }
    })
}

fn forget(pin: &Path) {
    if let Err(error) = pin::remove(pin) {
        tracing::warn!(error = %crate::chain(&error), "a pin is left of what was not attached");
    }
}

/// In place of the one that is there from us.
pub(super) fn add_filter(
    program: &mut SchedClassifier,
    hook: Hook,
    name: &str,
) -> Result<(), BpfError> {
    let failed = |source| BpfError::Attach {
        program: hook.program(),
        interface: name.into(),
        source: Box::new(source),
    };
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        classid: None,
    });
    let attached = match program.attach_with_options(name, hook.direction(), options) {
        Err(error) if root_errno(&error) == Some(libc::EEXIST) => {
            let ours =
                SchedClassifierLink::attached(name, hook.direction(), PRIORITY, HANDLE, None)
                    .map_err(|error| failed(error.into()))?;
            program.attach_to_link(ours)
        }
        other => other,
    };
    let link = attached
        .and_then(|id| program.take_link(id))
        .map_err(failed)?;
    // aya would take the filter away with the value; it must outlive the agent.
    std::mem::forget(link);
    Ok(())
}

/// Takes our programs off an interface, which may be gone, and removes their pins. Goes on past
/// errors.
pub fn detach(links: &Path, ifindex: u32) -> Vec<BpfError> {
    let mut errors = Vec::new();
    errors.extend(xdp::detach(links, ifindex).err());
    errors.extend(pin::remove(&gro_pin(links, ifindex)).err());
    for hook in Hook::ALL {
        let pin = tcx_pin(links, ifindex, hook);
        match open_link(&pin) {
            Ok(Some((link, _))) => errors.extend(detach_link(&link, hook.program(), ifindex).err()),
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
        errors.extend(pin::remove(&pin).err());

        let pin = clsact_pin(links, ifindex, hook);
        if pin.exists() {
            errors.extend(detach_clsact(hook, ifindex).err());
            errors.extend(pin::remove(&pin).err());
        }
    }
    let pin = qdisc_pin(links, ifindex);
    if pin.exists() {
        if let Err(source) = clsact::remove_unused(ifindex) {
            errors.push(BpfError::RemoveClsact { source });
        }
        errors.extend(pin::remove(&pin).err());
    }
    errors
}

pub(super) fn detach_link(
    link: &OwnedFd,
    program: &'static str,
    ifindex: u32,
) -> Result<(), BpfError> {
    match sys::detach_link(link.as_fd()) {
        // The interface is gone, and the link with it.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        Err(source) => Err(BpfError::Detach {
            program,
            ifindex,
            source,
        }),
        Ok(()) => Ok(()),
    }
}

fn detach_clsact(hook: Hook, ifindex: u32) -> Result<(), BpfError> {
    let Some(name) = name_of(ifindex) else {
        return Ok(());
    };
    let failed = |source| BpfError::Detach {
        program: hook.program(),
        ifindex,
        source,
    };
    let filter = SchedClassifierLink::attached(&name, hook.direction(), PRIORITY, HANDLE, None)
        .map_err(failed)?;
    match filter.detach() {
        // Somebody removed the filter or the whole queueing discipline.
        Err(error) if matches!(root_errno(&error), Some(libc::ENOENT | libc::EINVAL)) => Ok(()),
        other => other.map_err(|error| failed(io::Error::other(error))),
    }
}

/// Has somebody taken a program of ours off the interface?
pub fn lacks_program(links: &Path, ifindex: u32) -> bool {
    let lacks = |hook| {
        let filter = clsact_pin(links, ifindex, hook).exists();
        let link = tcx_pin(links, ifindex, hook);
        // Where that cannot be found out, it is put there once more.
        filter && !has_filter(ifindex, hook).unwrap_or(false)
            || link.exists() && !is_on_interface(&link, ifindex)
    };
    Hook::ALL.into_iter().any(lacks)
}

/// Is the pinned link on the interface? One that was detached (`bpftool link detach`) is on none; of one that cannot
/// be asked nothing is known, and it is left alone.
fn is_on_interface(pin: &Path, ifindex: u32) -> bool {
    match open_link(pin) {
        Ok(link) => link.is_some_and(|(_, info)| info.ifindex == ifindex),
        Err(error) => {
            tracing::debug!(pin = %pin.display(), error = %crate::chain(&error), "not looked at");
            true
        }
    }
}

fn has_filter(ifindex: u32, hook: Hook) -> Result<bool, NetError> {
    let side = match hook.direction() {
        TcAttachType::Egress => clsact::Side::Egress,
        _ => clsact::Side::Ingress,
    };
    clsact::has_filter(ifindex, side, PRIORITY, HANDLE.into())
}

/// The interfaces with a program of ours, also where somebody has detached it. Pins of interfaces that are gone are
/// removed.
pub fn attached(links: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for path in pin::entries(links) {
        let Some((ifindex, name_only)) = parse_pin(&path) else {
            continue;
        };
        let alive = name_of(ifindex).is_some() || !name_only && is_on_interface(&path, ifindex);
        if alive {
            found.push(ifindex);
        } else if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "removing the pin of a gone interface");
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The interfaces that pins in a directory name, whether or not they live.
pub fn pinned(links: &Path) -> Vec<u32> {
    let mut found: Vec<u32> = pin::entries(links)
        .iter()
        .filter_map(|path| parse_pin(path))
        .map(|(ifindex, _)| ifindex)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Interface, and whether the pin is only a name that lives as long as that (a clsact filter's, GRO's),
/// of `7-uplink` and `7-uplink-clsact`.
fn parse_pin(path: &Path) -> Option<(u32, bool)> {
    let (ifindex, hook) = path.file_name()?.to_str()?.split_once('-')?;
    let ifindex = ifindex.parse().ok()?;
    let hook = hook.strip_suffix(NEW).unwrap_or(hook);
    if matches!(hook, "gro" | "qdisc-clsact") {
        return Some((ifindex, true));
    }
    let (hook, name_only) = match hook.strip_suffix("-clsact") {
        Some(hook) => (hook, true),
        None => (hook, false),
    };
    let known =
        Hook::ALL.iter().any(|known| known.word() == hook) || hook == xdp::WORD && !name_only;
    known.then_some((ifindex, name_only))
}

/// The link pinned at `path`; None where nothing is.
pub(super) fn open_link(path: &Path) -> Result<Option<(OwnedFd, sys::LinkInfo)>, BpfError> {
    let failed = |source| BpfError::Pinned {
        path: path.into(),
        source,
    };
    let link = match sys::object(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let info = sys::link_info(link.as_fd()).map_err(failed)?;
    if ![sys::LINK_TCX, sys::LINK_XDP].contains(&info.kind) {
        return Err(failed(io::Error::other("it is no TCX or XDP link")));
    }
    Ok(Some((link, info)))
}

/// Where the kernel runs programs of ours on interfaces of the calling thread's namespace, by what is pinned.
pub fn running(links: &Path) -> Vec<(Hook, u32, String, Attachment)> {
    let mut found = Vec::new();
    for ifindex in pinned(links) {
        let Some(name) = name_of(ifindex) else {
            continue;
        };
        for hook in Hook::ALL {
            if let Ok(Some((_, info))) = open_link(&tcx_pin(links, ifindex, hook))
                && matches!(is_on(&info, hook, ifindex, &name), Ok(true))
            {
                found.push((hook, ifindex, name.clone(), Attachment::Tcx));
            }
            if clsact_pin(links, ifindex, hook).exists()
                && matches!(has_filter(ifindex, hook), Ok(true))
            {
                found.push((hook, ifindex, name.clone(), Attachment::Clsact));
            }
        }
    }
    found
}

/// The interface of an index in the calling thread's namespace.
pub fn name_of(ifindex: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the function writes a string of at most IF_NAMESIZE bytes with its NUL.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    name.to_str().ok().map(String::from)
}

fn tc_errno(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_interface_and_hook() {
        let links = Path::new("/links");
        for hook in Hook::ALL {
            assert_eq!(parse_pin(&tcx_pin(links, 7, hook)), Some((7, false)));
            assert_eq!(parse_pin(&clsact_pin(links, 12, hook)), Some((12, true)));
        }
        assert_eq!(parse_pin(&xdp::pin_of(links, 7)), Some((7, false)));
        assert_eq!(parse_pin(&gro_pin(links, 7)), Some((7, true)));
        assert_eq!(parse_pin(&qdisc_pin(links, 7)), Some((7, true)));
        for other in ["", "7", "x-uplink", "7-other", "7-clsact", "7-xdp-clsact"] {
            assert_eq!(parse_pin(&links.join(other)), None, "{other}");
        }
    }
}
