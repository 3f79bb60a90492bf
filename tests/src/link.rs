//! Pinned BPF links, as `bpftool link` handles them.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
};

use nix::errno::Errno;

/// Commands of bpf(2).
const BPF_OBJ_GET: i32 = 7;
const BPF_LINK_DETACH: i32 = 34;

/// The attribute of BPF_OBJ_GET, whose first field is a path, and that of BPF_LINK_DETACH, which begins with a
/// descriptor of 32 bits.
#[repr(C)]
#[derive(Default)]
struct Attr {
    first: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn bpf(command: i32, attr: &mut Attr) -> io::Result<RawFd> {
    // SAFETY: the attribute is the command's, and what it names lives until the call is over.
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_bpf,
            command,
            &raw mut *attr,
            size_of::<Attr>(),
        )
    };
    Ok(Errno::result(result)? as RawFd)
}

/// Takes the link pinned at `pin` off what it is attached to; the pin stays.
pub fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_encoded_bytes())?;
    let link = bpf(
        BPF_OBJ_GET,
        &mut Attr {
            first: path.as_ptr().addr() as u64,
            ..Attr::default()
        },
    )?;
    // SAFETY: the kernel has just made it, for nobody else.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    bpf(
        BPF_LINK_DETACH,
        &mut Attr {
            first: u64::try_from(link.as_raw_fd()).map_err(io::Error::other)?,
            ..Attr::default()
        },
    )?;
    Ok(())
}
