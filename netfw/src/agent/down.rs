//! `netfw down`: everything of an instance away, whatever state it is in.
//!
//! It takes no agent and no intact store. Each thing is looked for where it may be; what cannot be
//! removed is reported, and the rest goes on. Run again, it finds less, in the end nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    files,
    paths::{Lock, LockError, Paths},
    record::{Endpoint, Node, Wanted},
    store::{Store, StoreError},
};
use crate::{
    api::client::{Client, ClientError},
    bpf::DataPlane,
    docker,
    name::Name,
    net::{Link, Namespace, Netlink, namespace},
};

/// How long a running agent gets to hear that it shall end.
const PATIENCE: Duration = Duration::from_secs(15);
/// And to end, once it has heard: as long as the unit gives it.
const ENDING: Duration = Duration::from_secs(60);

/// What was removed, and what could not be.
#[derive(Debug, Default)]
pub struct Report {
    pub removed: Vec<String>,
    pub errors: Vec<String>,
}

impl Report {
    fn note<E: std::error::Error>(&mut self, what: impl Into<String>, result: Result<(), E>) {
        let what = what.into();
        match result {
            Ok(()) => self.removed.push(what),
            Err(error) => self
                .errors
                .push(format!("{what}: {}", crate::chain(&error))),
        }
    }
}

/// Removes the instance. The calling thread must be the process's only one: it enters the
/// instance's namespace.
pub fn down(instance: &Name) -> Report {
    let mut report = Report::default();
    let paths = Paths::of(instance);
    let anything = paths.run.exists() || paths.state.exists() || DataPlane::exists(instance);
    let Some(_lock) = stop_agent(instance, &paths, &mut report) else {
        return report;
    };
    clear(instance, &paths, &mut report);
    if !anything {
        report.removed.clear();
    }
    report
}

/// Removes the instance, which nobody else has: the caller holds its lock. Not to be called from
/// within a runtime.
pub fn clear(instance: &Name, paths: &Paths, report: &mut Report) {
    let (wanted, unreadable) = match read_store(paths) {
        Ok(wanted) => (wanted, None),
        // Interfaces are known by their alias and pins by their path all the same; only namespaces
        // that netfw made are known from nowhere else.
        Err(error) => (
            Wanted::default(),
            Some(format!(
                "{}; namespaces that netfw made may remain (`ip netns` lists all)",
                crate::chain(&error)
            )),
        ),
    };
    match wanted.node.as_ref().map(locate) {
        Some(Some(node)) => {
            remove_links(instance, &wanted, &node, report);
            // Filters without TCX are found on interfaces: the data plane is removed in there.
            if let Err(error) = node.enter() {
                report.errors.push(crate::chain(&error));
            }
        }
        Some(None) => report
            .removed
            .push("(the node's namespace is gone, and its interfaces with it)".into()),
        // Nobody knows which namespace it was; the aliases do.
        None => {
            for namespace in Namespace::current().into_iter().chain(named()) {
                remove_links(instance, &wanted, &namespace, report);
            }
        }
    }
    let pins = DataPlane::exists(instance);
    match DataPlane::remove(instance) {
        Ok(()) if pins => report.removed.push("programs and maps".into()),
        Ok(()) => {}
        Err(errors) => report.errors.extend(
            errors
                .iter()
                .map(|e| format!("data plane: {}", crate::chain(e))),
        ),
    }
    let all = wanted.endpoints.values();
    let made = |e: &&Endpoint| e.with_predecessor().any(|e| e.namespace.made);
    for endpoint in all.filter(made) {
        let path = PathBuf::from(namespace::DIRECTORY).join(endpoint.name.as_str());
        if path.symlink_metadata().is_ok() {
            report.note(
                format!("namespace {}", endpoint.name),
                Namespace::delete(&endpoint.name),
            );
        }
    }
    remove_rules(&wanted, report);
    if let Err(error) = files::remove_all(paths) {
        report.errors.push(format!("files for /etc: {error}"));
    }
    // Last: while anything is left, the store says what.
    if report.errors.is_empty() {
        remove_directory(&paths.state, report);
    }
    remove_directory(&paths.run, report);
    match docker::remove_socket(instance) {
        Ok(true) => report
            .removed
            .push("the socket of the driver for Docker".into()),
        Ok(false) => {}
        Err(error) => report
            .errors
            .push(format!("the socket of the driver for Docker: {error}")),
    }
    docker::remove_directories();
    report.errors.extend(unreadable);
}

