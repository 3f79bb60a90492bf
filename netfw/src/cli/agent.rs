//! `netfw agent`.

use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;

use super::{Global, log, need_root};
use crate::{
    agent::{
        config::{Config, File, Xdp},
        run,
    },
    bpf::BPFFS,
    metrics::Address,
    name::parse_interface,
    net::{Namespace, mounts, namespace},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network namespace to serve: a name under /run/netns, or a path. Default: the one that
    /// the agent is started in.
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,
    /// Serve this interface only; may be given several times, and need not exist yet. Default:
    /// every interface but lo and netfw's own.
    #[arg(long = "uplink", value_name = "IF", value_parser = parse_interface)]
    uplinks: Vec<String>,
    /// XDP on uplinks, before TC. auto: in the driver, where that costs nothing; native: in the
    /// driver, wherever it can; generic: on every uplink, slowly. Default: auto.
    #[arg(long, value_name = "MODE", hide_possible_values = true)]
    xdp: Option<Xdp>,
    /// Serve metrics for Prometheus there, too: ADDRESS:PORT, as in 127.0.0.1:9469, or unix:/PATH.
    /// Default: on the agent's own socket only.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<Address>,
    /// A TOML file with table sizes, timeouts, ports for masquerade and the socket's group.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is logged: error, warn, info (the default), debug, trace. From debug on the eBPF
    /// programs log too: every new flow and every packet dropped. NETFW_LOG sets the same, in
    /// tracing's filter syntax; this option wins.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<tracing::level_filters::LevelFilter>,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    let filter = filter(args.log_level)?;
    let program_log = filter
        .max_level_hint()
        .is_none_or(|level| level >= tracing::level_filters::LevelFilter::DEBUG);
    let config = resolve(global, args, program_log)?;
    need_root("the agent")?;
    mounts::check(Path::new(BPFFS))?;
    log::init(filter, &global.instance);
    Ok(run::run(config)?)
}

fn filter(level: Option<tracing::level_filters::LevelFilter>) -> anyhow::Result<EnvFilter> {
    if let Some(level) = level {
        // aya tells a thousand details of loading that are nobody's concern but its own.
        return Ok(EnvFilter::new(format!("{level},aya=warn,aya_obj=warn")));
    }
    match std::env::var("NETFW_LOG") {
        Ok(text) if !text.is_empty() => text
            .parse()
            .map_err(|e| anyhow::anyhow!("NETFW_LOG={text:?} is no log filter: {e}")),
        _ => Ok(EnvFilter::new("info")),
    }
}

fn resolve(global: &Global, args: Args, program_log: bool) -> anyhow::Result<Config> {
    let file = match &args.config {
        Some(path) => File::read(path)?,
        None => File::default(),
    };
    let netns = args.netns.map(|text| namespace_path(&text)).transpose()?;
    if let Some(path) = &netns {
        // Before the lock and anything else is touched.
        Namespace::at_path(path)?;
    }
    Ok(file.resolve(
        global.instance.clone(),
        netns,
        args.uplinks,
        args.xdp,
        args.metrics,
        program_log,
    )?)
}

/// The path of a namespace that `--netns` names; absolute, because the agent's own directory is
/// nobody else's.
pub fn namespace_path(text: &str) -> anyhow::Result<PathBuf> {
    if text.contains('/') {
        return Ok(std::path::absolute(text)?);
    }
    let path = Path::new(namespace::DIRECTORY).join(text);
    // For its words: it says how to make one.
    Namespace::named(text)?;
    Ok(path)
}
