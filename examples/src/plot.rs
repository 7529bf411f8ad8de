//! SVG plots of a search.

use anyhow::{Result, anyhow};
use longrope::scaling::RopeConfig;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::Table;

const SIZE: (u32, u32) = (760, 420);
/// The room for names of usual lengths, right of the plot; longer ones make it wider.
const LEGEND_WIDTH: u32 = 110;
/// What a character of a name takes at the most.
const CHARACTER_WIDTH: u32 = 7;
/// Colours that stay apart for most colour-blind readers (Okabe and Ito).
pub(crate) const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
];

/// A named line of points.
struct Line<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

/// Axes of a plot: what they show, and where they are marked.
struct Axes<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
}

/// Perplexity against length, a line per method, both axes logarithmic.
pub fn perplexity_by_length(title: &str, table: &Table) -> Result<String> {
    let lines: Vec<Line<'_>> = table
        .methods
        .iter()
        .enumerate()
        .map(|(column, name)| Line {
            name,
            points: table
                .lengths
                .iter()
                .zip(&table.values)
                .map(|(&length, values)| (length as f64, values[column]))
                .filter(|(_, value)| value.is_finite())
                .collect(),
        })
        .collect();
    let axes = Axes { title, x: "length of the sequence (tokens)", y: "perplexity" };
    draw(&lines, &axes, &table.lengths.iter().map(|&length| length as f64).collect::<Vec<_>>())
}

/// The rescale factor of each pair, a line per method: by how much its frequency is divided beyond the original length.
pub fn factors_by_pair(methods: &[(&str, &RopeConfig)]) -> Result<String> {
    let lines: Vec<Line<'_>> = methods
        .iter()
        .map(|(name, rope)| {
            let plain = rope.geometry().frequencies();
            let scaled = rope.frequencies(rope.max_length());
            let factors = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
            Line { name, points: factors.enumerate().map(|(i, factor)| (i as f64, factor)).collect() }
        })
        .collect();
    let axes = Axes {
        title: "Rescale factors by dimension",
        x: "pair of dimensions, fastest first",
        y: "factor: frequency divided by",
    };
    draw(&lines, &axes, &[])
}

/// Draws the lines with a logarithmic y axis; the x axis is logarithmic and marked at `marks` if there are any.
fn draw(lines: &[Line<'_>], axes: &Axes<'_>, marks: &[f64]) -> Result<String> {
    let log = |x: f64| if marks.is_empty() { x } else { x.log2() };
    let points = || lines.iter().flat_map(|line| &line.points);
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (left, right) = bounds(&mut points().map(|point| log(point.0)));
    let (bottom, top) = bounds(&mut points().map(|point| point.1));
    if !(left.is_finite() && bottom.is_finite()) {
        return Err(anyhow!("no finite value to plot"));
    }
    let (right, bottom, top) = (right.max(left + 1e-9), bottom * 0.93, top * 1.25);

    let longest = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0) as u32;
    let plot_width = SIZE.0 - LEGEND_WIDTH;
    let width = plot_width + LEGEND_WIDTH.max(30 + CHARACTER_WIDTH * longest);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width, SIZE.1)).into_drawing_area();
        root.fill(&WHITE).map_err(plot_error)?;
        let (left_area, legend) = root.split_horizontally(plot_width);
        let mut chart = ChartBuilder::on(&left_area)
            .caption(axes.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(left..right, bottom.log10()..top.log10())
            .map_err(plot_error)?;
        let x_label = |x: &f64| match marks.is_empty() {
            true => format!("{x:.0}"),
            false => format!("{:.0}", x.exp2()),
        };
        chart
            .configure_mesh()
            .x_desc(axes.x)
            .y_desc(axes.y)
            .x_labels(if marks.is_empty() { 9 } else { marks.len() })
            .x_label_formatter(&x_label)
            // Its own marks leave out the decade that an axis begins in.
            .disable_y_mesh()
            .y_labels(0)
            .light_line_style(WHITE)
            .draw()
            .map_err(plot_error)?;
        let style = TextStyle::from(("sans-serif", 12)).pos(Pos::new(HPos::Right, VPos::Center));
        for mark in round_numbers(bottom, top) {
            let ends = [(left, mark.log10()), (right, mark.log10())];
            let (x, y) = chart.backend_coord(&ends[0]);
            chart.draw_series([PathElement::new(ends, BLACK.mix(0.2))]).map_err(plot_error)?;
            left_area.draw(&Text::new(significant(mark), (x - 8, y), style.clone())).map_err(plot_error)?;
        }
        for (i, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let shifted: Vec<(f64, f64)> = line.points.iter().map(|&(x, y)| (log(x), y.log10())).collect();
            let style = colour.stroke_width(2);
            chart.draw_series(LineSeries::new(shifted.iter().copied(), style)).map_err(plot_error)?;
            let dots = shifted.iter().map(|&point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(dots).map_err(plot_error)?;
            let y = 60 + 22 * i as i32;
            legend.draw(&PathElement::new([(0, y), (18, y)], style)).map_err(plot_error)?;
            let text = Text::new(line.name, (24, y - 5), ("sans-serif", 12));
            legend.draw(&text).map_err(plot_error)?;
        }
        root.present().map_err(plot_error)?;
    }
    Ok(svg)
}

