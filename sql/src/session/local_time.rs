//! Columns of local times in UTC: what clocks of a zone showed (rule T1).

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::error::{DataFusionError, Result as QueryResult};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use springhouse_featurestore::definition::ColumnType;
use springhouse_featurestore::time::{Timestamp, utc_of_local_until};
use springhouse_featurestore::{Error, Result};

/// Timestamps without a zone as times in UTC, by the rule of [`utc_of_local`](springhouse_featurestore::time::utc_of_local).
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] names the zone that there is not, or the value that no calendar has.
pub fn utc_of_local_times(local: &ArrayRef, zone: &str) -> Result<ArrayRef> {
    utc_of_local_times_until(local, zone, Timestamp::MAX)
}

/// The same of what was shown by `latest`: of an hour that comes twice the first is meant while the second is yet to come.
///
/// # Errors
/// As [`utc_of_local_times`].
pub fn utc_of_local_times_until(local: &ArrayRef, zone: &str, latest: Timestamp) -> Result<ArrayRef> {
    let known = zone.parse().map_err(|_| Error::invalid("there is no such time zone").with("zone", zone))?;
    let local = cast(local, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
    let times = local.as_primitive::<TimestampMicrosecondType>().iter().map(|shown| {
        let Some(shown) = shown else { return Ok(None) };
        let utc = utc_of_local_until(known, shown, latest).ok_or_else(|| {
            Error::invalid("a time that no calendar has").with("microseconds since 1970", shown).with("zone", zone)
        })?;
        Ok(Some(utc.micros()))
    });
    Ok(Arc::new(times.collect::<Result<TimestampMicrosecondArray>>()?.with_timezone("UTC")))
}

/// [`utc_of_local_times`] in a query.
#[derive(Debug, PartialEq, Eq, Hash)]
struct UtcOfLocal {
    zone: String,
    signature: Signature,
}

impl ScalarUDFImpl for UtcOfLocal {
    fn name(&self) -> &'static str {
        "utc_of_local"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> QueryResult<DataType> {
        Ok(ColumnType::Timestamp.to_arrow())
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> QueryResult<ColumnarValue> {
        let local = ColumnarValue::values_to_arrays(&arguments.args)?;
        let utc = utc_of_local_times(&local[0], &self.zone);
        utc.map(ColumnarValue::Array).map_err(|error| DataFusionError::External(Box::new(error)))
    }
}

/// A column of local times in UTC.
pub(super) fn utc_of_local_column(local: Expr, zone: &str) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    ScalarUDF::new_from_impl(UtcOfLocal { zone: zone.to_owned(), signature }).call(vec![local])
}
