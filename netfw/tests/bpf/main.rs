//! The data plane, as user space holds it.

mod flows;
mod instance;
#[path = "../lab/mod.rs"]
mod lab;
mod life;
mod xdp;
