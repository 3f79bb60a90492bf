//! Empty: it lets `netfw` name this crate as a build dependency, so that cargo sees when the
//! programs (the binary `netfw-ebpf`) change.
#![no_std]
