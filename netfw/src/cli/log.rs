//! The agent's log: to the journal with its fields, where stderr is the journal's, and else to stderr in lines.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
};

use tracing_journald::{Layer as Journal, Priority, PriorityMappings};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::name::Name;

/// Fields get this before their names, as journald(8) wants of those that are not its own: `NETFW_ENDPOINT=web`.
const PREFIX: &str = "NETFW";

/// To be called once.
pub fn init(filter: EnvFilter, instance: &Name) {
    let (journal, trouble) = match is_journal().then(|| journal(instance)) {
        Some(Ok(journal)) => (Some(journal), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let lines = journal.is_none().then(|| {
        fmt::layer()
            .with_writer(io::stderr)
            .with_target(false)
            .with_ansi(colours(io::stderr().is_terminal(), |name| {
                std::env::var_os(name)
            }))
            // It would tell of a closed stderr on stderr, and panic over that.
            .log_internal_errors(false)
    });
    tracing_subscriber::registry()
        .with(filter)
        .with(journal)
        .with(lines)
        .init();
    if let Some(error) = trouble {
        tracing::warn!(%error, "the journal gets lines without fields");
    }
}

fn journal(instance: &Name) -> io::Result<Journal> {
    Ok(tracing_journald::layer()?
        .with_syslog_identifier("netfw".into())
        .with_field_prefix(Some(PREFIX.into()))
        .with_custom_fields([(format!("{PREFIX}_INSTANCE"), instance.to_string())])
        .with_priority_mappings(PriorityMappings {
            error: Priority::Error,
            warn: Priority::Warning,
            info: Priority::Informational,
            debug: Priority::Debug,
            trace: Priority::Debug,
        }))
}

/// Is stderr the stream that a service manager connected to the journal (`JOURNAL_STREAM`, systemd.exec(5))? A
/// child of a service may have inherited the variable, and have another stderr.
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    nix::sys::stat::fstat(io::stderr())
        .is_ok_and(|stat| stream == OsString::from(format!("{}:{}", stat.st_dev, stat.st_ino)))
}

/// no-color.org: any value that is not empty means none.
pub fn colours(terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    terminal
        && variable("NO_COLOR").is_none_or(|value| value.is_empty())
        && variable("TERM").is_none_or(|value| value != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        let with = |name: &'static str, value: &'static str| {
            colours(true, move |asked| (asked == name).then(|| value.into()))
        };
        assert!(with("TERM", "xterm"));
        assert!(with("NO_COLOR", ""));
        assert!(!with("NO_COLOR", "1"));
        assert!(!with("TERM", "dumb"));
        assert!(!colours(false, |_| None));
    }
}
