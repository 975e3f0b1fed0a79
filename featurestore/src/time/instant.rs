//! An instant: microseconds since 1970-01-01T00:00:00Z, always UTC (rule T1).

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::Span;
use crate::{Error, Result};

/// How times before and after all that there are, are written.
const SENTINELS: [(Timestamp, &str); 2] = [(Timestamp::MIN, "-infinity"), (Timestamp::MAX, "infinity")];

/// What is written after microseconds where there is no date.
const MICROSECONDS: &str = " us";

/// Microseconds since the Unix epoch, UTC. Serialised as RFC 3339 text.
///
/// The times that events and people may have are those of the years 1 to 9999 ([`Self::is_dated`]): every edge refuses
/// others. What is displayed, of any value, reads back by [`FromStr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A time as it was written: with a zone, or as a clock of some zone showed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// With a zone or an offset.
    Instant(Timestamp),
    /// What a clock showed, in microseconds after midnight of 1970 on its face.
    Local(i64),
}

impl Timestamp {
    /// Before everything: the event time of rows that hold at every time (rule T2, `STATIC` sources).
    pub const MIN: Self = Self(i64::MIN);
    /// After everything.
    pub const MAX: Self = Self(i64::MAX);
    /// The first time that an event may have: the beginning of the year 1.
    pub const FIRST: Self = Self(-62_135_596_800_000_000);
    /// The last time that an event may have: the last microsecond of the year 9999.
    pub const LAST: Self = Self(253_402_300_799_999_999);

    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whether it is a time that events may have: of the years 1 to 9999.
    pub const fn is_dated(self) -> bool {
        Self::FIRST.0 <= self.0 && self.0 <= Self::LAST.0
    }

    /// The same time, where events may have it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] with the value, for a time outside of the years 1 to 9999.
    pub fn dated(self) -> Result<Self> {
        if self.is_dated() {
            return Ok(self);
        }
        Err(Error::invalid("a time outside of the years 1 to 9999")
            .with("value", self)
            .remedy("leave it out, or send a null where the column may have one"))
    }

    /// Reads `2013-12-01T05:00:00Z`, `2013-12-01 05:00:00` or `2013-12-01` (the last two are UTC).
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when the text is none of these, or is of no year from 1 to 9999.
    pub fn parse(text: &str) -> Result<Self> {
        match Self::parse_written(text)? {
            Written::Instant(at) => Ok(at),
            Written::Local(micros) => Self(micros).dated(),
        }
    }

    /// Reads what [`Self::parse`] does, and tells whether the text names a zone: `2013-12-01 05:00:00+02:00` does.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_written(text: &str) -> Result<Written> {
        if let Some(instant) = with_offset(text) {
            return Ok(Written::Instant(Self(instant.timestamp_micros()).dated()?));
        }
        let naive = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"]
            .iter()
            .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
            .or_else(|| NaiveDateTime::parse_from_str(&format!("{text} 00:00:00"), "%Y-%m-%d %H:%M:%S").ok());
        naive.map(|time| Written::Local(time.and_utc().timestamp_micros())).ok_or_else(|| {
            Error::invalid("not a time").with("value", text).remedy("write UTC such as 2013-12-01T05:00:00Z")
        })
    }

    /// The time since `earlier`; negative differences become zero, and a difference from [`Self::MIN`] is the longest span.
    pub fn since(self, earlier: Self) -> Span {
        Span::from_micros(self.0.saturating_sub(earlier.0).max(0))
    }
}

impl Add<Span> for Timestamp {
    type Output = Self;
    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.micros()))
    }
}

impl Sub<Span> for Timestamp {
    type Output = Self;
    fn sub(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.micros()))
    }
}

/// A date and time with an offset, in RFC 3339 or nearly: `2013-12-01 05:00+02`.
fn with_offset(text: &str) -> Option<DateTime<chrono::FixedOffset>> {
    let nearly = ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z", "%Y-%m-%dT%H:%M%#z"];
    let exact = DateTime::parse_from_rfc3339(text).ok();
    exact.or_else(|| nearly.iter().find_map(|format| DateTime::parse_from_str(text, format).ok()))
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((_, text)) = SENTINELS.iter().find(|(sentinel, _)| sentinel == self) {
            return f.write_str(text);
        }
        match DateTime::<Utc>::from_timestamp_micros(self.0) {
            Some(instant) if self.is_dated() => f.write_str(&instant.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            _ => write!(f, "{}{MICROSECONDS}", self.0),
        }
    }
}

