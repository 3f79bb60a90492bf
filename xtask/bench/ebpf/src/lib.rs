//! Empty: it lets `netfw-bench` name this crate as a build dependency, so that cargo sees when the
//! programs (the binary `netfw-bench-ebpf`) change.
#![no_std]
