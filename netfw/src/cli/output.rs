//! Printing: a table for people, or the API's JSON.

use std::{fmt::Write, net::IpAddr};

use serde::Serialize;

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

/// Columns under headings, as wide as they must be.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|&h| h.to_owned()).collect()],
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let width = cell.chars().count();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, "{cell:width$}   ")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
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
}
