//! One picture for each table.

use std::io::{Error, Result};
use std::path::Path;

use plotters::prelude::*;

/// Draws a bar for each point.
pub(crate) fn bars(file: &Path, grows: &str, unit: &str, points: &[(String, f64)]) -> Result<()> {
    draw(file, grows, unit, points).map_err(|error| Error::other(error.to_string()))
}

fn draw(
    file: &Path,
    grows: &str,
    unit: &str,
    points: &[(String, f64)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(file, (640, 320)).into_drawing_area();
    area.fill(&WHITE)?;
    let most = points.iter().map(|(_, cost)| *cost).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((0..points.len()).into_segmented(), 0.0..most * 1.15)?;
    let name = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(place) => points.get(*place).map_or(String::new(), |(name, _)| name.clone()),
        _ => String::new(),
    };
    chart.configure_mesh().disable_x_mesh().x_desc(grows).y_desc(unit).x_label_formatter(&name).draw()?;
    chart.draw_series(points.iter().enumerate().map(|(place, (_, cost))| {
        let (left, right) = (SegmentValue::Exact(place), SegmentValue::Exact(place + 1));
        let mut bar = Rectangle::new([(left, 0.0), (right, *cost)], RGBColor(70, 110, 160).filled());
        bar.set_margin(0, 0, 24, 24);
        bar
    }))?;
    area.present()?;
    Ok(())
}
