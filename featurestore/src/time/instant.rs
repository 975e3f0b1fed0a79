//! An instant: microseconds since 1970-01-01T00:00:00Z, always UTC (rule T1).

use std::fmt;
use std::ops::{Add, Sub};

use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::Span;
use crate::{Error, Result};

/// Microseconds since the Unix epoch, UTC. Serialised as RFC 3339 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Before everything: the event time of rows that hold at every time (rule T2, `STATIC` sources).
    pub const MIN: Self = Self(i64::MIN);
    /// After everything.
    pub const MAX: Self = Self(i64::MAX);

    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Reads `2013-12-01T05:00:00Z`, `2013-12-01 05:00:00` or `2013-12-01` (the last two are UTC).
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when the text is none of these.
    pub fn parse(text: &str) -> Result<Self> {
        if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self(instant.timestamp_micros()));
        }
        let naive = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M"]
            .iter()
            .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
            .or_else(|| NaiveDateTime::parse_from_str(&format!("{text} 00:00:00"), "%Y-%m-%d %H:%M:%S").ok());
        naive.map(|time| Self(time.and_utc().timestamp_micros())).ok_or_else(|| {
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

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp_micros(self.0) {
            Some(instant) => f.write_str(&instant.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            None if *self == Self::MIN => f.write_str("-infinity"),
            None => write!(f, "{} us", self.0),
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
        let text = String::deserialize(deserializer)?;
        if text == "-infinity" {
            return Ok(Self::MIN);
        }
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_a_zone_is_utc_and_a_zone_is_honoured() {
        let noon = Timestamp::parse("2013-12-01T12:00:00Z").expect("valid");
        assert_eq!(Timestamp::parse("2013-12-01 12:00:00").expect("valid"), noon);
        assert_eq!(Timestamp::parse("2013-12-01T07:00:00-05:00").expect("valid"), noon);
        assert_eq!(noon.to_string(), "2013-12-01T12:00:00Z");
        assert!(Timestamp::parse("yesterday").is_err());
    }
}
