//! The only raw `bpf(2)`: what aya 0.14 lacks. Batch operations on maps, in-place swap and detach of
//! a link found under its pin, which interface a link is on, and what the kernel makes of a few instructions. An
//! XDP link, too: where the kernel refuses one, aya attaches the program without a link, and nobody would
//! find it again.
//!
//! Each function fills the fields of `union bpf_attr` that its command reads, and nothing more: the
//! kernel takes what it is not given as zero (`bpf_check_uarg_tail_zero`), so that a short attribute
//! is right for any kernel.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;
use aya_obj::generated::bpf_insn;
use nix::libc;

// enum bpf_cmd (linux/bpf.h).
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_TEST_RUN: libc::c_int = 10;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const MAP_DELETE_BATCH: libc::c_int = 27;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// The kernel's `ENOTSUPP`, which escapes to user space from maps without batch operations.
const ENOTSUPP: i32 = 524;

/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, and `BPF_CGROUP_INET6_BIND` of enum bpf_attach_type.
const SOCK_ADDR: u32 = 18;
const ATTACH_BIND6: u32 = 9;
/// `BPF_XDP` of enum bpf_attach_type.
const ATTACH_XDP: u32 = 37;

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// The head of `struct bpf_link_info` with the union's `tcx` member; of an XDP link's, `xdp`, only
/// `ifindex` is filled in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkInfo {
    pub kind: u32,
    pub id: u32,
    pub program: u32,
    padding: u32,
    /// 0 where the interface is gone.
    pub ifindex: u32,
    pub attach_type: u32,
}

impl LinkInfo {
    /// Of a cgroup's link, which tells its id in the place of interface and type: is it on one? 0 where it was
    /// detached, or the cgroup is gone.
    pub fn is_on_cgroup(&self) -> bool {
        self.ifindex != 0 || self.attach_type != 0
    }
}

/// `BPF_LINK_TYPE_XDP`.
pub const LINK_XDP: u32 = 6;
/// `BPF_LINK_TYPE_TCX`.
pub const LINK_TCX: u32 = 11;

/// Calls `bpf(2)`.
///
/// # Safety
///
/// `attr` must be the attribute that `command` takes, and every address in it must be valid for
/// what the command reads and writes there.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i64> {
    let size = size_of::<T>();
    // SAFETY: `attr` is valid for reads and writes of `size`; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // File descriptors are never negative.
    fd.as_raw_fd() as u32
}

/// Does the kernel take this program for a `bind` of IPv6? It is not kept.
pub fn takes_bind_program(instructions: &[bpf_insn]) -> bool {
    load(SOCK_ADDR, ATTACH_BIND6, instructions).is_ok()
}

/// What a program of TC returns on a packet of zeros.
pub fn run_on_packet(instructions: &[bpf_insn]) -> io::Result<u32> {
    let program = load(SCHED_CLS, 0, instructions)?;
    // Long enough for any header that the kernel looks for.
    let packet = [0u8; 64];
    let mut attr = TestRun {
        prog_fd: raw(program.as_fd()),
        data_size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: BPF_PROG_TEST_RUN reads as many bytes as the packet has, and writes to the attribute itself.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.retval)
}

fn load(kind: u32, attach_type: u32, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut attr = ProgLoad {
        prog_type: kind,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type: attach_type,
    };
    // SAFETY: BPF_PROG_LOAD reads a string, and as many instructions as the slice has.
    let fd = unsafe { bpf(PROG_LOAD, &mut attr) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens what is pinned at `path`.
pub fn object(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjGet {
        pathname: name.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: BPF_OBJ_GET reads a string, and `name` is one that lives until after the call.
    let fd = unsafe { bpf(OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins what `fd` is at `path`.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjGet {
        pathname: name.as_ptr() as u64,
        bpf_fd: raw(fd),
        file_flags: 0,
    };
    // SAFETY: as in `object`.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Attaches an XDP program to an interface of the calling thread's namespace, with `XDP_FLAGS_*`.
pub fn create_xdp_link(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(program),
        target_ifindex: ifindex,
        attach_type: ATTACH_XDP,
        flags,
    };
    // SAFETY: BPF_LINK_CREATE takes integers only, for this attach type.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What a link is, and where. The fd must be a link's: the kernel writes another record for others.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attr = Info {
        bpf_fd: raw(link),
        info_len: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, whose fields are integers.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Puts another program into a link, in place: no packet sees none of them.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: raw(link),
        new_prog_fd: raw(program),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: BPF_LINK_UPDATE takes file descriptors only.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link off its hook, whoever else holds it open.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetach { link_fd: raw(link) };
    // SAFETY: BPF_LINK_DETACH takes a file descriptor only.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

/// Does the error say that this kernel or this map has no batch operations?
pub fn lacks_batch(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP))
}

/// Inserts or overwrites. On failure: how many were done before it.
pub fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    assert_eq!(keys.len(), values.len(), "a value for each key");
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `count` keys and values, which is what the slices hold; the callers'
    // types have the map's key and value size (aya checks that when it makes the typed map).
    unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }
        .map(drop)
        .map_err(|error| (done(&attr, keys.len()), error))
}

/// Deletes. Stops at the first key that is not there (`ENOENT`). On failure: how many were done.
pub fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), (usize, io::Error)> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: 0,
        count: keys.len() as u32,
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `count` keys, which is what the slice holds.
    unsafe { bpf(MAP_DELETE_BATCH, &mut attr) }
        .map(drop)
        .map_err(|error| (done(&attr, keys.len()), error))
}

