//! Printing: a table for people, or the API's JSON.

use std::net::IpAddr;

use comfy_table::{ColumnConstraint, Width};
use serde::Serialize;
use terminal_size::terminal_size_of;

use crate::{
    api::types::{Endpoint, Publish},
    publish::PortRange,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
}

/// Prints `value` as JSON, or what `table` makes of it.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Format::Table => print!("{}", table(value)),
    }
    Ok(())
}

/// Says on stderr what JSON says in `warnings`.
pub fn warn(format: Format, endpoint: &Endpoint) {
    if format == Format::Table {
        for warning in &endpoint.warnings {
            eprintln!("netfw: warning: {warning}");
        }
    }
}

/// Those that there are, IPv4's first.
pub fn joined<T: ToString>(both: [Option<T>; 2]) -> String {
    let there: Vec<String> = both.into_iter().flatten().map(|t| t.to_string()).collect();
    there.join(", ")
}

/// `0.0.0.0:8080`, `[::]:8080-8090`.
pub fn outside(ip: IpAddr, ports: PortRange) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}:{ports}"),
        IpAddr::V6(ip) => format!("[{ip}]:{ports}"),
    }
}

/// ` (from 10.0.0.0/8)`, behind a publish; nothing where it is for everybody.
pub fn allowed(publish: &Publish) -> String {
    if publish.allow_from.is_empty() {
        return String::new();
    }
    format!(" (from {})", publish.allow_from)
}

/// Between columns.
const PADDING: u16 = 3;

fn longest_word(cell: &str) -> usize {
    cell.split_whitespace()
        .map(|word| word.chars().count())
        .max()
        .unwrap_or(0)
}

/// Columns under headings, as wide as they must be; on a terminal, no wider than it: lists in a cell then
/// go on in the next line.
pub struct Table {
    table: comfy_table::Table,
    /// The longest word of each column, which is never broken.
    words: Vec<usize>,
}

impl Table {
    pub fn new(headings: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_content_arrangement(comfy_table::ContentArrangement::Dynamic)
            .set_header(headings);
        if let Some((terminal_size::Width(width), _)) = terminal_size_of(std::io::stdout()) {
            table.set_width(width);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, PADDING));
        }
        let words = headings.iter().map(|heading| longest_word(heading));
        Self {
            words: words.collect(),
            table,
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        for (longest, cell) in self.words.iter_mut().zip(&cells) {
            *longest = longest_word(cell).max(*longest);
        }
        self.table.add_row(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = self.table.clone();
        for (column, word) in table.column_iter_mut().zip(&self.words) {
            let width = u16::try_from(*word)
                .unwrap_or(u16::MAX)
                .saturating_add(PADDING);
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
        }
        writeln!(f, "{}", table.trim_fmt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "IP"]);
        table.row(["web-frontend".into(), "172.18.0.2".into()]);
        table.row(["db".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME           IP\nweb-frontend   172.18.0.2\ndb\n"
        );
    }

    #[test]
    fn a_narrow_terminal_gets_narrow_columns() {
        let mut table = Table::new(&["NAME", "PORTS"]);
        table.row(["web".into(), "0.0.0.0:80->80/tcp, [::]:80->80/tcp".into()]);
        table.table.set_width(32);
        assert_eq!(
            table.to_string(),
            "NAME   PORTS\nweb    0.0.0.0:80->80/tcp,\n       [::]:80->80/tcp\n"
        );
        // Narrower than its words: those stay whole, whatever the terminal makes of it.
        table.table.set_width(12);
        assert!(table.to_string().contains("0.0.0.0:80->80/tcp,"), "{table}");
    }
}
