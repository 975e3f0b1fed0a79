//! By how much a value may at most precede the times of the events that it is told of.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;

/// The units of `date_trunc`, how long one is at most, and its months where it is made of them.
const UNITS: [(&str, i64, i32); 10] = [
    ("microsecond", 1, 0),
    ("millisecond", 1_000, 0),
    ("second", SECOND, 0),
    ("minute", 60 * SECOND, 0),
    ("hour", HOUR, 0),
    ("day", DAY, 0),
    ("week", 7 * DAY, 0),
    ("month", 31 * DAY, 1),
    ("quarter", 92 * DAY, 3),
    ("year", 366 * DAY, 12),
];

/// The clock by which a time is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Clock {
    /// UTC, with a zone.
    #[default]
    Utc,
    /// UTC, without a zone.
    Naive,
    /// Another zone's, whose days are not all of one length.
    Zone,
}

impl Clock {
    /// Of times of this type, in units that events' times are told in; `None` for what is no such time.
    fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, zone) => Some(match zone.as_deref() {
                None => Self::Naive,
                Some("UTC" | "+00:00" | "Z") => Self::Utc,
                Some(_) => Self::Zone,
            }),
            _ => None,
        }
    }
}

/// What is known of a value, event by event that stands behind its row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// By scan: the most microseconds by which it precedes the events of that scan; negative where it follows them. Of a
    /// scan that is not named nothing is known.
    pub(super) behind: BTreeMap<usize, i64>,
    /// Whether it is a time at which one of them happened, so that it never lies in the future of all of them.
    pub(super) happened: bool,
    clock: Clock,
    /// Where it is the beginning of so many months of the calendar: what is known of the time within them.
    begins: Option<(i32, BTreeMap<usize, i64>)>,
}

impl Reach {
    /// The own time of the events of a scan.
    pub(super) fn own(scan: usize, data_type: &DataType) -> Self {
        match Clock::of(data_type) {
            Some(clock) => Self { behind: BTreeMap::from([(scan, 0)]), happened: true, clock, begins: None },
            None => Self::default(),
        }
    }

    /// Says further what is known of the least by which it follows.
    pub(super) fn follows(&mut self, lesser: &BTreeMap<usize, i64>) {
        for (scan, behind) in lesser {
            let known = self.behind.entry(*scan).or_insert(*behind);
            *known = (*known).min(*behind);
        }
    }

    /// A value of another input of a union, whose scans are others: a row is made of the scans of one of them.
    pub(super) fn join_other(&mut self, other: Self, is_first: bool) {
        self.happened = other.happened && (is_first || self.happened);
        self.clock = if is_first || self.clock == other.clock { other.clock } else { Clock::Zone };
        self.behind.extend(other.behind);
        self.begins = None;
    }

    /// Another time, at least so many microseconds later.
    fn later(mut self, least: i64) -> Self {
        self.behind.values_mut().for_each(|behind| *behind = behind.saturating_sub(least));
        self.happened = false;
        self.begins = None;
        self
    }

    /// The beginning of the unit of `date_trunc` that it lies in.
    fn truncated(self, (most, months): (i64, i32)) -> Self {
        let begins = (months > 0).then(|| (months, self.behind.clone()));
        Self { begins, ..self.later(1 - most) }
    }

    /// The time an interval later. The beginning of a month and a month is the beginning of the next, however long it is.
    fn plus(self, (months, days, micros): (i32, i32, i64)) -> Self {
        match self.begins {
            _ if self.clock == Clock::Zone => Self::default(),
            Some((of, within)) if months >= of && days >= 0 && micros >= 0 => {
                Self { behind: within, begins: None, ..self }.later(1)
            }
            begins => Self { begins, ..self }.later(least((months, days, micros))),
        }
    }

    /// One of these, of which it is not known which.
    fn any(of: impl IntoIterator<Item = Self>) -> Self {
        let mut of = of.into_iter();
        let Some(mut any) = of.next() else { return Self::default() };
        for other in of {
            any.behind.retain(|scan, _| other.behind.contains_key(scan));
            for (scan, behind) in &mut any.behind {
                *behind = (*behind).max(other.behind[scan]);
            }
            any.happened &= other.happened;
            any.clock = if any.clock == other.clock { any.clock } else { Clock::Zone };
            any.begins = None;
        }
        any
    }

