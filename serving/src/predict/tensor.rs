//! Tensors to columns and back, in both of the protocol's forms.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array,
    Int64Array, StringBuilder, TimestampMicrosecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
    new_null_array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{cast, nullif};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use bytes::Bytes;
use springhouse_featurestore::definition::{Column, ColumnType, strict_cast};
use springhouse_featurestore::{Error, Result};

use crate::generated::inference::InferTensorContents;
use crate::generated::inference::ModelInferRequest;
use crate::generated::inference::model_infer_request::InferInputTensor;

/// A tensor's values in one of the protocol's forms.
#[derive(Debug, Clone)]
pub enum TensorData {
    /// Row-major bytes.
    Raw(Bytes),
    /// Typed fields.
    Typed(InferTensorContents),
}

/// The protocol's name for a column's type.
pub fn datatype(column_type: ColumnType) -> &'static str {
    match column_type {
        ColumnType::Boolean => "BOOL",
        ColumnType::Int8 => "INT8",
        ColumnType::Int16 => "INT16",
        ColumnType::Int32 | ColumnType::Date => "INT32",
        ColumnType::Int64 | ColumnType::Timestamp => "INT64",
        ColumnType::UInt8 => "UINT8",
        ColumnType::UInt16 => "UINT16",
        ColumnType::UInt32 => "UINT32",
        ColumnType::UInt64 => "UINT64",
        ColumnType::Float32 => "FP32",
        ColumnType::Float64 => "FP64",
        ColumnType::Utf8 => "BYTES",
        // No contract asks for lists or answers with them; such a tensor would have one more dimension.
        ColumnType::List(element) => datatype(*element),
    }
}

/// Reads a request's columns in the contract's order, of `most_rows` rows at most: a shape is only what a caller says, and
/// no column is made before it is known to be within bounds. Returns them with the number of rows.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Invalid`] names the tensor, the value and what is accepted.
pub fn request_columns(
    columns: &[Column],
    request: &ModelInferRequest,
    most_rows: usize,
) -> Result<(Vec<ArrayRef>, usize)> {
    let rows = row_count(request, most_rows)?;
    let tensors = tensors_of(columns, request)?;
    let mut arrays = Vec::with_capacity(columns.len());
    for (column, OfColumn { values, nulls }) in columns.iter().zip(tensors) {
        let array = match values {
            Some(tensor) => read(column, tensor, rows)?,
            None if column.nullable => new_null_array(&column.column_type.to_arrow(), rows),
            None => {
                return Err(Error::invalid("a request column is missing").with("column", column).remedy(format!(
                    "send a tensor {} of datatype {}",
                    column.name,
                    datatype(column.column_type)
                )));
            }
        };
        let array = match nulls {
            None => array,
            Some(tensor) => {
                let flags = Column::required(&tensor.of.name, ColumnType::Boolean);
                nullif(&array, read(&flags, tensor, rows)?.as_boolean())?
            }
        };
        if array.null_count() > 0 && !column.nullable {
            return Err(Error::invalid("a request column is null where the contract says NOT NULL")
                .with("column", column)
                .with("null rows", array.null_count()));
        }
        arrays.push(array);
    }
    Ok((arrays, rows))
}

/// Behind a column's name: the tensor that says which of its rows are null.
const NULLS: &str = "@null";

/// A tensor of a request, where it lies.
#[derive(Debug, Clone, Copy)]
struct Tensor<'a> {
    of: &'a InferInputTensor,
    data: Values<'a>,
}

/// Its values, in one of the protocol's forms.
#[derive(Debug, Clone, Copy)]
enum Values<'a> {
    Raw(&'a [u8]),
    Typed(&'a InferTensorContents),
}

/// The tensors of a column.
#[derive(Debug, Clone, Copy, Default)]
struct OfColumn<'a> {
    values: Option<Tensor<'a>>,
    /// Which of them are null.
    nulls: Option<Tensor<'a>>,
}

/// The contents of a tensor that has none.
static NOTHING: LazyLock<InferTensorContents> = LazyLock::new(InferTensorContents::default);

/// The column of a tensor's name, and whether it says which of the column's rows are null. Clients send their tensors in the
/// order of the columns, most of them: so it is looked for at the tensor's own place first.
fn column_of(columns: &[Column], name: &str, place: usize) -> Option<(usize, bool)> {
    let index_of = |name: &str| {
        let is_it = |column: &Column| column.name == name;
        if columns.get(place).is_some_and(is_it) { Some(place) } else { columns.iter().position(is_it) }
    };
    match index_of(name) {
        Some(index) => Some((index, false)),
        None => name.strip_suffix(NULLS).and_then(index_of).map(|index| (index, true)),
    }
}

