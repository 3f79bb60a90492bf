//! The running kernel's release. A feature is better asked for than concluded from it.

use nix::sys::utsname::uname;

/// As `uname -r` has it; empty where the kernel does not say.
pub fn release() -> String {
    uname().map_or_else(
        |_| String::new(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

/// Its first two numbers.
pub fn version() -> Option<(u32, u32)> {
    parse(&release())
}

/// Of `6.1.0-18-cloud-amd64`: 6 and 1.
pub fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|n| n.parse().ok());
    Some((number()?, number()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_two_numbers() {
        for (text, numbers) in [
            ("6.18.44-fc-v595", Some((6, 18))),
            ("6.1.0-18-cloud-amd64", Some((6, 1))),
            ("5.15", Some((5, 15))),
            ("7", None),
            ("", None),
            ("next", None),
        ] {
            assert_eq!(parse(text), numbers, "{text}");
        }
        assert!(version().is_some());
    }
}