    /// The greatest of these.
    fn greatest(of: impl IntoIterator<Item = Self>) -> Self {
        let mut of = of.into_iter();
        let Some(mut greatest) = of.next() else { return Self::default() };
        for other in of {
            greatest.follows(&other.behind);
            greatest.happened &= other.happened;
            greatest.clock = if greatest.clock == other.clock { greatest.clock } else { Clock::Zone };
            greatest.begins = None;
        }
        greatest
    }

    /// As a time of another type, which is the same instant; nothing is known where it is not.
    fn cast(mut self, to: &DataType) -> Self {
        match (self.clock, Clock::of(to)) {
            (Clock::Zone, Some(Clock::Naive)) | (Clock::Naive, Some(Clock::Zone)) | (_, None) => Self::default(),
            (_, Some(clock)) => {
                self.clock = clock;
                self
            }
        }
    }
}

/// What is known of an expression over columns of which this is known.
pub(super) fn reach(expression: &Expr, columns: &[Reach], schema: &DFSchema) -> Reach {
    let of = |expression: &Expr| reach(expression, columns, schema);
    match expression {
        Expr::Alias(alias) => of(&alias.expr),
        Expr::Column(column) => {
            schema.maybe_index_of_column(column).and_then(|index| columns.get(index)).cloned().unwrap_or_default()
        }
        Expr::Cast(cast) => of(&cast.expr).cast(cast.field.data_type()),
        Expr::TryCast(cast) => of(&cast.expr).cast(cast.field.data_type()),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Plus, right }) => {
            match (interval_of(left), interval_of(right)) {
                (None, Some(interval)) => of(left).plus(interval),
                (Some(interval), None) => of(right).plus(interval),
                _ => Reach::default(),
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Minus, right }) => match interval_of(right) {
            Some((months, days, micros)) => {
                of(left).plus((months.saturating_neg(), days.saturating_neg(), micros.saturating_neg()))
            }
            None => Reach::default(),
        },
        Expr::ScalarFunction(call) => of_function(call, &of),
        Expr::Case(case) => {
            let branches = case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr);
            Reach::any(branches.map(|branch| of(branch)))
        }
        _ => Reach::default(),
    }
}

fn of_function(call: &ScalarFunction, of: &impl Fn(&Expr) -> Reach) -> Reach {
    match (call.name(), call.args.as_slice()) {
        ("date_trunc", [unit, time]) => match (of(time), unit_of(unit)) {
            (time, Some(unit)) if time.clock != Clock::Zone => time.truncated(unit),
            _ => Reach::default(),
        },
        ("date_bin", [stride, time, ..]) => match (of(time), interval_of(stride)) {
            (time, Some((0, days, micros))) if time.clock != Clock::Zone && least((0, days, micros)) > 0 => {
                time.later(1_i64.saturating_sub(least((0, days, micros))))
            }
            _ => Reach::default(),
        },
        ("greatest", times) => Reach::greatest(times.iter().map(of)),
        ("least" | "coalesce", times) => Reach::any(times.iter().map(of)),
        _ => Reach::default(),
    }
}

fn unaliased(expression: &Expr) -> &Expr {
    match expression {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// How long a unit of `date_trunc` is at most, and its months.
fn unit_of(expression: &Expr) -> Option<(i64, i32)> {
    let Expr::Literal(value, _) = unaliased(expression) else { return None };
    let text = value.try_as_str().flatten()?;
    UNITS.iter().find(|(name, ..)| text.eq_ignore_ascii_case(name)).map(|(_, most, months)| (*most, *months))
}

/// The months, days and microseconds of a literal interval.
fn interval_of(expression: &Expr) -> Option<(i32, i32, i64)> {
    match unaliased(expression) {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(of)), _) => {
            Some((of.months, of.days, of.nanoseconds.div_euclid(1_000)))
        }
        Expr::Literal(ScalarValue::IntervalDayTime(Some(of)), _) => {
            Some((0, of.days, i64::from(of.milliseconds) * 1_000))
        }
        Expr::Literal(ScalarValue::IntervalYearMonth(Some(months)), _) => Some((*months, 0, 0)),
        Expr::Negative(of) => {
            let (months, days, micros) = interval_of(of)?;
            Some((months.checked_neg()?, days.checked_neg()?, micros.checked_neg()?))
        }
        _ => None,
    }
}

/// The fewest microseconds of an interval, whatever months it spans.
fn least((months, days, micros): (i32, i32, i64)) -> i64 {
    let month = if months < 0 { 31 * DAY } else { 28 * DAY };
    i64::from(months).saturating_mul(month).saturating_add(i64::from(days).saturating_mul(DAY)).saturating_add(micros)
}
