//! The course of the loss, as a table and as a plot.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use plotters::prelude::*;

use super::checkpoint::Record;
use crate::plot::{COLOURS, plot_error};

const SIZE: (u32, u32) = (760, 420);

/// `step,loss,gradient_norm,learning_rate,tokens,seconds`, a row a step.
pub fn curve_csv(history: &[Record]) -> String {
    let mut csv = "step,loss,gradient_norm,learning_rate,tokens,seconds\n".to_owned();
    for Record { step, loss, gradient_norm, learning_rate, tokens, seconds } in history {
        writeln!(csv, "{step},{loss},{gradient_norm},{learning_rate},{tokens},{seconds:.3}")
            .unwrap_or_default();
    }
    csv
}

/// Draws the loss of each step, and the losses on held-out windows before the first and after the last.
///
/// # Errors
/// There was no step.
pub fn curve_svg(history: &[Record], before: f64, after: f64) -> Result<String> {
    ensure!(!history.is_empty(), "no step to plot");
    let steps: Vec<(f64, f64)> = history.iter().map(|record| (record.step as f64, record.loss)).collect();
    let last = history.len() as f64;
    let held_out = [(0.0, before), (last, after)];
    let losses = || steps.iter().chain(&held_out).map(|point| point.1);
    let (low, high) = (losses().fold(f64::INFINITY, f64::min), losses().fold(f64::NEG_INFINITY, f64::max));
    let room = (0.05 * (high - low)).max(1e-3);

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(plot_error)?;
        let mut chart = ChartBuilder::on(&root)
            .caption("Loss by step", ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..last, low - room..high + room)
            .map_err(plot_error)?;
        chart
            .configure_mesh()
            .x_desc("step")
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_desc("loss (nats a token)")
            .light_line_style(WHITE)
            .draw()
            .map_err(plot_error)?;
        let [trained, measured] = [COLOURS[2], COLOURS[4]];
        chart
            .draw_series(LineSeries::new(steps, trained.stroke_width(2)))
            .map_err(plot_error)?
            .label("training texts")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], trained.stroke_width(2)));
        let points = held_out.iter().map(|&point| Circle::new(point, 4, measured.filled()));
        chart
            .draw_series(points)
            .map_err(plot_error)?
            .label("held-out windows")
            .legend(move |(x, y)| Circle::new((x + 9, y), 4, measured.filled()));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(BLACK.mix(0.2))
            .label_font(("sans-serif", 12))
            .draw()
            .map_err(plot_error)?;
        root.present().map_err(plot_error)?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> Vec<Record> {
        let record = |step: usize, loss| Record {
            step,
            loss,
            gradient_norm: 0.5,
            learning_rate: 1e-4,
            tokens: 2048,
            seconds: 1.25,
        };
        vec![record(1, 3.5), record(2, 3.25)]
    }

    #[test]
    fn a_curve_has_a_row_for_each_step() {
        let expected = "step,loss,gradient_norm,learning_rate,tokens,seconds\n\
                        1,3.5,0.5,0.0001,2048,1.250\n2,3.25,0.5,0.0001,2048,1.250\n";
        assert_eq!(curve_csv(&history()), expected);
    }

    #[test]
    fn a_plot_names_both_losses() {
        let svg = curve_svg(&history(), 3.6, 3.2).unwrap();
        for text in ["<svg", "training texts", "held-out windows", "loss (nats a token)"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(curve_svg(&[], 3.6, 3.2).is_err());
    }
}
