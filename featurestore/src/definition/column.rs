//! Columns and the closed set of types that keys, features and requests may have: scalars, and for features lists of them.

use std::fmt;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// The type of a key, feature or request column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// `BOOLEAN`
    Boolean,
    /// `TINYINT`
    Int8,
    /// `SMALLINT`
    Int16,
    /// `INT`
    Int32,
    /// `BIGINT`
    Int64,
    /// `TINYINT UNSIGNED`
    UInt8,
    /// `SMALLINT UNSIGNED`
    UInt16,
    /// `INT UNSIGNED`
    UInt32,
    /// `BIGINT UNSIGNED`
    UInt64,
    /// `FLOAT`, 32 bits
    Float32,
    /// `DOUBLE`, 64 bits
    Float64,
    /// `VARCHAR`, UTF-8
    Utf8,
    /// `DATE`, days
    Date,
    /// `TIMESTAMP`, UTC microseconds (rule T1)
    Timestamp,
    /// `type[]`: a list of values of a scalar type, nulls among them. Of features alone.
    List(#[serde(deserialize_with = "scalar")] &'static Self),
}

/// Reads the type of a list's elements.
fn scalar<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<&'static ColumnType, D::Error> {
    let element = ColumnType::deserialize(deserializer)?;
    match element.list_of() {
        Some(ColumnType::List(element)) => Ok(element),
        _ => Err(serde::de::Error::custom("a list of lists")),
    }
}

impl ColumnType {
    /// All scalar types, with their SQL names.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::Boolean, "BOOLEAN"),
        (Self::Int8, "TINYINT"),
        (Self::Int16, "SMALLINT"),
        (Self::Int32, "INT"),
        (Self::Int64, "BIGINT"),
        (Self::UInt8, "TINYINT UNSIGNED"),
        (Self::UInt16, "SMALLINT UNSIGNED"),
        (Self::UInt32, "INT UNSIGNED"),
        (Self::UInt64, "BIGINT UNSIGNED"),
        (Self::Float32, "FLOAT"),
        (Self::Float64, "DOUBLE"),
        (Self::Utf8, "VARCHAR"),
        (Self::Date, "DATE"),
        (Self::Timestamp, "TIMESTAMP"),
    ];

    /// The list of this scalar type; `None` of a list.
    pub fn list_of(self) -> Option<Self> {
        static ALL: [(ColumnType, &str); ColumnType::ALL.len()] = ColumnType::ALL;
        ALL.iter().find(|(kind, _)| *kind == self).map(|(kind, _)| Self::List(kind))
    }

    /// The Arrow type that carries it.
    pub fn to_arrow(self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::Int8 => DataType::Int8,
            Self::Int16 => DataType::Int16,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::UInt8 => DataType::UInt8,
            Self::UInt16 => DataType::UInt16,
            Self::UInt32 => DataType::UInt32,
            Self::UInt64 => DataType::UInt64,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Utf8 => DataType::Utf8,
            Self::Date => DataType::Date32,
            Self::Timestamp => timestamp_type(),
            Self::List(element) => DataType::List(Arc::new(Field::new_list_field(element.to_arrow(), true))),
        }
    }

    /// The type for an Arrow column, where it can be carried without loss.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] with a remedy for timestamps without a zone (rule T1) and for unsupported types.
    pub fn from_arrow(data_type: &DataType) -> Result<Self> {
        Ok(match data_type {
            DataType::Boolean => Self::Boolean,
            DataType::Int8 => Self::Int8,
            DataType::Int16 => Self::Int16,
            DataType::Int32 => Self::Int32,
            DataType::Int64 => Self::Int64,
            DataType::UInt8 => Self::UInt8,
            DataType::UInt16 => Self::UInt16,
            DataType::UInt32 => Self::UInt32,
            DataType::UInt64 => Self::UInt64,
            DataType::Float32 => Self::Float32,
            DataType::Float64 => Self::Float64,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Utf8,
            DataType::Dictionary(_, values) => return Self::from_arrow(values),
            DataType::Date32 => Self::Date,
            DataType::Timestamp(_, Some(_)) => Self::Timestamp,
            DataType::Timestamp(_, None) => {
                return Err(Error::invalid("a timestamp without a time zone")
                    .remedy("name its zone: column AT TIME ZONE 'UTC', or another zone"));
            }
            DataType::List(element) | DataType::LargeList(element) | DataType::FixedSizeList(element, _) => {
                return Self::from_arrow(element.data_type())?.list_of().ok_or_else(|| unsupported(data_type));
            }
            other => return Err(unsupported(other)),
        })
    }

    /// Bytes of a value in a packed row; `None` where it varies.
    pub fn fixed_width(self) -> Option<usize> {
        match self {
            Self::Boolean | Self::Int8 | Self::UInt8 => Some(1),
            Self::Int16 | Self::UInt16 => Some(2),
            Self::Int32 | Self::UInt32 | Self::Float32 | Self::Date => Some(4),
            Self::Int64 | Self::UInt64 | Self::Float64 | Self::Timestamp => Some(8),
            Self::Utf8 | Self::List(_) => None,
        }
    }

    /// Whether a model can read it as a number.
    pub fn is_numeric(self) -> bool {
        !matches!(self, Self::Utf8 | Self::Date | Self::Timestamp | Self::List(_))
    }

    /// Whether it is a list.
    pub fn is_list(self) -> bool {
        matches!(self, Self::List(_))
    }
}

fn unsupported(data_type: &DataType) -> Error {
    Error::invalid("a type that features cannot have").with("type", data_type).remedy(
        "cast it to BOOLEAN, an integer type, FLOAT, DOUBLE, VARCHAR, DATE or TIMESTAMP, or to a list of one of them",
    )
}

/// The Arrow type of every time: microseconds in UTC.
pub(crate) fn timestamp_type() -> DataType {
    static UTC: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("UTC"));
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::clone(&UTC)))
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::List(element) = self {
            return write!(f, "{element}[]");
        }
        let name = Self::ALL.iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

/// A named, typed column.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
    /// Whether it may be null.
    pub nullable: bool,
}

impl Column {
    /// A column that may be null.
    pub fn nullable(name: impl Into<String>, column_type: ColumnType) -> Self {
        Self { name: name.into(), column_type, nullable: true }
    }

    /// A column that is never null.
    pub fn required(name: impl Into<String>, column_type: ColumnType) -> Self {
        Self { name: name.into(), column_type, nullable: false }
    }

    /// The Arrow field.
    pub fn to_field(&self) -> Field {
        Field::new(&self.name, self.column_type.to_arrow(), self.nullable)
    }

    /// The Arrow schema of several columns.
    pub fn to_schema<'a>(columns: impl IntoIterator<Item = &'a Self>) -> SchemaRef {
        Arc::new(Schema::new(columns.into_iter().map(Self::to_field).collect::<Vec<_>>()))
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.column_type)?;
        if self.nullable { Ok(()) } else { f.write_str(" NOT NULL") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_told_apart_from_its_elements_wherever_it_is_written() {
        for (kind, name) in ColumnType::ALL {
            let list = kind.list_of().expect("a scalar");
            assert_eq!(list.to_string(), format!("{name}[]"));
            assert_eq!(ColumnType::from_arrow(&list.to_arrow()).expect("carried"), list);
            let text = serde_json::to_string(&list).expect("serialises");
            assert_eq!(serde_json::from_str::<ColumnType>(&text).expect("own text"), list);
            assert!(list.list_of().is_none() && !list.is_numeric());
        }
        assert!(serde_json::from_str::<ColumnType>(r#"{"list":{"list":"int64"}}"#).is_err());
    }
}
