//! What a clock on a wall shows, in UTC (rule T1). Pure.

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;

use super::Timestamp;

/// The longest gap that a change of a zone's offset leaves: a day, where an island crosses the date line.
const LONGEST_GAP_HOURS: i64 = 25;

/// The last year that the tables of zones tell of.
const LAST_TOLD_YEAR: i32 = 2099;

/// After so many years each date falls on each day of the week again, and leap years do too, as long as no century that
/// has no leap year lies between.
const CYCLE_YEARS: i32 = 28;

/// The time at which clocks of a zone showed so many microseconds after midnight of 1970. Of an hour that comes twice, in
/// autumn, the second is meant, and one that never comes, in spring, is counted on from before it: both are standard time,
/// as `PostgreSQL` has it. After 2099 the zone's rules of before go on. `None` beyond the times that a calendar has.
pub fn utc_of_local(zone: Tz, shown: i64) -> Option<Timestamp> {
    let local = DateTime::from_timestamp_micros(shown)?.naive_utc();
    let before = (0..=LONGEST_GAP_HOURS).map(|hours| local.checked_sub_signed(TimeDelta::hours(hours)));
    let ahead = before.flatten().find_map(|local| ahead_of_utc(zone, local).last().copied())?;
    shown.checked_sub(ahead).map(Timestamp::from_micros)
}

/// The same for what was shown by `latest`: of an hour that comes twice the first is meant while the second is yet to come.
pub fn utc_of_local_until(zone: Tz, shown: i64, latest: Timestamp) -> Option<Timestamp> {
    let utc = utc_of_local(zone, shown)?;
    if utc <= latest {
        return Some(utc);
    }
    let local = DateTime::from_timestamp_micros(shown)?.naive_utc();
    let first = ahead_of_utc(zone, local).first().and_then(|ahead| shown.checked_sub(*ahead));
    Some(first.map_or(utc, |first| utc.min(Timestamp::from_micros(first))))
}

/// How many microseconds a zone's clocks that show this may be ahead of UTC, in the order in which they show it; none where
/// they never do.
fn ahead_of_utc(zone: Tz, local: NaiveDateTime) -> Vec<i64> {
    let Some(told) = as_told(zone, local) else { return Vec::new() };
    let offsets = zone.offset_from_local_datetime(&told);
    let micros = |offset: <Tz as TimeZone>::Offset| i64::from(offset.fix().local_minus_utc()) * 1_000_000;
    let (first, last) = (offsets.earliest().map(micros), offsets.latest().map(micros));
    first.into_iter().chain(last.filter(|last| first != Some(*last))).collect()
}

