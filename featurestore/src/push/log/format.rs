//! The bytes of the push log: its keys, and its entries. The table of both is in [`super`].

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use super::{PushEntry, PushOrigin};
use crate::time::Timestamp;
use crate::{Error, Result};

/// About what an encoded entry takes beside its columns: source, schema, messages and padding.
const ENCODED_BYTES: usize = 2 << 10;

pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

pub(super) fn entry_key(position: u64) -> [u8; 9] {
    let mut key = [b'e'; 9];
    key[1..].copy_from_slice(&position.to_be_bytes());
    key
}

pub(super) fn producer_key(kind: u8, source: &str, producer: &str) -> Vec<u8> {
    [&[kind], source.as_bytes(), &[0], producer.as_bytes()].concat()
}

/// About how many bytes [`encode`] makes of events.
pub(super) fn encoded_bytes(events: &RecordBatch) -> Result<usize> {
    let of_columns = events.columns().iter().map(|column| column.to_data().get_slice_memory_size());
    let bytes = of_columns.sum::<std::result::Result<usize, _>>()?;
    Ok(bytes + bytes / 64 + ENCODED_BYTES)
}

/// Set in the length of an entry's source where its origin follows.
const WITH_ORIGIN: u16 = 1 << 15;

pub(super) fn encode(source: &str, origin: &PushOrigin, events: &RecordBatch) -> Result<Vec<u8>> {
    let length = |text: &str| u16::try_from(text.len()).ok().filter(|length| length & WITH_ORIGIN == 0);
    let too_long = |what: &str| Error::invalid(format!("{what} is longer than 32,767 bytes")).with("source", source);
    let mut value = Vec::with_capacity(encoded_bytes(events)?);
    let source_length = length(source).ok_or_else(|| too_long("a source's name"))?;
    value.extend_from_slice(&(source_length | WITH_ORIGIN).to_be_bytes());
    value.extend_from_slice(source.as_bytes());
    value.extend_from_slice(&origin.at.unwrap_or(Timestamp::MIN).micros().to_be_bytes());
    value.push(u8::from(origin.sequence.is_some()));
    value.extend_from_slice(&origin.sequence.unwrap_or_default().to_be_bytes());
    let producer = length(&origin.producer).ok_or_else(|| too_long("a producer's name"))?;
    value.extend_from_slice(&producer.to_be_bytes());
    value.extend_from_slice(origin.producer.as_bytes());
    let mut writer = StreamWriter::try_new(value, &events.schema())?;
    writer.write(events)?;
    Ok(writer.into_inner()?)
}

/// What an entry begins with.
pub(super) struct Head<'a> {
    pub(super) source: &'a str,
    pub(super) origin: PushOrigin,
    /// Its events as an Arrow IPC stream.
    events: &'a [u8],
}

impl<'a> Head<'a> {
    /// Reads it; `None` where the bytes are cut off.
    pub(super) fn read(value: &'a [u8]) -> Option<Self> {
        let text = |length: u16, bytes: &'a [u8]| {
            let (text, rest) = bytes.split_at_checked(usize::from(length))?;
            Some((std::str::from_utf8(text).ok()?, rest))
        };
        let (length, rest) = value.split_first_chunk::<2>()?;
        let length = u16::from_be_bytes(*length);
        let (source, rest) = text(length & !WITH_ORIGIN, rest)?;
        if length & WITH_ORIGIN == 0 {
            return Some(Self { source, origin: PushOrigin::default(), events: rest });
        }
        let (at, rest) = rest.split_first_chunk::<8>()?;
        let (known, rest) = rest.split_first()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (producer, events) = text(u16::from_be_bytes(*length), rest)?;
        let at = Timestamp::from_micros(i64::from_be_bytes(*at));
        let sequence = (*known == 1).then(|| u64::from_be_bytes(*sequence));
        let origin = PushOrigin { at: (at != Timestamp::MIN).then_some(at), producer: producer.to_owned(), sequence };
        Some(Self { source, origin, events })
    }
}

pub(super) fn source_of(value: &[u8]) -> Option<&str> {
    Head::read(value).map(|head| head.source)
}

pub(super) fn decode(position: u64, value: &[u8]) -> Result<PushEntry> {
    let cut = || Error::damaged("an entry is cut off");
    let Head { source, origin, events } = Head::read(value).ok_or_else(cut)?;
    let events = StreamReader::try_new(events, None)?.next().ok_or_else(cut)??;
    PushEntry::new(position, source.to_owned(), events, origin)
}
