//! Where the running kernel keeps a member of one of its structures, by its own description (BTF,
//! `Documentation/bpf/btf.rst`). aya reads that to relocate programs of C, and tells nobody what it read.

use std::{fs, path::Path};

/// The kernel's own.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

/// The number of the first bit of member `member` in structure `name`. None where there is no such, or
/// no description that can be read.
pub fn bit_of(name: &str, member: &str) -> Option<u32> {
    find(&fs::read(Path::new(VMLINUX)).ok()?, name, member)
}

/// Has the kernel a description of its own?
pub fn is_there() -> bool {
    fs::read(VMLINUX).is_ok_and(|btf| Reader(&btf).half(0) == Some(MAGIC))
}

fn find(btf: &[u8], name: &str, member: &str) -> Option<u32> {
    let header = Reader(btf);
    if header.half(0)? != MAGIC {
        return None;
    }
    let length = header.word(4)? as usize;
    let part = |at: usize| {
        let start = length.checked_add(header.word(at)? as usize)?;
        btf.get(start..start.checked_add(header.word(at + 4)? as usize)?)
    };
    let (types, strings) = (Reader(part(8)?), part(16)?);
    let is = |offset: u32, word: &str| {
        let there = strings.get(offset as usize..).unwrap_or_default();
        there
            .strip_prefix(word.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = 0;
    while at < types.0.len() {
        let info = types.word(at + 4)?;
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let more = at + 12;
        if kind == STRUCT && is(types.word(at)?, name) {
            let mut members = (0..count).map(|n| more + 12 * n);
            let found = members.find(|&at| types.word(at).is_some_and(|word| is(word, member)))?;
            // With this flag, the upper byte is how many bits it has.
            let mask = if info >> 31 == 1 { 0xff_ffff } else { u32::MAX };
            return Some(types.word(found + 8)? & mask);
        }
        at = more + after(kind, count)?;
    }
    None
}

const STRUCT: u32 = 4;

/// Bytes that follow the head of a type. None of a kind that is newer than this.
fn after(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections, enumerations of 64 bits.
        STRUCT | 5 | 15 | 19 => 12 * count,
        // Enumerations, prototypes.
        6 | 13 => 8 * count,
        _ => return None,
    })
}

/// Integers in the kernel's byte order, which is ours.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn half(&self, at: usize) -> Option<u16> {
        let bytes = self.0.get(at..at.checked_add(2)?)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An integer, and a structure of two bits of it.
    fn example() -> Vec<u8> {
        let strings = b"\0u8\0pair\0one\0two\0";
        let types: &[u32] = &[
            1,
            1 << 24,
            1,
            8, // u8
            4,
            1 << 31 | STRUCT << 24 | 2,
            1, // pair
            9,
            1,
            1 << 24, // one
            13,
            1,
            1 << 24 | 5, // two
        ];
        let mut btf = MAGIC.to_ne_bytes().to_vec();
        btf.extend([1, 0]);
        let sizes = [24, 0, 4 * types.len(), 4 * types.len(), strings.len()];
        btf.extend(sizes.iter().flat_map(|&size| (size as u32).to_ne_bytes()));
        btf.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        btf.extend(strings);
        btf
    }

    #[test]
    fn a_member_is_found() {
        assert_eq!(find(&example(), "pair", "one"), Some(0));
        assert_eq!(find(&example(), "pair", "two"), Some(5));
        assert_eq!(find(&example(), "pair", "tw"), None);
        assert_eq!(find(&example(), "u8", "one"), None);
    }

    #[test]
    fn what_is_cut_short_is_no_error() {
        let whole = example();
        for end in 0..whole.len() {
            assert_eq!(find(&whole[..end], "pair", "two"), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_not(mut bytes: Vec<u8>, at: usize, value: u8) {
            find(&bytes, "pair", "two");
            bytes = example();
            let at = at % bytes.len();
            bytes[at] = value;
            find(&bytes, "pair", "two");
        }
    }
}
