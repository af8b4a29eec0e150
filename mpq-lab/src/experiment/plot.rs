//! Pictures in the form of the paper's figures, as SVG; `rsvg-convert` makes PNG of them.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::experiment::statistics::{self, Range};
use crate::system::host::run as command;

/// The program that makes PNGs, and its package.
pub const CONVERTER: (&str, &str) = ("rsvg-convert", "librsvg2-bin");

const SIZE: (u32, u32) = (720, 400);
const FONT: &str = "sans-serif";
/// For lines of a path each, their sum, and the paper.
const PATHS: [RGBColor; 2] = [RGBColor(0x1f, 0x77, 0xb4), RGBColor(0xff, 0x7f, 0x0e)];
const SUM: RGBColor = RGBColor(0x33, 0x33, 0x33);
const PAPER: RGBColor = RGBColor(0xc0, 0x39, 0x2b);

/// A column of a strip plot: every value as a point.
#[derive(Debug, Clone)]
pub struct Column {
    /// What it is called.
    pub name: String,
    /// Its values.
    pub values: Vec<f64>,
    /// The paper's.
    pub paper: Option<Range>,
}

/// Draws columns of points, with their means, and the paper's ranges beside them.
///
/// # Errors
/// If the file cannot be written.
pub fn strips(file: &Path, title: &str, unit: &str, columns: &[Column]) -> Result<()> {
    let top = columns
        .iter()
        .flat_map(|column| {
            column
                .values
                .iter()
                .copied()
                .chain(column.paper.map(|p| p.max))
        })
        .fold(0.0, f64::max);
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    let draw = || {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 18))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..columns.len() as f64, 0.0..top * 1.08)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_desc(unit)
            .label_style((FONT, 13))
            .draw()?;
        for (index, column) in columns.iter().enumerate() {
            let middle = index as f64 + 0.5;
            let count = column.values.len().max(2) as f64;
            chart.draw_series(column.values.iter().enumerate().map(|(number, value)| {
                let x = middle - 0.25 + 0.2 * number as f64 / (count - 1.0);
                Circle::new((x, *value), 3, PATHS[0].mix(0.7).filled())
            }))?;
            if let Some(ours) = statistics::range(column.values.iter().copied()) {
                chart.draw_series([mean(middle - 0.3, middle, ours.mean, SUM)])?;
                let label = (middle + 0.02, ours.mean);
                chart.draw_series([text(format!("{:.2}", ours.mean), label, SUM)])?;
            }
            if let Some(paper) = column.paper {
                let x = middle + 0.3;
                let bar = vec![(x, paper.min), (x, paper.max)];
                chart.draw_series([PathElement::new(bar, PAPER.stroke_width(2))])?;
                chart.draw_series([mean(x - 0.06, x + 0.06, paper.mean, PAPER)])?;
                let label = (x + 0.02, paper.max + top * 0.03);
                chart.draw_series([text(format!("paper {:.2}", paper.mean), label, PAPER)])?;
            }
            let center = Pos::new(HPos::Center, VPos::Top);
            let style = (FONT, 14).into_font().color(&BLACK).pos(center);
            let below = chart.backend_coord(&(middle, 0.0));
            root.draw(&Text::new(
                column.name.clone(),
                (below.0, below.1 + 8),
                style,
            ))?;
        }
        root.present()
    };
    draw().map_err(|error| anyhow!("{}: {error}", file.display()))
}

/// A run's throughput: bit/s over each path at some seconds, and what happened when.
#[derive(Debug, Clone)]
pub struct Course {
    /// (seconds, bit/s over each interface).
    pub rates: Vec<(f64, [f64; 2])>,
    /// (seconds, what happened).
    pub marks: Vec<(f64, &'static str)>,
    /// The paper's steady throughput in bit/s.
    pub paper: Option<f64>,
}

/// Draws throughput over time, each path and their sum.
///
/// # Errors
/// If the file cannot be written.
pub fn course(file: &Path, title: &str, course: &Course) -> Result<()> {
    const MBIT: f64 = 1e6;
    let end = course.rates.last().map_or(1.0, |(t, _)| *t);
    let highest = course.rates.iter().map(|(_, rates)| rates[0] + rates[1]);
    let top = highest.fold(0.0, f64::max) / MBIT * 1.15;
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    let draw = || {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..end, 0.0..top.max(1.0))?;
        chart
            .configure_mesh()
            .x_desc("seconds since the client's start")
            .y_desc("Mbit/s")
            .label_style((FONT, 13))
            .draw()?;
        let mut line = |name: &str, color: RGBColor, rate: &dyn Fn(&[f64; 2]) -> f64| {
            let points = course
                .rates
                .iter()
                .map(|(t, rates)| (*t, rate(rates) / MBIT));
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))
                .map(|series| {
                    series.label(name).legend(move |(x, y)| {
                        PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2))
                    });
                })
        };
        line("both", SUM, &|rates| rates[0] + rates[1])?;
        line("eth0", PATHS[0], &|rates| rates[0])?;
        if course.rates.iter().any(|(_, rates)| rates[1] > MBIT) {
            line("eth1", PATHS[1], &|rates| rates[1])?;
        }
        if let Some(paper) = course.paper {
            let points = [(0.0, paper / MBIT), (end, paper / MBIT)];
            chart
                .draw_series(DashedLineSeries::new(points, 6, 4, PAPER.stroke_width(2)))?
                .label("the paper's steady rate")
                .legend(|(x, y)| {
                    PathElement::new(vec![(x, y), (x + 16, y)], PAPER.stroke_width(2))
                });
        }
        for (number, (t, what)) in course.marks.iter().enumerate() {
            let points = [(*t, 0.0), (*t, top)];
            chart.draw_series(DashedLineSeries::new(
                points,
                3,
                3,
                BLACK.mix(0.6).stroke_width(1),
            ))?;
            // Those that are close to each other are not written over each other.
            let height = top * (0.98 - 0.06 * (number % 3) as f64);
            chart.draw_series([text((*what).to_owned(), (t + end * 0.005, height), BLACK)])?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 13))
            .draw()?;
        root.present()
    };
    draw().map_err(|error: DrawingAreaErrorKind<_>| anyhow!("{}: {error}", file.display()))
}

fn mean(from: f64, to: f64, value: f64, color: RGBColor) -> PathElement<(f64, f64)> {
    PathElement::new(vec![(from, value), (to, value)], color.stroke_width(3))
}

fn text(text: String, at: (f64, f64), color: RGBColor) -> Text<'static, (f64, f64), String> {
    let left = Pos::new(HPos::Left, VPos::Center);
    Text::new(text, at, (FONT, 12).into_font().color(&color).pos(left))
}

/// Makes a PNG beside an SVG.
///
/// # Errors
/// If `rsvg-convert` fails.
pub fn png(svg: &Path) -> Result<()> {
    let png = svg.with_extension("png");
    command(
        CONVERTER.0,
        ["--output".as_ref(), png.as_os_str(), svg.as_os_str()],
    )
    .map(drop)
}
