//! What a Flight message declares is bounded before anything is allocated, sliced or decoded by it.
//!
//! A message's header says how many rows and values there are, where their buffers lie in its body, and how long each is
//! once it is decompressed. None of it need be true: 12 KB can declare 2^47 bytes, or a column of 2^40 nulls. The decoder
//! takes a header's word, so the header is walked here first, along the layout of the stream's schema.
//!
//! Only types that a column of ours can have are taken: scalars, and lists and dictionaries of them, so a schema nests
//! two deep at most.

mod unpacked;

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use arrow::ipc::{
    self, CompressionType, DateUnit, Endianness, MessageHeader, Precision, TimeUnit, Type, root_as_message,
};
use arrow_flight::FlightData;
use arrow_flight::error::FlightError;
use futures::{Stream, StreamExt};
use lz4_flex::frame::FrameDecoder;
use springhouse_featurestore::{Error, Result};

pub(super) use self::unpacked::check_unpacked;
use super::server::MAX_MESSAGE_BYTES;
use crate::shares::Share;
use crate::status::to_status;

/// The most rows of a pushed batch, and of one of a spine: who has more at once loses nothing by several batches.
pub(super) const MOST_PUSHED_ROWS: usize = 1 << 20;

/// The most bytes of a header: some five thousand columns have them.
const MOST_HEADER_BYTES: usize = 1 << 20;

/// The most columns of a schema.
const MOST_COLUMNS: usize = 4096;

/// The most bytes of a batch once it is decompressed, and of the dictionaries of a stream: as many as a message may have
/// that is not compressed.
const MOST_BYTES: u64 = MAX_MESSAGE_BYTES as u64;

/// The most values of all columns of a batch: as many 8-byte numbers as a message has room for. A column of nulls has no
/// bytes, but each of its values becomes some.
const MOST_VALUES: u64 = MOST_BYTES / NULL_BYTES;

/// What a null of a column that has no type becomes, at most.
const NULL_BYTES: u64 = 8;

/// How a column lies in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    Null,
    /// Values of so many bits; also a dictionary's keys.
    Fixed(u64),
    /// Texts, with ends of so many bytes.
    Text(u64),
    /// Texts of which some lie in further buffers.
    View,
    /// Lists, with ends of so many bytes.
    List(u64, Box<Self>),
    /// Lists of so many elements each.
    FixedList(u64, Box<Self>),
}

impl Layout {
    /// Whether there are texts of which some lie in further buffers.
    fn has_views(&self) -> bool {
        match self {
            Self::View => true,
            Self::List(_, elements) | Self::FixedList(_, elements) => elements.has_views(),
            Self::Null | Self::Fixed(_) | Self::Text(_) => false,
        }
    }

    /// The buffers that an array has, without the further ones of views.
    fn buffers(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Fixed(_) | Self::View => 2,
            Self::Text(_) => 3,
            Self::List(_, elements) => 2 + elements.buffers(),
            Self::FixedList(_, elements) => 1 + elements.buffers(),
        }
    }
}

/// A stream's dictionary.
#[derive(Debug)]
struct Dictionary {
    values: Layout,
    /// What it holds at the moment.
    bytes: u64,
}

/// The bounds of one stream's messages.
#[derive(Debug)]
pub(super) struct Bounds {
    /// What the batches are, for messages.
    what: &'static str,
    most_rows: usize,
    columns: Vec<Layout>,
    /// Which of them stand for more than they have: those with a dictionary, and views.
    unpackable: Vec<bool>,
    dictionaries: HashMap<i64, Dictionary>,
    /// What its caller has a share of, for the dictionaries: a stream keeps them for as long as it is open.
    held: Option<Share<Arc<str>>>,
    /// What the batch that was checked last takes once it is decoded.
    decoded_bytes: u64,
    /// What its dictionaries and views may stand for at most.
    unpacked_bytes: u64,
}

/// What callers have shares of, for dictionaries.
pub(super) const DICTIONARIES: &str = "bytes of dictionaries of open streams";

