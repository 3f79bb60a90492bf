//! The data plane, as user space holds it.

mod allow;
mod carry;
mod flows;
mod instance;
#[path = "../lab/mod.rs"]
mod lab;
mod life;
mod xdp;
