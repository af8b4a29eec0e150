//! Draws the states of a machine and what leads from one to another.

use std::fmt::Write as _;

use layout::backends::svg::SVGWriter;
use layout::gv::{DotParser, GraphBuilder};

/// Below the lowest state, in units of the drawing.
const MARGIN: f64 = 40.0;

/// An SVG to be put into HTML; of each arrow: from, to, and the inputs that do it.
pub(crate) fn draw(arrows: &[(&str, &str, Vec<&str>)]) -> String {
    let mut graph = "digraph states {\n".to_owned();
    for (from, to, inputs) in arrows {
        let inputs = inputs.join("\\n");
        writeln!(graph, "    \"{from}\" -> \"{to}\" [label=\"{inputs}\"];").unwrap();
    }
    graph += "}\n";
    let graph = DotParser::new(&graph).process().unwrap();
    let mut builder = GraphBuilder::new();
    builder.visit_graph(&graph);
    let mut writer = SVGWriter::new();
    builder.get().do_it(false, false, false, &mut writer);
    let svg = writer.finalize();
    // An XML declaration and blank lines have no place in Markdown.
    let lines = svg.lines().filter(|line| !line.is_empty());
    let mut lines: Vec<_> = lines.collect();
    // Styles come in any order.
    let is_style = |line: &&str| line.starts_with(".a");
    let first = lines.iter().position(is_style).unwrap_or_default();
    let styles = lines.iter().filter(|line| is_style(line)).count();
    lines[first..first + styles].sort_unstable();
    let svg = lines.join("\n");
    let svg = &svg[svg.find("<svg").unwrap()..];
    format!(
        "<div style=\"background: white\">\n{}\n</div>\n",
        cropped(svg)
    )
}

/// As wide as the page, without the empty space that labels leave at the bottom.
fn cropped(svg: &str) -> String {
    let number = |text: &str| text.split('"').next()?.parse::<f64>().ok();
    let states = svg.split(" cy=\"").skip(1).filter_map(number);
    let bottom = states.fold(0.0, f64::max) + MARGIN;
    let (_, view) = svg.split_once("viewBox=\"0 0 ").unwrap();
    let (width, _) = view.split_once(' ').unwrap();
    let (_, rest) = view.split_once('"').unwrap();
    format!("<svg width=\"100%\" viewBox=\"0 0 {width} {bottom}\"{rest}")
}
