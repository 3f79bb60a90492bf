//! The API: HTTP/JSON on the agent's unix socket. The command line and the plugins use the same.
//!
//! | method and path | does | answers |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`](types::Status) |
//! | `GET /v1/stats` | | [`Stats`](types::Stats) |
//! | `GET /v1/networks` | | list of [`Network`](types::Network) |
//! | `POST /v1/networks` | creates, [`NetworkRequest`](types::NetworkRequest) | [`NetworkDetails`](types::NetworkDetails) |
//! | `GET /v1/networks/NAME` | | [`NetworkDetails`](types::NetworkDetails) |
//! | `DELETE /v1/networks/NAME` | removes | nothing |
//! | `POST /v1/networks/NAME/endpoints` | connects, [`ConnectRequest`](types::ConnectRequest) | the endpoint |
//! | `DELETE /v1/networks/NAME/endpoints/ENDPOINT` | disconnects | the endpoint |
//! | `GET /v1/endpoints` | | list of [`Endpoint`](types::Endpoint) |
//! | `POST /v1/endpoints` | adds, [`EndpointRequest`](types::EndpointRequest) | the endpoint |
//! | `GET /v1/endpoints/NAME` | | the endpoint |
//! | `DELETE /v1/endpoints/NAME` | removes | nothing |
//! | `POST /v1/endpoints/NAME/publishes` | publishes, [`PublishRequest`](types::PublishRequest) | the endpoint |
//! | `DELETE /v1/endpoints/NAME/publishes` | withdraws, [`UnpublishRequest`](types::UnpublishRequest) | the endpoint |
//! | `POST /v1/attachments` | attaches for a runtime, [`AttachRequest`](owned::AttachRequest) | [`Attached`](owned::Attached) |
//! | `DELETE /v1/attachments` | detaches, [`Owned`](owned::Owned) | [`Detached`](owned::Detached) |
//! | `POST /v1/attachments/check` | looks what is amiss, [`Owned`](owned::Owned) | [`Checked`](owned::Checked) |
//! | `POST /v1/attachments/collect` | detaches what a runtime has no more, [`CollectRequest`](owned::CollectRequest) | [`Collected`](owned::Collected) |
//! | `GET /v1/version` | waits for nothing that is being changed | [`Version`](owned::Version) |
//! | `GET /v1/flows[?endpoint=NAME]` | | list of [`Flow`](types::Flow) |
//! | `DELETE /v1/flows[?endpoint=NAME]` | forgets flows | [`Flushed`](types::Flushed) |
//! | `GET /v1/monitor[?reasons=…&endpoint=…&protocol=…&from=…&to=…]` | | a [`Line`](watch::Line) for each drop, as it happens |
//! | `GET /v1/trace?…` | | likewise, for whatever becomes of a packet |
//! | `GET /v1/store` | | [`Saved`](crate::agent::saved::Saved), as the store has it |
//! | `GET /metrics` | | metrics for Prometheus, as text ([`metrics`](crate::metrics)) |
//! | `POST /v1/shutdown` | ends the agent; the data plane stays | nothing |
//!
//! Errors are [`Failure`](types::Failure) with status 400, 404, 409 or 500. Paths begin with the
//! version; a field may be added within one, none goes or changes its meaning.

pub mod client;
pub mod connections;
pub mod owned;
pub mod server;
pub mod types;
pub mod watch;
