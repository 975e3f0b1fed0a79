//! What a windowed view computes: aggregates of its events, each over windows of time (rule T4).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Column, ColumnType};
use crate::aggregate::{Divisor, Parts};
use crate::time::{Span, Tiles, Window};
use crate::{Error, Result};

/// A window's length as it is written, since it names features: 24 hours are `_24h`, one day is `_1d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WindowLength {
    count: u32,
    unit: WindowUnit,
}

/// The unit of a window's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WindowUnit {
    Second,
    Minute,
    Hour,
    Day,
}

impl WindowUnit {
    const ALL: [Self; 4] = [Self::Second, Self::Minute, Self::Hour, Self::Day];

    fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    fn seconds(self) -> i64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }
}

impl WindowLength {
    /// Reads one number and one unit: `2 hours`, `30d`. Weeks are seven days each.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] with the accepted forms.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid("not a window's length")
                .with("value", format!("'{text}'"))
                .remedy("write one number and one unit: '90 seconds', '30 minutes', '2 hours', '7 days'")
        };
        let span = Span::parse(text)?;
        let written = text.trim();
        let digits = written.find(|c: char| !c.is_ascii_digit()).unwrap_or(written.len());
        let (number, unit) = (written[..digits].parse::<u32>().map_err(|_| wrong())?, written[digits..].trim());
        let per = span.micros().checked_div(i64::from(number)).ok_or_else(wrong)?;
        if unit.is_empty() || !unit.chars().all(|c| c.is_ascii_alphabetic()) || number == 0 {
            return Err(wrong());
        }
        let week = 7 * 86_400_000_000;
        if per == week {
            let count = number.checked_mul(7).ok_or_else(wrong)?;
            return Ok(Self { count, unit: WindowUnit::Day });
        }
        let unit = WindowUnit::ALL.into_iter().find(|unit| unit.seconds() * 1_000_000 == per).ok_or_else(wrong)?;
        Ok(Self { count: number, unit })
    }

    /// As a span.
    pub fn span(self) -> Span {
        Span::from_secs(i64::from(self.count) * self.unit.seconds())
    }

    /// What stands behind the alias in a feature's name: `2h`.
    pub fn suffix(self) -> String {
        format!("{}{}", self.count, &self.unit.name()[..1])
    }
}

impl fmt::Display for WindowLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.count, self.unit.name(), if self.count == 1 { "" } else { "s" })
    }
}

/// A window of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewWindow {
    /// Its length.
    pub length: WindowLength,
    /// Its own step, a multiple of the view's.
    pub step: Span,
}

impl ViewWindow {
    /// As the arithmetic of rule T4 takes it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when the step is longer than the window.
    pub fn window(&self) -> Result<Window> {
        Window::new(self.length.span(), self.step)
    }
}

/// An aggregate that windows are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AggregateFunction {
    /// `count(x)`: values that are not null; `count(*)`: events. 0 for an empty window.
    Count,
    /// `sum(x)`, exact; null for an empty window, and for integers beyond `BIGINT`.
    Sum,
    /// `avg(x)`, exact and rounded once; null for an empty window.
    Mean,
    /// `min(x)`; null for an empty window.
    Least,
    /// `max(x)`; null for an empty window.
    Greatest,
    /// `var_samp(x)`, also `variance`; null for fewer than two values.
    VarianceSample,
    /// `var_pop(x)`; null for an empty window.
    VariancePopulation,
    /// `stddev_samp(x)`, also `stddev`; null for fewer than two values.
    DeviationSample,
    /// `stddev_pop(x)`; null for an empty window.
    DeviationPopulation,
    /// `count(DISTINCT x)`, exact; null beyond [`crate::aggregate::MOST_DISTINCT`] values, 0 for an empty window.
    CountDistinct,
    /// `first_value(x)` by event time, of equal times as rule T5 orders them; null for an empty window.
    First {
        /// Whether a null counts as a value (`RESPECT NULLS`, SQL's default).
        nulls: bool,
    },
    /// `last_value(x)` as of the first; null for an empty window.
    Last {
        /// As of the first.
        nulls: bool,
    },
    /// `approx_distinct(x)`, within a few per cent; 0 for an empty window.
    AboutDistinct,
    /// `approx_percentile_cont(x, p)` and `approx_median(x)`: within 0.4 % of the value at that rank, and exact for
    /// integers below 512; null for an empty window.
    AboutQuantile {
        /// The percentile, in millionths of the whole.
        millionths: u32,
    },
    /// `array_agg(x LIMIT n)`: the last n values in the same order, the oldest first; null for an empty window.
    LastValues {
        /// The most values, up to [`crate::aggregate::MOST_LAST`].
        most: u16,
        /// Whether nulls are values (`RESPECT NULLS`, SQL's default).
        nulls: bool,
    },
    /// `approx_top_k(x, k)`: the values that occur most often, the most frequent first; exact up to
    /// [`crate::aggregate::MOST_COUNTED`] different values; null for an empty window.
    AboutTop {
        /// The most values, up to [`crate::aggregate::MOST_TOP`].
        most: u16,
    },
}

