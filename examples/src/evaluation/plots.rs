//! Plots of what was measured.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Cell, Keys};
use crate::passkey;
use crate::plot::{self, plot_error};
use crate::report::Table;

/// Perplexity against length, a line a method; `None` where no value is finite.
pub fn perplexity_svg(cells: &[Cell]) -> Result<Option<String>> {
    if cells.iter().all(|cell| !cell.perplexity().is_finite()) {
        return Ok(None);
    }
    let (mut lengths, mut methods): (Vec<usize>, Vec<String>) = (Vec::new(), Vec::new());
    for cell in cells {
        if !lengths.contains(&cell.length) {
            lengths.push(cell.length);
        }
        if !methods.contains(&cell.method) {
            methods.push(cell.method.clone());
        }
    }
    // Runs of one table may come in any order.
    lengths.sort_unstable();
    let value = |length, method: &String| {
        let cell = cells.iter().find(|cell| cell.length == length && cell.method == *method);
        cell.map_or(f64::NAN, Cell::perplexity)
    };
    let values = lengths.iter().map(|&length| methods.iter().map(|method| value(length, method)).collect());
    let values = values.collect();
    plot::perplexity_by_length("Perplexity by length", &Table { lengths, methods, values }).map(Some)
}

/// Pixels: of a cell, left of the cells for depths, above them for the method, below them for lengths.
const CELL: (i32, i32) = (72, 26);
const LEFT: i32 = 96;
const ABOVE: i32 = 34;
const BELOW: i32 = 46;
/// Where every key was retrieved, and where none was.
const FOUND: RGBColor = RGBColor(0, 114, 178);
const LOST: RGBColor = RGBColor(240, 240, 240);

/// The share of passkeys retrieved by length and depth: a map a method, one below the other, a column a length, a row a depth.
pub fn passkeys_svg(keys: &[Keys]) -> Result<String> {
    let (mut methods, mut lengths, mut depths): (Vec<&str>, Vec<usize>, Vec<f64>) =
        (Vec::new(), Vec::new(), Vec::new());
    for Keys { length, method, depth, .. } in keys {
        if !methods.contains(&method.as_str()) {
            methods.push(method);
        }
        if !lengths.contains(length) {
            lengths.push(*length);
        }
        if !depths.contains(depth) {
            depths.push(*depth);
        }
    }
    lengths.sort_unstable();
    depths.sort_by(f64::total_cmp);
    let height = ABOVE + CELL.1 * depths.len() as i32 + BELOW;
    let width = (LEFT + CELL.0 * lengths.len() as i32 + 16).max(320);
    let mut svg = String::new();
    {
        let size = (width as u32, (height * methods.len() as i32).max(1) as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(plot_error)?;
        for (area, method) in root.split_evenly((methods.len().max(1), 1)).iter().zip(&methods) {
            let of_method: Vec<&Keys> = keys.iter().filter(|keys| keys.method == *method).collect();
            map(area, method, &lengths, &depths, &of_method)?;
        }
        root.present().map_err(plot_error)?;
    }
    Ok(svg)
}

/// Draws the map of a method.
fn map(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    method: &str,
    lengths: &[usize],
    depths: &[f64],
    keys: &[&Keys],
) -> Result<()> {
    let text =
        |size: i32, horizontal| TextStyle::from(("sans-serif", size)).pos(Pos::new(horizontal, VPos::Center));
    let draw = |words: String, at, style: &TextStyle<'_>| {
        area.draw(&Text::new(words, at, style.clone())).map_err(plot_error)
    };
    draw(format!("Passkeys retrieved: {method}"), (LEFT, ABOVE / 2), &text(16, HPos::Left))?;
    for (row, depth) in depths.iter().enumerate() {
        let y = ABOVE + CELL.1 * row as i32 + CELL.1 / 2;
        draw(format!("depth {:.0} %", 100.0 * depth), (LEFT - 8, y), &text(12, HPos::Right))?;
    }
    let below = ABOVE + CELL.1 * depths.len() as i32;
    for (column, length) in lengths.iter().enumerate() {
        let x = LEFT + CELL.0 * column as i32 + CELL.0 / 2;
        draw(length.to_string(), (x, below + 12), &text(12, HPos::Center))?;
    }
    draw("length of the prompt (tokens)".to_owned(), (LEFT, below + 30), &text(12, HPos::Left))?;
    for cell in keys {
        let place = lengths.iter().position(|length| *length == cell.length);
        let (Some(column), Some(row)) = (place, depths.iter().position(|depth| *depth == cell.depth)) else {
            continue;
        };
        let share = passkey::accuracy(&cell.recalls);
        let first = (LEFT + CELL.0 * column as i32, ABOVE + CELL.1 * row as i32);
        let corners = [first, (first.0 + CELL.0 - 2, first.1 + CELL.1 - 2)];
        area.draw(&Rectangle::new(corners, between(LOST, FOUND, share).filled())).map_err(plot_error)?;
        let style = text(12, HPos::Center).color(if share > 0.5 { &WHITE } else { &BLACK });
        let middle = (first.0 + CELL.0 / 2 - 1, first.1 + CELL.1 / 2 - 1);
        draw(format!("{:.0} %", 100.0 * share), middle, &style)?;
    }
    Ok(())
}