/// The tensors of a request, by column.
fn tensors_of<'a>(columns: &[Column], request: &'a ModelInferRequest) -> Result<Vec<OfColumn<'a>>> {
    let raw = !request.raw_input_contents.is_empty();
    if raw && request.raw_input_contents.len() != request.inputs.len() {
        return Err(Error::invalid("raw contents do not match the inputs")
            .with("inputs", request.inputs.len())
            .with("raw contents", request.raw_input_contents.len())
            .remedy("send one raw entry for each input, in their order, or typed contents for all"));
    }
    let mut tensors = vec![OfColumn::default(); columns.len()];
    for (place, of) in request.inputs.iter().enumerate() {
        let Some((index, says_nulls)) = column_of(columns, &of.name, place) else {
            let names: Vec<String> = columns.iter().map(Column::to_string).collect();
            return Err(Error::invalid("the contract has no such request column")
                .with("tensor", &of.name)
                .remedy(format!("the columns are: {}", names.join(", "))));
        };
        let data = match (&of.contents, raw) {
            (Some(_), true) => {
                return Err(Error::invalid("a tensor has typed contents beside raw ones").with("tensor", &of.name));
            }
            (None, true) => Values::Raw(&request.raw_input_contents[place]),
            (contents, false) => Values::Typed(contents.as_ref().unwrap_or(&NOTHING)),
        };
        let slot = &mut tensors[index];
        let slot = if says_nulls { &mut slot.nulls } else { &mut slot.values };
        if slot.replace(Tensor { of, data }).is_some() {
            return Err(Error::invalid("a tensor is given twice").with("tensor", &of.name));
        }
    }
    Ok(tensors)
}

/// All tensors have shape `[rows]` or `[rows, 1]`, with the same rows, at least one.
fn row_count(request: &ModelInferRequest, most_rows: usize) -> Result<usize> {
    let mut rows: Option<(usize, &str)> = None;
    for tensor in &request.inputs {
        let wrong = || {
            Error::invalid("a tensor has the wrong shape")
                .with("tensor", &tensor.name)
                .with("shape", format!("{:?}", tensor.shape))
        };
        let own = match tensor.shape.as_slice() {
            [rows] | [rows, 1] => usize::try_from(*rows).map_err(|_| wrong())?,
            _ => return Err(wrong().remedy("shapes are [rows] or [rows, 1]")),
        };
        match rows {
            Some((first, name)) if first != own => {
                return Err(wrong().remedy(format!("tensor {name} has {first} rows: all must have the same")));
            }
            _ => rows = Some((own, &tensor.name)),
        }
    }
    match rows {
        Some((rows, _)) if rows > most_rows => Err(too_many_rows(rows, most_rows)),
        Some((rows, _)) if rows > 0 => Ok(rows),
        _ => Err(Error::invalid("the request has no rows").remedy("send at least one row")),
    }
}

/// A request of more rows than one may have.
pub(crate) fn too_many_rows(rows: usize, most_rows: usize) -> Error {
    Error::invalid("the request has more rows than one may have")
        .with("rows", rows)
        .with("limit", most_rows)
        .remedy("send several requests")
}

fn read(column: &Column, Tensor { of: tensor, data }: Tensor<'_>, rows: usize) -> Result<ArrayRef> {
    let expected = datatype(column.column_type);
    let text_time = column.column_type == ColumnType::Timestamp && tensor.datatype == "BYTES";
    if tensor.datatype != expected && !text_time {
        return Err(Error::invalid("a tensor has the wrong datatype")
            .with("tensor", &tensor.name)
            .with("given", &tensor.datatype)
            .with("expected", expected));
    }
    let array = match data {
        Values::Raw(bytes) => read_raw(column.column_type, text_time, tensor, bytes, rows)?,
        Values::Typed(contents) => read_typed(column.column_type, text_time, tensor, contents)?,
    };
    if array.len() != rows {
        return Err(Error::invalid("a tensor's contents do not fit its shape")
            .with("tensor", &tensor.name)
            .with("shape", format!("{:?}", tensor.shape))
            .with("values", array.len()));
    }
    Ok(array)
}

