//! Who holds a port in the node's network namespace.
//!
//! A publish takes packets away from the node's stack before any socket sees them; so a port that
//! a process of the node serves must not be published, and the error should name the process.
//!
//! The kernel tells the sockets of the calling thread's namespace with their inodes (`diag`, or the
//! tables under `/proc/thread-self/net` where it lacks that); `/proc/PID/fd` leads from an inode to a
//! process. A process that cannot be read (another user's, without root) or that holds the socket
//! from another PID namespace stays unnamed.

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{NetError, diag};

/// A protocol with ports.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The number in IP headers.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no protocol with ports: tcp, udp or sctp")]
pub struct UnknownProtocol(pub String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| word.eq_ignore_ascii_case(protocol.name()))
            .ok_or_else(|| UnknownProtocol(word.into()))
    }
}

/// A socket that holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub proto: Protocol,
    pub addr: IpAddr,
    pub port: u16,
    /// None where the process cannot be found.
    pub pid: Option<u32>,
    /// Its name, at most 15 bytes (`/proc/PID/comm`).
    pub command: Option<String>,
}

impl fmt::Display for Holder {
    /// `tcp 0.0.0.0:8080 is held by nginx (pid 4711)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addr = SocketAddr::new(self.addr, self.port);
        write!(f, "{} {addr} is held by ", self.proto)?;
        match (&self.command, self.pid) {
            (Some(command), Some(pid)) => write!(f, "{command} (pid {pid})"),
            (None, Some(pid)) => write!(f, "pid {pid}"),
            _ => f.write_str("a process that cannot be seen from here"),
        }
    }
}

impl Holder {
    /// A socket of this process that listens for TCP connections at `own`, where that is in the way of `ports` on
    /// `host_ip`, as [`Sockets::holder`] has it.
    pub fn this_process(
        own: SocketAddr,
        ports: RangeInclusive<u16>,
        host_ip: IpAddr,
    ) -> Option<Self> {
        let entry = Entry {
            addr: own.ip(),
            port: own.port(),
            inode: 0,
            v6only: false,
        };
        let pid = std::process::id();
        (ports.contains(&entry.port) && overlaps(&entry, host_ip)).then(|| Self {
            proto: Protocol::Tcp,
            addr: entry.addr,
            port: entry.port,
            pid: Some(pid),
            command: command(pid),
        })
    }
}

/// A socket that has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub addr: IpAddr,
    pub port: u16,
    pub inode: u64,
    /// On `[::]`, but not for IPv4. Not known from `/proc`.
    pub v6only: bool,
}

/// `TCP_LISTEN` (net/tcp_states.h).
const LISTEN: u8 = 10;

/// The sockets of the calling thread's namespace that have ports, at one moment: TCP and SCTP sockets that
/// listen, UDP sockets that are bound. TCP sockets that are bound and neither listen nor are connected, too,
/// where the kernel tells of those (6.8).
pub struct Sockets {
    protocol: Protocol,
    entries: Vec<Entry>,
    /// Inodes of those that do not count; not known before one is asked for, since to find them takes as
    /// long as the look itself.
    ignored: OnceCell<HashSet<u64>>,
}

impl Sockets {
    pub fn look(protocol: Protocol) -> Result<Self, NetError> {
        let entries = match diag::sockets(protocol) {
            Ok(sockets) => sockets,
            // The kernel has no SCTP, or nobody has used it yet; its table has another form.
            Err(_) if protocol == Protocol::Sctp => Vec::new(),
            Err(_) => tables(protocol)?,
        };
        Ok(Self {
            protocol,
            entries,
            ignored: OnceCell::from(HashSet::new()),
        })
    }

