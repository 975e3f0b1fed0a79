//! What a clock on a wall shows, in UTC (rule T1). Pure.

use chrono::{DateTime, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;

use super::Timestamp;

/// The longest gap that a change of a zone's offset leaves: a day, where an island crosses the date line.
const LONGEST_GAP_HOURS: i64 = 25;

/// The time at which clocks of a zone showed so many microseconds after midnight of 1970. Of an hour that comes twice, in
/// autumn, the second is meant, and one that never comes, in spring, is counted on from before it: both are standard time,
/// as `PostgreSQL` has it. `None` beyond the times that a calendar has.
pub fn utc_of_local(zone: Tz, shown: i64) -> Option<Timestamp> {
    let local = DateTime::from_timestamp_micros(shown)?.naive_utc();
    let before = (0..=LONGEST_GAP_HOURS).map(|hours| local.checked_sub_signed(TimeDelta::hours(hours)));
    let offset = before.flatten().find_map(|local| zone.offset_from_local_datetime(&local).latest())?;
    let ahead = i64::from(offset.fix().local_minus_utc()) * 1_000_000;
    shown.checked_sub(ahead).map(Timestamp::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(zone: Tz, text: &str) -> String {
        let at = DateTime::parse_from_rfc3339(&format!("{text}Z")).expect("a time").timestamp_micros();
        utc_of_local(zone, at).expect("within the calendar").to_string()
    }

    #[test]
    fn hours_that_come_twice_or_never_are_standard_time() {
        // As DuckDB answers: timezone('America/New_York', TIMESTAMP '2013-11-03 01:30').
        let new_york = chrono_tz::America::New_York;
        for (local, utc) in [
            ("2013-03-10T01:59:59", "2013-03-10T06:59:59Z"),
            ("2013-03-10T02:30:00", "2013-03-10T07:30:00Z"),
            ("2013-03-10T03:00:00", "2013-03-10T07:00:00Z"),
            ("2013-11-03T00:59:59", "2013-11-03T04:59:59Z"),
            ("2013-11-03T01:30:00", "2013-11-03T06:30:00Z"),
            ("2013-11-03T02:00:00", "2013-11-03T07:00:00Z"),
        ] {
            assert_eq!(shown(new_york, local), utc, "{local}");
        }
        // A day that Samoa left out.
        assert_eq!(shown(chrono_tz::Pacific::Apia, "2011-12-30T12:00:00"), "2011-12-30T22:00:00Z");
        assert_eq!(utc_of_local(new_york, i64::MAX), None);
    }
}
