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

/// Sets several keys of one directory, as [`set`] does, and returns how many were something else. The
/// directory is looked up once: `/proc/sys` has one for each namespace that was looked at, those of all
/// `eth0` in one hash chain, and a thousand namespaces make a look-up cost a hundred microseconds.
pub fn set_all(directory: &str, settings: &[(&str, &str)]) -> Result<usize, NetError> {
    let path = path_of(directory)?;
    let opened = File::open(&path).map_err(NetError::system(format!("look into {directory}")))?;
    let mut changed = 0;
    for (key, value) in settings {
        let asked = || format!("set sysctl {directory}/{key} to {value}");
        let name = Path::new(key);
        if !matches!(
            name.components().collect::<Vec<_>>()[..],
            [Component::Normal(_)]
        ) {
            return Err(NetError::BadSysctl {
                key: (*key).to_owned(),
            });
        }
        let file = openat(
            &opened,
            name,
            OFlag::O_RDWR | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(NetError::errno_of(asked()))?;
        let mut file = File::from(file);
        let mut previous = String::new();
        file.read_to_string(&mut previous)
            .map_err(NetError::system(asked()))?;
        if previous.trim_end() != *value {
            // A write counts at the file's beginning only.
            file.rewind().map_err(NetError::system(asked()))?;
            file.write_all(value.as_bytes())
                .map_err(NetError::system(asked()))?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// The value, without the newline.
pub fn get(key: &str) -> Result<String, NetError> {
    let mut value = fs::read_to_string(path_of(key)?)
        .map_err(NetError::system(format!("read sysctl {key}")))?;
    value.truncate(value.trim_end().len());
    Ok(value)
}

fn path_of(key: &str) -> Result<PathBuf, NetError> {
    let path = Path::new(key);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if key.is_empty() || !plain {
        return Err(NetError::BadSysctl { key: key.into() });
    }
    Ok(Path::new("/proc/sys").join(path))
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
        assert!(get("net/ipv4/no-such-key").is_err_and(|error| error.is_gone()));
    }
}