    /// The same without this process's own: the agent's name servers have ports that nobody asks them at.
    pub fn of_others(protocol: Protocol) -> Result<Self, NetError> {
        Ok(Self {
            ignored: OnceCell::new(),
            ..Self::look(protocol)?
        })
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// One of those that a publish of `ports` on `host_ip` (unspecified: any local address of the family)
    /// would take packets from.
    ///
    /// A socket on another specific address is no conflict; one on `[::]` is one for IPv4 as well, unless
    /// it is `IPV6_V6ONLY`.
    pub fn holder(&self, ports: RangeInclusive<u16>, host_ip: IpAddr) -> Option<Holder> {
        let entry = self.in_the_way(ports, host_ip).next()?;
        // Reading every process's files takes long; nobody pays for it while all is well.
        let pid = owners().get(&entry.inode).copied();
        Some(Holder {
            proto: self.protocol,
            addr: entry.addr,
            port: entry.port,
            pid,
            command: pid.and_then(command),
        })
    }

    /// The ports of all of them.
    pub fn ports(&self, ports: RangeInclusive<u16>, host_ip: IpAddr) -> impl Iterator<Item = u16> {
        self.in_the_way(ports, host_ip).map(|entry| entry.port)
    }

    fn in_the_way(
        &self,
        ports: RangeInclusive<u16>,
        host_ip: IpAddr,
    ) -> impl Iterator<Item = &Entry> {
        let own = || inodes(Path::new("/proc/self/fd"));
        self.entries.iter().filter(move |entry| {
            ports.contains(&entry.port)
                && overlaps(entry, host_ip)
                && !self.ignored.get_or_init(own).contains(&entry.inode)
        })
    }
}

/// The same from `/proc`.
fn tables(proto: Protocol) -> Result<Vec<Entry>, NetError> {
    let mut entries = table(proto, "")?;
    entries.extend(table(proto, "6")?);
    Ok(entries)
}

fn table(proto: Protocol, six: &str) -> Result<Vec<Entry>, NetError> {
    let path = format!("/proc/thread-self/net/{proto}{six}");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text
            .lines()
            .skip(1)
            .filter_map(parse)
            .filter(|(state, _)| proto != Protocol::Tcp || *state == LISTEN)
            .map(|(_, entry)| entry)
            .collect()),
        // No IPv6 in this kernel.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(NetError::system(format!("read {path}"))(error)),
    }
}

/// Does the socket receive what is sent to `wanted`?
fn overlaps(held: &Entry, wanted: IpAddr) -> bool {
    match (held.addr.to_canonical(), wanted) {
        (IpAddr::V6(addr), IpAddr::V4(_)) => addr.is_unspecified() && !held.v6only,
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
        (addr, wanted) => addr.is_unspecified() || wanted.is_unspecified() || addr == wanted,
    }
}

/// `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …`, with addresses as
/// 32-bit words of host order in hexadecimal. State and entry.
fn parse(line: &str) -> Option<(u8, Entry)> {
    let mut fields = line.split_ascii_whitespace();
    let (addr, port) = fields.nth(1)?.split_once(':')?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    let entry = Entry {
        addr: parse_address(addr)?,
        port: u16::from_str_radix(port, 16).ok()?,
        inode,
        v6only: false,
    };
    Some((state, entry))
}

fn parse_address(hex: &str) -> Option<IpAddr> {
    let mut octets = [0; 16];
    let length = hex.len() / 2;
    if !hex.is_ascii() || !matches!(hex.len(), 8 | 32) {
        return None;
    }
    for (word, at) in octets.chunks_exact_mut(4).zip((0..hex.len()).step_by(8)) {
        let value = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    if length == 16 {
        return Some(Ipv6Addr::from(octets).into());
    }
    let [a, b, c, d, ..] = octets;
    Some(Ipv4Addr::new(a, b, c, d).into())
}

/// Which process has the socket of an inode open; the lowest process id where several do.
fn owners() -> HashMap<u64, u32> {
    let mut owners = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else {
        return owners;
    };
    let mut pids: Vec<u32> = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        // It may have ended by now, or be another user's.
        for inode in inodes(Path::new(&format!("/proc/{pid}/fd"))) {
            owners.entry(inode).or_insert(pid);
        }
    }
    owners
}

/// The sockets among the open files of a process; none where they cannot be seen.
fn inodes(files: &Path) -> HashSet<u64> {
    let files = fs::read_dir(files).into_iter().flatten().flatten();
    files
        .filter_map(|file| socket_inode(fs::read_link(file.path()).ok()?.to_str()?))
        .collect()
}

