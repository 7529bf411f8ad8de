//! SVG plots of a search.

use anyhow::{Result, anyhow};
use longrope::scaling::RopeConfig;
use plotters::prelude::*;

use crate::report::Table;

const SIZE: (u32, u32) = (760, 420);
/// The room for the names, right of the plot.
const LEGEND_WIDTH: u32 = 110;
/// Colours that stay apart for most colour-blind readers (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
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
pub fn perplexity_by_length(table: &Table) -> Result<String> {
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
    let axes = Axes {
        title: "Perplexity on text the search has not seen",
        x: "length of the sequence (tokens)",
        y: "perplexity",
    };
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

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(plot_error)?;
        let (left_area, legend) = root.split_horizontally(SIZE.0 - LEGEND_WIDTH);
        let mut chart = ChartBuilder::on(&left_area)
            .caption(axes.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(left..right, (bottom..top).log_scale())
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
            .y_label_formatter(&|y| significant(*y))
            .light_line_style(WHITE)
            .draw()
            .map_err(plot_error)?;
        for (i, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let shifted: Vec<(f64, f64)> = line.points.iter().map(|&(x, y)| (log(x), y)).collect();
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

/// A number with two significant digits, without a needless fraction.
fn significant(value: f64) -> String {
    match value {
        v if v >= 10.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn plot_error(error: impl std::fmt::Display) -> anyhow::Error {
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
        let svg = perplexity_by_length(&table).unwrap();
        for text in ["<svg", "none", "PI", "1024", "perplexity"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("inf") && !svg.contains("NaN"));
    }

    #[test]
    fn nothing_finite_is_an_error() {
        let table = Table { lengths: vec![256], methods: vec!["none".into()], values: vec![vec![f64::NAN]] };
        assert!(perplexity_by_length(&table).is_err());
    }
}
