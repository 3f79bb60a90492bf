//! Debian's kernel package: found by version, downloaded once, unpacked below target/ and never
//! installed: this machine goes on booting what it boots.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{output, run},
    packages,
};

pub struct Image {
    /// As `uname -r` says it.
    pub release: String,
    /// The package's content.
    root: PathBuf,
}

impl Image {
    /// The newest cloud kernel of `version`; the one that is in `directory`, if one is.
    pub fn get(version: &str, directory: &Path) -> Result<Self> {
        let root = directory.join("root");
        if !root.exists() {
            download(version, directory, &root)?;
        }
        let modules = root.join("lib/modules");
        let release = fs::read_dir(&modules)
            .with_context(|| format!("cannot read {}", modules.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .next()
            .with_context(|| format!("{} is empty", modules.display()))?;
        let image = Self { release, root };
        println!(
            "kernel: {} ({}; remove that directory to get the newest one)",
            image.release,
            directory.display()
        );
        Ok(image)
    }

    pub fn kernel(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    pub fn modules(&self) -> PathBuf {
        self.root.join(format!("lib/modules/{}", self.release))
    }
}

fn download(version: &str, directory: &Path, root: &Path) -> Result<()> {
    let mut package = newest(version)?;
    if package.is_none() {
        // A fresh machine has no package lists.
        packages::refresh()?;
        package = newest(version)?;
    }
    let Some(package) = package else {
        bail!(
            "no package linux-image-{version}.*-cloud-amd64; there are: {}",
            cloud_kernels("")?.join(", ")
        );
    };
    println!(
        "kernel: downloading {package}, to unpack below {}",
        directory.display()
    );
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    // Both in a directory that goes: a download that was cut off must not pass for a kernel.
    let scratch = tempfile::tempdir_in(directory)?;
    let fetched = fetch(&package, scratch.path()).or_else(|_| {
        // Old lists name a file that the mirror has replaced.
        packages::refresh()?;
        fetch(&package, scratch.path())
    });
    let deb = fetched?;
    let unpacked = scratch.path().join("root");
    run(Command::new("dpkg-deb").arg("-x").args([&deb, &unpacked]))?;
    let release = package.trim_start_matches("linux-image-");
    // Debian makes this when it installs the package: which module needs which, and what names the
    // kernel asks for them by.
    run(Command::new("busybox")
        .args(["depmod", "-b"])
        .args([unpacked.as_os_str(), release.as_ref()]))?;
    fs::rename(&unpacked, root)
        .with_context(|| format!("cannot move {} to {}", unpacked.display(), root.display()))
}

fn fetch(package: &str, to: &Path) -> Result<PathBuf> {
    // apt's own user could not write below target/; it warns when it is told so as root.
    run(Command::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(to))?;
    fs::read_dir(to)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|file| file.extension().is_some_and(|end| end == "deb"))
        .with_context(|| format!("apt-get left no package in {}", to.display()))
}

fn newest(version: &str) -> Result<Option<String>> {
    let prefix = format!("{}\\.", version.replace('.', "\\."));
    let found = cloud_kernels(&prefix)?;
    Ok(found.into_iter().max_by(|a, b| by_numbers(a, b)))
}

/// The cloud kernels that apt knows: small, and with virtio, BTF and all that netfw needs.
fn cloud_kernels(prefix: &str) -> Result<Vec<String>> {
    let pattern = format!("^linux-image-{prefix}[0-9][^ ]*-cloud-amd64$");
    let found = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    Ok(found
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect())
}

/// Compares the numbers in two names, so that 6.1.0-56 comes after 6.1.0-9.
fn by_numbers(a: &str, b: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use super::by_numbers;

    #[test]
    fn the_newest_kernel_is_that_with_the_highest_numbers() {
        let newest = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
        ]
        .into_iter()
        .max_by(|a, b| by_numbers(a, b));
        assert_eq!(newest, Some("linux-image-6.1.0-56-cloud-amd64"));
    }
}
