//! RFC 4787, 5382 and 5508: the page `docs/rfc-compliance.md`, and what it takes no packet to show.
//! The cases that need packets are in `packet` and `e2e`. No root.

mod page;
mod timeouts;
