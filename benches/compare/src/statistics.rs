//! Medians and percentiles, and how they are shown.

use std::time::Duration;

/// The value that a `share` of the values does not exceed.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// The middle of the values.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The middle, and what lies between the least and the greatest.
pub(crate) fn spread(values: &[f64], decimals: usize) -> String {
    let (least, most) = (percentile(values, 0.0), percentile(values, 1.0));
    format!("{:.decimals$} [{least:.decimals$}–{most:.decimals$}]", median(values))
}

/// Durations in microseconds.
pub(crate) fn microseconds(durations: &[Duration]) -> Vec<f64> {
    durations.iter().map(|duration| duration.as_secs_f64() * 1e6).collect()
}
