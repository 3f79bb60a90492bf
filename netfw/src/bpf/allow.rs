//! Lists of sources: who may use the publishes that are not for everybody.
//!
//! A list is whole before a publish refers to it, and never changes: other sources are another list, to
//! which the publish's entries are switched, each at once. So there is no moment in which a publish is open
//! to more than its old list and its new one. Publishes with the same sources share a list; it goes with
//! the last of them.

use std::collections::{BTreeMap, HashMap};

use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, lpm_trie::Key},
};
use ipnet::IpNet;
use netfw_common::record::{Allowed, IsAllowed, Publish, PublishKey, allow};
use nix::libc;

use super::{
    BpfError, DataPlane,
    error::root_errno,
    family::Family,
    table::{Table, take},
};

/// The lists of a family.
pub(super) struct Lists<A: Family> {
    trie: LpmTrie<MapData, Allowed<A>, IsAllowed>,
    lists: BTreeMap<u16, List<A>>,
    /// The list that a publish goes by, under its counter, which no other publish has.
    users: HashMap<u32, u16>,
    /// The number that was given last: one is not given again soon, lest a program that has just read it
    /// take another list for it.
    last: u16,
}

struct List<A> {
    /// In order, each once.
    prefixes: Vec<Prefix<A>>,
    /// How many publishes go by it.
    users: u32,
}

/// An address, and how many of its bits count.
type Prefix<A> = (A, u8);

impl<A> Default for List<A> {
    fn default() -> Self {
        Self {
            prefixes: Vec::new(),
            users: 0,
        }
    }
}

/// None where the list is no entry of the trie.
fn number(allow: u16) -> Option<u16> {
    (allow != allow::EVERYBODY && allow != allow::NOBODY).then_some(allow)
}

impl<A: Family> Lists<A> {
    /// What an agent before this one left, and which of `publishes` use it.
    pub fn take(
        ebpf: &mut Ebpf,
        publishes: &Table<PublishKey<A>, Publish<A>>,
    ) -> Result<Self, BpfError> {
        let trie: LpmTrie<MapData, Allowed<A>, IsAllowed> = take(ebpf, A::NAMES.allowed)?;
        let mut lists: BTreeMap<u16, List<A>> = BTreeMap::new();
        for key in trie.keys() {
            let key = key.map_err(BpfError::map(A::NAMES.allowed, "read"))?;
            let Allowed { list, addr } = key.data();
            let length = key.prefix_len().saturating_sub(Allowed::<A>::LIST_BITS);
            let list = lists.entry(list.get() as u16).or_default();
            list.prefixes.push((addr, length as u8));
        }
        for list in lists.values_mut() {
            list.prefixes.sort_unstable();
        }
        let mut taken = Self {
            trie,
            last: lists.keys().next_back().copied().unwrap_or(0),
            lists,
            users: HashMap::new(),
        };
        // A walk through the publishes, and not where there is nothing to be found.
        if !taken.lists.is_empty() {
            for (_, publish) in publishes.entries()? {
                // The last agent may have been killed on the way from one list to another: both stay.
                if !taken.users.contains_key(&publish.counter.into()) {
                    taken.note(publish.counter.into(), publish.allow);
                }
            }
        }
        Ok(taken)
    }

    /// The list of those of `sources` that are of this family; it is made where there is none. It goes
    /// again unless it is soon noted that a publish goes by it.
    fn of(&mut self, sources: impl Iterator<Item = IpNet>) -> Result<u16, BpfError> {
        let mut prefixes: Vec<Prefix<A>> = sources
            .filter_map(|net| Some((A::of(net.network())?, net.prefix_len())))
            .collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        if prefixes.is_empty() {
            return Ok(allow::NOBODY);
        }
        let mut all = self.lists.iter();
        if let Some((number, _)) = all.find(|(_, list)| list.prefixes == prefixes) {
            return Ok(*number);
        }
        let number = self.free(prefixes.len())?;
        let mut written = Ok(());
        for prefix in &prefixes {
            written = self
                .trie
                .insert(&key(number, *prefix), IsAllowed::default(), 0)
                .map_err(|error| match root_errno(&error) {
                    Some(libc::ENOSPC) => self.full(prefixes.len()),
                    _ => BpfError::map(A::NAMES.allowed, "write")(error),
                });
            if written.is_err() {
                break;
            }
        }
        let list = List { prefixes, users: 0 };
        self.lists.insert(number, list);
        self.last = number;
        if written.is_err() {
            self.remove(number);
        }
        written.map(|()| number)
    }

