//! Carrying the data plane of an older layout over to this one, while packets go through it.
//!
//! Maps that are the same in both are pinned a second time: old and new programs share them, and no packet
//! notices. Where a record changed, the map is made anew and its entries are rewritten ([`Step`]): once
//! before the programs are swapped, and once more after it for what the old programs made meanwhile. Links are
//! moved to the new directory, programs put into them in place, and what is left of the old layout goes.
//!
//! Each step leaves something from which the next start goes on: the old layout's maps stay pinned until all
//! is done, and no entry of a new map is overwritten by an old one.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{MapData, MapType};
use nix::libc;

use super::{
    BpfError, DataPlane, attach,
    load::PINNED,
    pin::{self, Layout, Pins},
    sys,
};

/// The oldest layout that can be carried over: of those before it nothing was released.
const OLDEST: u32 = 3;

/// What became of the maps from one layout to the next. A map that no step names is the same in both.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The layout that has it so, and all after it.
    pub to: u32,
    pub map: &'static str,
    pub change: Change,
}

/// What becomes of a map.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// It begins empty. For caches and counters: programs run on it before the agent has written anything.
    Anew,
    /// Each entry, of a hash map or an array.
    Entries(Convert),
}

/// A key and a value of the older layout, as bytes, to those of the newer one; None for an entry that is not
/// kept.
pub type Convert = fn(&[u8], &[u8]) -> Option<(Vec<u8>, Vec<u8>)>;

/// All steps from [`OLDEST`] to this layout, in their order.
pub const STEPS: &[Step] = &[Step {
    to: 4,
    map: "CONFIG",
    change: Change::Entries(config_4),
}];

/// Fields were added at the end; the agent writes what they are before a program reads them.
fn config_4(key: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut value = value.to_vec();
    value.resize(48, 0);
    Some((key.into(), value))
}

/// How a map comes from one layout to this one.
#[derive(Debug, PartialEq)]
enum Way {
    Shared,
    Anew,
    Converted(Vec<Convert>),
}

fn way(steps: &[Step], from: u32, map: &str) -> Way {
    let mut way = Way::Shared;
    for step in steps.iter().filter(|s| s.to > from && s.map == map) {
        way = match (way, step.change) {
            (_, Change::Anew) | (Way::Anew, _) => Way::Anew,
            (Way::Shared, Change::Entries(convert)) => Way::Converted(vec![convert]),
            (Way::Converted(mut converts), Change::Entries(convert)) => {
                converts.push(convert);
                Way::Converted(converts)
            }
        };
    }
    way
}

/// The data planes of older layouts that are there, the newest first. An error where one cannot be taken over: a
/// newer netfw's, or one from before there was anything to carry.
pub fn older(pins: &Pins) -> Result<Vec<Layout>, BpfError> {
    let others = pins.others();
    let fits = |layout: &Layout| (OLDEST..netfw_common::ABI).contains(&layout.version);
    match others.iter().find(|layout| !fits(layout)) {
        Some(layout) => Err(BpfError::OtherLayout {
            path: layout.path.clone(),
            own: netfw_common::ABI,
            newer: layout.version > netfw_common::ABI,
            instance: pins.instance().into(),
        }),
        None => Ok(others),
    }
}

/// The maps of an older layout that go on as they are.
pub fn shared(steps: &[Step], from: &Layout) -> Vec<&'static str> {
    let is_shared = |map: &&str| way(steps, from.version, map) == Way::Shared;
    PINNED.iter().copied().filter(is_shared).collect()
}

/// Pins `maps` of the older layout for this one, too; those that are pinned already stay.
pub fn share(maps: &[&str], from: &Layout, pins: &Pins) -> Result<(), BpfError> {
    for map in maps {
        let (old, new) = (from.maps().join(map), pins.maps().join(map));
        if new.exists() || !old.exists() {
            continue;
        }
        let map = open(&old)?;
        sys::pin(map.as_fd(), &new).map_err(|source| BpfError::PinLink { path: new, source })?;
    }
    Ok(())
}

/// The maps that are not pinned yet.
pub fn missing(pins: &Pins) -> Vec<&'static str> {
    let is_missing = |map: &&str| !pins.maps().join(map).exists();
    PINNED.iter().copied().filter(is_missing).collect()
}

/// Writes what the older layout's maps hold, and those of this layout do not, into these. Of an array all elements
/// are always there: it is written where it is among the `new` ones, which this start has made.
pub fn convert(steps: &[Step], from: &Layout, pins: &Pins, new: &[&str]) -> Result<(), BpfError> {
    for map in PINNED {
        let Way::Converted(converts) = way(steps, from.version, map) else {
            continue;
        };
        let old = from.maps().join(map);
        if old.exists() {
            let copied = copy(&old, &pins.maps().join(map), &converts, new.contains(map))?;
            tracing::info!(map, copied, from = from.version, "entries rewritten");
        }
    }
    Ok(())
}

