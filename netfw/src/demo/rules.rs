//! What netfilter has in a namespace: read where the kernel shows it, not by its tools.

use std::{fs, io};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};
use std::os::fd::AsRawFd;

use crate::net::Namespace;

/// All zero: netfilter has no part in anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Netfilter {
    /// Tables of iptables (legacy) that exist; a table exists from its first use on.
    pub iptables_tables: usize,
    /// Rules of nftables, those that iptables-nft makes included.
    pub nftables_rules: usize,
    pub conntrack_entries: usize,
}

pub async fn of(namespace: &Namespace) -> anyhow::Result<Netfilter> {
    Ok(super::http::within(namespace, read).await??)
}

/// Of the calling thread's namespace.
fn read() -> io::Result<Netfilter> {
    let tables = ["ip_tables_names", "ip6_tables_names"]
        .iter()
        .map(|file| {
            Ok(read_or_empty(&format!("/proc/thread-self/net/{file}"))?
                .lines()
                .count())
        })
        .sum::<io::Result<usize>>()?;
    let tracked = read_or_empty("/proc/sys/net/netfilter/nf_conntrack_count")?;
    Ok(Netfilter {
        iptables_tables: tables,
        nftables_rules: nftables_rules()?,
        conntrack_entries: tracked.trim().parse().unwrap_or(0),
    })
}

/// A file that does not exist: its module is not loaded, so there is nothing.
fn read_or_empty(path: &str) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST_DUMP: u16 = 0x1 | 0x300;
/// `NFNL_SUBSYS_NFTABLES << 8 |` `NFT_MSG_NEWRULE`, `NFT_MSG_GETRULE`.
const NEW_RULE: u16 = 10 << 8 | 6;
const GET_RULE: u16 = 10 << 8 | 7;

/// Asks nfnetlink for all rules of all families and counts the answers.
fn nftables_rules() -> io::Result<usize> {
    let socket = match socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    ) {
        // A kernel without nfnetlink.
        Err(Errno::EPROTONOSUPPORT) => return Ok(0),
        other => other?,
    };
    // struct nlmsghdr (16 bytes, host order), struct nfgenmsg (family unspecified, version 0).
    let mut request = [0; 20];
    request[0..4].copy_from_slice(&20u32.to_ne_bytes());
    request[4..6].copy_from_slice(&GET_RULE.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut rules = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((header, _)) = rest.split_first_chunk::<8>() {
            let [a, b, c, d, e, f, ..] = *header;
            let size = u32::from_ne_bytes([a, b, c, d]) as usize;
            match u16::from_ne_bytes([e, f]) {
                NLMSG_DONE => return Ok(rules),
                NLMSG_ERROR => return refused(rest).map(|()| rules),
                NEW_RULE => rules += 1,
                _ => {}
            }
            match rest.get(size.max(16).next_multiple_of(4)..) {
                Some(next) => rest = next,
                None => break,
            }
        }
    }
}

/// An error message: without nf_tables in the kernel there are no rules.
fn refused(message: &[u8]) -> io::Result<()> {
    let code = message
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    match Errno::from_raw(-code) {
        Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOENT => Ok(()),
        errno => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_nftables_has_no_rules() {
        let mut message = vec![0; 20];
        message[16..20].copy_from_slice(&(-(Errno::EINVAL as i32)).to_ne_bytes());
        assert!(refused(&message).is_ok());
        message[16..20].copy_from_slice(&(-(Errno::EPERM as i32)).to_ne_bytes());
        assert!(refused(&message).is_err());
        assert!(refused(&[]).is_err());
    }
}
