//! The figures for a terminal, and the rows that other tables are made of.

use std::fmt;

use super::{Better, Figure, Measure, Report, stats, targets};
use crate::contender::Kind;

/// A line of a table, as it is shown.
pub struct Row {
    pub contender: String,
    /// On the axis; empty where there is none.
    pub at: String,
    pub median: String,
    pub lowest: String,
    pub highest: String,
    pub spread: String,
    /// To iptables; empty where that was not measured.
    pub ratio: String,
}

impl Measure {
    /// A row for each contender, and one below another for each point on the axis.
    pub fn rows(&self) -> Vec<Row> {
        let base = Kind::Iptables.to_string();
        let row = |(contender, at): (&str, Option<u64>)| {
            let figure = self.figure(contender, at)?;
            let (low, high) = stats::range(&figure.rounds);
            let ratio = self
                .figure(&base, at)
                .map_or(String::new(), |base| format!("{:.2}", ratio(figure, base)));
            Some(Row {
                contender: contender.to_owned(),
                at: at.map_or(String::new(), grouped),
                median: number(figure.median()),
                lowest: number(low),
                highest: number(high),
                spread: format!("{:.1}%", stats::spread(&figure.rounds)),
                ratio,
            })
        };
        let points = self.points();
        self.contenders()
            .into_iter()
            .flat_map(|contender| points.iter().map(move |&at| (contender, at)))
            .filter_map(row)
            .collect()
    }

    /// `packets/s, more is better`
    pub fn unit(&self) -> String {
        let better = match self.heading.better {
            Better::Higher => "more",
            Better::Lower => "less",
        };
        format!("{}, {better} is better", self.heading.unit)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            out,
            "Linux {}, {} CPUs ({}), {} MiB",
            machine.kernel, machine.cpus, machine.cpu, machine.memory_mib
        )?;
        if self.unfinished {
            writeln!(out, "The run was stopped before its end.")?;
        }
        for measure in &self.measures {
            writeln!(out)?;
            measure.fmt(out)?;
        }
        writeln!(out)?;
        let few_rounds = targets::has_few_rounds(self);
        targets::write(out, &targets::judge(self), few_rounds)
    }
}

/// Width of a contender's name, unless one is longer.
const NAME: usize = 22;

impl fmt::Display for Measure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}: {}", self.heading.title, self.unit())?;
        let rows = self.rows();
        let axis = self.heading.axis.as_deref().unwrap_or_default();
        let ratio = if rows.iter().any(|row| !row.ratio.is_empty()) {
            "x iptables"
        } else {
            ""
        };
        let names = rows.iter().map(|row| row.contender.chars().count());
        let width = names.max().unwrap_or_default().max(NAME);
        let line = format!(
            "  {:<width$} {axis:>10} {:>12} {:>12} {:>12} {:>8} {ratio:>11}",
            "", "median", "lowest", "highest", "spread"
        );
        writeln!(out, "{}", line.trim_end())?;
        for row in rows {
            let line = format!(
                "  {:<width$} {:>10} {:>12} {:>12} {:>12} {:>8} {:>11}",
                row.contender, row.at, row.median, row.lowest, row.highest, row.spread, row.ratio
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn ratio(figure: &Figure, base: &Figure) -> f64 {
    figure.median() / base.median()
}

/// A figure with as many digits as mean something.
pub fn number(value: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded on purpose; figures are positive"
    )]
    match value.abs() {
        large if large >= 1000.0 => grouped(value.round() as u64),
        middle if middle >= 100.0 => format!("{value:.0}"),
        small if small >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_few_digits() {
        assert_eq!(number(1_234_567.8), "1,234,568");
        assert_eq!(number(999.6), "1000");
        assert_eq!(number(12.34), "12.3");
        assert_eq!(number(1.234), "1.23");
        assert_eq!(grouped(100), "100");
        assert_eq!(grouped(1000), "1,000");
    }
}