/// The stream, until a message is refused.
pub(super) fn bounded(
    messages: impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static,
    mut bounds: Bounds,
) -> impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static {
    messages.map(move |message| {
        let message = message?;
        bounds.check(&message).map_err(|error| FlightError::Tonic(Box::new(to_status(error))))?;
        Ok(message)
    })
}

fn too_much(what: &str, given: impl std::fmt::Display, limit: impl std::fmt::Display) -> Error {
    Error::invalid(format!("a message declares too many {what}"))
        .with("declared", given)
        .with("limit", limit)
        .remedy("send several smaller batches")
}

/// Whether a field, or what it lists, has its values in a dictionary.
fn has_dictionary(field: &ipc::Field<'_>) -> bool {
    field.dictionary().is_some()
        || field.children().is_some_and(|children| children.iter().any(|of| has_dictionary(&of)))
}

/// A header that contradicts itself or its body.
fn malformed(what: &str) -> Error {
    Error::invalid(format!("a message is malformed: {what}"))
        .remedy("send record batches as an Arrow library writes them")
}

impl Bounds {
    /// Bounds of a stream of batches.
    pub(super) fn new(what: &'static str, most_rows: usize) -> Self {
        let (columns, unpackable, dictionaries) = Default::default();
        Self { what, most_rows, columns, unpackable, dictionaries, held: None, decoded_bytes: 0, unpacked_bytes: 0 }
    }

    /// The same, whose dictionaries are within a caller's share of those of all streams.
    pub(super) fn sharing(self, held: Share<Arc<str>>) -> Self {
        Self { held: Some(held), ..self }
    }

    /// What the message that was checked last takes once it is decoded, if it is a batch; else nothing.
    pub(super) fn decoded_bytes(&self) -> u64 {
        self.decoded_bytes
    }