/// The colour a share of the way from one to another.
fn between(from: RGBColor, to: RGBColor, share: f64) -> RGBColor {
    let mix = |a: u8, b: u8| (f64::from(a) + share * (f64::from(b) - f64::from(a))).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

#[cfg(test)]
mod tests {
    use super::super::Measured;
    use super::*;
    use crate::passkey::Recall;

    fn keys(method: &str, length: usize, depth: f64, found: &[bool]) -> Keys {
        let recalls = found.iter().map(|&correct| Recall { correct, loss: 1.0 }).collect();
        Keys { length, method: method.into(), depth, recalls }
    }

    #[test]
    fn a_map_has_a_cell_a_length_and_depth_for_every_method() {
        let found = [
            keys("PI", 512, 0.0, &[true, false]),
            keys("PI", 512, 1.0, &[true, true]),
            keys("YaRN", 512, 0.0, &[false]),
            keys("YaRN", 512, 1.0, &[true]),
            keys("PI", 1024, 0.0, &[false]),
            // A cell that was not measured stays empty.
            keys("YaRN", 1024, 1.0, &[true]),
        ];
        let svg = passkeys_svg(&found).unwrap();
        // The background, and the cells.
        assert_eq!(svg.matches("<rect").count(), 1 + found.len(), "{svg}");
        let shown = |words: &str| svg.matches(&format!("\n{words}\n")).count();
        assert_eq!((shown("50 %"), shown("100 %"), shown("0 %")), (1, 3, 2), "{svg}");
        assert_eq!((shown("Passkeys retrieved: PI"), shown("Passkeys retrieved: YaRN")), (1, 1));
        assert_eq!((shown("512"), shown("1024"), shown("depth 100 %")), (2, 2, 2));
        // None found, all, and half of the way.
        for colour in ["#F0F0F0", "#0072B2", "#78B1D1"] {
            assert!(svg.contains(colour), "{colour} in {svg}");
        }
    }

    #[test]
    fn perplexities_are_plotted_where_one_is_finite() {
        let cell = |length, method: &str, loss| Cell {
            length,
            method: method.into(),
            windows: vec![Measured { text: "a".into(), start: 0, loss, seconds: 1.0 }],
        };
        let cells = [cell(256, "none", 2.0), cell(256, "PI", 3.0), cell(512, "none", 1e9)];
        let svg = perplexity_svg(&cells).unwrap().expect("two finite values");
        for words in ["Perplexity by length", "none", "PI", "256"] {
            assert!(svg.contains(words), "{words} in {svg}");
        }
        assert!(!svg.contains("inf") && !svg.contains("NaN"), "{svg}");
        assert_eq!(perplexity_svg(&cells[2..]).unwrap(), None);
    }
}
