//! What each contender looks like, in every chart the same.
//!
//! The colours are Okabe and Ito's, which eyes that lack a kind of cone tell apart as well, and their
//! shapes differ too. netfw's are the warm ones and the heavy lines; what nobody can beat is thin and
//! grey.

use plotters::style::RGBColor;

use crate::contender::Kind;

#[derive(Clone, Copy)]
pub struct Look {
    pub color: RGBColor,
    pub shape: Shape,
    /// Of a line, in pixels.
    pub width: u32,
    pub bold: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
}

/// For contenders of which nothing is known here, by their place among such.
const FURTHER: [(u8, u8, u8); 5] = [
    (0x11, 0x77, 0x33),
    (0xaa, 0x44, 0x99),
    (0x44, 0xaa, 0x99),
    (0x99, 0x99, 0x33),
    (0x88, 0x22, 0x55),
];

/// Looks for contenders, in the order of their names.
pub fn looks(contenders: &[&str]) -> Vec<Look> {
    let mut further = 0;
    contenders
        .iter()
        .map(|name| {
            known(name).unwrap_or_else(|| {
                let color = FURTHER[further % FURTHER.len()];
                further += 1;
                look(color, Shape::Diamond, 2)
            })
        })
        .collect()
}

fn known(name: &str) -> Option<Look> {
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.to_string() == name)
        // Where there is no hook to tell apart.
        .or((name == "netfw").then_some(Kind::Netfw))?;
    Some(match kind {
        Kind::Netfw => Look {
            bold: true,
            ..look((0xd5, 0x5e, 0x00), Shape::Circle, 4)
        },
        Kind::NetfwXdp => Look {
            bold: true,
            ..look((0xe6, 0x9f, 0x00), Shape::Circle, 4)
        },
        Kind::Redirect => look((0xa0, 0xa0, 0xa0), Shape::Diamond, 1),
        Kind::RedirectXdp => look((0x70, 0x70, 0x70), Shape::Diamond, 1),
        Kind::Host => look((0xcc, 0x79, 0xa7), Shape::Diamond, 2),
        Kind::Routing => look((0x00, 0x9e, 0x73), Shape::Triangle, 2),
        Kind::Iptables => look((0x00, 0x72, 0xb2), Shape::Square, 2),
        Kind::IptablesLegacy => look((0x56, 0xb4, 0xe9), Shape::Square, 2),
        Kind::Nftables => look((0x33, 0x22, 0x88), Shape::Square, 2),
    })
}

fn look((red, green, blue): (u8, u8, u8), shape: Shape, width: u32) -> Look {
    Look {
        color: RGBColor(red, green, blue),
        shape,
        width,
        bold: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_contenders_have_one_colour() {
        let mut names: Vec<String> = Kind::ALL.iter().map(Kind::to_string).collect();
        names.extend((0..FURTHER.len()).map(|n| format!("further {n}")));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut colors: Vec<_> = looks(&names)
            .iter()
            .map(|look| (look.color.0, look.color.1, look.color.2))
            .collect();
        colors.sort_unstable();
        colors.dedup();
        assert_eq!(colors.len(), names.len());
    }
}
