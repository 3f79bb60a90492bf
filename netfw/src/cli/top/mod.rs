//! `netfw top`: what goes on, in a terminal, until somebody has seen enough.
//!
//! | module | what |
//! |---|---|
//! | `model` | what is shown, made of the agent's answers and of keys: pure |
//! | `view` | how it is drawn: pure |
//!
//! A task asks the agent, another thread reads keys; this one draws whenever one of them has something. An agent
//! that goes away is told of and waited for.

mod model;
#[cfg(test)]
mod tests;
mod view;

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use crossterm::event::{Event, EventStream, KeyEventKind};
use futures::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use self::model::{Key, Sample, Top};
use super::{Format, Global, log::colours};
use crate::{
    api::client::{Client, ClientError},
    filter::FlowFilter,
};

/// An agent that has not answered for so long is told of: what is shown is old.
const PATIENCE: Duration = Duration::from_secs(2);
/// Flows are not listed where there are more: it would take the agent, and the eye, too long.
const MOST_FLOWS: u64 = 10_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds from one look to the next.
    #[arg(
        short = 'n',
        long,
        value_name = "SECONDS",
        default_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    interval: u64,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "top is for a terminal, and {what}: `netfw stats --watch` prints the same line by line, with -o json for programs"
)]
pub struct NoTerminal {
    what: &'static str,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    let missing = if global.output == Format::Json {
        Some("prints no JSON")
    } else if !io::stdout().is_terminal() {
        Some("stdout is none")
    } else if !io::stdin().is_terminal() {
        Some("stdin is none")
    } else {
        None
    };
    if let Some(what) = missing {
        return Err(NoTerminal { what }.into());
    }
    let coloured = colours(true, |name| std::env::var_os(name));
    let interval = Duration::from_secs(args.interval);
    crate::block_on(watch_agent(global, interval, coloured))
}

async fn watch_agent(global: &Global, interval: Duration, coloured: bool) -> anyhow::Result<()> {
    let client = global.client();
    // Where there is no agent from the start, that is all there is to say, and the screen stays as it is.
    let mut top = Top::new(sample(&client, false).await?, coloured);
    let mut ends = [
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
        signal(SignalKind::interrupt())?,
    ];
    let (want_flows, wanted) = watch::channel(false);
    // What it would say on stderr is on the screen.
    let quiet = Client::new(&global.instance).with_patience(PATIENCE);
    let mut answers = ask(quiet, interval, wanted);
    let mut keys = EventStream::new();
    let mut screen = Screen::take()?;
    loop {
        screen.0.draw(|frame| view::draw(frame, &top))?;
        let [terminate, hangup, interrupt] = &mut ends;
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            answer = answers.recv() => match answer {
                Some(Ok(sample)) => top.take(sample),
                Some(Err(error)) => top.lose(error.to_string(), Instant::now()),
                None => anyhow::bail!("nobody asks the agent any longer: a fault of netfw's"),
            },
            event = keys.next() => match event {
                Some(Ok(Event::Key(event))) if event.kind != KeyEventKind::Release => {
                    let Some(key) = Key::of(event) else { continue };
                    if top.press(key) {
                        return Ok(());
                    }
                    want_flows.send_if_modified(|before| {
                        std::mem::replace(before, top.wants_flows()) != top.wants_flows()
                    });
                }
                // Its size, for one: all is drawn anew.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                // The terminal is gone.
                None => return Ok(()),
            },
        }
    }
}

type Answer = Result<Sample, ClientError>;

/// Asks now and then, and at once when somebody wants flows.
fn ask(
    client: Client,
    interval: Duration,
    mut wanted: watch::Receiver<bool>,
) -> mpsc::Receiver<Answer> {
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                changed = wanted.changed() => if changed.is_err() { return },
            }
            let flows = *wanted.borrow_and_update();
            if tell.send(sample(&client, flows).await).await.is_err() {
                return;
            }
        }
    });
    told
}

async fn sample(client: &Client, flows: bool) -> Answer {
    let status = client.status().await?;
    let stats = client.stats().await?;
    let at = Instant::now();
    let flows = match flows && status.flows <= MOST_FLOWS {
        true => Some(client.flows(&FlowFilter::default()).await?),
        false => None,
    };
    Ok(Sample {
        at,
        status,
        stats,
        flows,
    })
}

/// The terminal, while it is ours; given back as it was however this ends, by a panic too (its hook is
/// ratatui's).
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> io::Result<Self> {
        let taken = ratatui::try_init().map(Self);
        // It may have been taken half-way.
        taken.inspect_err(|_| ratatui::restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
