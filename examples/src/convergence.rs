//! How fast searches get better: the best perplexity so far against evaluations, model tokens and seconds.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::files;
use crate::plot::{COLOURS, plot_error};

/// Of a panel, and of the names below.
const PANEL: (u32, u32) = (450, 386);
/// The room for the names, below the panels.
const LEGEND_HEIGHT: u32 = 34;
/// A best value so many times the lowest of all curves is not drawn: searches begin far above of where they differ.
const HIGHEST: f64 = 1.25;

/// The best value of a search after each of its evaluations.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// As shown.
    pub name: String,
    /// What was reached at each evaluation.
    pub points: Vec<Point>,
}

/// How far a search was after an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Tokens that the model was run on.
    pub tokens: f64,
    /// How long the evaluations took, all together; NaN if the history does not say.
    pub seconds: f64,
    /// The best perplexity.
    pub best: f64,
}

impl Curve {
    /// A curve of a `history.csv`: NAME=FILE, or FILE.
    ///
    /// # Errors
    /// The file can't be read or is no history.
    pub fn read(argument: &str) -> Result<Self> {
        let (name, path) = argument.split_once('=').unwrap_or((argument, argument));
        Self::parse(name, &files::read_text(Path::new(path))?).with_context(|| path.to_owned())
    }

    /// The curve of a history, as [`history_csv`](crate::report::history_csv) writes it.
    ///
    /// # Errors
    /// The text is no history.
    pub fn parse(name: &str, csv: &str) -> Result<Self> {
        let mut lines = csv.lines();
        let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
        let column = |name: &str| {
            let found = header.iter().position(|other| *other == name);
            found.ok_or_else(|| anyhow!("no column {name:?}; expected a history.csv of this release"))
        };
        let (best, tokens) = (column("best")?, column("model_tokens")?);
        let seconds = column("seconds").ok();
        let points = lines.enumerate().map(|(row, line)| {
            let cells: Vec<&str> = line.split(',').collect();
            let number = |column: usize| -> Result<f64> {
                let cell = cells.get(column).copied().unwrap_or_default();
                cell.parse().map_err(|_| {
                    anyhow!("row {}, {}: {cell:?} is not valid; expected a number", row + 1, header[column])
                })
            };
            let seconds = seconds.map_or(Ok(f64::NAN), number)?;
            Ok(Point { tokens: number(tokens)?, seconds, best: number(best)? })
        });
        let points = points.collect::<Result<Vec<_>>>()?;
        ensure!(!points.is_empty(), "no row; expected a row for each evaluation");
        Ok(Self { name: name.to_owned(), points })
    }
}

impl Curve {
    /// The evaluation, from 1, and the model tokens at which the best value is first at or below `value`.
    pub fn reaches(&self, value: f64) -> Option<(usize, f64)> {
        let index = self.points.iter().position(|point| point.best <= value)?;
        Some((index + 1, self.points[index].tokens))
    }

    /// The best value and the model tokens at the end.
    fn end(&self) -> (f64, f64) {
        self.points.last().map_or((f64::NAN, f64::NAN), |point| (point.best, point.tokens))
    }
}

/// A table in Markdown: a row a search, with its cost and best value, and where the first one reached that value: in its own
/// evaluations, and in evaluations' worth of model tokens of the search of the row.
pub fn table(curves: &[Curve]) -> String {
    let mut text = "| search | evaluations | model tokens | best | reached by the first at evaluation | at model tokens | \
                    in evaluations of the row |\n|---|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for (i, curve) in curves.iter().enumerate() {
        let ((best, tokens), evaluations) = (curve.end(), curve.points.len());
        let reached = curves.first().filter(|_| i > 0).and_then(|first| first.reaches(best));
        let reached = match reached {
            Some((evaluation, cost)) => {
                format!("{evaluation} | {cost} | {:.1}", cost / (tokens / evaluations as f64))
            }
            None if i == 0 => "| |".to_owned(),
            None => "never | |".to_owned(),
        };
        let name = &curve.name;
        writeln!(text, "| {name} | {evaluations} | {tokens} | {best:.4} | {reached} |").unwrap_or_default();
    }
    text
}

/// Draws panels side by side: against evaluations, model tokens, and seconds where all curves have them. `value` is what was
/// minimised.
///
/// # Errors
/// No curve has a finite value.
pub fn plot(curves: &[Curve], value: &str) -> Result<String> {
    let values = || curves.iter().flat_map(|curve| &curve.points).map(|point| point.best);
    let lowest = values().filter(|value| value.is_finite()).fold(f64::INFINITY, f64::min);
    ensure!(lowest.is_finite(), "no finite value to plot");
    let highest = values().filter(|value| *value <= HIGHEST * lowest).fold(lowest, f64::max);
    let room = (0.05 * (highest - lowest)).max(1e-3 * lowest);
    let range = (lowest - room, highest + room);

    type Abscissa = fn(usize, &Point) -> f64;
    let mut abscissae: Vec<(&str, Abscissa)> = vec![
        ("evaluations", |i, _| (i + 1) as f64),
        ("model tokens, millions", |_, point| point.tokens / 1e6),
    ];
    if curves.iter().flat_map(|curve| &curve.points).all(|point| point.seconds.is_finite()) {
        abscissae.push(("seconds", |_, point| point.seconds));
    }

    let mut svg = String::new();
    {
        let size = (PANEL.0 * abscissae.len() as u32, PANEL.1 + LEGEND_HEIGHT);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(plot_error)?;
        let (panels, legend) = root.split_vertically(PANEL.1);
        for (area, (label, x)) in panels.split_evenly((1, abscissae.len())).iter().zip(abscissae) {
            panel(area, curves, range, (value, label), x)?;
        }
        let mut x = 60;
        for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
            let line = PathElement::new([(x, 14), (x + 18, 14)], colour.stroke_width(2));
            legend.draw(&line).map_err(plot_error)?;
            let text = Text::new(curve.name.clone(), (x + 24, 9), ("sans-serif", 12));
            legend.draw(&text).map_err(plot_error)?;
            x += 48 + 7 * curve.name.chars().count() as i32;
        }
        root.present().map_err(plot_error)?;
    }
    Ok(svg)
}

