//! A measure as a picture: SVG, white below it, that reads the same on light pages and dark ones.
//!
//! * `lines`: what grows along an axis, by contender
//! * `bars`: one figure for each contender
//! * [`scale`]: where a value lies, and which values are written at an axis
//! * `palette`: what each contender looks like, in every chart the same
//!
//! plotters draws; where things go is decided here, because labels must neither overlap nor be cut off.

mod bars;
mod lines;
mod palette;
mod scale;

use anyhow::{Result, anyhow};
use plotters::{
    backend::SVGBackend,
    coord::Shift,
    drawing::{DrawingArea, IntoDrawingArea as _},
    element::{PathElement, Rectangle, Text},
    style::{
        Color as _, FontDesc, FontFamily, FontStyle, RGBColor, ShapeStyle, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{Measure, stats, table};

/// The picture's width in pixels, at its own size.
const WIDTH: u32 = 860;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const FAINT_INK: RGBColor = RGBColor(0x60, 0x60, 0x60);
const GRID: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);

/// Contenders that differ by more are shown on a logarithmic scale.
const FAR_APART: f64 = 20.0;

/// The measure as SVG; none where nothing was measured that a picture could show.
pub fn svg(measure: &Measure) -> Result<Option<String>> {
    let drawable = |value: f64| value.is_finite() && value >= 0.0;
    if measure.figures.is_empty()
        || !measure
            .figures
            .iter()
            .flat_map(|figure| &figure.rounds)
            .all(|&round| drawable(round))
    {
        return Ok(None);
    }
    let along_axis = measure.points().len() > 1;
    let height = if along_axis {
        lines::HEIGHT
    } else {
        bars::height(measure)
    };
    let mut svg = String::new();
    {
        let backend = SVGBackend::with_string(&mut svg, (WIDTH, height));
        let canvas = Canvas(backend.into_drawing_area());
        canvas.0.fill(&WHITE).map_err(failed)?;
        canvas.head(measure)?;
        if along_axis {
            lines::draw(&canvas, measure)?;
        } else {
            bars::draw(&canvas, measure)?;
        }
        canvas.0.present().map_err(failed)?;
    }
    Ok(Some(scalable(&svg, measure)))
}

/// Pages may show it smaller; those who cannot see it are told what it is.
fn scalable(svg: &str, measure: &Measure) -> String {
    let title = &measure.heading.title;
    let label: String = title
        .chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '"' => "&quot;".to_owned(),
            c => c.to_string(),
        })
        .collect();
    svg.replacen(
        "<svg ",
        &format!("<svg role=\"img\" aria-label=\"{label}\" "),
        1,
    )
}

/// Medians that differ too much for one linear scale?
fn far_apart(measure: &Measure) -> bool {
    let medians: Vec<f64> = measure.figures.iter().map(super::Figure::median).collect();
    let (low, high) = stats::range(&medians);
    low > 0.0 && high > FAR_APART * low
}

/// All rounds' lowest and highest.
fn extent(measure: &Measure) -> (f64, f64) {
    let rounds: Vec<f64> = measure
        .figures
        .iter()
        .flat_map(|figure| figure.rounds.iter().copied())
        .collect();
    stats::range(&rounds)
}

/// A figure in a chart that reaches up to `high`: `1.47 M`, or as in tables.
fn short(value: f64, high: f64) -> String {
    if high >= 1e6 {
        format!("{:.2} M", value / 1e6)
    } else {
        table::number(value)
    }
}

/// The same for a round value: `1.5 M`, `20`.
fn tick(value: f64, high: f64) -> String {
    // On a logarithmic axis they lie far below the highest.
    let high = if value > 0.0 && value < high / 100.0 {
        value
    } else {
        high
    };
    let text = short(value, high);
    let (number, unit) = match text.split_once(' ') {
        Some((number, unit)) => (number, format!(" {unit}")),
        None => (text.as_str(), String::new()),
    };
    match number.trim_end_matches('0').trim_end_matches('.') {
        _ if !number.contains('.') => text,
        "" | "0" => "0".to_owned(),
        short => format!("{short}{unit}"),
    }
}

struct Canvas<'a>(DrawingArea<SVGBackend<'a>, Shift>);

/// Pixels from the left and from the top.
type Point = (f64, f64);

/// How a text looks and which part of it lies at its point.
#[derive(Clone, Copy)]
struct Lettering {
    size: f64,
    color: RGBColor,
    bold: bool,
    h: HPos,
}

const SMALL: Lettering = Lettering {
    size: 13.0,
    color: INK,
    bold: false,
    h: HPos::Left,
};

impl Lettering {
    fn right(self) -> Self {
        Self {
            h: HPos::Right,
            ..self
        }
    }

    fn center(self) -> Self {
        Self {
            h: HPos::Center,
            ..self
        }
    }

    fn faint(self) -> Self {
        Self {
            color: FAINT_INK,
            ..self
        }
    }

    fn bold(self, bold: bool) -> Self {
        Self { bold, ..self }
    }
}

