//! Kernel settings under `/proc/sys`.
//!
//! Keys are paths with slashes (`net/ipv4/conf/eth0.7/forwarding`): interface names may contain the
//! dots that `sysctl` writes. `/proc/sys/net` shows the network namespace of the thread that opens
//! the file.

use std::{
    fs,
    path::{Component, Path, PathBuf},
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
