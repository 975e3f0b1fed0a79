//! A length of time in microseconds, written as people write it: `10 minutes`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A non-negative length of time in microseconds. Serialised as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(i64);

/// Units from the longest down; the printer uses the longest that divides evenly.
const UNITS: [(&str, i64); 7] = [
    ("week", 7 * 86_400_000_000),
    ("day", 86_400_000_000),
    ("hour", 3_600_000_000),
    ("minute", 60_000_000),
    ("second", 1_000_000),
    ("millisecond", 1_000),
    ("microsecond", 1),
];

/// Short forms that the parser accepts beside the units' own names.
const SHORT: [(&str, &str); 8] = [
    ("w", "week"),
    ("d", "day"),
    ("h", "hour"),
    ("m", "minute"),
    ("min", "minute"),
    ("s", "second"),
    ("ms", "millisecond"),
    ("us", "microsecond"),
];

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// From microseconds; negative input becomes zero.
    pub const fn from_micros(micros: i64) -> Self {
        Self(if micros < 0 { 0 } else { micros })
    }

    /// From seconds.
    pub const fn from_secs(seconds: i64) -> Self {
        Self::from_micros(seconds * 1_000_000)
    }

    /// Its length in microseconds.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Its length in seconds.
    #[expect(clippy::cast_precision_loss, reason = "for display and metrics only")]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Reads one or more `number unit` pairs: `10 minutes`, `1 day 12 hours`, `90s`, `0h`. Months and years have no fixed
    /// length and are refused.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] with the accepted forms.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid("not an interval").with("value", format!("'{text}'")).remedy(
                "write a number and a unit: '10 minutes', '2 hours', '30 days' (microseconds to weeks; months and years vary in length)",
            )
        };
        let mut total: i64 = 0;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let number: i64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = rest[digits..].trim_start();
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let micros = unit_micros(&rest[..letters]).ok_or_else(wrong)?;
            total = number.checked_mul(micros).and_then(|add| total.checked_add(add)).ok_or_else(wrong)?;
            rest = rest[letters..].trim_start();
        }
        Ok(Self(total))
    }
}

fn unit_micros(unit: &str) -> Option<i64> {
    let unit = unit.to_ascii_lowercase();
    let long = SHORT.iter().find(|(short, _)| *short == unit).map_or(unit.as_str(), |(_, long)| long);
    let singular = long.strip_suffix('s').unwrap_or(long);
    UNITS.iter().find(|(name, _)| *name == singular).map(|(_, micros)| *micros)
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Weeks are read but never written: '14 days' is what people say.
        let (unit, micros) =
            UNITS[1..].iter().find(|(_, micros)| self.0 != 0 && self.0 % micros == 0).unwrap_or(&UNITS[4]);
        let number = self.0 / micros;
        write!(f, "{number} {unit}{}", if number == 1 { "" } else { "s" })
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_printed_reads_back(micros in 0_i64..i64::MAX) {
            let span = Span::from_micros(micros);
            prop_assert_eq!(Span::parse(&span.to_string()).expect("printed by us"), span);
        }
    }

    #[test]
    fn people_write_intervals_in_many_ways() {
        for (text, printed) in [
            ("10 minutes", "10 minutes"),
            ("1 week", "7 days"),
            ("90s", "90 seconds"),
            ("0h", "0 seconds"),
            ("1 day 12 hours", "36 hours"),
            ("25 milliseconds", "25 milliseconds"),
        ] {
            assert_eq!(Span::parse(text).expect(text).to_string(), printed);
        }
        for text in ["", "ten minutes", "-5 minutes", "1 month", "5"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }
}
