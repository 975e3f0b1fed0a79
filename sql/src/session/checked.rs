//! Columns that rule what they hold: a value that is not of its column's type, or no time of an event, ends the query and
//! is named (rules T1 and T12). Functions of one column, for plans that are put together here: queries cannot name them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::error::{DataFusionError, Result as QueryResult};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use springhouse_featurestore::definition::{Column, ColumnType, check_dated, strict_cast};
use springhouse_featurestore::time::{Timestamp, Written, utc_of_local_until};
use springhouse_featurestore::{Error, Result};

/// What is asked of a column.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// Its times are of the years 1 to 9999: true of each row, for a filter. Columns that a filter lets through stay what
    /// they are, and what is read is still chosen by them.
    Dated,
    /// Its values are of a type.
    Typed(ColumnType),
    /// Its texts are times. Those that name no zone are of this one; of an hour that came twice the first is meant while
    /// the second lies after `latest`.
    Times {
        /// An IANA zone name; without one such a text is refused.
        zone: Option<String>,
        /// The latest time that can be meant.
        latest: Timestamp,
    },
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Ruled {
    /// What the column is called in errors, and of what it is one.
    place: (&'static str, String),
    column: String,
    rule: Rule,
    signature: Signature,
}

/// A column by a rule. `place` tells errors where it is: what kind of thing it is of, and its name.
pub(crate) fn ruled(value: Expr, place: (&'static str, &str), column: &str, rule: Rule) -> Expr {
    let ruled = Ruled {
        place: (place.0, place.1.to_owned()),
        column: column.to_owned(),
        rule,
        signature: Signature::any(1, Volatility::Immutable),
    };
    ScalarUDF::new_from_impl(ruled).call(vec![value])
}

impl Ruled {
    fn apply(&self, given: &ArrayRef) -> Result<ArrayRef> {
        let done = match &self.rule {
            Rule::Dated => {
                check_dated(given).map(|()| Arc::new(BooleanArray::from(vec![true; given.len()])) as ArrayRef)
            }
            Rule::Typed(column_type) => strict_cast(&Column::nullable(&self.column, *column_type), given),
            Rule::Times { zone, latest } => times_of_text(given, zone.as_deref(), *latest),
        };
        let done = done.and_then(|array| check_dated(&array).map(|()| array));
        done.map_err(|error| error.with("column", &self.column).with(self.place.0, &self.place.1))
    }
}

impl ScalarUDFImpl for Ruled {
    fn name(&self) -> &'static str {
        match self.rule {
            Rule::Dated => "dated",
            Rule::Typed(_) => "typed",
            Rule::Times { .. } => "times_of_text",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> QueryResult<DataType> {
        Ok(match &self.rule {
            Rule::Dated => DataType::Boolean,
            Rule::Typed(column_type) => column_type.to_arrow(),
            Rule::Times { .. } => ColumnType::Timestamp.to_arrow(),
        })
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> QueryResult<FieldRef> {
        let given = &arguments.arg_fields[0];
        let data_type = self.return_type(&[])?;
        Ok(Arc::new(Field::new(self.name(), data_type, given.is_nullable())))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> QueryResult<ColumnarValue> {
        let given = ColumnarValue::values_to_arrays(&arguments.args)?;
        let done = self.apply(&given[0]);
        done.map(ColumnarValue::Array).map_err(|error| DataFusionError::External(Box::new(error)))
    }
}

/// Texts as times: with a zone or an offset as they say, others of the zone that is given.
fn times_of_text(given: &ArrayRef, zone: Option<&str>, latest: Timestamp) -> Result<ArrayRef> {
    let known =
        zone.map(|zone| zone.parse().map_err(|_| Error::invalid("there is no such time zone").with("zone", zone)));
    let known = known.transpose()?;
    let texts = cast(given, &DataType::Utf8)?;
    let time = |(row, text): (usize, Option<&str>)| {
        let Some(text) = text else { return Ok(None) };
        let time = match (Timestamp::parse_written(text.trim()), known) {
            (Ok(Written::Instant(at)), _) => Ok(at),
            (Ok(Written::Local(shown)), Some(zone)) => utc_of_local_until(zone, shown, latest)
                .ok_or_else(|| Error::invalid("a time that no calendar has").with("value", text)),
            (Ok(Written::Local(_)), None) => Err(Error::invalid("a time without a time zone")
                .with("value", text)
                .remedy("write its zone, such as 2013-12-01T05:00:00Z or 2013-12-01 05:00:00+01:00")),
            (Err(error), _) => Err(error),
        };
        time.map(|time| Some(time.micros())).map_err(|error| error.with("row", row))
    };
    let times = texts.as_string::<i32>().iter().enumerate().map(time);
    Ok(Arc::new(times.collect::<Result<TimestampMicrosecondArray>>()?.with_timezone("UTC")))
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;

    use super::*;

    fn times(texts: &[&str], zone: Option<&str>) -> Result<ArrayRef> {
        let texts: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        times_of_text(&texts, zone, Timestamp::MAX)
    }

    #[test]
    fn a_text_with_an_offset_is_a_time_and_one_without_is_refused_or_of_the_zone() {
        let summer = "2013-07-01 20:00:00";
        let both = times(&["2013-07-01 20:00:00+02:00", "2013-07-01T18:00:00Z", summer], Some("Europe/Berlin"));
        let both = both.expect("times");
        let micros = Timestamp::parse("2013-07-01T18:00:00Z").expect("a time").micros();
        assert_eq!(both.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().values(), &[micros; 3]);
        let error = times(&["2013-07-01T18:00:00Z", summer], None).expect_err("no zone").to_string();
        assert!(error.contains("row: 1") && error.contains(summer), "{error}");
        assert!(times(&["soon"], None).expect_err("no time").to_string().contains("soon"));
    }
}