/// The lock, once no agent has it. None: it would not end.
fn stop_agent(instance: &Name, paths: &Paths, report: &mut Report) -> Option<Lock> {
    let mut deadline = Instant::now() + PATIENCE;
    let mut asked = false;
    loop {
        match paths.lock() {
            Ok(lock) => return Some(lock),
            Err(LockError::Held { pid, .. }) if Instant::now() < deadline => {
                if !asked {
                    // It may be starting, and not listen yet: asked again until it answers.
                    asked = ask(instance).is_ok();
                    if asked {
                        deadline = Instant::now() + ENDING;
                        report.removed.push(match pid {
                            Some(pid) => format!("agent (process {pid})"),
                            None => "agent".into(),
                        });
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(LockError::Held { pid, .. }) => {
                report.errors.push(match pid {
                    Some(pid) => format!(
                        "the agent (process {pid}) does not end: `kill -KILL {pid}` ends one that hangs"
                    ),
                    None => "the agent does not end, and nobody knows its process".into(),
                });
                return None;
            }
            Err(error) => {
                report.errors.push(crate::chain(&error));
                return None;
            }
        }
    }
}

fn ask(instance: &Name) -> Result<(), ClientError> {
    let client = Client::new(instance).telling().with_patience(PATIENCE);
    crate::block_on(client.shutdown())
}

fn read_store(paths: &Paths) -> Result<Wanted, StoreError> {
    if !paths.store().exists() {
        return Ok(Wanted::default());
    }
    Store::open(&paths.store())?.load()
}

fn remove_links(instance: &Name, wanted: &Wanted, namespace: &Namespace, report: &mut Report) {
    crate::block_on(async {
        let links = async {
            let netlink = Netlink::within(namespace)?;
            let links = netlink.links().await?;
            Ok::<_, crate::net::NetError>((netlink, links))
        };
        let (netlink, links) = match links.await {
            Ok(both) => both,
            Err(error) => return report.errors.push(crate::chain(&error)),
        };
        let ours = links.iter().filter(|link| wanted.owns(instance, link));
        let ours: Vec<&Link> = ours.collect();
        let all: Vec<u32> = ours.iter().map(|link| link.index).collect();
        if let Err(error) = netlink.delete_links(&all).await {
            tracing::debug!(error = %crate::chain(&error), "not all interfaces at once");
        }
        // What that left, each alone.
        for link in ours {
            report.note(
                format!("interface {}", link.name),
                netlink.delete_link(link.index).await,
            );
        }
    });
}

/// The rules that containers in several networks have, in namespaces that are not ours to delete.
fn remove_rules(wanted: &Wanted, report: &mut Report) {
    let endpoints = wanted.endpoints.values();
    let endpoints = endpoints.flat_map(Endpoint::with_predecessor);
    for endpoint in endpoints.filter(|e| e.attachments.len() > 1 && !e.namespace.made) {
        let Ok(namespace) = Namespace::at_path(&endpoint.namespace.path) else {
            continue;
        };
        let done = crate::block_on(async {
            let netlink = Netlink::within(&namespace)?;
            for attachment in &endpoint.attachments {
                for ip in attachment.ips() {
                    netlink.delete_source_rule(ip, attachment.table()).await?;
                }
            }
            Ok::<_, crate::net::NetError>(())
        });
        report.note(format!("rules of endpoint {}", endpoint.name), done);
    }
}

fn remove_directory(path: &Path, report: &mut Report) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => report.note(path.display().to_string(), result),
    }
}

/// The namespace of that record, if it lives: this one, the one of that path, the machine's own,
/// or one of those with a name.
pub fn locate(node: &Node) -> Option<Namespace> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if boot.trim() != node.boot {
        // A reboot: identities mean nothing. A path does, if it is there again.
        return match &node.netns {
            Some(path) => Namespace::at_path(path).ok(),
            None => Namespace::current().ok(),
        };
    }
    node.netns
        .clone()
        .into_iter()
        .chain([PathBuf::from("/proc/1/ns/net")])
        .filter_map(|path| Namespace::at_path(&path).ok())
        .chain(Namespace::current())
        .chain(named())
        .find(|namespace| namespace.id() == node.id)
}

/// All namespaces that have a name.
fn named() -> impl Iterator<Item = Namespace> {
    fs::read_dir(namespace::DIRECTORY)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Namespace::at_path(&entry.path()).ok())
}
