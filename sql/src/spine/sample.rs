//! A share of a spine's rows, chosen by a hash of their keys: all rows of a key are in it, or none.

use std::hash::Hasher;
use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use twox_hash::XxHash64;

/// Whether the hash of its arguments is below a limit.
#[derive(Debug, PartialEq, Eq, Hash)]
struct IsSampled {
    limit: u64,
    signature: Signature,
}

impl ScalarUDFImpl for IsSampled {
    fn name(&self) -> &'static str {
        "is_sampled"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let keys = ColumnarValue::values_to_arrays(&arguments.args)?;
        let fields = keys.iter().map(|key| SortField::new(key.data_type().clone())).collect();
        let rows = RowConverter::new(fields)?.convert_columns(&keys)?;
        let sampled = rows.iter().map(|row| {
            let mut hash = XxHash64::with_seed(0);
            hash.write(row.as_ref());
            Some(hash.finish() <= self.limit)
        });
        Ok(ColumnarValue::Array(Arc::new(sampled.collect::<BooleanArray>())))
    }
}

/// Whether a row with these keys is in a sample; `share` is from 0 to 1.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
pub(super) fn is_sampled(keys: Vec<Expr>, share: f64) -> Expr {
    let signature = Signature::variadic_any(Volatility::Immutable);
    ScalarUDF::new_from_impl(IsSampled { limit: (share * u64::MAX as f64) as u64, signature }).call(keys)
}
