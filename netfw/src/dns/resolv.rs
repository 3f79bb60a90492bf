//! `/etc/resolv.conf`: the node's resolvers, and how they are to be asked (resolv.conf(5)).
//!
//! Search domains and `ndots` are a container's own business: it has a file of its own.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use netfw_common::record::DNS_PORT;
use nix::net::if_::if_nametoindex;

pub const PATH: &str = "/etc/resolv.conf";

/// How often the file is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// In order; never empty. Where a scope is named, and not numbered, it is 0 here: see
    /// [`Self::servers_now`].
    pub servers: Vec<SocketAddr>,
    /// The interfaces that are the scopes of `servers`, where they are named.
    scopes: Vec<Option<String>>,
    /// Until the next one is asked; None if the file does not say.
    pub timeout: Option<Duration>,
    /// How often each is asked.
    pub attempts: usize,
    /// Each query begins with another one.
    pub rotate: bool,
    /// They are asked by TCP only.
    pub use_vc: bool,
}

impl Config {
    /// What an unreadable file says is what an empty one does.
    pub fn of_file(path: &Path) -> Self {
        Self::parse(&fs::read_to_string(path).unwrap_or_default())
    }

    /// Lines that make no sense are passed over, as the C library does.
    pub fn parse(text: &str) -> Self {
        let mut config = Self {
            servers: Vec::new(),
            scopes: Vec::new(),
            timeout: None,
            attempts: 2,
            rotate: false,
            use_vc: false,
        };
        for line in text.lines() {
            // A keyword stands at the line's very beginning.
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if line.starts_with('n') => {
                    if let Some((server, scope)) = words.next().and_then(server) {
                        config.servers.push(server);
                        config.scopes.push(scope);
                    }
                }
                Some("options") if line.starts_with('o') => words.for_each(|word| config.set(word)),
                _ => {}
            }
        }
        if config.servers.is_empty() {
            // What an empty file means.
            config.servers.push((Ipv4Addr::LOCALHOST, DNS_PORT).into());
            config.scopes.push(None);
        }
        config
    }

    /// Those that can be asked now: an interface may come later than the file, and be another one by
    /// and by.
    pub fn servers_now(&self) -> impl Iterator<Item = SocketAddr> {
        let servers = self.servers.iter().zip(&self.scopes);
        servers.filter_map(|(&server, scope)| match (server, scope) {
            (SocketAddr::V6(mut server), Some(scope)) => {
                server.set_scope_id(if_nametoindex(scope.as_str()).ok()?);
                Some(server.into())
            }
            _ => Some(server),
        })
    }

    /// These, and nothing said of how to ask them.
    #[cfg(test)]
    pub(super) fn of(servers: impl Iterator<Item = SocketAddr>) -> Self {
        let servers: Vec<_> = servers.collect();
        Self {
            scopes: vec![None; servers.len()],
            servers,
            ..Self::parse("")
        }
    }

    fn set(&mut self, option: &str) {
        match option {
            "rotate" => self.rotate = true,
            "use-vc" => self.use_vc = true,
            _ => {}
        }
        let Some((option, Ok(number))) = option
            .split_once(':')
            .map(|(option, number)| (option, number.parse::<u64>()))
        else {
            return;
        };
        match option {
            // The C library's bounds (RES_MAXRETRANS, RES_MAXRETRY).
            "timeout" => self.timeout = Some(Duration::from_secs(number.clamp(1, 30))),
            "attempts" => self.attempts = number.clamp(1, 5) as usize,
            _ => {}
        }
    }
}

/// An address, with a scope where it needs one: `fe80::1%eth0`, which is looked up when it is asked.
fn server(word: &str) -> Option<(SocketAddr, Option<String>)> {
    if let Ok(addr) = word.parse::<IpAddr>() {
        return Some(((addr, DNS_PORT).into(), None));
    }
    let (addr, scope) = word.split_once('%')?;
    let (number, name) = match scope.parse() {
        Ok(number) => (number, None),
        Err(_) => (0, Some(scope.to_owned())),
    };
    let addr = SocketAddrV6::new(addr.parse().ok()?, DNS_PORT, 0, number);
    Some((addr.into(), name))
}

/// The file as it is now, or was a second ago.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    config: Arc<Config>,
}

