//! netfw: container networking on a Linux node without iptables.
//!
//! One binary is the agent, the command line and the plugin for container runtimes; this library
//! is all of it, and `main.rs` calls [`cli::main`].
//!
//! | module | what |
//! |---|---|
//! | [`cli`] | the command line, a file a command |
//! | [`cni`] | the plugin for container runtimes that speak CNI |
//! | [`docker`] | the driver of Docker's networks |
//! | [`api`] | what the command line and the agent say to each other |
//! | [`agent`] | wanted state, store, reconciliation, the process |
//! | [`bpf`] | the data plane: programs, pins, maps |
//! | [`dns`] | names: a DNS server for each network |
//! | [`net`] | interfaces, addresses, routes, namespaces, sockets |
//! | [`metrics`] | what Prometheus is told |
//! | [`doctor`] | what is not as netfw needs it, and what to do |
//! | [`demo`] | a lab in namespaces that shows it all at work |
//! | [`document`] | the wanted state as one TOML document |
//! | [`publish`], [`source`], [`name`], [`mode`], [`rules`], [`filter`], [`owner`] | what people and runtimes write: port mappings, who may use them, names and MAC addresses, networks and ways to do without, rules of networks, which flows they want to see, whose an attachment is |

pub mod agent;
pub mod api;
pub mod bpf;
pub mod cli;
pub mod cni;
pub mod demo;
pub mod dns;
pub mod docker;
pub mod doctor;
pub mod document;
pub mod filter;
pub mod metrics;
pub mod mode;
pub mod name;
pub mod net;
pub mod owner;
pub mod publish;
pub mod rules;
pub mod source;
mod text;

/// An error and its causes in one line; causes that the error's own words contain are left out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// Runs a future on this thread alone, so that the process may still change its namespace.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(future),
        // Out of file descriptors before anything began: nothing can be said better.
        Err(error) => {
            eprintln!("netfw: no runtime: {error}");
            std::process::exit(1)
        }
    }
}