/// Entries that one system call reads at most; a bucket must fit.
const READ: usize = 4096;

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// Returns how many entries were written.
fn copy(old: &Path, new: &Path, converts: &[Convert], is_new: bool) -> Result<usize, BpfError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BpfError::Pinned { path, source }
    };
    let (from, from_sizes, kind) = open_map(old)?;
    let (to, to_sizes, _) = open_map(new)?;
    let array = kind == MapType::Array;
    if array && !is_new {
        return Ok(0);
    }
    let flags = if array { BPF_ANY } else { BPF_NOEXIST };
    let mut written = 0;
    let mut cursor = None;
    let mut keys = vec![0; READ * from_sizes.0];
    let mut values = vec![0; READ * from_sizes.1];
    loop {
        let read =
            sys::lookup_batch_bytes(from.as_fd(), from_sizes, cursor, &mut keys, &mut values);
        let (count, next) = match read {
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                keys.resize(keys.len() * 2, 0);
                values.resize(values.len() * 2, 0);
                continue;
            }
            other => other.map_err(failed(old))?,
        };
        let entries = keys
            .chunks_exact(from_sizes.0)
            .zip(values.chunks_exact(from_sizes.1));
        for (key, value) in entries.take(count) {
            let first = Some((key.to_vec(), value.to_vec()));
            let kept = converts.iter().fold(first, |entry, convert| {
                entry.and_then(|(key, value)| convert(&key, &value))
            });
            let Some((key, value)) = kept else {
                continue;
            };
            match sys::update_bytes(to.as_fd(), to_sizes, &key, &value, flags) {
                Ok(()) => written += 1,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(failed(new)(error)),
            }
        }
        match next {
            Some(_) => cursor = next,
            None => return Ok(written),
        }
    }
}

/// A pinned map, the sizes of its keys and values, and its type.
fn open_map(path: &Path) -> Result<(OwnedFd, (usize, usize), MapType), BpfError> {
    let failed = |source| BpfError::Pinned {
        path: path.into(),
        source,
    };
    let map = MapData::from_pin(path).map_err(|error| failed(io::Error::other(error)))?;
    let info = map
        .info()
        .map_err(|error| failed(io::Error::other(error)))?;
    let kind = info
        .map_type()
        .map_err(|error| failed(io::Error::other(error)))?;
    let sizes = (info.key_size() as usize, info.value_size() as usize);
    Ok((open(path)?, sizes, kind))
}

fn open(path: &Path) -> Result<OwnedFd, BpfError> {
    sys::object(path).map_err(|source| BpfError::Pinned {
        path: path.into(),
        source,
    })
}

impl DataPlane {
    /// Puts the programs in the place of the older layout's wherever those run, and takes it away.
    pub(super) fn take_over(&mut self, steps: &[Step], from: &Layout) -> Result<(), BpfError> {
        let links = self.pins.links();
        for old in pin::entries(&from.links()) {
            let Some(name) = old.file_name() else {
                continue;
            };
            fs::rename(&old, links.join(name)).map_err(|source| BpfError::Directory {
                call: "move",
                path: old.clone(),
                source,
            })?;
        }
        let swapped = self.swap_all();
        convert(steps, from, &self.pins, &[])?;
        if let Err(error) = swapped {
            // What it has is left for those that are still at work; the next start tries again.
            let error = crate::chain(&error);
            tracing::warn!(%error, "the older layout stays: not all programs could be put in the place of its own");
            return Ok(());
        }
        match from.remove().into_iter().next() {
            Some(error) => Err(error),
            None => {
                tracing::info!(
                    from = from.version,
                    to = netfw_common::ABI,
                    "layout carried over"
                );
                Ok(())
            }
        }
    }

    /// Puts the programs in the place of ours wherever the kernel runs those; pins that stand for nothing are
    /// left for the agent to find. Goes on past errors, and returns the first.
    pub(super) fn swap_all(&mut self) -> Result<(), BpfError> {
        let links = self.pins.links();
        let mut errors = Vec::new();
        for (hook, ifindex, name, way) in attach::running(&links) {
            let ebpf = self.running();
            errors.extend(attach::attach(ebpf, &links, hook, ifindex, &name, Some(way)).err());
        }
        for ifindex in self.xdp_pinned() {
            match (self.xdp_mode(ifindex), attach::name_of(ifindex)) {
                (Ok(Some(mode)), Some(name)) => {
                    errors.extend(self.attach_xdp(ifindex, &name, mode).err());
                }
                (mode, _) => errors.extend(mode.err()),
            }
        }
        if super::cgroup::missing(&links).is_empty() {
            errors.extend(self.attach_sockets().err());
        }
        errors.into_iter().next().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGER: Convert = |key, value| Some((key.into(), [value, &[0; 8]].concat()));
    const NONE: Convert = |_, _| None;

    #[test]
    fn a_map_comes_by_all_steps_since_its_layout() {
        let step = |to, map, change| Step { to, map, change };
        let steps = [
            step(4, "FLOWS4", Change::Entries(LONGER)),
            step(5, "FRAGMENTS4", Change::Anew),
            step(6, "FLOWS4", Change::Entries(NONE)),
            step(6, "FRAGMENTS4", Change::Entries(LONGER)),
        ];
        assert_eq!(way(&steps, 3, "FLOWS6"), Way::Shared);
        assert_eq!(way(&steps, 6, "FLOWS4"), Way::Shared);
        assert_eq!(way(&steps, 4, "FRAGMENTS4"), Way::Anew);
        let converts = |from| match way(&steps, from, "FLOWS4") {
            Way::Converted(converts) => converts.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!((converts(3), converts(4), converts(5)), (2, 1, 1));
    }

    #[test]
    fn steps_name_maps_and_layouts_that_there_are() {
        for step in STEPS {
            assert!(PINNED.contains(&step.map), "{step:?}");
            assert!(
                (OLDEST + 1..=netfw_common::ABI).contains(&step.to),
                "{step:?}"
            );
        }
        assert!(STEPS.is_sorted_by_key(|step| step.to));
    }
}