    /// The most that its dictionaries and views may stand for: what [`check_unpacked`] counts once it is decoded is no more,
    /// or is refused.
    pub(super) fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }

    /// Checks the next message of the stream.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] names what is declared, and the limit.
    pub(super) fn check(&mut self, message: &FlightData) -> Result<()> {
        (self.decoded_bytes, self.unpacked_bytes) = (0, 0);
        if message.data_header.len() > MOST_HEADER_BYTES {
            return Err(too_much("bytes of a header", message.data_header.len(), MOST_HEADER_BYTES));
        }
        // Nothing but metadata; or nothing that can be read, which the decoder tells.
        let Ok(header) = root_as_message(&message.data_header) else { return Ok(()) };
        let checked = match header.header_type() {
            MessageHeader::Schema => {
                let schema = header.header_as_schema().ok_or_else(|| malformed("it has no schema"))?;
                self.take_schema(&schema)
            }
            MessageHeader::RecordBatch => {
                let batch = header.header_as_record_batch().ok_or_else(|| malformed("it has no batch"))?;
                self.check_batch(&batch, &message.data_body)
            }
            MessageHeader::DictionaryBatch => {
                let batch = header.header_as_dictionary_batch().ok_or_else(|| malformed("it has no dictionary"))?;
                self.check_dictionary(&batch, &message.data_body)
            }
            _ => Ok(()),
        };
        checked.map_err(|error| error.with("of", self.what))
    }

    fn take_schema(&mut self, schema: &ipc::Schema<'_>) -> Result<()> {
        if schema.endianness() != Endianness::Little {
            return Err(malformed("its numbers are big-endian"));
        }
        let fields = schema.fields().ok_or_else(|| malformed("its schema has no columns"))?;
        if fields.len() > MOST_COLUMNS {
            return Err(too_much("columns", fields.len(), MOST_COLUMNS));
        }
        self.columns.clear();
        self.unpackable.clear();
        self.dictionaries.clear();
        if let Some(held) = &mut self.held {
            held.shrink(0);
        }
        for field in fields {
            let column = self.layout(&field, true)?;
            self.unpackable.push(column.has_views() || has_dictionary(&field));
            self.columns.push(column);
        }
        Ok(())
    }

    /// The layout of a field; `outer` for a column, which may be a list.
    fn layout(&mut self, field: &ipc::Field<'_>, outer: bool) -> Result<Layout> {
        let Some(dictionary) = field.dictionary() else { return self.plain_layout(field, outer) };
        let values = self.plain_layout(field, false)?;
        let index = dictionary.indexType().map(|index| index.bitWidth());
        let bits = index.and_then(whole_bits).ok_or_else(|| unknown_type(field))?;
        if values == Layout::View {
            return Err(unknown_type(field));
        }
        let known = self.dictionaries.entry(dictionary.id());
        let known = known.or_insert_with(|| Dictionary { values: values.clone(), bytes: 0 });
        if known.values == values { Ok(Layout::Fixed(bits)) } else { Err(malformed("a dictionary has two types")) }
    }

    fn plain_layout(&mut self, field: &ipc::Field<'_>, outer: bool) -> Result<Layout> {
        let layout = match field.type_type() {
            Type::Null => Some(Layout::Null),
            Type::Bool => Some(Layout::Fixed(1)),
            Type::Int => field.type_as_int().and_then(|int| whole_bits(int.bitWidth())).map(Layout::Fixed),
            Type::FloatingPoint => field.type_as_floating_point().and_then(|float| match float.precision() {
                Precision::HALF => Some(Layout::Fixed(16)),
                Precision::SINGLE => Some(Layout::Fixed(32)),
                Precision::DOUBLE => Some(Layout::Fixed(64)),
                _ => None,
            }),
            Type::Date => field.type_as_date().and_then(|date| match date.unit() {
                DateUnit::DAY => Some(Layout::Fixed(32)),
                DateUnit::MILLISECOND => Some(Layout::Fixed(64)),
                _ => None,
            }),
            Type::Timestamp => {
                let unit = field.type_as_timestamp().map(|time| time.unit());
                let known = [TimeUnit::SECOND, TimeUnit::MILLISECOND, TimeUnit::MICROSECOND, TimeUnit::NANOSECOND];
                unit.filter(|unit| known.contains(unit)).map(|_| Layout::Fixed(64))
            }
            Type::Utf8 => Some(Layout::Text(4)),
            Type::LargeUtf8 => Some(Layout::Text(8)),
            Type::Utf8View => Some(Layout::View),
            Type::List | Type::LargeList | Type::FixedSizeList if outer => {
                let children = field.children().filter(|children| children.len() == 1);
                let child = children.ok_or_else(|| malformed("a list has no type of its elements"))?.get(0);
                let child = Box::new(self.layout(&child, false)?);
                match field.type_type() {
                    Type::List => Some(Layout::List(4, child)),
                    Type::LargeList => Some(Layout::List(8, child)),
                    _ => {
                        let size = field.type_as_fixed_size_list().and_then(|list| u64::try_from(list.listSize()).ok());
                        size.filter(|size| *size > 0).map(|size| Layout::FixedList(size, child))
                    }
                }
            }
            _ => None,
        };
        layout.ok_or_else(|| unknown_type(field))
    }

    fn check_batch(&mut self, batch: &ipc::RecordBatch<'_>, body: &[u8]) -> Result<()> {
        if usize::try_from(batch.length()).is_err() {
            return Err(malformed("its number of rows is negative"));
        }
        if usize::try_from(batch.length()).unwrap_or(usize::MAX) > self.most_rows {
            return Err(too_much("rows", batch.length(), self.most_rows));
        }
        let mut walk = Walk::new(batch, body, self.columns.iter().map(Layout::buffers).sum())?;
        let mut unpackable = 0_u64;
        for (column, is_unpackable) in self.columns.iter().zip(&self.unpackable) {
            let before = walk.values;
            walk.column(column)?;
            if *is_unpackable {
                unpackable = unpackable.saturating_add(walk.values.saturating_sub(before));
            }
        }
        self.decoded_bytes = walk.bytes.saturating_add(walk.nulls.saturating_mul(NULL_BYTES));
        // Any value may be the longest text that there is, and no text is longer than what it lies in.
        let views = if self.columns.iter().any(Layout::has_views) { walk.bytes } else { 0 };
        let longest = self.dictionaries.values().map(|dictionary| dictionary.bytes).fold(views, u64::max);
        self.unpacked_bytes = unpackable.saturating_mul(longest).min(MOST_BYTES);
        walk.end()
    }

    fn check_dictionary(&mut self, batch: &ipc::DictionaryBatch<'_>, body: &[u8]) -> Result<()> {
        let values = batch.data().ok_or_else(|| malformed("a dictionary has no values"))?;
        let dictionary = self.dictionaries.get_mut(&batch.id());
        let dictionary = dictionary.ok_or_else(|| malformed("no column has its dictionary"))?;
        let mut walk = Walk::new(&values, body, dictionary.values.buffers())?;
        walk.column(&dictionary.values)?;
        dictionary.bytes = if batch.isDelta() { dictionary.bytes.saturating_add(walk.bytes) } else { walk.bytes };
        walk.end()?;
        let all = self.dictionaries.values().map(|dictionary| dictionary.bytes).fold(0, u64::saturating_add);
        if all > MOST_BYTES {
            return Err(too_much("bytes of dictionaries", all, MOST_BYTES));
        }
        let Some(held) = &mut self.held else { return Ok(()) };
        // It is no more than a message may have.
        let taken = held.resize(usize::try_from(all).unwrap_or(usize::MAX));
        taken.map_err(|full| full.error(DICTIONARIES, held.who().map(AsRef::as_ref)))
    }
}

