//! How spans of time are written: read as `humantime` reads them, printed in the largest unit that is exact.

use std::borrow::Cow;
use std::time::Duration;

pub(super) use humantime_serde::deserialize;
use humantime_serde::re::humantime::format_duration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serializer;

/// The schema of a span of time.
pub(super) struct Span;

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9][0-9a-zA-Zµ ]*$", "examples": ["500ms", "30s", "15m", "12h", "7d"]})
    }
}

/// Writes a span, or that there is none.
pub(super) fn serialize<S: Serializer>(
    span: &(impl Copy + Into<Option<Duration>>),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match (*span).into() {
        Some(span) => serializer.serialize_str(&text(span)),
        None => serializer.serialize_none(),
    }
}

/// `90d` and not humantime's `2months 29days 2h 52m 48s`.
#[must_use]
pub fn text(span: Duration) -> String {
    const UNITS: [(u128, &str); 5] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let millis = span.as_millis();
    let exact = |(unit, _): &&(u128, &str)| millis >= *unit && millis.is_multiple_of(*unit);
    match UNITS.iter().find(exact).filter(|_| span.subsec_nanos().is_multiple_of(1_000_000)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format_duration(span).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use humantime_serde::re::humantime::parse_duration;

    use super::*;

    #[test]
    fn a_span_is_printed_in_one_unit_and_reads_back_as_it_was() {
        for (millis, printed) in [
            (0, "0s"),
            (1, "1ms"),
            (1_500, "1500ms"),
            (90_000, "90s"),
            (300_000, "5m"),
            (36 * 3_600_000, "36h"),
            (90 * 86_400_000, "90d"),
        ] {
            let span = Duration::from_millis(millis);
            assert_eq!(text(span), printed);
            assert_eq!(parse_duration(printed), Ok(span));
        }
        let fine = Duration::from_nanos(1_000_250);
        assert_eq!(parse_duration(&text(fine)), Ok(fine));
    }
}