/// What is different after a change.
#[derive(PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl File {
    pub fn new(path: PathBuf) -> Self {
        let seen = Mutex::new(Seen {
            looked: None,
            stamp: None,
            config: Arc::new(Config::parse("")),
        });
        Self { path, seen }
    }

    /// A file that is gone, or cannot be read, leaves what it last said.
    pub fn current(&self) -> Arc<Config> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if seen.looked.is_none_or(|looked| now - looked >= LOOK) {
            seen.looked = Some(now);
            self.look(&mut seen);
        }
        seen.config.clone()
    }

    fn look(&self, seen: &mut Seen) {
        let Ok(metadata) = fs::metadata(&self.path) else {
            return;
        };
        let stamp = Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        if seen.stamp.as_ref() == Some(&stamp) {
            return;
        }
        match fs::read(&self.path) {
            Ok(bytes) => {
                let config = Config::parse(&String::from_utf8_lossy(&bytes));
                tracing::debug!(path = %self.path.display(), ?config, "resolvers");
                (seen.stamp, seen.config) = (Some(stamp), Arc::new(config));
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "resolvers cannot be read");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|addr| addr.parse().unwrap()).collect()
    }

    #[test]
    fn what_the_file_may_say() {
        let config = Config::parse(
            "# nameserver 192.0.2.1\n\
             ; nameserver 192.0.2.2\n\
             search example.org\n\
             nameserver 192.0.2.53\n\
             nameserver\t2001:db8::53 # the other\n\
             \x20nameserver 192.0.2.4\n\
             nameserver fe80::1%1\n\
             nameserver fe80::1%no-such-link\n\
             nameserver nonsense\n\
             nameserver\n\
             options ndots:5 timeout:3 rotate\n\
             options attempts:4 edns0 use-vc\n",
        );
        assert_eq!(
            config,
            Config {
                servers: servers(&[
                    "192.0.2.53:53",
                    "[2001:db8::53]:53",
                    "[fe80::1%1]:53",
                    "[fe80::1]:53",
                ]),
                scopes: vec![None, None, None, Some("no-such-link".into())],
                timeout: Some(Duration::from_secs(3)),
                attempts: 4,
                rotate: true,
                use_vc: true,
            }
        );
    }

    #[test]
    fn an_interface_is_looked_up_when_it_is_asked() {
        let config = Config::parse("nameserver fe80::1%lo\nnameserver fe80::2%no-such-link\n");
        let lo = if_nametoindex("lo").unwrap();
        let now: Vec<_> = config.servers_now().collect();
        assert_eq!(now, servers(&[&format!("[fe80::1%{lo}]:53")]));
        // One that is no use now is not the same as none.
        let config = Config::parse("nameserver fe80::2%no-such-link\n");
        assert_eq!(config.servers_now().count(), 0);
        assert_eq!(config.servers.len(), 1);
    }

    #[test]
    fn bounds_and_nonsense() {
        let config = Config::parse("options timeout:900 attempts:99\n");
        assert_eq!(
            (config.timeout, config.attempts),
            (Some(Duration::from_secs(30)), 5)
        );
        let config = Config::parse("options timeout:0 attempts:0\n");
        assert_eq!(
            (config.timeout, config.attempts),
            (Some(Duration::from_secs(1)), 1)
        );
        assert_eq!(Config::parse("").servers, servers(&["127.0.0.1:53"]));
    }

    #[test]
    fn changes_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let write = |text: &str| {
            let new = directory.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &path).unwrap();
        };
        let file = File::new(path.clone());
        let look_again = || {
            file.seen.lock().unwrap().looked = None;
            file.current().servers.clone()
        };
        assert_eq!(look_again(), servers(&["127.0.0.1:53"]));
        write("nameserver 192.0.2.1\n");
        assert_eq!(look_again(), servers(&["192.0.2.1:53"]));
        write("nameserver 192.0.2.2\n");
        assert_eq!(
            file.current().servers,
            servers(&["192.0.2.1:53"]),
            "not yet"
        );
        assert_eq!(look_again(), servers(&["192.0.2.2:53"]));
        fs::remove_file(&path).unwrap();
        assert_eq!(
            look_again(),
            servers(&["192.0.2.2:53"]),
            "it is being replaced"
        );
    }
}