impl AggregateFunction {
    /// Those without settings, with their SQL names.
    pub const ALL: [(&'static str, Self); 17] = [
        ("count", Self::Count),
        ("sum", Self::Sum),
        ("avg", Self::Mean),
        ("mean", Self::Mean),
        ("min", Self::Least),
        ("max", Self::Greatest),
        ("var", Self::VarianceSample),
        ("var_samp", Self::VarianceSample),
        ("variance", Self::VarianceSample),
        ("var_pop", Self::VariancePopulation),
        ("stddev", Self::DeviationSample),
        ("stddev_samp", Self::DeviationSample),
        ("stddev_pop", Self::DeviationPopulation),
        ("first_value", Self::First { nulls: true }),
        ("last_value", Self::Last { nulls: true }),
        ("approx_distinct", Self::AboutDistinct),
        ("approx_median", Self::AboutQuantile { millionths: 500_000 }),
    ];

    /// The function of an SQL name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, function)| *function)
    }

    /// What it reads of its argument's summary.
    pub fn parts(self) -> Parts {
        match self {
            Self::Count => Parts::default(),
            Self::Sum | Self::Mean => Parts::TOTAL,
            Self::Least | Self::Greatest => Parts::EXTREMES,
            Self::VarianceSample | Self::VariancePopulation | Self::DeviationSample | Self::DeviationPopulation => {
                Parts::TOTAL.or(Parts::SQUARES)
            }
            Self::CountDistinct => Parts::DISTINCT,
            Self::First { nulls } | Self::Last { nulls } => {
                if nulls {
                    Parts::ROW_ENDS
                } else {
                    Parts::ENDS
                }
            }
            Self::AboutDistinct => Parts::HYPER_LOG_LOG,
            Self::AboutQuantile { .. } => Parts::QUANTILES,
            Self::LastValues { most, nulls } => if nulls { Parts::ROW_LAST } else { Parts::LAST }.keeping(most),
            Self::AboutTop { .. } => Parts::TOP,
        }
    }

    /// Over what a variance's squares are divided.
    pub fn divisor(self) -> Divisor {
        match self {
            Self::VariancePopulation | Self::DeviationPopulation => Divisor::Population,
            _ => Divisor::Sample,
        }
    }

    /// The type of its value for an argument of this type (`None`: no argument); `None` where it does not apply.
    pub fn output(self, argument: Option<ColumnType>) -> Option<ColumnType> {
        let Some(argument) = argument else { return (self == Self::Count).then_some(ColumnType::Int64) };
        if argument.is_list() {
            return None;
        }
        let float = matches!(argument, ColumnType::Float32 | ColumnType::Float64);
        let number = argument.is_numeric() && argument != ColumnType::Boolean;
        match self {
            Self::Count | Self::CountDistinct | Self::AboutDistinct => Some(ColumnType::Int64),
            Self::First { .. } | Self::Last { .. } => Some(argument),
            Self::LastValues { .. } | Self::AboutTop { .. } => argument.list_of(),
            Self::Sum => number.then_some(if float { ColumnType::Float64 } else { ColumnType::Int64 }),
            Self::Least | Self::Greatest => {
                (number || matches!(argument, ColumnType::Date | ColumnType::Timestamp)).then_some(argument)
            }
            _ => number.then_some(ColumnType::Float64),
        }
    }
}

/// One aggregate of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aggregate {
    /// Its alias: a feature is called `alias_2h`.
    pub alias: String,
    /// What it computes.
    pub function: AggregateFunction,
    /// Which of the arguments; none for `count(*)`.
    pub argument: Option<usize>,
    /// The type of its features.
    pub output: ColumnType,
}

/// The windows of a view and what is computed over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windowed {
    /// The finest step; every window's own is a multiple of it.
    pub step: Span,
    /// The windows, as they are written.
    pub windows: Vec<ViewWindow>,
    /// The arguments of the aggregates: the value columns of an event row.
    pub arguments: Vec<Column>,
    /// The aggregates, as they are written.
    pub aggregates: Vec<Aggregate>,
}

impl Windowed {
    /// The features: each aggregate over each window, the windows of one aggregate together.
    pub fn features(&self) -> Vec<Column> {
        let of = |aggregate: &Aggregate| {
            let (alias, output) = (aggregate.alias.clone(), aggregate.output);
            self.windows.iter().map(move |w| Column::nullable(format!("{alias}_{}", w.length.suffix()), output))
        };
        self.aggregates.iter().flat_map(of).collect()
    }

    /// Whether an aggregate goes by the order of events: those of one time are then told apart by when they were written.
    pub fn keeps_order(&self) -> bool {
        self.aggregates.iter().any(|aggregate| aggregate.function.parts().keep_order())
    }

    /// The tiles that the windows are put together from.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] when the step is not positive.
    pub fn tiles(&self) -> Result<Tiles> {
        Tiles::of_step(self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_keeps_the_unit_that_it_is_written_in() {
        let read = |text| WindowLength::parse(text).map(|length| (length.to_string(), length.suffix(), length.span()));
        let hours = |count: i64| Span::from_secs(3_600 * count);
        assert_eq!(read("24 hours").expect("valid"), ("24 hours".to_owned(), "24h".to_owned(), hours(24)));
        assert_eq!(read("1 day").expect("valid"), ("1 day".to_owned(), "1d".to_owned(), hours(24)));
        assert_eq!(read("2w").expect("valid"), ("14 days".to_owned(), "14d".to_owned(), hours(14 * 24)));
        assert_eq!(read(" 90 s ").expect("valid").1, "90s");
        for wrong in ["", "5", "0 hours", "1 day 2 hours", "5 ms", "1 month", "-1 day", "99999999999 days"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
