//! What `netfw top` shows: tables made of two looks at the agent, and what keys change about them.

use std::{
    cmp::Ordering,
    collections::HashMap,
    time::{Duration, Instant},
};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::stats::rates;
use crate::{
    api::types::{Counter, EndpointStats, Flow, Stats, Status, Tuple},
    publish::Publish,
};

/// One look at the agent.
#[derive(Clone, Debug)]
pub struct Sample {
    pub at: Instant,
    pub status: Status,
    pub stats: Stats,
    /// None where nobody wanted them, or there are too many.
    pub flows: Option<Vec<Flow>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    Publishes,
    Endpoints,
    Flows,
    Drops,
}

impl View {
    pub const ALL: [Self; 4] = [Self::Publishes, Self::Endpoints, Self::Flows, Self::Drops];

    pub fn title(self) -> &'static str {
        match self {
            Self::Publishes => "Publishes",
            Self::Endpoints => "Endpoints",
            Self::Flows => "Flows",
            Self::Drops => "Drops",
        }
    }

    /// Of columns; with the one by which it is sorted unless told otherwise.
    pub fn columns(self) -> (&'static [&'static str], usize) {
        match self {
            Self::Publishes => (
                &[
                    "PUBLISH", "ENDPOINT", "RX PKT/S", "RX B/S", "TX PKT/S", "TX B/S",
                ],
                3,
            ),
            Self::Endpoints => (
                &[
                    "ENDPOINT",
                    "PUBLISHES",
                    "RX PKT/S",
                    "RX B/S",
                    "TX PKT/S",
                    "TX B/S",
                ],
                3,
            ),
            Self::Flows => (
                &[
                    "AGE", "PROTO", "STATE", "FROM", "TO", "ORIGIN", "ENDPOINT", "LEFT",
                ],
                0,
            ),
            Self::Drops => (&["REASON", "PER SECOND", "TOTAL", "WHAT IT MEANS"], 1),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cell {
    Text(String),
    /// Sorted from the greatest on.
    Number(u64),
    /// A number that nobody knows now.
    Unknown,
    /// Sorted from the youngest on; `least`: it may be older.
    Age {
        seconds: u64,
        least: bool,
    },
}

impl Cell {
    /// The order in which people want to see them.
    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::Number(a), Self::Number(b)) => b.cmp(a),
            (
                Self::Age { seconds: a, least },
                Self::Age {
                    seconds: b,
                    least: other,
                },
            ) => least.cmp(other).then(a.cmp(b)),
            _ => Ordering::Equal,
        }
    }

    pub fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(n) => f.write_str(&short(*n)),
            Self::Unknown => f.write_str("-"),
            Self::Age { seconds, least } => {
                write!(f, "{}{}", if *least { ">" } else { "" }, time(*seconds))
            }
        }
    }
}

/// Three digits at least: 999, 1.23k, 45.6M.
pub fn short(n: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if n < 1000 {
        return n.to_string();
    }
    let (mut hundredths, mut unit) = (u128::from(n) / 10, 0);
    while hundredths >= 100_000 && unit + 1 < UNITS.len() {
        hundredths /= 1000;
        unit += 1;
    }
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    match whole {
        ..10 => format!("{whole}.{rest:02}{}", UNITS[unit]),
        10..100 => format!("{whole}.{}{}", rest / 10, UNITS[unit]),
        _ => format!("{whole}{}", UNITS[unit]),
    }
}

/// `59s`, `2m05s`, `3h04m`, `2d03h`.
pub fn time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    Quit,
    Next,
    Previous,
    Show(View),
    Sort,
    Reverse,
    Pause,
    Help,
    /// So many rows, downwards; as many as there are, at most.
    Move(isize),
}

impl Key {
    pub fn of(event: KeyEvent) -> Option<Self> {
        const PAGE: isize = 20;
        Some(match event.code {
            KeyCode::Char('c') if event.modifiers.contains(KeyModifiers::CONTROL) => Self::Quit,
            KeyCode::Char('q') | KeyCode::Esc => Self::Quit,
            KeyCode::Tab | KeyCode::Right => Self::Next,
            KeyCode::BackTab | KeyCode::Left => Self::Previous,
            KeyCode::Char(digit @ '1'..='4') => {
                Self::Show(View::ALL[digit as usize - '1' as usize])
            }
            KeyCode::Char('s') => Self::Sort,
            KeyCode::Char('r') => Self::Reverse,
            KeyCode::Char('p' | ' ') => Self::Pause,
            KeyCode::Char('?' | 'h') => Self::Help,
            KeyCode::Down => Self::Move(1),
            KeyCode::Up => Self::Move(-1),
            KeyCode::PageDown => Self::Move(PAGE),
            KeyCode::PageUp => Self::Move(-PAGE),
            KeyCode::Home => Self::Move(isize::MIN),
            KeyCode::End => Self::Move(isize::MAX),
            _ => return None,
        })
    }
}

/// The agent does not answer.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub why: String,
    since: Instant,
    now: Instant,
}

