//! netfw's data plane.
//!
//! A packet's way: parse → decide → apply verdict.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "for an atomic addition, see `flow::share::count`"
)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and flows lie in maps: by value they would be copied to the stack first"
)]

mod event;
mod family;
mod flow;
mod hook;
mod independent;
mod maps;
mod nat;
mod packet;
mod parse;
mod redirect;
mod socket;
mod talk;
mod verdict;
mod work;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// The kernel grants GPL-only helpers to programs that say so.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
