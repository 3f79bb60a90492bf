//! `netfw doctor`.

use std::time::Duration;

use super::{
    Global,
    agent::namespace_path,
    need_root,
    output::{Table, print},
};
use crate::{
    api::client::ClientError,
    doctor::{Area, Finding, State, Subject, Told, examine},
    net::Namespace,
};

/// An agent that says nothing for so long is a finding.
const PATIENCE: Duration = Duration::from_secs(5);

/// Examine the kernel, the node and its networks, and say what to do. Changes nothing.
///
/// Exit status: 0 where all works (notes are fine), 1 where something keeps netfw or something of its
/// from working (warn, fail).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node to examine: a name under /run/netns, or a path. Default: that of the agent, if one
    /// runs, otherwise where the command is started.
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    need_root("doctor")?;
    let netns = args.netns.map(|text| namespace_path(&text)).transpose()?;
    let netns = netns.map(|path| Namespace::at_path(&path)).transpose()?;
    let findings = examine(Subject {
        instance: global.instance.clone(),
        netns,
        agent: crate::block_on(ask(global)),
    });
    print(global.output, &findings, |findings| show(findings))?;
    let wrong = findings.iter().filter(|found| found.state >= State::Warn);
    match wrong.count() {
        0 => Ok(()),
        1 => anyhow::bail!("one thing is not right, see above"),
        n => anyhow::bail!("{n} things are not right, see above"),
    }
}

/// What the agent says of itself, if one runs.
async fn ask(global: &Global) -> Result<Option<Told>, String> {
    let client = global.client().with_patience(PATIENCE);
    let status = match client.status().await {
        Err(ClientError::NotRunning { .. }) => return Ok(None),
        other => other.map_err(|error| crate::chain(&error))?,
    };
    let endpoints = client.endpoints().await;
    Ok(Some(Told {
        status,
        endpoints: endpoints.map_err(|error| crate::chain(&error))?,
    }))
}

/// A table for each area.
fn show(findings: &[Finding]) -> String {
    let tables = Area::ALL.into_iter().filter_map(|area| {
        let mut of_area = findings
            .iter()
            .filter(|found| found.area == area)
            .peekable();
        of_area.peek()?;
        let mut table = Table::new(&[&area.word().to_uppercase(), "CHECK", "FOUND"]);
        for finding in of_area {
            table.row([
                finding.state.word().into(),
                finding.check.clone(),
                match &finding.instead {
                    Some(instead) => format!("{}; instead: {instead}", finding.found),
                    None => finding.found.clone(),
                },
            ]);
            if let Some(remedy) = &finding.remedy {
                table.row([String::new(), "  what to do".into(), remedy.clone()]);
            }
        }
        Some(table.to_string())
    });
    tables.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_stand_under_their_area() {
        let finding =
            |area, check: &str, state, instead: Option<&str>, remedy: Option<&str>| Finding {
                area,
                check: check.into(),
                state,
                found: "this".into(),
                instead: instead.map(str::to_owned),
                remedy: remedy.map(str::to_owned),
            };
        let text = show(&[
            finding(Area::Node, "ipv6", State::Ok, None, None),
            finding(Area::Kernel, "tcx", State::Note, Some("that"), Some("wait")),
        ]);
        assert_eq!(
            text,
            "KERNEL   CHECK          FOUND\n\
             note     tcx            this; instead: that\n\
             \x20          what to do   wait\n\
             \n\
             NODE   CHECK   FOUND\n\
             ok     ipv6    this\n"
        );
    }
}