impl Canvas<'_> {
    fn head(&self, measure: &Measure) -> Result<()> {
        let rounds = measure.figures.iter().map(|figure| figure.rounds.len());
        let (fewest, most) = (rounds.clone().min(), rounds.max());
        let (fewest, most) = (fewest.unwrap_or(0), most.unwrap_or(0));
        let rounds = match (fewest, most) {
            (1, 1) => "one round".to_owned(),
            (fewest, most) if fewest == most => {
                format!("median of {most} rounds, lowest to highest")
            }
            _ => format!("median of {fewest} to {most} rounds, lowest to highest"),
        };
        let at = match (&measure.heading.axis, measure.points().as_slice()) {
            (Some(axis), [Some(only)]) => format!(" \u{b7} {} {axis}", table::grouped(*only)),
            _ => String::new(),
        };
        let title = Lettering {
            size: 17.0,
            ..SMALL
        }
        .bold(true);
        self.text(&measure.heading.title, (16.0, 22.0), title)?;
        let scale = if far_apart(measure) {
            " \u{b7} logarithmic scale"
        } else {
            ""
        };
        let below = format!("{} \u{b7} {rounds}{at}{scale}", measure.unit());
        self.text(&below, (16.0, 43.0), SMALL.faint())
    }

    /// Its point is in the middle of the line's height.
    fn text(&self, text: &str, at: Point, lettering: Lettering) -> Result<()> {
        // The backend makes fonts smaller by this.
        const SHRINKS: f64 = 1.24;
        let style = if lettering.bold {
            FontStyle::Bold
        } else {
            FontStyle::Normal
        };
        let font = FontDesc::new(FontFamily::SansSerif, lettering.size * SHRINKS, style);
        let style = plotters::style::TextStyle::from(font)
            .color(&lettering.color)
            .pos(Pos::new(lettering.h, VPos::Center));
        self.0
            .draw(&Text::new(text, pixel(at), style))
            .map_err(failed)
    }

    fn line(&self, points: &[Point], color: RGBColor, width: u32) -> Result<()> {
        let points: Vec<_> = points.iter().copied().map(pixel).collect();
        self.0
            .draw(&PathElement::new(points, color.stroke_width(width)))
            .map_err(failed)
    }

    fn rectangle(&self, a: Point, b: Point, color: RGBColor) -> Result<()> {
        let style: ShapeStyle = color.filled();
        self.0
            .draw(&Rectangle::new([pixel(a), pixel(b)], style))
            .map_err(failed)
    }
}

fn pixel((x, y): Point) -> (i32, i32) {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "places in a picture of some hundred pixels"
    )]
    let round = |value: f64| value.round() as i32;
    (round(x), round(y))
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing a chart: {error}")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Better, Heading,
            tests::{heading, report},
        },
        *,
    };
    use crate::contender::Kind;

    fn measure(axis: Option<&str>, figures: &[(&str, Option<u64>, &[f64])]) -> Measure {
        let heading = Heading {
            better: Better::Higher,
            axis: axis.map(str::to_owned),
            title: "A <title> & \"more\"".to_owned(),
            ..heading("id")
        };
        report(&heading, figures).measures.remove(0)
    }

    fn picture(measure: &Measure) -> String {
        svg(measure).expect("drawn").expect("something to draw")
    }

    #[test]
    fn each_contender_is_named_once() {
        let names = Kind::ALL.map(|kind| kind.to_string());
        let mut along = Vec::new();
        let mut beside = Vec::new();
        for name in &names {
            along.push((name.as_str(), Some(10), [1.0, 2.0]));
            along.push((name.as_str(), Some(60_000), [2.0, 3.0]));
            beside.push((name.as_str(), None, [1.0, 2.0]));
        }
        fn borrow<'a>(
            figures: &'a [(&'a str, Option<u64>, [f64; 2])],
        ) -> Vec<(&'a str, Option<u64>, &'a [f64])> {
            figures
                .iter()
                .map(|(name, at, rounds)| (*name, *at, rounds.as_slice()))
                .collect()
        }
        for measure in [
            measure(Some("publishes"), &borrow(&along)),
            measure(None, &borrow(&beside)),
        ] {
            let picture = picture(&measure);
            for name in &names {
                assert_eq!(picture.matches(&format!("\n{name}\n")).count(), 1, "{name}");
            }
            assert!(!picture.contains("NaN") && !picture.contains("<title>"));
        }
    }

    #[test]
    fn points_on_the_axis_are_written_at_it() {
        let figures: &[(&str, Option<u64>, &[f64])] = &[
            ("netfw (TC)", Some(0), &[1.0]),
            ("netfw (TC)", Some(1000), &[1.0]),
            ("netfw (TC)", Some(100_000), &[1.0]),
        ];
        let picture = picture(&measure(Some("flows"), figures));
        for text in ["0", "1,000", "100,000", "flows"] {
            assert!(picture.contains(&format!("\n{text}\n")), "{text}");
        }
    }

    #[test]
    fn one_point_makes_bars_that_say_where() {
        let figures: &[(&str, Option<u64>, &[f64])] = &[("netfw (TC)", Some(1000), &[1.0, 2.0])];
        let picture = picture(&measure(Some("flows"), figures));
        assert!(picture.contains("1,000 flows"), "{picture}");
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        let nothing = measure(None, &[("a", None, &[f64::NAN])]);
        assert_eq!(svg(&nothing).expect("no error"), None);
        let zero = measure(None, &[("a", None, &[0.0])]);
        assert!(!picture(&zero).contains("NaN"));
    }

    #[test]
    fn values_on_axes_have_no_needless_digits() {
        let texts = [0.0, 1_500_000.0, 2_000_000.0].map(|value| tick(value, 3e6));
        assert_eq!(texts, ["0", "1.5 M", "2 M"]);
        let texts = [0.0, 2.5, 10.0, 100.0].map(|value| tick(value, 100.0));
        assert_eq!(texts, ["0", "2.5", "10", "100"]);
        assert_eq!(tick(20_000.0, 50_000.0), "20,000");
    }

    #[test]
    fn a_picture_is_the_same_each_time() {
        let figures: &[(&str, Option<u64>, &[f64])] =
            &[("a", Some(1), &[1.0, 1.5]), ("b", Some(7), &[100.0, 3.0])];
        let measure = measure(Some("flows"), figures);
        assert_eq!(picture(&measure), picture(&measure));
    }
}