/// A time of a year that the tables tell of at which the same offset holds. Rules such as "the last Sunday of March" give
/// the same dates in years that begin on the same day of the week and have as many days; where the last year has no
/// changes any more there are none after it.
fn as_told(zone: Tz, local: NaiveDateTime) -> Option<NaiveDateTime> {
    if local.year() <= LAST_TOLD_YEAR {
        return Some(local);
    }
    let in_last = |month| NaiveDate::from_ymd_opt(LAST_TOLD_YEAR, month, 15)?.and_hms_opt(12, 0, 0);
    let offset = |at: NaiveDateTime| zone.offset_from_utc_datetime(&at).fix();
    if offset(in_last(1)?) == offset(in_last(7)?) {
        return in_last(7);
    }
    let kind = |year| NaiveDate::from_ymd_opt(year, 1, 1).map(|first| (first.weekday(), first.leap_year()));
    let wanted = kind(local.year())?;
    let year = (LAST_TOLD_YEAR - CYCLE_YEARS + 1..=LAST_TOLD_YEAR).rev().find(|year| kind(*year) == Some(wanted))?;
    local.with_year(year)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micros(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(&format!("{text}Z")).expect("a time").timestamp_micros()
    }

    fn shown(zone: Tz, text: &str) -> String {
        utc_of_local(zone, micros(text)).expect("within the calendar").to_string()
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

    #[test]
    fn rules_of_zones_go_on_after_the_tables_end() {
        let (berlin, new_york) = (chrono_tz::Europe::Berlin, chrono_tz::America::New_York);
        for (zone, local, utc) in [
            (berlin, "2100-01-01T00:00:00", "2099-12-31T23:00:00Z"),
            (berlin, "2150-01-15T12:00:00", "2150-01-15T11:00:00Z"),
            (berlin, "2150-07-15T12:00:00", "2150-07-15T10:00:00Z"),
            // The last Sundays of March and October 2150 are the 29th and the 25th.
            (berlin, "2150-03-29T01:59:59", "2150-03-29T00:59:59Z"),
            (berlin, "2150-03-29T02:30:00", "2150-03-29T01:30:00Z"),
            (berlin, "2150-03-29T03:00:00", "2150-03-29T01:00:00Z"),
            (berlin, "2150-10-25T01:59:59", "2150-10-24T23:59:59Z"),
            (berlin, "2150-10-25T02:30:00", "2150-10-25T01:30:00Z"),
            (new_york, "2150-01-15T12:00:00", "2150-01-15T17:00:00Z"),
            (new_york, "2150-07-15T12:00:00", "2150-07-15T16:00:00Z"),
            // The second Sunday of March 2150 is the 8th, the first of November the 1st.
            (new_york, "2150-03-08T01:59:59", "2150-03-08T06:59:59Z"),
            (new_york, "2150-03-08T03:00:00", "2150-03-08T07:00:00Z"),
            (new_york, "2150-11-01T01:30:00", "2150-11-01T06:30:00Z"),
            (new_york, "2400-02-29T12:00:00", "2400-02-29T17:00:00Z"),
            (chrono_tz::Australia::Sydney, "2150-01-15T12:00:00", "2150-01-15T01:00:00Z"),
            (chrono_tz::Australia::Sydney, "2150-07-15T12:00:00", "2150-07-15T02:00:00Z"),
            // No changes any more, though it once followed the moon.
            (chrono_tz::Africa::Casablanca, "2150-05-01T12:00:00", "2150-05-01T11:00:00Z"),
            (chrono_tz::UTC, "9999-12-31T23:59:59", "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(shown(zone, local), utc, "{zone} {local}");
        }
    }

    #[test]
    fn of_an_hour_that_comes_twice_the_first_is_meant_until_the_second_comes() {
        let berlin = chrono_tz::Europe::Berlin;
        let at = |text: &str| Timestamp::parse(text).expect("a time");
        let (local, first, second) = (micros("2025-10-26T02:30:00"), "2025-10-26T00:30:00Z", "2025-10-26T01:30:00Z");
        for (latest, meant) in
            [(first, first), ("2025-10-26T01:29:59Z", first), (second, second), ("2025-10-27T00:00:00Z", second)]
        {
            assert_eq!(utc_of_local_until(berlin, local, at(latest)), Some(at(meant)), "{latest}");
        }
        // What comes once means the same at every time.
        let local = micros("2025-10-26T03:30:00");
        assert_eq!(utc_of_local_until(berlin, local, at(first)), Some(at("2025-10-26T02:30:00Z")));
        let local = micros("2025-03-30T02:30:00");
        assert_eq!(utc_of_local_until(berlin, local, Timestamp::MIN), Some(at("2025-03-30T01:30:00Z")));
    }

    proptest! {
        /// The calendar repeats after 400 years, days of the week included.
        #[test]
        fn four_hundred_years_later_clocks_show_the_same(second in 3_155_760_000_i64..4_102_444_800, zone in 0_usize..4) {
            use chrono_tz::{America, Australia, Europe};
            let zone = [Europe::Berlin, America::New_York, Australia::Sydney, Europe::London][zone];
            let cycle = 146_097 * 86_400_000_000;
            let (now, then) = (utc_of_local(zone, second * 1_000_000), utc_of_local(zone, second * 1_000_000 + cycle));
            prop_assert_eq!(now.map(|now| now.micros() + cycle), then.map(Timestamp::micros));
        }
    }
}