/// The width of a number, where there are numbers of that width.
fn whole_bits(bits: i32) -> Option<u64> {
    u64::try_from(bits).ok().filter(|bits| [8, 16, 32, 64].contains(bits))
}

fn unknown_type(field: &ipc::Field<'_>) -> Error {
    Error::invalid("a column has a type that no column of ours can have")
        .with("column", field.name().unwrap_or_default())
        .with("type", field.type_type().variant_name().unwrap_or("unknown"))
        .remedy("send booleans, integers, floats, text, dates, timestamps, or lists or dictionaries of them")
}

/// A walk through a batch's header, column by column.
struct Walk<'a> {
    /// Rows and nulls of each array.
    nodes: Box<dyn Iterator<Item = (i64, i64)> + 'a>,
    /// Bytes of each buffer, decompressed.
    buffers: std::vec::IntoIter<u64>,
    /// Numbers of further buffers of columns that have them.
    further: Box<dyn Iterator<Item = i64> + 'a>,
    /// Bytes of all buffers.
    bytes: u64,
    /// Values of all arrays so far.
    values: u64,
    /// Those of columns that are nothing but nulls.
    nulls: u64,
}

impl<'a> Walk<'a> {
    /// Looks at all buffers, of which columns need `needed` beside those of views: none may lie in another, so that they are
    /// together no longer than the body, and take no longer to be tried.
    fn new(batch: &ipc::RecordBatch<'a>, body: &[u8], needed: usize) -> Result<Self> {
        let further = batch.variadicBufferCounts().into_iter().flatten();
        let further = further.filter_map(|count| usize::try_from(count).ok()).fold(0, usize::saturating_add);
        if batch.buffers().is_some_and(|buffers| buffers.len() > needed.saturating_add(further)) {
            return Err(malformed("it has more buffers than its columns need"));
        }
        let mut end = 0;
        let codec = batch.compression().map(|compression| compression.codec());
        let mut sizes = Vec::new();
        let mut bytes = 0_u64;
        for buffer in batch.buffers().into_iter().flatten() {
            let place = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
            let part = place.and_then(|(start, length)| body.get(start..start.checked_add(length)?));
            let part = part.ok_or_else(|| malformed("a buffer lies outside of its body"))?;
            if let Some((start, length)) = place.filter(|(_, length)| *length > 0) {
                if start < end {
                    return Err(malformed("a buffer lies in another"));
                }
                end = start + length;
            }
            let size = decompressed_bytes(part, codec)?;
            bytes = bytes.saturating_add(size);
            if bytes > MOST_BYTES {
                return Err(too_much("bytes", bytes, MOST_BYTES));
            }
            sizes.push(size);
        }
        let nodes = batch.nodes().into_iter().flatten().map(|node| (node.length(), node.null_count()));
        let further = batch.variadicBufferCounts().into_iter().flatten();
        let (nodes, buffers, further) = (Box::new(nodes), sizes.into_iter(), Box::new(further));
        Ok(Self { nodes, buffers, further, bytes, values: 0, nulls: 0 })
    }

