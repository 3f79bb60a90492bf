//! The command line: what is parsed, and which file runs it.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage (clap's own); `exec` has its command's. Results go
//! to stdout, errors and logs to stderr.

mod agent;
mod apply;
mod completions;
mod demo;
mod doctor;
mod down;
mod endpoint;
mod exec;
mod failure;
mod flow;
mod log;
mod monitor;
mod network;
mod output;
mod port;
mod publish;
mod stats;
mod status;
mod store;
mod top;
mod trace;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::output::Format;
use crate::{
    agent::config::DEFAULT_INSTANCE,
    api::client::Client,
    name::{Name, parse_instance},
};

/// Container networking without iptables.
#[derive(Debug, Parser)]
#[command(
    name = "netfw",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Args)]
struct Global {
    /// Which agent: several can run on one machine.
    #[arg(long, global = true, value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = parse_instance)]
    instance: Name,
    /// How results are printed.
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "table"
    )]
    output: Format,
}

impl Global {
    fn client(&self) -> Client {
        Client::new(&self.instance).telling()
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a node, in the foreground.
    Agent(agent::Args),
    /// Remove everything of an instance: containers' interfaces, bridge, programs, state.
    Down,
    /// Create, list and remove networks.
    #[command(subcommand)]
    Network(network::Command),
    /// Attach containers (network namespaces), list and detach them.
    #[command(subcommand)]
    Endpoint(endpoint::Command),
    /// Run a command in an endpoint's network namespace.
    Exec(exec::Args),
    /// Publish ports of an endpoint on the node.
    Publish(publish::Args),
    /// Withdraw publishes.
    Unpublish(publish::Withdraw),
    /// List published ports, as `docker port` does.
    Port(port::Args),
    /// Look at translated flows, or forget them.
    #[command(subcommand)]
    Flow(flow::Command),
    /// What the agent serves, and how much of everything there is.
    Status,
    /// Packets and bytes of endpoints and publishes, drops by reason.
    Stats(stats::Args),
    Monitor(monitor::Args),
    Trace(trace::Args),
    /// Rates of publishes and endpoints, new flows and drops, on the whole terminal.
    Top(top::Args),
    Apply(apply::Args),
    /// Check, save and replace what the agent keeps on disk.
    #[command(subcommand)]
    Store(store::Command),
    Doctor(doctor::Args),
    /// Print what makes a shell complete netfw's commands.
    Completions(completions::Completions),
    /// Write the manual pages.
    Man(completions::Man),
    /// Build a lab in namespaces, run real traffic through it, and report.
    Demo(demo::Args),
}

pub fn main() -> ExitCode {
    let Cli { global, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => failure::usage(&error, std::env::args_os()),
    };
    if !command.outlives_its_readers() {
        die_of_closed_pipes();
    }
    let result = match command {
        Command::Agent(args) => agent::run(&global, args),
        Command::Down => down::run(&global),
        Command::Network(command) => network::run(&global, command),
        Command::Endpoint(command) => endpoint::run(&global, command),
        Command::Exec(args) => exec::run(&global, args),
        Command::Publish(args) => publish::publish(&global, args),
        Command::Unpublish(args) => publish::unpublish(&global, args),
        Command::Port(args) => port::run(&global, args),
        Command::Flow(command) => flow::run(&global, command),
        Command::Status => status::run(&global),
        Command::Stats(args) => stats::run(&global, args),
        Command::Monitor(args) => monitor::run(&global, args),
        Command::Trace(args) => trace::run(&global, args),
        Command::Top(args) => top::run(&global, args),
        Command::Apply(args) => apply::run(&global, args),
        Command::Store(command) => store::run(&global, command),
        Command::Doctor(args) => doctor::run(&global, args),
        Command::Completions(args) => {
            completions::completions(&args);
            Ok(())
        }
        Command::Man(args) => completions::man(&args),
        Command::Demo(args) => demo::run(&global, args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error, global.output),
    }
}

impl Command {
    /// The agent has clients that hang up, and the demo has things to remove: to both a closed pipe
    /// is an error like any other, as Rust has it by default.
    fn outlives_its_readers(&self) -> bool {
        matches!(self, Self::Agent(_) | Self::Demo(_))
    }
}

/// A closed pipe (`netfw flow ls | head`) ends the process quietly, as it does any Unix tool.
fn die_of_closed_pipes() {
    // SAFETY: the default disposition runs no code of ours.
    let _ = unsafe {
        nix::sys::signal::signal(
            nix::sys::signal::Signal::SIGPIPE,
            nix::sys::signal::SigHandler::SigDfl,
        )
    };
}

/// Some commands change the kernel themselves.
fn need_root(what: &'static str) -> Result<(), NeedsRoot> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(NeedsRoot { what })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{what} needs root: run it as root, or with sudo")]
struct NeedsRoot {
    what: &'static str,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_or_after_a_command() {
        for line in [
            "netfw --instance x -o json endpoint ls",
            "netfw endpoint --instance x ls -o json",
            "netfw endpoint ls --instance x -o json",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.global.instance.as_str(), "x", "{line}");
            assert_eq!(cli.global.output, Format::Json, "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_found_before_anything_runs() {
        for line in [
            "netfw",
            "netfw bogus",
            "netfw --instance ../x status",
            "netfw endpoint add",
            "netfw endpoint add a/b",
            "netfw endpoint add x -p 65536:80",
            "netfw endpoint add x --expose 80:80",
            "netfw endpoint add x --ip 300.1.1.1",
            "netfw network create",
            "netfw network create x --subnet 10.0.0.0",
            "netfw network create x --subnet 10.0.0.0/33",
            "netfw network create x --gateway x",
            "netfw network create x --mtu -1",
            "netfw network create x --nat symmetric",
            "netfw network create x --nat endpoint-independent --filter none",
            "netfw endpoint add x --mac 01:00:00:00:00:00",
            "netfw endpoint add x --netns a --pid 1",
            "netfw publish x",
            "netfw publish x 80:80-90",
            "netfw publish x --allow-from 10.0.0.0/8",
            "netfw publish x 80:80 --allow-from 10.0.0.1/8",
            "netfw unpublish x 80:80 --allow-from 10.0.0.0/8",
            "netfw endpoint add x --allow-from 10.0.0.0/33",
            "netfw endpoint add x --allow-from",
            "netfw apply",
            "netfw apply x.toml",
            "netfw exec x --",
            "netfw monitor --reason lek",
            "netfw monitor --count 0",
            "netfw monitor --from 10.0.0.0/33",
            "netfw trace",
            "netfw trace --count 1",
            "netfw exec x",
            "netfw top --interval 0",
            "netfw agent --metrics localhost:9469",
            "netfw agent --uplink a/b",
            "netfw agent --uplink eth0 --uplink sixteen-letters-",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