impl Trouble {
    pub fn lasts(&self) -> Duration {
        self.now.saturating_duration_since(self.since)
    }
}

pub struct Top {
    pub coloured: bool,
    pub view: View,
    pub paused: bool,
    pub help: bool,
    pub trouble: Option<Trouble>,
    /// The last look, and what came between it and the one before.
    pub last: Sample,
    pub rates: Option<Stats>,
    /// Of the look before, unless the agent was away since.
    before: Option<(Instant, Stats)>,
    /// Column and whether it is turned round, of each view.
    sorted: [(usize, bool); 4],
    first_row: usize,
    /// When a flow was first seen; None: it was there before.
    flows: HashMap<Seen, Option<Instant>>,
    listed_flows: bool,
}

type Seen = (String, std::net::IpAddr, u16, std::net::IpAddr, u16);

fn seen(flow: &Flow) -> Seen {
    let Tuple {
        src,
        dst,
        sport,
        dport,
    } = flow.original;
    (flow.protocol.clone(), src, sport, dst, dport)
}

impl Top {
    pub fn new(first: Sample, coloured: bool) -> Self {
        Self {
            coloured,
            view: View::Publishes,
            paused: false,
            help: false,
            trouble: None,
            rates: None,
            before: Some((first.at, first.stats.clone())),
            last: first,
            sorted: View::ALL.map(|view| (view.columns().1, false)),
            first_row: 0,
            flows: HashMap::new(),
            listed_flows: false,
        }
    }

    /// The agent's answer.
    pub fn take(&mut self, sample: Sample) {
        self.trouble = None;
        if self.paused {
            // What is shown stays; what comes after is compared with now.
            self.before = Some((sample.at, sample.stats));
            return;
        }
        if let Some((at, before)) = &self.before {
            let seconds = sample.at.saturating_duration_since(*at).as_secs_f64();
            if seconds > 0.0 {
                self.rates = Some(rates(before, &sample.stats, seconds));
            }
        }
        self.before = Some((sample.at, sample.stats.clone()));
        self.meet(&sample);
        self.last = sample;
        self.move_by(0);
    }

    fn meet(&mut self, sample: &Sample) {
        let Some(flows) = &sample.flows else {
            // Nobody looked, so what is there next time may have come any time.
            self.listed_flows = false;
            self.flows.clear();
            return;
        };
        let new = self.listed_flows.then_some(sample.at);
        let known = std::mem::take(&mut self.flows);
        self.flows = flows
            .iter()
            .map(|flow| {
                let seen = seen(flow);
                let first = known.get(&seen).copied().unwrap_or(new);
                (seen, first)
            })
            .collect();
        self.listed_flows = true;
    }

    /// The agent did not answer. What is known stays to be seen; when it is back, rates begin anew.
    pub fn lose(&mut self, why: String, now: Instant) {
        let since = self.trouble.as_ref().map_or(now, |before| before.since);
        self.trouble = Some(Trouble { why, since, now });
        self.before = None;
        self.rates = None;
    }

    pub fn wants_flows(&self) -> bool {
        self.view == View::Flows
    }

    /// Returns whether that was all.
    pub fn press(&mut self, key: Key) -> bool {
        let at = self.index();
        let count = View::ALL.len();
        match key {
            // The help is closed by whatever closes things.
            Key::Quit if self.help => self.help = false,
            Key::Quit => return true,
            Key::Next => self.show(View::ALL[(at + 1) % count]),
            Key::Previous => self.show(View::ALL[(at + count - 1) % count]),
            Key::Show(view) => self.show(view),
            Key::Sort => {
                let columns = self.view.columns().0.len();
                self.sorted[at] = ((self.sorted[at].0 + 1) % columns, false);
            }
            Key::Reverse => self.sorted[at].1 ^= true,
            Key::Pause => self.paused ^= true,
            Key::Help => self.help ^= true,
            Key::Move(rows) => self.move_by(rows),
        }
        false
    }

    fn show(&mut self, view: View) {
        self.view = view;
        self.first_row = 0;
        self.help = false;
    }

    fn move_by(&mut self, rows: isize) {
        let last = self.count().saturating_sub(1);
        self.first_row = self.first_row.saturating_add_signed(rows).min(last);
    }

    pub fn index(&self) -> usize {
        self.view as usize
    }

    /// Column, and whether it is turned round.
    pub fn sorting(&self) -> (usize, bool) {
        self.sorted[self.index()]
    }

    /// The first row to be shown.
    pub fn first_row(&self) -> usize {
        self.first_row
    }

    /// What came a second in all, and what was dropped.
    pub fn totals(&self) -> Option<(Counter, u64)> {
        let rates = self.rates.as_ref()?;
        let mut total = Counter::default();
        for endpoint in &rates.endpoints {
            total.rx_packets += endpoint.total.rx_packets;
            total.rx_bytes += endpoint.total.rx_bytes;
            total.tx_packets += endpoint.total.tx_packets;
            total.tx_bytes += endpoint.total.tx_bytes;
        }
        Some((total, rates.drops.iter().map(|drop| drop.packets).sum()))
    }

