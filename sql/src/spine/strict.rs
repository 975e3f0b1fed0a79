//! A spine's column in the type that the contract's request declares: values of another type are refused with their row.

use arrow::array::AsArray;
use arrow::datatypes::{DataType, UInt64Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use springhouse_featurestore::definition::{Column, strict_cast_of_rows};

/// Its arguments are the column, and the positions of its rows in the spine.
#[derive(Debug, PartialEq, Eq, Hash)]
struct StrictCast {
    column: Column,
    signature: Signature,
}

impl ScalarUDFImpl for StrictCast {
    fn name(&self) -> &'static str {
        "strict_cast"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.column.column_type.to_arrow())
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let [given, rows] = arrays.as_slice() else {
            return Err(DataFusionError::Internal("strict_cast takes a column and its rows".to_owned()));
        };
        let rows = rows.as_primitive::<UInt64Type>();
        strict_cast_of_rows(&self.column, given, |row| rows.value(row))
            .map(ColumnarValue::Array)
            .map_err(|error| DataFusionError::External(Box::new(error.with("of", "the spine"))))
    }
}

/// The column in its declared type; `rows` are the positions of its rows, 64 bits unsigned.
pub(super) fn strict_cast(column: &Column, given: Expr, rows: Expr) -> Expr {
    let signature = Signature::any(2, Volatility::Immutable);
    ScalarUDF::new_from_impl(StrictCast { column: column.clone(), signature }).call(vec![given, rows])
}
