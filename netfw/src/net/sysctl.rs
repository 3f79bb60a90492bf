//! Kernel settings under `/proc/sys`.
//!
//! Keys are paths with slashes (`net/ipv4/conf/eth0.7/forwarding`): interface names may contain the
//! dots that `sysctl` writes. `/proc/sys/net` shows the network namespace of the thread that opens
//! the file.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, Write as _},
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use super::NetError;

/// Sets `key` to `value`. Returns what it was, for whoever puts it back, or None where it was that
/// already and nothing was written.
pub fn set(key: &str, value: &str) -> Result<Option<String>, NetError> {
    let previous = get(key)?;
    if previous == value {
        return Ok(None);
    }
    fs::write(path_of(key)?, value)
        .map_err(NetError::system(format!("set sysctl {key} to {value}")))?;
    Ok(Some(previous))
}

/// A directory of keys, those of the namespace in which it was opened.
///
/// To be kept, or to set more than one key: `/proc/sys` holds a dentry for each namespace that was looked
/// at, all those of `net/ipv6` in one hash chain. With a thousand namespaces, each look-up of a path takes
/// a millisecond.
#[derive(Debug)]
pub struct Directory {
    file: File,
    key: String,
}

impl Directory {
    pub fn open(key: &str) -> Result<Self, NetError> {
        let file = File::open(path_of(key)?);
        Ok(Self {
            file: file.map_err(NetError::system(format!("look into sysctl {key}")))?,
            key: key.to_owned(),
        })
    }

    /// As [`set`], of a key below; returns whether it was something else.
    pub fn set(&self, key: &str, value: &str) -> Result<bool, NetError> {
        let asked = || format!("set sysctl {}/{key} to {value}", self.key);
        check(key)?;
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let opened = openat(&self.file, key, flags, Mode::empty());
        let mut file = File::from(opened.map_err(NetError::errno_of(asked()))?);
        let mut previous = String::new();
        file.read_to_string(&mut previous)
            .map_err(NetError::system(asked()))?;
        if previous.trim_end() == value {
            return Ok(false);
        }
        // A write counts at the file's beginning only.
        file.rewind()
            .and_then(|()| file.write_all(value.as_bytes()))
            .map_err(NetError::system(asked()))?;
        Ok(true)
    }
}

/// The value, without the newline.
pub fn get(key: &str) -> Result<String, NetError> {
    let mut value = fs::read_to_string(path_of(key)?)
        .map_err(NetError::system(format!("read sysctl {key}")))?;
    value.truncate(value.trim_end().len());
    Ok(value)
}

fn path_of(key: &str) -> Result<PathBuf, NetError> {
    check(key)?;
    Ok(Path::new("/proc/sys").join(key))
}

fn check(key: &str) -> Result<(), NetError> {
    let plain = Path::new(key)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if key.is_empty() || !plain {
        return Err(NetError::BadSysctl { key: key.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_proc_sys() {
        for bad in ["", "/etc/passwd", "../../etc/passwd", "net/../../x", "."] {
            assert!(
                matches!(get(bad), Err(NetError::BadSysctl { .. })),
                "{bad:?}"
            );
        }
        assert!(get("net/ipv4/conf/all/forwarding").is_ok());
        let directory = Directory::open("net/ipv4").unwrap();
        assert!(matches!(
            directory.set("../../kernel/sysrq", "0"),
            Err(NetError::BadSysctl { .. })
        ));
        let none = directory.set("no-such-key", "0");
        assert!(none.is_err_and(|error| error.is_gone()));
        assert!(get("net/ipv4/no-such-key").is_err_and(|error| error.is_gone()));
    }
}
