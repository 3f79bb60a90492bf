//! How `netfw top` is drawn. Colours are the terminal's own sixteen, and none carries what words do not say: it
//! looks right on light and dark, and without any (`NO_COLOR`).

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Block, Clear, Paragraph, Row, Table, Wrap},
};

use super::model::{Cell, Top, View, short, time};

/// A column is never wider, but for the last.
const WIDEST: usize = 48;

const KEYS: &str = "q quit   Tab view   s sort   r reverse   p pause   ? help";

const HELP: &str = "\
Tab, arrows, 1-4   another view
up, down, page     scroll; Home, End
s                  sort by the next column
r                  the other way round
p, blank           pause: figures stay
?, h               this
q, Esc, Ctrl-C     quit

RX is into the container, TX out of it, as in `netfw stats`.
Flows have no counters of their own. AGE is since top saw one
first; > means that it was there before.
`netfw stats` and `netfw flow ls` print what is here.";

pub fn draw(frame: &mut Frame, top: &Top) {
    let [head, totals, tabs, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(header(top), head);
    frame.render_widget(sums(top), totals);
    frame.render_widget(titles(top), tabs);
    match top.missing() {
        Some(why) => frame.render_widget(Paragraph::new(why).wrap(Wrap::default()), body),
        None => table(frame, top, body),
    }
    frame.render_widget(footer(top), foot);
    if top.help {
        help(frame);
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// For what is amiss.
fn alarm(top: &Top) -> Style {
    if top.coloured {
        bold().fg(Color::Red)
    } else {
        bold()
    }
}

fn header(top: &Top) -> Line<'_> {
    let status = &top.last.status;
    let gone = match status.endpoints_gone {
        0 => String::new(),
        gone => format!(" ({gone} gone)"),
    };
    let mut spans = vec![
        Span::styled(format!("netfw {}", status.instance), bold()),
        format!(
            "   up {}   endpoints {}{gone}   publishes {}   flows {} of {}",
            time(status.uptime),
            status.endpoints,
            status.publishes,
            status.flows,
            short(status.flows_max)
        )
        .into(),
    ];
    match status.warnings.len() {
        0 => {}
        n => {
            let warnings = format!("   warnings {n}: see `netfw status`");
            spans.push(Span::styled(warnings, alarm(top)));
        }
    }
    Line::from(spans)
}

fn sums(top: &Top) -> Line<'_> {
    let Some((total, drops)) = top.totals() else {
        return Line::from(match top.trouble {
            Some(_) => "no rates: the agent does not answer",
            None => "rates come with the next look",
        });
    };
    let dropped = match drops {
        0 => Span::raw("0/s"),
        drops => Span::styled(format!("{}/s", short(drops)), alarm(top)),
    };
    Line::from(vec![
        Span::styled("RX ", bold()),
        format!(
            "{} pkt/s {} B/s   ",
            short(total.rx_packets),
            short(total.rx_bytes)
        )
        .into(),
        Span::styled("TX ", bold()),
        format!(
            "{} pkt/s {} B/s   ",
            short(total.tx_packets),
            short(total.tx_bytes)
        )
        .into(),
        Span::styled("dropped ", bold()),
        dropped,
        format!(" ({} in all)", short(top.last.status.dropped)).into(),
    ])
}

fn titles(top: &Top) -> Line<'_> {
    let title = |(at, view): (usize, &View)| {
        let text = format!(" {} {} ", at + 1, view.title());
        let shown = Style::new().add_modifier(Modifier::REVERSED);
        [
            match *view == top.view {
                true => Span::styled(text, shown),
                false => Span::raw(text),
            },
            Span::raw(" "),
        ]
    };
    let mut spans: Vec<Span> = View::ALL.iter().enumerate().flat_map(title).collect();
    if top.paused {
        spans.push(Span::styled("paused", alarm(top)));
    }
    Line::from(spans)
}

fn footer(top: &Top) -> Line<'_> {
    match &top.trouble {
        Some(trouble) => Line::styled(
            format!(
                "no answer for {}, these are the last figures: {}",
                time(trouble.lasts().as_secs()),
                trouble.why
            ),
            alarm(top),
        ),
        None => Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM)),
    }
}

fn table(frame: &mut Frame, top: &Top, area: Rect) {
    let rows = top.rows();
    let (columns, _) = top.view.columns();
    let (sorted, turned) = top.sorting();
    let heading = |(at, title): (usize, &&str)| match at == sorted {
        true => format!("{title}{}", if turned { "\u{25b2}" } else { "\u{25bc}" }),
        false => (*title).to_owned(),
    };
    let headings: Vec<String> = columns.iter().enumerate().map(heading).collect();
    let is_text = |column: usize| rows.first().is_none_or(|row| row[column].is_text());
    let last = columns.len() - 1;
    let widths = (0..columns.len()).map(|column| {
        let cells = rows
            .iter()
            .map(|row| row[column].to_string().chars().count());
        let widest = cells.max().unwrap_or(0).min(WIDEST);
        let width = widest.max(headings[column].chars().count());
        match column == last && is_text(column) {
            true => Constraint::Fill(1),
            // A column that is wider from look to look would have all others jump.
            false if !is_text(column) => Constraint::Length(width.max(9) as u16),
            false => Constraint::Length(width as u16),
        }
    });
    let cell = |column: usize, text: String| match is_text(column) {
        true => Text::raw(text),
        false => Text::raw(text).alignment(Alignment::Right),
    };
    let header = headings.iter().enumerate();
    let header = Row::new(header.map(|(column, text)| cell(column, text.clone()))).style(bold());
    let faded = match top.trouble {
        Some(_) => Style::new().add_modifier(Modifier::DIM),
        None => Style::new(),
    };
    let room = usize::from(area.height.saturating_sub(1));
    let shown = rows.iter().skip(top.first_row()).take(room).map(|row| {
        let cells = row.iter().enumerate();
        let style = match is_met(top, row) {
            true => alarm(top),
            false => faded,
        };
        Row::new(cells.map(|(column, text)| cell(column, text.to_string()))).style(style)
    });
    let table = Table::new(shown.collect::<Vec<_>>(), widths)
        .header(header)
        .column_spacing(2);
    frame.render_widget(table, area);
}

/// Is a reason to drop packets being met just now?
fn is_met(top: &Top, row: &[Cell]) -> bool {
    top.view == View::Drops && matches!(row[1], Cell::Number(rate) if rate > 0)
}

fn help(frame: &mut Frame) {
    let lines = HELP.lines().count() as u16 + 2;
    let width = HELP.lines().map(|line| line.chars().count()).max();
    let area = frame.area().centered(
        Constraint::Max(width.unwrap_or(0) as u16 + 4),
        Constraint::Max(lines),
    );
    frame.render_widget(Clear, area);
    let block = Block::bordered()
        .title(" netfw top ")
        .padding(ratatui::widgets::Padding::horizontal(1));
    frame.render_widget(Paragraph::new(HELP).block(block), area);
}