    /// The next buffer, which must hold so many bytes.
    fn buffer(&mut self, least: u64) -> Result<()> {
        match self.buffers.next() {
            Some(size) if size >= least => Ok(()),
            Some(_) => Err(malformed("a buffer is shorter than its values")),
            None => Err(malformed("it has fewer buffers than its columns need")),
        }
    }

    /// Walks an array, and returns how many values it has.
    fn column(&mut self, layout: &Layout) -> Result<u64> {
        let (rows, nulls) = self.nodes.next().ok_or_else(|| malformed("it has fewer columns than its schema"))?;
        let rows = u64::try_from(rows).map_err(|_| malformed("a column's length is negative"))?;
        let nulls = u64::try_from(nulls).ok().filter(|nulls| *nulls <= rows);
        let nulls = nulls.ok_or_else(|| malformed("a column has more nulls than values"))?;
        self.values = self.values.saturating_add(rows);
        if self.values > MOST_VALUES {
            return Err(too_much("values", self.values, MOST_VALUES));
        }
        if *layout == Layout::Null {
            self.nulls = self.nulls.saturating_add(rows);
            return Ok(rows);
        }
        self.buffer(if nulls == 0 { 0 } else { rows.div_ceil(8) })?;
        let ends = |width: u64| if rows == 0 { 0 } else { (rows + 1) * width };
        match layout {
            Layout::Null => {}
            Layout::Fixed(bits) => self.buffer((rows * bits).div_ceil(8))?,
            Layout::Text(width) => {
                self.buffer(ends(*width))?;
                self.buffer(0)?;
            }
            Layout::View => {
                self.buffer(rows * 16)?;
                let further = self.further.next().and_then(|count| usize::try_from(count).ok());
                let further = further.filter(|count| *count <= self.buffers.len());
                for _ in 0..further.ok_or_else(|| malformed("a column's buffers are not there"))? {
                    self.buffer(0)?;
                }
            }
            Layout::List(width, elements) => {
                self.buffer(ends(*width))?;
                self.column(elements)?;
            }
            Layout::FixedList(size, elements) => {
                let held = self.column(elements)?;
                if rows.checked_mul(*size).is_none_or(|needed| needed > held) {
                    return Err(malformed("a list has fewer elements than its size"));
                }
            }
        }
        Ok(rows)
    }

    fn end(mut self) -> Result<()> {
        if self.further.next().is_some() { Err(malformed("it has buffers of no column")) } else { Ok(()) }
    }
}

/// The bytes of a buffer once it is decompressed: its first eight say how many, -1 for none compressed. What an LZ4 frame
/// makes is not bounded by what it says, so it is tried, into nothing.
fn decompressed_bytes(part: &[u8], codec: Option<CompressionType>) -> Result<u64> {
    let Some(codec) = codec.filter(|_| !part.is_empty()) else { return Ok(part.len() as u64) };
    let (declared, compressed) =
        part.split_first_chunk().ok_or_else(|| malformed("a compressed buffer is shorter than its length"))?;
    let declared = match i64::from_le_bytes(*declared) {
        -1 => return Ok(compressed.len() as u64),
        declared => u64::try_from(declared).map_err(|_| malformed("a buffer's length is negative"))?,
    };
    if declared > MOST_BYTES {
        return Err(too_much("bytes", declared, MOST_BYTES));
    }
    if codec == CompressionType::LZ4_FRAME {
        let mut made = FrameDecoder::new(compressed).take(declared + 1);
        match std::io::copy(&mut made, &mut std::io::sink()) {
            Ok(made) if made <= declared => {}
            Ok(_) => return Err(malformed("a buffer is longer than it says")),
            Err(error) => return Err(malformed("a buffer is no LZ4 frame").source(error)),
        }
    }
    Ok(declared)
}

#[cfg(test)]
mod tests;
