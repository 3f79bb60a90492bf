//! Which of the kernel's modules go along: those of networking, and what they depend on.
//!
//! Nothing is loaded beforehand but the guest's devices' drivers. The kernel asks for what it needs, as on any node: veth when a
//! pair is made, sch_ingress when a filter is attached. So nothing in netfw can rely on a module
//! that only the tests brought.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{image::Image, initramfs::Archive};

/// Beginnings of names below the kernel's modules.
const WANTED: &[&str] = &[
    "kernel/arch/x86/crypto/crc32c",
    "kernel/crypto/crc32c",
    "kernel/drivers/net/dummy.",
    "kernel/drivers/net/tun.",
    "kernel/drivers/net/veth.",
    "kernel/drivers/net/virtio_net.",
    "kernel/drivers/virtio/virtio_pci.",
    "kernel/net/8021q/",
    "kernel/net/bridge/",
    "kernel/net/ipv4/",
    "kernel/net/ipv6/",
    "kernel/net/netfilter/",
    "kernel/net/netlink/",
    "kernel/net/packet/",
    "kernel/net/sched/",
    "kernel/net/sctp/",
    "kernel/net/unix/",
];

pub fn add(archive: &mut Archive, image: &Image) -> Result<()> {
    let from = image.modules();
    let to = Path::new("/lib/modules").join(&image.release);
    let list = from.join("modules.dep");
    let list =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    for module in wanted(&list) {
        archive.copy(&from.join(module), to.join(module))?;
    }
    for entry in fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))? {
        let name = entry?.file_name();
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("modules."))
        {
            archive.copy(&from.join(&name), to.join(&name))?;
        }
    }
    Ok(())
}

/// Of a modules.dep (`module: module…`, the second those that it needs), the wanted and all that
/// they need.
fn wanted(list: &str) -> BTreeSet<&str> {
    let needs: BTreeMap<&str, &str> = list
        .lines()
        .filter_map(|line| line.split_once(':'))
        .collect();
    let mut todo: Vec<&str> = needs
        .keys()
        .copied()
        .filter(|module| WANTED.iter().any(|wanted| module.starts_with(wanted)))
        .collect();
    let mut found = BTreeSet::new();
    while let Some(module) = todo.pop() {
        if found.insert(module) {
            todo.extend(
                needs
                    .get(module)
                    .into_iter()
                    .flat_map(|n| n.split_whitespace()),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn a_module_brings_what_it_needs() {
        let list = "kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                    kernel/net/802/stp.ko: kernel/net/llc/llc.ko\n\
                    kernel/net/llc/llc.ko:\n\
                    kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\n";
        let found: Vec<_> = wanted(list).into_iter().collect();
        assert_eq!(
            found,
            [
                "kernel/net/802/stp.ko",
                "kernel/net/bridge/bridge.ko",
                "kernel/net/llc/llc.ko"
            ]
        );
    }
}
