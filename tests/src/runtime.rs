//! What the tests of container runtimes share: which programs those take, and an image that comes from no registry.

use std::{
    env::consts::ARCH,
    fs,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Agent, Lab, Namespace,
    agent::binary,
    netns::stdout,
    programs::{curl, sha256},
    reaper,
    topology::{NODE, NODE6},
    wait::wait_until,
};

const SOON: Duration = Duration::from_secs(10);

/// busybox for each image's root file system, and the Debian package it is in.
pub const BUSYBOX: (&str, &str) = ("/bin/busybox", "busybox-static");

/// What a container has of busybox.
const APPLETS: [&str; 7] = ["sh", "httpd", "wget", "cat", "ip", "ls", "sleep"];

/// What a container serves that runs [`HTTPD`].
pub const PAGE: &str = "hello from the container\n";

/// A server of [`PAGE`] on port 80, IPv4 and IPv6; a line a request, with the client's address, goes to stderr.
pub const HTTPD: [&str; 7] = ["httpd", "-f", "-vv", "-p", "80", "-h", "/www"];

/// The image that [`image`] makes, as runtimes call it.
pub const IMAGE: &str = "docker.io/library/bb:1";

/// Whether the programs, each with its Debian package, are there; says which is not.
pub fn are_there(programs: &[(&str, &str)]) -> bool {
    let missing = programs
        .iter()
        .find(|(program, _)| !Path::new(program).exists());
    if let Some((program, package)) = missing {
        eprintln!("skipped: there is no {program} (Debian's {package})");
    }
    missing.is_none()
}

/// A directory that is gone when the tests end.
pub fn directory(prefix: &str) -> TempDir {
    let directory = tempfile::Builder::new()
        .prefix(prefix)
        .tempdir()
        .expect("a temporary directory can be made");
    reaper::at_end(&format!("rm -rf '{}'", directory.path().display()));
    directory
}

/// Puts the CNI plugin into a directory, as the Debian package does.
pub fn install(directory: &Path) -> PathBuf {
    let plugin = directory.join("netfw-cni");
    symlink(binary(), &plugin).expect("a link in our own directory");
    plugin
}

/// Makes the image in that directory: busybox and a page, in the form of `docker save`, which `podman load`,
/// `docker load` and `ctr image import` take. A container without a command of its own sleeps.
#[track_caller]
pub fn image(directory: &Path) -> PathBuf {
    let root = directory.join("rootfs");
    for directory in ["bin", "etc", "tmp", "www"] {
        fs::create_dir_all(root.join(directory)).expect("a new directory");
    }
    fs::copy(BUSYBOX.0, root.join("bin/busybox")).expect("a copy of busybox");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("a new link");
    }
    fs::write(root.join("www/index.html"), PAGE).expect("a new file");

    let image = directory.join("image");
    fs::create_dir(&image).expect("a new directory");
    let layer = image.join("layer.tar");
    pack(&root, &layer, &["."]);
    // As Go calls it.
    let architecture = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "86400"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(image.join(name), content.to_string()).expect("a new file");
    }
    let archive = directory.join("image.tar");
    pack(
        &image,
        &archive,
        &["manifest.json", "config.json", "layer.tar"],
    );
    archive
}

#[track_caller]
fn pack(directory: &Path, archive: &Path, files: &[&str]) {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(directory).arg("-cf").arg(archive);
    stdout(tar.args(files));
}

/// A line of shell that unmounts what a runtime has mounted below its own directory.
pub fn unmount(directory: &str) -> String {
    format!(
        "awk -v p='{directory}/' 'index($2, p) == 1 {{ print $2 }}' /proc/self/mounts | tac | xargs -r umount -l"
    )
}

/// Waits until the client has [`PAGE`] from a port of the node, over IPv4 and IPv6.
#[track_caller]
pub fn serves(lab: &Lab, port: u16) {
    for node in [NODE, NODE6] {
        serves_on(lab, node, port);
    }
}

/// As [`serves`], of one address of the node.
#[track_caller]
pub fn serves_on(lab: &Lab, node: IpAddr, port: u16) {
    wait_until(&format!("the page on {node}"), SOON, || {
        curl(&lab.client, node, port, "/").as_deref() == Some(PAGE)
    });
}

/// The endpoint that a container is, while there is one.
#[track_caller]
pub fn endpoint(agent: &Agent, name: &str) -> Option<Value> {
    let all = agent.json(&["endpoint", "ls"]);
    let mut all = all.as_array().expect("a list").iter();
    all.find(|e| e["name"] == name).cloned()
}

/// Panics unless no rule of anybody's is in that namespace.
#[track_caller]
pub fn has_no_rules(node: &Namespace) {
    for look in [
        &["iptables-save"][..],
        &["ip6tables-save"],
        &["nft", "list", "ruleset"],
    ] {
        assert_eq!(node.run(look), "", "{look:?}");
    }
}
