//! What programs in a container look for in `/etc`: `resolv.conf`, `hosts`, `hostname`.
//!
//! They lie in the instance's run directory, one directory an endpoint. `netfw exec` puts them over those
//! of `/etc`; so does `ip netns exec` for a namespace that netfw made, which looks in `/etc/netns/NAME`: a
//! symbolic link there leads to them.

use std::{
    fmt::Write as _,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{
    Agent,
    paths::Paths,
    record::{Endpoint, Family, Mode},
};
use crate::{dns::resolv, name::Name};

/// Names of the files, here and in `/etc`.
pub const FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];

/// Where `ip netns exec` looks.
const NETNS: &str = "/etc/netns";

/// An endpoint's files, to be written.
pub(super) struct Files {
    directory: PathBuf,
    contents: Contents,
    /// Does `ip netns exec` know its namespace?
    named: bool,
}

/// What the files say.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Contents {
    name: Name,
    ips: Vec<IpAddr>,
    nameservers: Vec<IpAddr>,
    /// The node's `resolv.conf`, for what it says beside resolvers.
    node: String,
}

impl Contents {
    fn text(&self, file: &str) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        match file {
            "resolv.conf" => {
                // Names without a dot are asked for as they are, before a search domain is put behind them: they
                // are endpoints', and no resolver of the node is to be asked first.
                let mut options = vec!["ndots:0"];
                text.push_str("# netfw: names of endpoints, and what the node's resolvers know.\n");
                for ip in &self.nameservers {
                    let _ = writeln!(text, "nameserver {ip}");
                }
                for line in self.node.lines() {
                    let mut words = line.split_whitespace();
                    match words.next() {
                        Some("search" | "domain") => {
                            let _ = writeln!(text, "{line}");
                        }
                        Some("options") => {
                            options.extend(words.filter(|word| !word.starts_with("ndots:")));
                        }
                        _ => {}
                    }
                }
                let _ = writeln!(text, "options {}", options.join(" "));
            }
            "hosts" => {
                text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
                for ip in &self.ips {
                    let _ = writeln!(text, "{ip}\t{}", self.name);
                }
            }
            _ => {
                let _ = writeln!(text, "{}", self.name);
            }
        }
        text
    }
}

impl Files {
    /// Trouble is reported: the endpoint works without.
    pub(super) fn write(&self) {
        let name = &self.contents.name;
        if self.named
            && let Err(error) = link(&self.directory, name)
        {
            tracing::warn!(endpoint = %name, %error, "`ip netns exec` will not find its files for /etc");
        }
        if let Err(error) = write(&self.directory, &self.contents) {
            tracing::warn!(
                endpoint = %name,
                %error,
                "without files for /etc in {}",
                self.directory.display()
            );
        }
    }
}

impl Agent {
    /// Writes an endpoint's files, as it is now.
    pub(super) fn write_files(&self, endpoint: &Endpoint) {
        if let Some(files) = self.files(endpoint) {
            files.write();
        }
    }

    /// An endpoint's files, as it is now; none where it has the node's, or another's.
    pub(super) fn files(&self, endpoint: &Endpoint) -> Option<Files> {
        if endpoint.mode != Mode::Networks {
            return None;
        }
        let node = fs::read_to_string(&self.config.resolv_conf).unwrap_or_default();
        let mut nameservers = self.gateways(endpoint);
        if nameservers.is_empty() {
            nameservers = reachable(&node);
        }
        let contents = Contents {
            nameservers,
            name: endpoint.name.clone(),
            ips: endpoint.attached().flat_map(|a| a.ips()).collect(),
            node,
        };
        Some(Files {
            directory: directory(&self.paths(), &endpoint.name),
            contents,
            named: endpoint.namespace.made,
        })
    }

    /// Of the networks by which the endpoint reaches the world, where those serve names.
    fn gateways(&self, endpoint: &Endpoint) -> Vec<IpAddr> {
        let of = |family| {
            let way = self.wanted.way_out(endpoint, family)?;
            let mut pools = self.pools(self.wanted.networks.get(&way.network)?);
            let pool = pools.find(|pool| Family::of(pool.gateway) == family)?;
            Some(pool.gateway).filter(|gateway| self.names.serves(*gateway))
        };
        [Family::V4, Family::V6]
            .into_iter()
            .filter_map(of)
            .collect()
    }