/// The numbers 1, 2 and 5 times a power of ten from `bottom` to `top`.
fn round_numbers(bottom: f64, top: f64) -> impl Iterator<Item = f64> {
    let decades = bottom.log10().floor() as i32..=top.log10().ceil() as i32;
    let numbers = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|round| round * 10f64.powi(decade)));
    numbers.filter(move |number| (bottom..=top).contains(number))
}

/// A number with two significant digits, without a needless fraction.
fn significant(value: f64) -> String {
    match value {
        v if v >= 10.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

pub(crate) fn plot_error(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the plot can't be drawn: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_axes_methods_and_lengths() {
        let table = Table {
            lengths: vec![256, 512, 1024],
            methods: vec!["none".into(), "PI".into()],
            values: vec![vec![3.0, 4.0], vec![9.0, 4.5], vec![f64::INFINITY, 5.0]],
        };
        let svg = perplexity_by_length("Perplexity", &table).unwrap();
        for text in ["<svg", "none", "PI", "1024", "perplexity"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("inf") && !svg.contains("NaN"));
    }

    #[test]
    fn every_decade_has_names_for_its_marks() {
        let table = Table {
            lengths: vec![8192, 65536],
            methods: vec!["none".into(), "PI".into()],
            values: vec![vec![30.0, 200.0], vec![1800.0, 230.0]],
        };
        let svg = perplexity_by_length("Perplexity", &table).unwrap();
        for mark in ["50", "100", "200", "500", "1000", "2000"] {
            assert!(svg.contains(&format!("\n{mark}\n")), "{mark} in {svg}");
        }
        assert!(!svg.contains("\n900\n"));
    }

    #[test]
    fn long_names_make_the_plot_wider() {
        let width = |name: &str| {
            let (lengths, methods) = (vec![256, 512], vec![name.to_owned()]);
            let table = Table { lengths, methods, values: vec![vec![3.0], vec![9.0]] };
            let svg = perplexity_by_length("Perplexity", &table).unwrap();
            svg.split_once("width=\"").unwrap().1.split('"').next().unwrap().parse::<u32>().unwrap()
        };
        assert_eq!(width("NTK-aware"), SIZE.0);
        assert_eq!(
            width("LongRoPE, fine-tuned, recovered"),
            SIZE.0 - LEGEND_WIDTH + 30 + 31 * CHARACTER_WIDTH
        );
    }

    #[test]
    fn nothing_finite_is_an_error() {
        let table = Table { lengths: vec![256], methods: vec!["none".into()], values: vec![vec![f64::NAN]] };
        assert!(perplexity_by_length("Perplexity", &table).is_err());
    }
}
