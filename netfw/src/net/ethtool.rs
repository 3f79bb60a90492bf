//! Drivers and their offloads, by the ioctls behind `ethtool -i`, `-k` and `-K`.
//!
//! ioctls rather than ethtool's netlink family: they are as old as what is asked here, and a kernel
//! without CONFIG_ETHTOOL_NETLINK has them too. Functions speak of the calling thread's network
//! namespace; for another's interface, call them within [`super::Namespace::run`].

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::NetError;

/// Names of features, as the kernel has them (`netdev_features_strings`).
pub mod feature {
    /// A VLAN tag is taken off the frame and kept beside it.
    pub const RX_VLAN: &str = "rx-vlan-hw-parse";
    /// Received segments are merged, and cannot be told apart again.
    pub const LRO: &str = "rx-lro";
    /// Received segments are merged by the device, or were never apart (a virtual machine's host).
    pub const GRO_HW: &str = "rx-gro-hw";
}

// linux/ethtool.h
const GDRVINFO: u32 = 0x03;
const GSTRINGS: u32 = 0x1b;
const GGRO: u32 = 0x2b;
const SGRO: u32 = 0x2c;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SS_FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`.
const STRING: usize = 32;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    /// Versions, bus, counts: for nobody here.
    rest: [u8; 160],
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// `struct ethtool_sset_info`, asked for one set.
#[repr(C)]
struct SetInfo {
    cmd: u32,
    reserved: u32,
    mask: u64,
    /// Strings in the set.
    count: u32,
    padding: u32,
}

/// The driver's name: `virtio_net`, `veth`, `tun`; empty where it does not tell.
pub fn driver(interface: &str) -> Result<String, NetError> {
    let mut info = DriverInfo {
        cmd: GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    // SAFETY: ETHTOOL_GDRVINFO writes a struct ethtool_drvinfo, which `DriverInfo` is.
    let asked = unsafe { call(interface, (&raw mut info).cast()) };
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(String::new()),
        Err(error) => Err(failed(format!("ask for the driver of {interface}"))(error)),
        Ok(()) => Ok(text(&info.driver)),
    }
}

/// The features that are on.
pub fn features(interface: &str) -> Result<BTreeSet<String>, NetError> {
    read_features(interface).map_err(failed(format!("ask for the features of {interface}")))
}

fn read_features(interface: &str) -> io::Result<BTreeSet<String>> {
    let mut set = SetInfo {
        cmd: GSSET_INFO,
        reserved: 0,
        mask: 1 << SS_FEATURES,
        count: 0,
        padding: 0,
    };
    // SAFETY: for a mask of one bit the kernel writes one u32 behind the mask, into `count`.
    unsafe { call(interface, (&raw mut set).cast()) }?;
    let count = set.count as usize;

    // cmd, set, length, then the strings; in words, for their alignment.
    let mut names = vec![0u32; 3 + count * STRING / 4];
    names[..3].copy_from_slice(&[GSTRINGS, SS_FEATURES, set.count]);
    // SAFETY: the kernel writes as many strings as it said there are, and there is room for those;
    // the number of features is fixed when it is built.
    unsafe { call(interface, names.as_mut_ptr().cast()) }?;
    let bytes: Vec<u8> = names[3..].iter().flat_map(|w| w.to_ne_bytes()).collect();

    // cmd, number of blocks, then for each 32 features: available, requested, active, never changed.
    let blocks = count.div_ceil(32);
    let mut state = vec![0u32; 2 + blocks * 4];
    state[..2].copy_from_slice(&[GFEATURES, blocks as u32]);
    // SAFETY: the kernel writes at most the number of blocks that it is told, and there is room.
    unsafe { call(interface, state.as_mut_ptr().cast()) }?;
    let on = |i: usize| state[2 + i / 32 * 4 + 2] & (1 << (i % 32)) != 0;
    Ok(bytes
        .chunks_exact(STRING)
        .enumerate()
        .filter(|(i, _)| on(*i))
        .map(|(_, name)| text(name))
        .collect())
}

/// Are received segments merged in software (`ethtool -k`: generic-receive-offload)?
pub fn gro(interface: &str) -> Result<bool, NetError> {
    let mut value = Value { cmd: GGRO, data: 0 };
    // SAFETY: ETHTOOL_GGRO writes a struct ethtool_value, which `Value` is.
    unsafe { call(interface, (&raw mut value).cast()) }
        .map_err(failed(format!("ask for the GRO setting of {interface}")))?;
    Ok(value.data != 0)
}

/// `ethtool -K INTERFACE gro on|off`. A veth's end polls (NAPI) while it is on, since kernel 5.13
/// (d3256efd8e8b, "veth: allow enabling NAPI even without XDP").
pub fn set_gro(interface: &str, on: bool) -> Result<(), NetError> {
    let mut value = Value {
        cmd: SGRO,
        data: on.into(),
    };
    let word = if on { "on" } else { "off" };
    // SAFETY: ETHTOOL_SGRO reads a struct ethtool_value, which `Value` is.
    unsafe { call(interface, (&raw mut value).cast()) }
        .map_err(failed(format!("switch GRO {word} at {interface}")))
}

fn failed(asked: String) -> impl FnOnce(io::Error) -> NetError {
    NetError::system(asked)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// `SIOCETHTOOL`.
///
/// # Safety
///
/// `data` must point to what the command in its first word reads and writes.
unsafe fn call(interface: &str, data: *mut libc::c_void) -> io::Result<()> {
    let socket: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: integers and pointers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One less: the last byte stays the NUL.
    if interface.is_empty() || interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = data.cast();
    // SAFETY: `request` is a struct ifreq with a name that ends; of `data` see above.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_features() {
        // Needs no root.
        let features = features("lo").unwrap();
        assert!(features.contains("tx-scatter-gather"), "{features:?}");
        assert!(!features.contains(feature::RX_VLAN), "{features:?}");
        assert!(gro("lo").unwrap());
        assert_eq!(driver("lo").unwrap(), "");
    }

    #[test]
    fn an_interface_that_is_not_there() {
        for name in ["", "netfw-none", "a-name-that-is-too-long"] {
            assert!(driver(name).unwrap_err().is_gone(), "{name:?}");
        }
    }
}