    /// A number that nobody has.
    fn free(&self, asked: usize) -> Result<u16, BpfError> {
        let numbers = (self.last..u16::MAX).chain(0..self.last);
        let mut free = numbers
            .map(|before| before + 1)
            .filter(|candidate| number(*candidate).is_some());
        free.find(|candidate| !self.lists.contains_key(candidate))
            .ok_or_else(|| self.full(asked))
    }

    fn full(&self, asked: usize) -> BpfError {
        BpfError::Full {
            map: A::NAMES.allowed,
            asked,
            max: allow::ENTRIES,
        }
    }

    /// These entries are written.
    pub fn note_all(&mut self, entries: &[(PublishKey<A>, Publish<A>)]) {
        // Those of a range are one after the other.
        let ranges =
            entries.chunk_by(|(_, a), (_, b)| a.counter == b.counter && a.allow == b.allow);
        for (_, publish) in ranges.filter_map(<[_]>::first) {
            self.note(publish.counter.into(), publish.allow);
        }
    }

    /// A publish goes by a list now, or by none.
    fn note(&mut self, counter: u32, allow: u16) {
        let before = match number(allow) {
            Some(number) => self.users.insert(counter, number),
            None => self.users.remove(&counter),
        };
        if before == number(allow) {
            return;
        }
        if let Some(list) = number(allow).and_then(|number| self.lists.get_mut(&number)) {
            list.users += 1;
        }
        if let Some(before) = before {
            self.leave(before);
        }
    }

    /// A publish does not go by this list any more.
    fn leave(&mut self, number: u16) {
        if let Some(list) = self.lists.get_mut(&number) {
            list.users = list.users.saturating_sub(1);
            if list.users == 0 {
                self.remove(number);
            }
        }
    }

    /// Removes the lists that no publish goes by.
    pub fn sweep(&mut self) {
        let unused = self.lists.iter().filter(|(_, list)| list.users == 0);
        let unused: Vec<u16> = unused.map(|(number, _)| *number).collect();
        for number in unused {
            self.remove(number);
        }
    }

    /// What cannot be removed is told, and kept in mind.
    fn remove(&mut self, number: u16) {
        let Some(list) = self.lists.get_mut(&number) else {
            return;
        };
        let trie = &mut self.trie;
        list.prefixes
            .retain(|prefix| match trie.remove(&key(number, *prefix)) {
                Err(error) if root_errno(&error) != Some(libc::ENOENT) => {
                    tracing::error!(%error, map = A::NAMES.allowed, "deleting");
                    true
                }
                _ => false,
            });
        if list.prefixes.is_empty() {
            self.lists.remove(&number);
        }
    }
}

fn key<A: Family>(list: u16, (addr, length): Prefix<A>) -> Key<Allowed<A>> {
    let bits = Allowed::<A>::LIST_BITS + u32::from(length);
    Key::new(bits, Allowed::new(list, addr))
}

impl DataPlane {
    /// The number of the list of these sources, for [`Publish::allow`]; only those of the family count. It
    /// is there until [`Self::publish`] has said who uses it, or failed, and as long as somebody does.
    pub fn allow<A: Family>(
        &mut self,
        sources: impl IntoIterator<Item = IpNet>,
    ) -> Result<u16, BpfError> {
        let lists = &mut A::maps_mut(&mut self.maps).allowed;
        let number = lists.of(sources.into_iter());
        if number.is_err() {
            lists.sweep();
        }
        number
    }

    /// What publishes with these counters were allowed by: they are withdrawn.
    pub fn disallow<A: Family>(&mut self, counters: impl IntoIterator<Item = u32>) {
        let lists = &mut A::maps_mut(&mut self.maps).allowed;
        for counter in counters {
            lists.note(counter, allow::EVERYBODY);
        }
    }

    /// The same for all but those that are wanted.
    pub fn disallow_others<A: Family>(&mut self, is_wanted: impl Fn(u32) -> bool) {
        let lists = &mut A::maps_mut(&mut self.maps).allowed;
        let users: Vec<u32> = lists.users.keys().copied().collect();
        for counter in users.into_iter().filter(|counter| !is_wanted(*counter)) {
            lists.note(counter, allow::EVERYBODY);
        }
        lists.sweep();
    }

    /// The prefixes in the lists of a family: how many there are, and have room.
    pub fn allowed_usage<A: Family>(&self) -> (usize, usize) {
        let lists = A::maps(&self.maps).allowed.lists.values();
        let used = lists.map(|list| list.prefixes.len()).sum();
        (used, allow::ENTRIES as usize)
    }
}
