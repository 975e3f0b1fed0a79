//! Plots as SVG.

use std::path::Path;

use plotters::prelude::*;
use springhouse_featurestore::{Error, Result};

use crate::commands::CurvePoint;

/// Quality over lag, with the line of chance.
pub fn plot_curve(path: &Path, contract: &str, points: &[CurvePoint]) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::unavailable("the plot cannot be written").with("file", path.display()).with("cause", error)
    };
    let hours = |point: &CurvePoint| point.lag.as_secs_f64() / 3600.0;
    let longest = points.iter().map(hours).fold(1.0, f64::max);
    let least = points.iter().map(|point| point.auc).fold(0.5, f64::min) - 0.02;
    let most = points.iter().map(|point| point.auc).fold(0.5, f64::max) + 0.02;
    let root = SVGBackend::new(path, (720, 440)).into_drawing_area();
    let draw = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("What staleness costs {contract}"), ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..longest * 1.02, least..most)?;
        chart
            .configure_mesh()
            .x_desc("features as of the request's time less (hours)")
            .y_desc("AUC")
            .y_label_formatter(&|auc| format!("{auc:.2}"))
            .light_line_style(WHITE)
            .draw()?;
        chart.draw_series(LineSeries::new([(0.0, 0.5), (longest, 0.5)], RGBColor(160, 160, 160)))?;
        let line = RGBColor(20, 100, 160);
        chart.draw_series(LineSeries::new(points.iter().map(|p| (hours(p), p.auc)), line.stroke_width(3)))?;
        chart.draw_series(points.iter().map(|p| Circle::new((hours(p), p.auc), 5, line.filled())))?;
        Ok(root.present()?)
    };
    draw().map_err(|error| failed(&error))
}
