//! Instructions of BPF (RFC 9669), for programs of a few that find out what the kernel can do.

use aya_obj::generated::bpf_insn;

pub const MOV_NUMBER: u8 = 0xb7;
pub const MOV_REGISTER: u8 = 0xbf;
pub const ADD_NUMBER: u8 = 0x07;
pub const CALL: u8 = 0x85;
pub const EXIT: u8 = 0x95;

pub fn instruction(code: u8, to: u8, from: u8, number: i32) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(to, from),
        off: 0,
        imm: number,
    }
}
