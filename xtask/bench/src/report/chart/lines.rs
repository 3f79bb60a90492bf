//! How a figure grows along its axis: a line for each contender, with its name at its end.

use anyhow::Result;
use plotters::element::{Circle, Polygon};
use plotters::style::Color as _;

use super::{
    Canvas, GRID, Point, SMALL, WIDTH, extent, failed, far_apart,
    palette::{self, Look, Shape},
    pixel,
    scale::Scale,
    tick,
};
use crate::report::{Figure, Measure, stats, table};

pub const HEIGHT: u32 = 430;

const LEFT: f64 = 84.0;
/// Room for names is right of it.
const RIGHT: f64 = WIDTH as f64 - 184.0;
const TOP: f64 = 72.0;
const BOTTOM: f64 = HEIGHT as f64 - 56.0;

/// Between names, at least.
const LINE_HEIGHT: f64 = 17.0;
/// Contenders' points of one place stand so far apart that none hides another's whiskers.
const ASIDE: f64 = 5.0;

pub fn draw(canvas: &Canvas<'_>, measure: &Measure) -> Result<()> {
    let points: Vec<u64> = measure.points().into_iter().flatten().collect();
    let y = Scale::new(far_apart(measure), extent(measure), BOTTOM, TOP);
    let x = Places::new(&points);

    for &value in y.ticks() {
        let at = y.place(value);
        canvas.line(&[(LEFT, at), (RIGHT, at)], GRID, 1)?;
        canvas.text(
            &tick(value, y.high()),
            (LEFT - 8.0, at),
            SMALL.faint().right(),
        )?;
    }
    for (text, at) in x.labels() {
        canvas.line(&[(at, BOTTOM), (at, BOTTOM + 5.0)], GRID, 1)?;
        canvas.text(&text, (at, BOTTOM + 16.0), SMALL.faint().center())?;
    }
    let axis = measure.heading.axis.as_deref().unwrap_or_default();
    let middle = f64::midpoint(LEFT, RIGHT);
    canvas.text(axis, (middle, BOTTOM + 38.0), SMALL.faint().center())?;

    let contenders = measure.contenders();
    let looks = palette::looks(&contenders);
    let aside = |place: usize| (count(place) - (count(contenders.len()) - 1.0) / 2.0) * ASIDE;
    let mut names = Vec::new();
    // The first contenders last, and netfw above all: what is drawn last is not hidden.
    let mut order: Vec<usize> = (0..contenders.len()).rev().collect();
    order.sort_by_key(|&place| looks[place].bold);
    for place in order {
        let (name, look) = (contenders[place], looks[place]);
        let figures: Vec<(f64, &Figure)> = points
            .iter()
            .filter_map(|&at| Some((x.place(at) + aside(place), measure.figure(name, Some(at))?)))
            .collect();
        let medians: Vec<Point> = figures
            .iter()
            .map(|&(at, figure)| (at, y.place(figure.median())))
            .collect();
        canvas.line(&medians, look.color, look.width)?;
        for (&(at, figure), &median) in figures.iter().zip(&medians) {
            let (low, high) = stats::range(&figure.rounds);
            whisker(canvas, at, (y.place(low), y.place(high)), look)?;
            mark(canvas, median, look)?;
        }
        if let Some(&end) = medians.last() {
            names.push((name, look, end));
        }
    }
    draw_names(canvas, names)
}

fn whisker(canvas: &Canvas<'_>, at: f64, (low, high): (f64, f64), look: Look) -> Result<()> {
    canvas.line(&[(at, low), (at, high)], look.color, 1)?;
    for end in [low, high] {
        canvas.line(&[(at - 3.0, end), (at + 3.0, end)], look.color, 1)?;
    }
    Ok(())
}

