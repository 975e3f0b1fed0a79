//! A key of one integer and a time as one number: the engine sorts by one column of numbers several times as fast as by two.

use std::sync::Arc;

use arrow::array::{Array, Decimal128Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::keys::integers;

/// 128 bits; what is in them is no decimal number, and nobody reads it as one.
const KEY_TIME: DataType = DataType::Decimal128(38, 0);

/// The key in the upper 64 bits and the time in the lower, null where one of them is.
#[derive(Debug, PartialEq, Eq, Hash)]
struct KeyTime {
    signature: Signature,
}

impl ScalarUDFImpl for KeyTime {
    fn name(&self) -> &'static str {
        "key_time"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(KEY_TIME)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let (keys, times) = (integers(&columns[0])?, integers(&columns[1])?);
        let nulls = NullBuffer::union(columns[0].logical_nulls().as_ref(), columns[1].logical_nulls().as_ref());
        let combined = keys.iter().zip(times.iter()).map(|(key, time)| {
            // With its sign flipped, a time orders as an unsigned number.
            i128::from(*key) << 64 | i128::from(time.cast_unsigned() ^ 1 << 63)
        });
        let combined = Decimal128Array::new(combined.collect(), nulls).with_data_type(KEY_TIME);
        Ok(ColumnarValue::Array(Arc::new(combined)))
    }
}

/// The function of a key and a time.
pub(super) fn key_time() -> Arc<ScalarUDF> {
    let signature = Signature::any(2, Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(KeyTime { signature }))
}
