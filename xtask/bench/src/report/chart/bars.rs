//! One figure for each contender: bars from 0, or points where the scale has no 0.

use anyhow::Result;

use super::{
    Canvas, GRID, INK, SMALL, WIDTH, extent, far_apart, lines::mark, palette, scale::Scale, short,
    tick,
};
use crate::report::{Figure, Measure, stats};

const TOP: f64 = 70.0;
const ROW: u32 = 28;
/// Title above, scale below.
const AROUND: u32 = 104;

const LEFT: f64 = 176.0;
/// Room for figures is right of it.
const RIGHT: f64 = WIDTH as f64 - 96.0;

pub fn height(measure: &Measure) -> u32 {
    AROUND + ROW * u32::try_from(measure.figures.len()).unwrap_or(1)
}

pub fn draw(canvas: &Canvas<'_>, measure: &Measure) -> Result<()> {
    let figures = &measure.figures;
    let x = Scale::new(far_apart(measure), extent(measure), LEFT, RIGHT);
    let bottom = f64::from(height(measure) - AROUND) + TOP;

    for &value in x.ticks() {
        let at = x.place(value);
        canvas.line(&[(at, TOP - 6.0), (at, bottom)], GRID, 1)?;
        canvas.text(
            &tick(value, x.high()),
            (at, bottom + 14.0),
            SMALL.faint().center(),
        )?;
    }

    let contenders: Vec<&str> = figures.iter().map(|figure| &*figure.contender).collect();
    let looks = palette::looks(&contenders);
    let mut middle = TOP + f64::from(ROW) / 2.0;
    for (
        Figure {
            contender, rounds, ..
        },
        look,
    ) in figures.iter().zip(looks)
    {
        let median = stats::median(rounds);
        let (low, high) = stats::range(rounds);
        let name = (LEFT - 10.0, middle);
        canvas.text(contender, name, SMALL.right().bold(look.bold))?;
        let end = x.place(median);
        if x.is_logarithmic() {
            mark(canvas, (end, middle), look)?;
        } else {
            canvas.rectangle((LEFT, middle - 9.0), (end, middle + 9.0), look.color)?;
        }
        let (low, high) = (x.place(low), x.place(high));
        canvas.line(&[(low, middle), (high, middle)], INK, 1)?;
        for end in [low, high] {
            canvas.line(&[(end, middle - 4.0), (end, middle + 4.0)], INK, 1)?;
        }
        let figure = (high.max(end) + 8.0, middle);
        canvas.text(&short(median, x.high()), figure, SMALL.bold(look.bold))?;
        middle += f64::from(ROW);
    }
    Ok(())
}