/// How many elements a failed batch got through. The kernel leaves `count` as it was where it fails
/// before the first one (a bad flag, an unknown command).
fn done(attr: &Batch, asked: usize) -> usize {
    let count = attr.count as usize;
    if count < asked { count } else { 0 }
}

/// Where a walk through a hash map stands: the number of the next bucket, None at the beginning.
pub type Cursor = Option<u32>;

/// Reads the entries of as many whole buckets of a hash map as fit into `keys` and `values`.
/// Returns how many entries, and where to go on, or None at the end. `ENOSPC`: not even one bucket
/// fits, more room is needed.
pub fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: Cursor,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Cursor)> {
    let room = keys.len().min(values.len());
    // SAFETY: the slices have room for that many; `Pod` types take any bytes.
    unsafe {
        lookup_batch_at(
            map,
            cursor,
            keys.as_mut_ptr().cast(),
            values.as_mut_ptr().cast(),
            room,
        )
    }
}

/// The same of a hash map or an array whose records no type of ours describes: `sizes` are the map's, of a
/// key and a value in bytes.
pub fn lookup_batch_bytes(
    map: BorrowedFd<'_>,
    sizes: (usize, usize),
    cursor: Cursor,
    keys: &mut [u8],
    values: &mut [u8],
) -> io::Result<(usize, Cursor)> {
    let room = (keys.len() / sizes.0).min(values.len() / sizes.1);
    // SAFETY: the slices have room for that many records of these sizes.
    unsafe { lookup_batch_at(map, cursor, keys.as_mut_ptr(), values.as_mut_ptr(), room) }
}

/// # Safety
///
/// `keys` and `values` must have room for `room` keys and values of the map, which must be a hash map or an
/// array.
unsafe fn lookup_batch_at(
    map: BorrowedFd<'_>,
    cursor: Cursor,
    keys: *mut u8,
    values: *mut u8,
    room: usize,
) -> io::Result<(usize, Cursor)> {
    let from = cursor.unwrap_or(0);
    let mut next = 0u32;
    let mut attr = Batch {
        in_batch: cursor.map_or(0, |_| std::ptr::from_ref(&from) as u64),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys as u64,
        values: values as u64,
        count: room as u32,
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads and writes a u32 at the batch addresses (hash maps count in
    // buckets, arrays in elements); the rest is the caller's promise.
    match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => Ok(((attr.count as usize).min(room), Some(next))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(((attr.count as usize).min(room), None))
        }
        Err(error) => Err(error),
    }
}

/// Writes one element. `sizes` are the map's, of a key and a value in bytes; `flags` are `BPF_ANY` (0) or
/// `BPF_NOEXIST` (1: `EEXIST` where there is one). `EINVAL` where key or value are of another size.
pub fn update_bytes(
    map: BorrowedFd<'_>,
    sizes: (usize, usize),
    key: &[u8],
    value: &[u8],
    flags: u64,
) -> io::Result<()> {
    if sizes != (key.len(), value.len()) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut attr = Element {
        map_fd: raw(map),
        padding: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags,
    };
    // SAFETY: the kernel reads a key and a value of the map's sizes, which the slices have.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// A value of zeros, for buffers.
pub fn zeroed<T: Pod>() -> T {
    // SAFETY: any bytes are a valid value of a `Pod` type.
    unsafe { std::mem::zeroed() }
}
