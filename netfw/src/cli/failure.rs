//! What a command that failed says on stderr, and its exit status.
//!
//! With `-o json` it is `{"error": …, "kind": …}`, as the API answers it; wrong usage too, which is
//! found before anything is parsed, so the arguments are looked at as they are.

use std::{ffi::OsString, io::Write, process::ExitCode};

use serde::Serialize;

use super::{Format, NeedsRoot, apply::Syntax, exec::CannotRun, store::NoStore, top::NoTerminal};
use crate::{
    agent::{AgentError, config::ConfigError},
    api::{client::ClientError, types::FailureKind},
    net::NetError,
};

#[derive(Serialize)]
struct Shown {
    error: String,
    kind: Kind,
}

/// The API's kinds, and those that the command line finds itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
enum Kind {
    Agent(FailureKind),
    Own(Own),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Own {
    Usage,
    NotRunning,
    Permission,
}

/// Says what went wrong, and which exit status that is.
pub fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    let words = crate::chain(error.as_ref());
    say(match format {
        Format::Table => format!("netfw: {words}"),
        Format::Json => json(words, kind(error)),
    });
    match error.downcast_ref::<CannotRun>() {
        Some(error) => error.status().into(),
        None => ExitCode::FAILURE,
    }
}

/// Wrong usage, or help that was asked for.
pub fn usage(error: &clap::Error, arguments: impl Iterator<Item = OsString>) -> ! {
    if !error.use_stderr() || !wants_json(arguments) {
        error.exit();
    }
    let words = error.render().to_string();
    let words = words.trim().trim_start_matches("error: ");
    say(json(words.into(), Kind::Own(Own::Usage)));
    std::process::exit(error.exit_code())
}

fn kind(error: &anyhow::Error) -> Kind {
    if error.is::<NeedsRoot>() {
        return Kind::Own(Own::Permission);
    }
    if error.is::<NoTerminal>() {
        return Kind::Agent(FailureKind::Invalid);
    }
    if let Some(error) = error.downcast_ref::<CannotRun>() {
        return Kind::Agent(match error.status() {
            127 => FailureKind::NotFound,
            _ => FailureKind::Invalid,
        });
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused { kind, .. }) => return Kind::Agent(*kind),
        Some(
            ClientError::NotRunning { .. }
            | ClientError::Starting { .. }
            | ClientError::Ended { .. },
        ) => {
            return Kind::Own(Own::NotRunning);
        }
        Some(ClientError::Permission { .. }) => return Kind::Own(Own::Permission),
        _ => {}
    }
    if error.is::<NoStore>() || error.downcast_ref().is_some_and(NetError::is_gone) {
        return Kind::Agent(FailureKind::NotFound);
    }
    if let Some(AgentError::Capability(_)) = error.downcast_ref() {
        return Kind::Own(Own::Permission);
    }
    Kind::Agent(if let Some(error) = error.downcast_ref::<AgentError>() {
        error.kind()
    } else if error.is::<ConfigError>() || error.is::<Syntax>() {
        FailureKind::Invalid
    } else {
        FailureKind::Internal
    })
}

fn json(error: String, kind: Kind) -> String {
    // Two strings: it cannot fail.
    serde_json::to_string_pretty(&Shown { error, kind }).unwrap_or_default()
}

/// Nobody may be reading; that is no reason to panic.
fn say(text: String) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `-o json`, `-ojson`, `-o=json`, `--output json`, `--output=json`, before any `--`.
fn wants_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let words: Vec<String> = arguments
        .map(|word| word.to_string_lossy().into_owned())
        .take_while(|word| word != "--")
        .collect();
    let one = |word: &String| {
        ["-o", "--output"].iter().any(|option| {
            word.strip_prefix(option)
                .is_some_and(|value| value.trim_start_matches('=') == "json")
        })
    };
    let two = |pair: &[String]| ["-o", "--output"].contains(&&*pair[0]) && pair[1] == "json";
    words.iter().any(one) || words.windows(2).any(two)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_wanted_however_it_is_written() {
        let wants = |line: &str| wants_json(line.split(' ').map(OsString::from));
        for line in [
            "netfw -o json bogus",
            "netfw bogus --output json",
            "netfw -ojson",
            "netfw -o=json",
            "netfw --output=json x",
        ] {
            assert!(wants(line), "{line}");
        }
        for line in ["netfw -o table", "netfw json", "netfw exec x -- -o json"] {
            assert!(!wants(line), "{line}");
        }
    }

    #[test]
    fn an_error_has_its_kind() {
        let refused = ClientError::Refused {
            error: "taken".into(),
            kind: FailureKind::Conflict,
            faults: Vec::new(),
        };
        assert_eq!(kind(&refused.into()), Kind::Agent(FailureKind::Conflict));
        let down = ClientError::NotRunning {
            instance: "x".parse().unwrap(),
        };
        assert_eq!(kind(&down.into()), Kind::Own(Own::NotRunning));
        let gone = NetError::NoNamespace { name: "x".into() };
        assert_eq!(kind(&gone.into()), Kind::Agent(FailureKind::NotFound));
        assert_eq!(
            json("no".into(), Kind::Own(Own::NotRunning)),
            "{\n  \"error\": \"no\",\n  \"kind\": \"not_running\"\n}"
        );
        assert_eq!(
            json("no".into(), kind(&anyhow::anyhow!("no"))),
            "{\n  \"error\": \"no\",\n  \"kind\": \"internal\"\n}"
        );
    }
}