    pub(super) fn remove_files(&self, name: &Name) {
        if let Err(error) = remove(&self.paths(), name) {
            tracing::warn!(endpoint = %name, %error, "its files for /etc were not removed");
        }
    }

    fn paths(&self) -> Paths {
        Paths::of(&self.config.instance)
    }
}

/// The node's resolvers, but for those that only the node reaches.
fn reachable(resolv_conf: &str) -> Vec<IpAddr> {
    let servers = resolv::Config::parse(resolv_conf).servers;
    let ips = servers.iter().map(SocketAddr::ip);
    ips.filter(|ip| !ip.is_loopback()).collect()
}

/// Where an endpoint's files lie.
pub fn directory(paths: &Paths, name: &Name) -> PathBuf {
    paths.run.join("etc").join(name.as_str())
}

fn write(directory: &Path, contents: &Contents) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for file in FILES {
        let (path, text) = (directory.join(file), contents.text(file));
        // In place: where somebody has it mounted, he is to see the change.
        if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            fs::write(path, text)?;
        }
    }
    Ok(())
}

/// Leads from where `ip netns exec` looks to `directory`, unless something is there already.
fn link(directory: &Path, name: &Name) -> io::Result<()> {
    fs::create_dir_all(NETNS)?;
    match symlink(directory, Path::new(NETNS).join(name.as_str())) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Takes the files away, and the link that leads to them.
pub fn remove(paths: &Paths, name: &Name) -> io::Result<()> {
    let directory = directory(paths, name);
    let link = Path::new(NETNS).join(name.as_str());
    if fs::read_link(&link).is_ok_and(|to| to == directory) {
        fs::remove_file(&link)?;
        // Where it was the last of them; an error says that it was not.
        let _ = fs::remove_dir(NETNS);
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The same for all endpoints, known or not.
pub fn remove_all(paths: &Paths) -> io::Result<()> {
    let all = paths.run.join("etc");
    match fs::read_dir(NETNS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(links) => {
            for link in links {
                let link = link?.path();
                if fs::read_link(&link).is_ok_and(|to| to.starts_with(&all)) {
                    fs::remove_file(&link)?;
                }
            }
            let _ = fs::remove_dir(NETNS);
        }
    }
    match fs::remove_dir_all(&all) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        Contents {
            name: "web".parse().unwrap(),
            ips: ["172.18.0.2", "fd00::2"]
                .map(|ip| ip.parse().unwrap())
                .into(),
            nameservers: vec!["172.18.0.1".parse().unwrap()],
            node: "# by hand\nnameserver 192.0.2.53\nsearch example.org\noptions ndots:2 rotate\n"
                .into(),
        }
    }

    #[test]
    fn what_the_files_say() {
        let text = |file| contents().text(file);
        assert!(text("hosts").ends_with("172.18.0.2\tweb\nfd00::2\tweb\n"));
        assert_eq!(text("hostname"), "web\n");
        let resolv = text("resolv.conf");
        let lines: Vec<&str> = resolv.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "nameserver 172.18.0.1",
                "search example.org",
                "options ndots:0 rotate"
            ]
        );
    }

    #[test]
    fn what_only_the_node_reaches_is_no_resolver_of_a_container() {
        let text = "nameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver ::1\n";
        assert_eq!(reachable(text), ["192.0.2.53".parse::<IpAddr>().unwrap()]);
        assert!(reachable("").is_empty());
    }

    #[test]
    fn files_are_written_changed_and_left_alone() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("web");
        write(&directory, &contents()).unwrap();
        let inode = || fs::metadata(directory.join("hosts")).unwrap().ino();
        let before = inode();
        let mut changed = contents();
        changed.ips.pop();
        write(&directory, &changed).unwrap();
        assert_eq!(inode(), before);
        let hosts = fs::read_to_string(directory.join("hosts")).unwrap();
        assert_eq!(hosts, changed.text("hosts"));
    }
}
