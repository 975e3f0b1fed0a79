//! Pushed events that do not count for whoever asks, by their places in the order of writes.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::error::Result as QueryResult;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use springhouse_featurestore::push::{EventPlace, EventPlaces};
use springhouse_featurestore::tier::{WRITE_POSITION, WRITE_WITHIN};

use super::exact;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Counts {
    left_out: Arc<EventPlaces>,
    signature: Signature,
}

/// Whether an event that tells its place is none of those that are left out. What has no place was not pushed, and counts.
pub(super) fn counts(left_out: &Arc<EventPlaces>) -> Expr {
    let signature = Signature::any(2, Volatility::Immutable);
    let counts = Counts { left_out: Arc::clone(left_out), signature };
    ScalarUDF::new_from_impl(counts).call(vec![exact(WRITE_POSITION), exact(WRITE_WITHIN)])
}

impl ScalarUDFImpl for Counts {
    fn name(&self) -> &'static str {
        "counts"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> QueryResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> QueryResult<ColumnarValue> {
        let given = ColumnarValue::values_to_arrays(&arguments.args)?;
        let [positions, rows] = [&given[0], &given[1]].map(AsArray::as_primitive::<Int64Type>);
        let counts = |row: usize| {
            let place =
                EventPlace { position: positions.value(row).cast_unsigned(), within: rows.value(row).cast_unsigned() };
            positions.is_null(row) || rows.is_null(row) || !self.left_out.contains(&place)
        };
        let counted: BooleanArray = (0..positions.len()).map(|row| Some(counts(row))).collect();
        Ok(ColumnarValue::Array(Arc::new(counted)))
    }
}