    /// Why the table is empty, if there is a reason.
    pub fn missing(&self) -> Option<String> {
        match self.view {
            View::Flows
                if self.last.flows.is_none() && self.last.status.flows > super::MOST_FLOWS =>
            {
                Some(format!(
                    "{} flows are too many to be listed each second: `netfw flow ls` takes a filter",
                    self.last.status.flows
                ))
            }
            View::Flows if self.last.flows.is_none() => Some("asking for the flows".to_owned()),
            View::Flows if self.count() == 0 => Some("there are no flows".to_owned()),
            View::Publishes if self.count() == 0 => Some("nothing is published".to_owned()),
            View::Endpoints if self.count() == 0 => Some("there are no endpoints".to_owned()),
            _ => None,
        }
    }

    fn count(&self) -> usize {
        let endpoints = &self.last.stats.endpoints;
        match self.view {
            View::Publishes => endpoints.iter().map(|e| e.publishes.len()).sum(),
            View::Endpoints => endpoints.len(),
            View::Flows => self.last.flows.as_ref().map_or(0, Vec::len),
            View::Drops => self.last.stats.drops.len(),
        }
    }

    /// The rows of the view, sorted.
    pub fn rows(&self) -> Vec<Vec<Cell>> {
        let mut rows = match self.view {
            View::Publishes => self.publishes(),
            View::Endpoints => self.endpoints(),
            View::Flows => self.flows(),
            View::Drops => self.drops(),
        };
        let (column, turned) = self.sorting();
        rows.sort_by(|a, b| {
            let order = a[column].order(&b[column]);
            let order = if turned { order.reverse() } else { order };
            // The first text tells them apart, or nothing does.
            order.then_with(|| {
                let name = |row: &[Cell]| row.iter().find(|c| c.is_text()).map(Cell::to_string);
                name(a).cmp(&name(b))
            })
        });
        rows
    }

    /// What there was last: rates, or what is shown without them.
    fn measured(&self) -> &[EndpointStats] {
        let stats = self.rates.as_ref().unwrap_or(&self.last.stats);
        &stats.endpoints
    }

    /// A row of rates, where they are known: zeros would look like a quiet node.
    fn row(&self, names: [Cell; 2], c: &Counter) -> Vec<Cell> {
        let rates = [c.rx_packets, c.rx_bytes, c.tx_packets, c.tx_bytes];
        let cell = |rate| match self.rates {
            Some(_) => Cell::Number(rate),
            None => Cell::Unknown,
        };
        names.into_iter().chain(rates.map(cell)).collect()
    }

    fn publishes(&self) -> Vec<Vec<Cell>> {
        let endpoints = self.measured().iter();
        let publishes = endpoints.flat_map(|e| {
            let of = e.name.to_string();
            e.publishes.iter().map(move |p| (of.clone(), p))
        });
        publishes
            .map(|(endpoint, p)| {
                let publish = Publish::from(p.publish.clone()).to_string();
                self.row([Cell::Text(publish), Cell::Text(endpoint)], &p.counter)
            })
            .collect()
    }

    fn endpoints(&self) -> Vec<Vec<Cell>> {
        let row = |e: &EndpointStats| {
            let publishes = Cell::Number(e.publishes.len() as u64);
            self.row([Cell::Text(e.name.to_string()), publishes], &e.total)
        };
        self.measured().iter().map(row).collect()
    }

    fn flows(&self) -> Vec<Vec<Cell>> {
        let flows = self.last.flows.iter().flatten();
        flows
            .map(|flow| {
                let first = self.flows.get(&seen(flow)).copied().flatten();
                let age = first.map(|first| self.last.at.saturating_duration_since(first));
                let age = Cell::Age {
                    seconds: age.unwrap_or_default().as_secs(),
                    least: age.is_none(),
                };
                let at = |ip, port| Cell::Text(std::net::SocketAddr::new(ip, port).to_string());
                let Tuple {
                    src,
                    dst,
                    sport,
                    dport,
                } = flow.original;
                let endpoint = flow.endpoint.as_ref().map_or("-", |name| name.as_str());
                vec![
                    age,
                    Cell::Text(flow.protocol.clone()),
                    Cell::Text(flow.state.clone()),
                    at(src, sport),
                    at(dst, dport),
                    Cell::Text(flow.origin.clone()),
                    Cell::Text(endpoint.to_owned()),
                    Cell::Number(flow.timeout),
                ]
            })
            .collect()
    }

    fn drops(&self) -> Vec<Vec<Cell>> {
        let drops = self.last.stats.drops.iter().enumerate();
        drops
            .map(|(at, drop)| {
                let rate = self.rates.as_ref().and_then(|rates| rates.drops.get(at));
                vec![
                    Cell::Text(drop.reason.clone()),
                    rate.map_or(Cell::Unknown, |rate| Cell::Number(rate.packets)),
                    Cell::Number(drop.packets),
                    Cell::Text(drop.description.clone()),
                ]
            })
            .collect()
    }
}