fn read_raw(
    column_type: ColumnType,
    text_time: bool,
    tensor: &InferInputTensor,
    bytes: &[u8],
    rows: usize,
) -> Result<ArrayRef> {
    macro_rules! numbers {
        ($array:ty, $number:ty) => {{
            const WIDTH: usize = size_of::<$number>();
            check_size(tensor, bytes, rows * WIDTH)?;
            let values = bytes
                .chunks_exact(WIDTH)
                .map(|chunk| <$number>::from_le_bytes(chunk.try_into().expect("exact chunks")));
            Arc::new(<$array>::from_iter_values(values)) as ArrayRef
        }};
    }
    Ok(match column_type {
        ColumnType::Boolean => {
            check_size(tensor, bytes, rows)?;
            if let Some(row) = bytes.iter().position(|byte| *byte > 1) {
                return Err(Error::invalid("a byte is not a BOOL")
                    .with("tensor", &tensor.name)
                    .with("row", row)
                    .with("value", bytes[row])
                    .remedy("send 0 or 1"));
            }
            Arc::new(bytes.iter().map(|byte| Some(*byte != 0)).collect::<BooleanArray>())
        }
        ColumnType::Int8 => numbers!(Int8Array, i8),
        ColumnType::Int16 => numbers!(Int16Array, i16),
        ColumnType::Int32 => numbers!(Int32Array, i32),
        ColumnType::Int64 => numbers!(Int64Array, i64),
        ColumnType::UInt8 => numbers!(UInt8Array, u8),
        ColumnType::UInt16 => numbers!(UInt16Array, u16),
        ColumnType::UInt32 => numbers!(UInt32Array, u32),
        ColumnType::UInt64 => numbers!(UInt64Array, u64),
        ColumnType::Float32 => numbers!(Float32Array, f32),
        ColumnType::Float64 => numbers!(Float64Array, f64),
        ColumnType::Date => numbers!(Date32Array, i32),
        ColumnType::Timestamp if !text_time => {
            check_size(tensor, bytes, rows * 8)?;
            let values = bytes.chunks_exact(8).map(|chunk| i64::from_le_bytes(chunk.try_into().expect("exact chunks")));
            Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
        }
        ColumnType::Timestamp | ColumnType::Utf8 => {
            texts(tensor, split_raw(tensor, bytes, rows)?.into_iter(), text_time)?
        }
        ColumnType::List(_) => return Err(no_lists(tensor)),
    })
}

fn check_size(tensor: &InferInputTensor, bytes: &[u8], expected: usize) -> Result<()> {
    if bytes.len() == expected {
        return Ok(());
    }
    Err(Error::invalid("a tensor's raw contents do not fit its shape")
        .with("tensor", &tensor.name)
        .with("shape", format!("{:?}", tensor.shape))
        .with("expected bytes", expected)
        .with("given bytes", bytes.len()))
}

/// The elements of a raw `BYTES` tensor, one for each row: four bytes of length, little-endian, then the bytes.
fn split_raw<'a>(tensor: &InferInputTensor, bytes: &'a [u8], rows: usize) -> Result<Vec<&'a [u8]>> {
    let mut elements = Vec::with_capacity(rows);
    let mut rest = bytes;
    while !rest.is_empty() {
        if elements.len() == rows {
            return Err(Error::invalid("a tensor's raw contents do not fit its shape")
                .with("tensor", &tensor.name)
                .with("shape", format!("{:?}", tensor.shape))
                .with("bytes after the last element", rest.len()));
        }
        let element = rest
            .split_first_chunk::<4>()
            .and_then(|(length, after)| after.split_at_checked(u32::from_le_bytes(*length) as usize));
        let (element, after) = element.ok_or_else(|| {
            Error::invalid("a raw BYTES tensor is cut off")
                .with("tensor", &tensor.name)
                .with("after elements", elements.len())
                .remedy("each element is four little-endian bytes of length, then its bytes")
        })?;
        elements.push(element);
        rest = after;
    }
    Ok(elements)
}

/// The bytes of a text for which there is room at first.
const SHORT_TEXT: usize = 16;

fn texts<'a>(tensor: &InferInputTensor, values: impl Iterator<Item = &'a [u8]>, as_times: bool) -> Result<ArrayRef> {
    let wrong = |error: Box<dyn std::error::Error + Send + Sync>, row: usize| {
        Error::invalid("a text value cannot be read").with("tensor", &tensor.name).with("row", row).source(error)
    };
    let texts =
        values.enumerate().map(|(row, bytes)| std::str::from_utf8(bytes).map_err(|error| wrong(error.into(), row)));
    let rows = texts.size_hint().0;
    let mut builder = StringBuilder::with_capacity(rows, rows * SHORT_TEXT);
    for text in texts {
        builder.append_value(text?);
    }
    let texts: ArrayRef = Arc::new(builder.finish());
    if as_times { strict_cast(&Column::nullable(&tensor.name, ColumnType::Timestamp), &texts) } else { Ok(texts) }
}

