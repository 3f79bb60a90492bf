//! The entry points: they turn a verdict into the hook's action and nothing else.

mod lookup;
mod sock;
mod tc;
mod xdp;