/// Reads whatever was displayed, now or by an earlier version: `infinity`, `-123 us` and dates of any year too.
impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((sentinel, _)) = SENTINELS.iter().find(|(_, written)| *written == text) {
            return Ok(*sentinel);
        }
        if let Some(micros) = text.strip_suffix(MICROSECONDS).and_then(|micros| micros.parse().ok()) {
            return Ok(Self(micros));
        }
        match text.parse::<DateTime<Utc>>() {
            Ok(instant) => Ok(Self(instant.timestamp_micros())),
            Err(_) => Self::parse(text),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_without_a_zone_is_utc_and_a_zone_is_honoured() {
        let noon = Timestamp::parse("2013-12-01T12:00:00Z").expect("valid");
        assert_eq!(Timestamp::parse("2013-12-01 12:00:00").expect("valid"), noon);
        assert_eq!(Timestamp::parse("2013-12-01T07:00:00-05:00").expect("valid"), noon);
        assert_eq!(noon.to_string(), "2013-12-01T12:00:00Z");
        assert!(Timestamp::parse("yesterday").is_err());
    }

    #[test]
    fn a_written_time_says_whether_it_has_a_zone() {
        let noon = Timestamp::parse("2013-12-01T12:00:00Z").expect("valid");
        for text in [
            "2013-12-01 14:00:00+02:00",
            "2013-12-01 14:00:00.000+02:00",
            "2013-12-01T14:00:00+0200",
            "2013-12-01 14:00:00+02",
            "2013-12-01 14:00+02:00",
            "2013-12-01 12:00:00Z",
        ] {
            assert_eq!(Timestamp::parse_written(text).expect(text), Written::Instant(noon), "{text}");
        }
        for text in ["2013-12-01 12:00:00", "2013-12-01T12:00:00.000000", "2013-12-01 12:00", "2013-12-01T12:00"] {
            assert_eq!(Timestamp::parse_written(text).expect(text), Written::Local(noon.micros()), "{text}");
        }
    }

    #[test]
    fn times_of_no_year_from_1_to_9999_are_refused_from_people_and_read_from_the_store() {
        for (text, micros) in [
            ("-infinity", i64::MIN),
            ("infinity", i64::MAX),
            ("-9223372036854775807 us", -i64::MAX),
            ("-123 us", -123),
            ("-0044-03-15T00:00:00Z", -63_549_360_000_000_000),
            ("+10000-01-01T00:00:00Z", 253_402_300_800_000_000),
        ] {
            assert_eq!(text.parse::<Timestamp>().expect(text).micros(), micros, "{text}");
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
        for (text, at) in [("0001-01-01T00:00:00Z", Timestamp::FIRST), ("9999-12-31T23:59:59.999999Z", Timestamp::LAST)]
        {
            assert_eq!((Timestamp::parse(text).expect(text), at.to_string().as_str()), (at, text));
        }
        let error = Timestamp::parse("0001-01-01T00:00:00+01:00").expect_err("the year before");
        assert!(error.to_string().contains("outside of the years 1 to 9999"), "{error}");
    }

    proptest! {
        #[test]
        fn whatever_is_displayed_reads_back(micros in any::<i64>(), near in -300_000_000_000_000_000_i64..300_000_000_000_000_000) {
            for at in [micros, near].map(Timestamp::from_micros) {
                let text = at.to_string();
                prop_assert_eq!(text.parse::<Timestamp>().expect("own text"), at);
                prop_assert_eq!(Timestamp::parse(&text).ok(), at.is_dated().then_some(at));
                let json = serde_json::to_string(&at).expect("serialises");
                prop_assert_eq!(serde_json::from_str::<Timestamp>(&json).expect("own text"), at);
            }
        }
    }
}