fn read_typed(
    column_type: ColumnType,
    text_time: bool,
    tensor: &InferInputTensor,
    contents: &InferTensorContents,
) -> Result<ArrayRef> {
    let narrowed = |array: ArrayRef| strict_cast(&Column::nullable(&tensor.name, column_type), &array);
    match column_type {
        ColumnType::Boolean => {
            Ok(Arc::new(BooleanArray::new(BooleanBuffer::from(contents.bool_contents.as_slice()), None)))
        }
        ColumnType::Int8 | ColumnType::Int16 | ColumnType::Int32 => {
            narrowed(Arc::new(Int32Array::from(contents.int_contents.clone())))
        }
        ColumnType::Date => Ok(Arc::new(Date32Array::from(contents.int_contents.clone()))),
        ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 => {
            narrowed(Arc::new(UInt32Array::from(contents.uint_contents.clone())))
        }
        ColumnType::Int64 => Ok(Arc::new(Int64Array::from(contents.int64_contents.clone()))),
        ColumnType::UInt64 => Ok(Arc::new(UInt64Array::from(contents.uint64_contents.clone()))),
        ColumnType::Float32 => Ok(Arc::new(Float32Array::from(contents.fp32_contents.clone()))),
        ColumnType::Float64 => Ok(Arc::new(Float64Array::from(contents.fp64_contents.clone()))),
        ColumnType::Timestamp if !text_time => {
            Ok(Arc::new(TimestampMicrosecondArray::from(contents.int64_contents.clone()).with_timezone("UTC")))
        }
        ColumnType::Timestamp | ColumnType::Utf8 => {
            texts(tensor, contents.bytes_contents.iter().map(AsRef::as_ref), text_time)
        }
        ColumnType::List(_) => Err(no_lists(tensor)),
    }
}

fn no_lists(tensor: &InferInputTensor) -> Error {
    Error::internal("a contract's request has a list").with("tensor", &tensor.name)
}

/// Writes answer columns (numbers or booleans, never null) as tensors in one form.
///
/// # Errors
/// [`springhouse_featurestore::ErrorKind::Internal`] for a column that no output may have.
pub fn columns_to_tensors(columns: &[ArrayRef], raw: bool) -> Result<Vec<TensorData>> {
    columns
        .iter()
        .map(
            |column| {
                if raw { write_raw(column).map(TensorData::Raw) } else { write_typed(column).map(TensorData::Typed) }
            },
        )
        .collect()
}

fn write_raw(column: &ArrayRef) -> Result<Bytes> {
    macro_rules! numbers {
        ($kind:ty) => {
            column.as_primitive::<$kind>().values().iter().flat_map(|value| value.to_le_bytes()).collect()
        };
    }
    let bytes: Vec<u8> = match column.data_type() {
        DataType::Boolean => column.as_boolean().values().iter().map(u8::from).collect(),
        DataType::Int8 => numbers!(Int8Type),
        DataType::Int16 => numbers!(Int16Type),
        DataType::Int32 => numbers!(Int32Type),
        DataType::Int64 => numbers!(Int64Type),
        DataType::UInt8 => numbers!(UInt8Type),
        DataType::UInt16 => numbers!(UInt16Type),
        DataType::UInt32 => numbers!(UInt32Type),
        DataType::UInt64 => numbers!(UInt64Type),
        DataType::Float32 => numbers!(Float32Type),
        DataType::Float64 => numbers!(Float64Type),
        other => return Err(Error::internal("no tensor for an output column").with("type", other)),
    };
    Ok(bytes.into())
}

fn write_typed(column: &ArrayRef) -> Result<InferTensorContents> {
    let mut contents = InferTensorContents::default();
    match column.data_type() {
        DataType::Boolean => contents.bool_contents = column.as_boolean().values().iter().collect(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => {
            contents.int_contents = cast(column, &DataType::Int32)?.as_primitive::<Int32Type>().values().to_vec();
        }
        DataType::Int64 => contents.int64_contents = column.as_primitive::<Int64Type>().values().to_vec(),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => {
            contents.uint_contents = cast(column, &DataType::UInt32)?.as_primitive::<UInt32Type>().values().to_vec();
        }
        DataType::UInt64 => contents.uint64_contents = column.as_primitive::<UInt64Type>().values().to_vec(),
        DataType::Float32 => contents.fp32_contents = column.as_primitive::<Float32Type>().values().to_vec(),
        DataType::Float64 => contents.fp64_contents = column.as_primitive::<Float64Type>().values().to_vec(),
        other => return Err(Error::internal("no tensor for an output column").with("type", other)),
    }
    Ok(contents)
}
