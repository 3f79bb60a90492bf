//! Metrics for Prometheus: `GET /metrics`, on the API's socket always, and on an address of its own where the
//! agent is told one.
//!
//! | module | what |
//! |---|---|
//! | [`address`] | where they are served, as people write it |
//! | [`serve`] | serving them there, and to whom not |
//! | [`events`] | what the agent counts as it happens |
//! | [`process`] | what the kernel knows of the process |
//! | [`page`] | all metrics of one moment: pure |
//! | [`fresh`] | one page for all who ask within a second |
//!
//! Names and units are by Prometheus' conventions, the form is that of OpenMetrics 1.0. What there is depends on
//! what somebody configured (endpoints, publishes, uplinks), never on what comes over the network: no label has an
//! address, a port or a name of a peer's. docs/metrics.md lists them all.

pub mod address;
pub mod events;
pub mod fresh;
pub mod page;
pub mod process;
pub mod serve;

pub use self::{
    address::Address,
    events::{Answered, Answers, Events, Repair},
    page::Page,
};

/// What HTTP calls the form of the page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