/// One panel, of which `x` gives the abscissa of a point and its index.
fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    curves: &[Curve],
    (bottom, top): (f64, f64),
    (value, label): (&str, &str),
    x: impl Fn(usize, &Point) -> f64,
) -> Result<()> {
    let right = curves.iter().filter_map(|curve| Some(x(curve.points.len() - 1, curve.points.last()?)));
    let right = right.fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("Best {value} by {label}"), ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..right.max(1e-9), bottom..top)
        .map_err(plot_error)?;
    chart
        .configure_mesh()
        .x_desc(label)
        .x_label_formatter(&|x| format!("{x:.2}").trim_end_matches('0').trim_end_matches('.').to_owned())
        .y_desc(format!("best {value} so far, search windows"))
        .light_line_style(WHITE)
        .draw()
        .map_err(plot_error)?;
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let mut steps: Vec<(f64, f64)> = Vec::new();
        for (i, point) in curve.points.iter().enumerate() {
            let best = point.best;
            if best > top || !best.is_finite() {
                continue;
            }
            // The best stays what it is until the evaluation that betters it.
            if let Some(&(_, before)) = steps.last() {
                steps.push((x(i, point), before));
            }
            steps.push((x(i, point), best));
        }
        chart.draw_series(LineSeries::new(steps, colour.stroke_width(2))).map_err(plot_error)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = "evaluation,best,model_tokens\n1,900,4096\n2,5.5,6144\n3,5.25,10240\n";

    fn curve(name: &str, points: &[(f64, f64)]) -> Curve {
        let point = |&(tokens, best): &(f64, f64)| Point { tokens, seconds: f64::NAN, best };
        Curve { name: name.into(), points: points.iter().map(point).collect() }
    }

    #[test]
    fn a_history_becomes_a_curve() {
        let curve = Curve::parse("ours", HISTORY).unwrap();
        let found: Vec<(f64, f64)> = curve.points.iter().map(|point| (point.tokens, point.best)).collect();
        assert_eq!(found, [(4096.0, 900.0), (6144.0, 5.5), (10240.0, 5.25)]);
        assert!(curve.points.iter().all(|point| point.seconds.is_nan()));
        let timed = Curve::parse("ours", "best,model_tokens,seconds\n5,4096,0.25\n").unwrap();
        assert_eq!(timed.points[0].seconds, 0.25);
        for (text, expected) in [
            ("", "no column \"best\""),
            ("evaluation,best\n1,5\n", "no column \"model_tokens\""),
            ("best,model_tokens\n", "no row"),
            ("best,model_tokens\n5,6\n5\n", "row 2, model_tokens: \"\" is not valid"),
            ("best,model_tokens\nfive,6\n", "row 1, best: \"five\" is not valid"),
        ] {
            let message = Curve::parse("theirs", text).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn the_table_says_when_the_first_search_was_as_good() {
        let ours = Curve::parse("ours", HISTORY).unwrap();
        let paper = curve("paper", &[(4096.0, 7.0), (8192.0, 5.5)]);
        let better = curve("better", &[(4096.0, 1.0)]);
        assert_eq!(ours.reaches(5.5), Some((2, 6144.0)));
        let table = table(&[ours, paper, better]);
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(lines[0], "| ours | 3 | 10240 | 5.2500 | | | |");
        // 6,144 tokens are one and a half evaluations of 4,096.
        assert_eq!(lines[1], "| paper | 2 | 8192 | 5.5000 | 2 | 6144 | 1.5 |");
        assert_eq!(lines[2], "| better | 1 | 4096 | 1.0000 | never | | |");
    }

    #[test]
    fn a_file_may_have_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.csv");
        std::fs::write(&path, HISTORY).unwrap();
        assert_eq!(Curve::read(&format!("seed 1={}", path.display())).unwrap().name, "seed 1");
        assert_eq!(Curve::read(path.to_str().unwrap()).unwrap().name, path.to_str().unwrap());
        assert!(format!("{:#}", Curve::read("x=missing.csv").unwrap_err()).contains("missing.csv"));
    }

    #[test]
    fn the_plot_names_every_curve_and_leaves_out_where_it_begins() {
        let ours = Curve::parse("ours", HISTORY).unwrap();
        let theirs = curve("theirs", &[(1e6, f64::INFINITY), (2e6, 5.75)]);
        let svg = plot(&[ours.clone(), theirs.clone()], "perplexity").unwrap();
        for text in ["<svg", "ours", "theirs", "evaluations", "model tokens"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("seconds"));
        let timed = Curve::parse("timed", "best,model_tokens,seconds\n5.5,4096,0.25\n5,8192,0.5\n").unwrap();
        assert!(
            plot(std::slice::from_ref(&timed), "perplexity").unwrap().contains("Best perplexity by seconds")
        );
        assert!(!plot(&[timed, ours.clone()], "perplexity").unwrap().contains("seconds"));
        // Perplexities from 5.25 to 5.75 and nothing above.
        assert!(
            svg.lines().any(|line| line.trim() == "5.3") && !svg.lines().any(|line| line.trim() == "6.0")
        );
        let nothing = curve("none", &[(1.0, f64::NAN)]);
        assert!(plot(&[nothing], "perplexity").is_err());
    }
}
