//! Docker's networks, by the agent's driver.

mod containers;
mod player;
mod protocol;
