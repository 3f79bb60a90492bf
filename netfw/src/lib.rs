pub mod bpf;
pub mod net;
