//! The figures for a terminal.

use std::fmt;

use super::{Better, Figure, Measure, Report, stats};
use crate::contender::Kind;

/// What ratios are to.
fn base() -> String {
    Kind::Iptables.to_string()
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            out,
            "Linux {}, {} CPUs ({}), {} MiB",
            machine.kernel, machine.cpus, machine.cpu, machine.memory_mib
        )?;
        for measure in &self.measures {
            writeln!(out)?;
            measure.fmt(out)?;
        }
        Ok(())
    }
}

impl fmt::Display for Measure {
    /// A row for each contender, and one below another for each point on the axis.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = &self.heading;
        let better = match heading.better {
            Better::Higher => "more",
            Better::Lower => "less",
        };
        writeln!(
            out,
            "{}, {} ({better} is better)",
            heading.title, heading.unit
        )?;
        let axis = heading.axis.as_deref().unwrap_or_default();
        writeln!(
            out,
            "  {:<22} {axis:>10} {:>12} {:>12} {:>12} {:>8} {:>11}",
            "", "median", "lowest", "highest", "spread", "x iptables"
        )?;
        for contender in self.contenders() {
            for at in self.points() {
                let Some(figure) = self.figure(contender, at) else {
                    continue;
                };
                let ratio = self
                    .figure(&base(), at)
                    .map_or(String::new(), |base| format!("{:.2}", ratio(figure, base)));
                let (low, high) = stats::range(&figure.rounds);
                writeln!(
                    out,
                    "  {contender:<22} {:>10} {:>12} {:>12} {:>12} {:>7.1}% {ratio:>11}",
                    at.map_or(String::new(), grouped),
                    number(figure.median()),
                    number(low),
                    number(high),
                    stats::spread(&figure.rounds),
                )?;
            }
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