/// The median.
pub fn mark(canvas: &Canvas<'_>, (x, y): Point, look: Look) -> Result<()> {
    let style = look.color.filled();
    let size = if look.bold { 5.0 } else { 4.0 };
    let corners: Vec<(f64, f64)> = match look.shape {
        #[expect(clippy::cast_possible_truncation, reason = "a few pixels")]
        Shape::Circle => {
            let circle = Circle::new(pixel((x, y)), size as i32, style);
            return canvas.0.draw(&circle).map_err(failed);
        }
        Shape::Square => vec![(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        Shape::Triangle => vec![(0.0, -1.25), (1.25, 1.0), (-1.25, 1.0)],
        Shape::Diamond => vec![(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
    };
    let corners: Vec<_> = corners
        .into_iter()
        .map(|(right, down)| pixel((x + right * size, y + down * size)))
        .collect();
    canvas.0.draw(&Polygon::new(corners, style)).map_err(failed)
}

/// Each at its line's end, or as near as the others let it.
fn draw_names(canvas: &Canvas<'_>, mut names: Vec<(&str, Look, Point)>) -> Result<()> {
    names.sort_by(|a, b| a.2.1.total_cmp(&b.2.1));
    let wanted: Vec<f64> = names.iter().map(|(_, _, (_, y))| *y).collect();
    let placed = spread_out(&wanted, LINE_HEIGHT, TOP - 4.0, BOTTOM);
    for ((name, look, end), y) in names.into_iter().zip(placed) {
        let from = (end.0 + 6.0, end.1);
        canvas.line(&[from, (RIGHT + 12.0, y), (RIGHT + 20.0, y)], look.color, 1)?;
        mark(canvas, (RIGHT + 24.0, y), look)?;
        canvas.text(name, (RIGHT + 34.0, y), SMALL.bold(look.bold))?;
    }
    Ok(())
}

/// Moves values, which are in order, so that neighbours are `gap` apart and none is outside, and each as
/// little as can be.
fn spread_out(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    /// Neighbours that touch: their number, and where the first of them would best be.
    struct Group {
        size: usize,
        sum: f64,
    }
    let start = |group: &Group| {
        let length = (count(group.size) - 1.0) * gap;
        (group.sum / count(group.size)).min(high - length).max(low)
    };
    let mut groups: Vec<Group> = Vec::new();
    for &value in wanted {
        groups.push(Group {
            size: 1,
            sum: value,
        });
        while let [.., before, last] = groups.as_slice()
            && start(before) + count(before.size) * gap > start(last)
        {
            // The last one's members begin further down in the group that both become.
            let joined = Group {
                size: before.size + last.size,
                sum: before.sum + last.sum - count(last.size) * count(before.size) * gap,
            };
            groups.truncate(groups.len() - 2);
            groups.push(joined);
        }
    }
    groups
        .iter()
        .flat_map(|group| (0..group.size).map(move |n| start(group) + count(n) * gap))
        .collect()
}

/// Where points of the axis lie: by their logarithm, and 0 before all others.
struct Places {
    points: Vec<u64>,
    low: f64,
    high: f64,
}

impl Places {
    fn new(points: &[u64]) -> Self {
        let smallest = points.iter().copied().find(|&at| at > 0).unwrap_or(1);
        let low = match points.first() {
            // Half a decade stands for the way to nothing.
            Some(0) => logarithm(smallest) - 0.5,
            _ => logarithm(smallest),
        };
        Self {
            points: points.to_vec(),
            low,
            high: logarithm(points.last().copied().unwrap_or(1)),
        }
    }

    fn place(&self, at: u64) -> f64 {
        /// No point lies at the very edge.
        const INSET: f64 = 34.0;
        let value = if at == 0 { self.low } else { logarithm(at) };
        let part = (value - self.low) / (self.high - self.low).max(f64::EPSILON);
        LEFT + INSET + part * (RIGHT - LEFT - 2.0 * INSET)
    }

    /// Texts and places; those that would touch the one before are left out, but for the last.
    fn labels(&self) -> Vec<(String, f64)> {
        let width = |text: &str| count(text.len()) * 7.5;
        let mut labels: Vec<(String, f64)> = Vec::new();
        for (place, &at) in self.points.iter().enumerate() {
            let (text, x) = (table::grouped(at), self.place(at));
            let touches = |(other, y): &(String, f64)| {
                x - y < f64::midpoint(width(&text), width(other)) + 8.0
            };
            if labels.last().is_some_and(touches) {
                if place + 1 < self.points.len() {
                    continue;
                }
                labels.pop();
            }
            labels.push((text, x));
        }
        labels
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "flows, publishes and ports are few"
)]
fn logarithm(at: u64) -> f64 {
    (at as f64).log10()
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_overlap_and_stay_inside() {
        let wanted = [10.0, 11.0, 12.0, 50.0, 99.0, 100.0];
        let placed = spread_out(&wanted, 10.0, 5.0, 100.0);
        for pair in placed.windows(2) {
            assert!(pair[1] - pair[0] >= 10.0 - 1e-9, "{placed:?}");
        }
        assert!(placed[0] >= 5.0 && placed[5] <= 100.0, "{placed:?}");
        assert_eq!(placed[3], 50.0);
        assert_eq!(spread_out(&[3.0, 90.0], 10.0, 0.0, 100.0), [3.0, 90.0]);
    }

    #[test]
    fn labels_that_would_touch_are_left_out_but_not_the_last() {
        let texts: Vec<String> = Places::new(&[1, 1000, 60_000, 65_000])
            .labels()
            .into_iter()
            .map(|(text, _)| text)
            .collect();
        assert_eq!(texts, ["1", "1,000", "65,000"]);
    }
}
