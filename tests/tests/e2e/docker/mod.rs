//! Docker's networks, by the agent's driver.

mod protocol;