/// The inode in `socket:[12345]`.
fn socket_inode(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

fn command(pid: u32) -> Option<String> {
    let mut name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    name.truncate(name.trim_end().len());
    Some(name)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     \
                    0        0 12345 1 0000000000000000 100 0 0 10 0";
        assert_eq!(
            parse(line),
            Some((
                LISTEN,
                Entry {
                    addr: Ipv4Addr::LOCALHOST.into(),
                    port: 8080,
                    inode: 12345,
                    v6only: false,
                }
            ))
        );
        let line = "  12: 00000000000000000000000001000000:0035 \
                    00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 \
                    101        0 999 2 0000000000000000 0";
        assert_eq!(
            parse(line),
            Some((
                7,
                Entry {
                    addr: Ipv6Addr::LOCALHOST.into(),
                    port: 53,
                    inode: 999,
                    v6only: false,
                }
            ))
        );
    }

    #[test]
    fn who_conflicts() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (held, v6only, wanted, conflict) in [
            ("0.0.0.0", false, "0.0.0.0", true),
            ("127.0.0.1", false, "0.0.0.0", true),
            ("0.0.0.0", false, "192.0.2.1", true),
            ("192.0.2.1", false, "192.0.2.1", true),
            ("192.0.2.2", false, "192.0.2.1", false),
            ("::", false, "192.0.2.1", true),
            ("::", false, "0.0.0.0", true),
            ("::", true, "192.0.2.1", false),
            ("::", true, "0.0.0.0", false),
            ("::", true, "2001:db8::1", true),
            ("::", true, "::", true),
            ("::ffff:192.0.2.1", false, "192.0.2.1", true),
            ("::ffff:192.0.2.1", false, "::", false),
            ("::1", false, "192.0.2.1", false),
            ("::1", false, "0.0.0.0", false),
            ("::1", false, "::", true),
            ("::1", false, "2001:db8::1", false),
            ("0.0.0.0", false, "::1", false),
            ("0.0.0.0", false, "::", false),
            ("192.0.2.2", false, "0.0.0.0", true),
        ] {
            let entry = Entry {
                addr: ip(held),
                port: 1,
                inode: 1,
                v6only,
            };
            assert_eq!(overlaps(&entry, ip(wanted)), conflict, "{held} {wanted}");
        }
    }

    #[test]
    fn both_sources_agree() {
        let bound = ["127.0.0.1:0", "[::1]:0"].map(|at| {
            let tcp = TcpListener::bind(at).unwrap();
            let udp = UdpSocket::bind(at).unwrap();
            let ports = [tcp.local_addr(), udp.local_addr()].map(|at| at.unwrap());
            ((tcp, udp), ports)
        });
        for (_held, ports) in &bound {
            for (proto, at) in [Protocol::Tcp, Protocol::Udp].into_iter().zip(ports) {
                let find = |entries: Vec<Entry>| {
                    let mut entries = entries.into_iter();
                    let entry = entries.find(|e| (e.addr, e.port) == (at.ip(), at.port()))?;
                    Some((entry.addr, entry.port, entry.inode))
                };
                let from_proc = find(tables(proto).unwrap());
                assert!(from_proc.is_some(), "{proto} {at}");
                // A kernel without sock_diag has one source only.
                if let Ok(entries) = diag::sockets(proto) {
                    assert_eq!(find(entries), from_proc, "{proto} {at}");
                }
            }
        }
    }

    #[test]
    fn this_process_is_found() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (proto, port) in [
            (Protocol::Tcp, tcp.local_addr().unwrap().port()),
            (Protocol::Udp, udp.local_addr().unwrap().port()),
        ] {
            let sockets = Sockets::look(proto).unwrap();
            let held = sockets.holder(port..=port, Ipv4Addr::UNSPECIFIED.into());
            let holder = held.unwrap();
            assert_eq!(holder.pid, Some(std::process::id()));
            assert_eq!(
                (holder.addr, holder.port),
                (Ipv4Addr::LOCALHOST.into(), port)
            );
            assert!(holder.command.is_some());
            let elsewhere = sockets.holder(port..=port, "192.0.2.1".parse().unwrap());
            assert_eq!(elsewhere, None);
        }
    }

    #[test]
    fn protocols_have_words() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
            assert_eq!(
                serde_json::to_string(&protocol).unwrap(),
                format!("\"{protocol}\"")
            );
        }
        assert!("icmp".parse::<Protocol>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_parsed_or_not(line in ".*") {
            let _ = parse(&line);
        }
    }
}
