//! Programs to compare netfw's with, run by run: nothing at all, and fixed amounts of work of the same
//! kind as theirs, with memory that is known already and with new.

use aya_ebpf::{
    bindings::{TC_ACT_OK, xdp_action},
    macros::{classifier, map, xdp},
    maps::{HashMap, LruHashMap, PerCpuArray},
    programs::{TcContext, XdpContext},
};

/// As long as a tuple of IPv4's with what is around it.
type Key = [u32; 4];

const LOOKUPS: u32 = 8;
/// Of the packet, in words: from the Ethernet header on.
const WORDS: usize = 20;

/// The bench puts keys of four equal numbers there.
#[map]
static KEYS: HashMap<Key, u64> = HashMap::with_max_entries(1 << 16, 0);

/// As large as the table of new flows, and an entry.
#[map]
static ENTRIES: LruHashMap<Key, Entry> = LruHashMap::with_max_entries(1 << 17, 0);
type Entry = [u64; 8];

/// The next new key.
#[map]
static NEXT_KEY: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// What a run costs by itself.
#[classifier]
pub fn nothing(_ctx: TcContext) -> i32 {
    TC_ACT_OK
}

#[xdp]
pub fn nothing_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Looks some keys up in a hash, notes that in their values, and adds up a packet.
#[classifier]
pub fn reference(ctx: TcContext) -> i32 {
    let data = ctx.data();
    if data + WORDS * 2 > ctx.data_end() {
        return TC_ACT_OK;
    }
    let mut sum = 0_u32;
    for word in 0..WORDS {
        // SAFETY: the bounds were checked, and an Ethernet header lies at an even address.
        sum += u32::from(unsafe { *((data + 2 * word) as *const u16) });
    }
    for number in 0..LOOKUPS {
        if let Some(value) = KEYS.get_ptr_mut([number; 4]) {
            // SAFETY: an element of a map lives as long as the program.
            unsafe { *value = value.read_volatile() + u64::from(sum) };
        }
    }
    TC_ACT_OK
}

/// Puts two entries that were not there into a table, as a new flow does.
#[classifier]
pub fn reference_new(_ctx: TcContext) -> i32 {
    let Some(next) = NEXT_KEY.get_ptr_mut(0) else {
        return TC_ACT_OK;
    };
    // SAFETY: an entry of this CPU's own, and a program is not preempted by itself.
    let number = unsafe {
        *next = (*next).wrapping_add(1);
        *next
    };
    for half in 0..2 {
        // What comes of it is the same every time.
        let _ = ENTRIES.insert([number, half, number, half], [u64::from(number); 8], 0);
    }
    TC_ACT_OK
}
