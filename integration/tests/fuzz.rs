//! Seeded mutation of everything that comes from outside or from disk: whatever the bytes, there is an error or an answer,
//! never a panic.
//!
//! Inputs are made from the kept corpus below `fuzz_corpus/` and from valid ones made here. Each depends on the seed and
//! its number alone: what fails says both, and is kept by putting it into the corpus. `make fuzz` runs minutes with a seed
//! of the day; the ordinary run seconds with a fixed one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, ListArray, NullArray, RecordBatch,
    StringArray, StringViewArray,
};
use arrow::datatypes::{Float64Type, Int8Type};
use arrow::ipc::CompressionType;
use arrow_flight::FlightData;
use prost::Message;
use springhouse_featurestore::catalog::{CatalogCommit, Change};
use springhouse_featurestore::definition::{Column, ColumnType, DefinitionKind};
use springhouse_featurestore::encoding::{KeyCodec, RowHeader, RowLayout, WriteOrder, merge_values};
use springhouse_featurestore::push::{Push, PushHeader, PushLog};
use springhouse_featurestore::time::{Clock, SystemClock, Timestamp};
use springhouse_serving::flight::Command;
use springhouse_serving::generated::inference::model_infer_request::InferInputTensor;
use springhouse_serving::generated::inference::{InferTensorContents, ModelInferRequest};
use springhouse_serving::predict::{decode_request, request_columns};
use springhouse_sql::diagnostic::SourceFile;
use springhouse_sql::parse::parse;
use springhouse_sql::print::print;

use crate::bounds::{Wire, events, messages};
use crate::seeded::Seeded;

/// Numbers at which lengths, counts and signs go wrong.
const ODD: [i64; 12] = [0, 1, -1, 7, 255, 65_535, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 47, i64::MAX, i64::MIN];

/// How long all targets together run, and from which seed.
fn plan() -> (i64, u64) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seconds = number("SPRINGHOUSE_FUZZ_SECONDS").unwrap_or(8);
    (i64::try_from(seconds).expect("small"), number("SPRINGHOUSE_FUZZ_SEED").unwrap_or(1))
}

/// The inputs of one target.
struct Inputs {
    target: &'static str,
    corpus: Vec<Vec<u8>>,
    seed: u64,
    number: u64,
    ends: Timestamp,
}

impl Inputs {
    /// Inputs for a share of the time, in hundredths.
    fn of(target: &'static str, share: i64, made: Vec<Vec<u8>>) -> Self {
        let (seconds, seed) = plan();
        let mut corpus = made;
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz_corpus").join(target);
        let mut files: Vec<PathBuf> = match std::fs::read_dir(&folder) {
            Ok(entries) => entries.map(|entry| entry.expect("readable").path()).collect(),
            Err(_) => Vec::new(),
        };
        files.sort();
        corpus.extend(files.into_iter().map(|file| std::fs::read(file).expect("readable")));
        let ends = Timestamp::from_micros(SystemClock.now().micros() + seconds * share * 10_000);
        Self { target, corpus, seed, number: 0, ends }
    }

    fn seeded(&self) -> Seeded {
        Seeded::new(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(self.number))
    }

    /// Each input of the corpus as it is, then changed ones until the time is over.
    fn draw(&mut self) -> Option<Vec<u8>> {
        let index = usize::try_from(self.number).expect("small");
        if index >= self.corpus.len() && SystemClock.now() >= self.ends {
            return None;
        }
        self.number += 1;
        if let Some(whole) = self.corpus.get(index) {
            return Some(whole.clone());
        }
        let mut random = self.seeded();
        let pick = |random: &mut Seeded| usize::try_from(random.below(self.corpus.len() as u64)).expect("small");
        let mut bytes = self.corpus[pick(&mut random)].clone();
        let other = &self.corpus[pick(&mut random)];
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut bytes, other);
        }
        Some(bytes)
    }

    /// Tries all inputs; a panic is told with the input that caused it.
    fn try_all(mut self, mut run: impl FnMut(&[u8])) {
        while let Some(bytes) = self.draw() {
            assert!(catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_ok(), "{}", self.says(&bytes));
        }
        assert!(self.number > 100, "{}: only {} inputs", self.target, self.number);
    }

    fn says(&self, bytes: &[u8]) -> String {
        let shown = String::from_utf8_lossy(bytes);
        format!("{}, seed {}, input {}: {bytes:02x?}\n{shown}", self.target, self.seed, self.number)
    }
}

/// One change: a bit, a byte, a number, a piece less, twice, or of another input.
fn mutate(random: &mut Seeded, bytes: &mut Vec<u8>, other: &[u8]) {
    let place = |random: &mut Seeded, length: usize| {
        usize::try_from(random.below(length as u64 + 1)).expect("small").min(length.saturating_sub(1))
    };
    if bytes.is_empty() {
        bytes.extend_from_slice(other);
        return;
    }
    let at = place(random, bytes.len());
    let end = (at + 1 + place(random, 16)).min(bytes.len());
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.below(256).to_le_bytes()[0],
        2 => {
            let number = random.pick(&ODD).to_le_bytes();
            let width = random.pick(&[1, 2, 4, 8]).min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
        3 => drop(bytes.drain(at..end)),
        4 => bytes.truncate(at),
        5 => {
            let piece = bytes[at..end].to_vec();
            for _ in 0..=random.below(40) {
                bytes.splice(at..at, piece.iter().copied());
            }
        }
        6 => {
            let from = place(random, other.len());
            bytes.splice(at..end, other[from..].iter().take(64).copied());
        }
        _ => bytes.insert(at, random.pick(b"\0\xff(){}[]'\";,.-+*/=<>@:")),
    }
}

#[test]
fn commands_push_headers_and_commits_are_read_or_refused() {
    Inputs::of("commands", 5, Vec::new()).try_all(|bytes| {
        if let Ok(command) = Command::parse(bytes) {
            assert_eq!(Command::parse(&command.to_bytes()).expect("own bytes"), command);
        }
    });
    Inputs::of("headers", 5, Vec::new()).try_all(|bytes| {
        if let Ok(header) = serde_json::from_slice::<PushHeader>(bytes) {
            serde_json::to_vec(&header).expect("writable");
        }
    });
    let commit = CatalogCommit::new(
        Timestamp::from_micros(1),
        "who",
        "why",
        vec![
            Change::Retire { kind: DefinitionKind::Source, name: "paid".to_owned() },
            Change::Deploy { contract: "fraud".to_owned(), digest: "sha256:12".to_owned() },
        ],
    );
    let commits = vec![serde_json::to_vec_pretty(&commit).expect("writable")];
    Inputs::of("commits", 5, commits).try_all(|bytes| {
        if let Ok(commit) = serde_json::from_slice::<CatalogCommit>(bytes) {
            serde_json::to_vec(&commit).expect("writable");
        }
    });
}

#[test]
fn definitions_are_read_or_their_faults_are_named() {
    Inputs::of("definitions", 25, Vec::new()).try_all(|bytes| {
        let file = SourceFile { name: "fuzz.sql".to_owned(), text: String::from_utf8_lossy(bytes).into_owned() };
        let parsed = parse(&file);
        for statement in &parsed.statements {
            parse(&SourceFile { name: "fuzz.sql".to_owned(), text: print(statement) });
        }
        for fault in parsed.faults {
            assert!(!fault.to_string().is_empty());
        }
    });
}

#[test]
fn keys_and_rows_of_any_bytes_are_read_or_named_as_damaged() {
    let columns = [
        Column::nullable("name", ColumnType::Utf8),
        Column::nullable("number", ColumnType::Int64),
        Column::nullable("flag", ColumnType::Boolean),
        Column::nullable("numbers", ColumnType::Float64.list_of().expect("a scalar")),
        Column::nullable("names", ColumnType::Utf8.list_of().expect("a scalar")),
    ];
    let names: ArrayRef = Arc::new(StringArray::from(vec![Some("a\0b"), None]));
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(-7), None]));
    let flags: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), None]));
    let lists = [Some(vec![Some(1.5), None]), None];
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(lists));
    let texts = ColumnType::Utf8.list_of().expect("a scalar").to_arrow();
    let texts = arrow::array::new_null_array(&texts, 2);

    let codec = KeyCodec::new(&columns[..3]).expect("keys");
    let keys = codec.encode(&[Arc::clone(&names), Arc::clone(&numbers), Arc::clone(&flags)]).expect("typed");
    let keys: Vec<Vec<u8>> = keys.iter().flatten().map(<[u8]>::to_vec).collect();
    Inputs::of("keys", 5, keys).try_all(|bytes| assert!(!codec.describe(bytes).is_empty() || bytes.is_empty()));

    let layout = RowLayout::new(&columns);
    let header = RowHeader {
        event_time: Timestamp::from_micros(5),
        available_time: Timestamp::from_micros(6),
        written: WriteOrder::of_commit(0, 7),
    };
    let rows = layout.encode(&[header, header], &[names, numbers, flags, lists, texts]).expect("typed");
    Inputs::of("rows", 10, rows.clone()).try_all(|bytes| {
        if let Ok(decoded) = layout.decode(&[Some(bytes)]) {
            assert_eq!(decoded.len(), columns.len());
        }
        let times = RowHeader::read(bytes);
        assert!(times.is_some() || bytes.len() < 32);
        // A chunk that is damaged is an error; of rows the greater is an answer.
        drop(merge_values(&rows[0], bytes));
        drop(merge_values(bytes, bytes));
    });
}

#[test]
fn requests_of_any_tensors_are_read_or_refused() {
    let columns = [
        Column::nullable("user_name", ColumnType::Utf8),
        Column::nullable("amount", ColumnType::Float64),
        Column::required("count", ColumnType::Int16),
        Column::nullable("at", ColumnType::Timestamp),
    ];
    let tensor = |name: &str, datatype: &str, contents: Option<InferTensorContents>| InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![2],
        contents,
        ..InferInputTensor::default()
    };
    let bytes = |texts: [&str; 2]| {
        Some(InferTensorContents {
            bytes_contents: texts.iter().map(|text| text.as_bytes().to_vec().into()).collect(),
            ..InferTensorContents::default()
        })
    };
    let counts = InferTensorContents { int_contents: vec![1, 2], ..InferTensorContents::default() };
    let typed = ModelInferRequest {
        model_name: "fraud".to_owned(),
        inputs: vec![
            tensor("user_name", "BYTES", bytes(["ann", "bob"])),
            tensor("count", "INT16", Some(counts)),
            tensor("at", "BYTES", bytes(["2013-12-01T05:00:00Z", "1970-01-01T00:00:00+01:00"])),
        ],
        ..ModelInferRequest::default()
    };
    let raw = ModelInferRequest {
        inputs: vec![
            tensor("user_name", "BYTES", None),
            tensor("amount", "FP64", None),
            tensor("amount@null", "BOOL", None),
            tensor("count", "INT16", None),
        ],
        raw_input_contents: vec![
            b"\x03\0\0\0ann\x00\0\0\0".to_vec().into(),
            vec![0; 16].into(),
            vec![0, 1].into(),
            vec![1, 0, 2, 0].into(),
        ],
        ..ModelInferRequest::default()
    };
    let requests = vec![typed.encode_to_vec(), raw.encode_to_vec()];
    for request in &requests {
        let request = decode_request(request).expect("own bytes");
        assert_eq!(request_columns(&columns, &request, 100).expect("valid").1, 2);
    }
    Inputs::of("tensors", 15, requests).try_all(|bytes| {
        // Its walk and the decoder agree on what is a message, except for groups, which nobody sends.
        let Ok(request) = decode_request(bytes) else { return };
        let decoded = ModelInferRequest::decode(bytes).expect("decodes");
        assert_eq!(decoded.encoded_len(), request.encoded_len());
        if let Ok((arrays, rows)) = request_columns(&columns, &request, 100) {
            assert!(rows <= 100 && arrays.iter().all(|array| array.len() == rows), "{rows}");
        }
    });
}

#[test]
fn a_push_log_of_any_bytes_opens_or_is_named_as_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    let log = PushLog::open(&whole).expect("new");
    let push = Push {
        source: "spent".to_owned(),
        events: events(Arc::new(Int32Array::from(vec![7]))),
        header: PushHeader { producer: Some("p".to_owned()), sequence: Some(1), watermark: None },
        at: Timestamp::from_micros(1),
    };
    log.append(vec![push]).expect("writable");
    drop(log);
    let files = std::fs::read_dir(&whole).expect("a folder").map(|entry| entry.expect("readable").path());
    let mut logs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|of| of == "log")).collect();
    logs.sort();
    let [written] = logs.as_slice() else { panic!("one file is written to: {logs:?}") };
    let mut inputs = Inputs::of("push_log", 10, vec![std::fs::read(written).expect("readable")]);
    let name = written.file_name().expect("a file");
    while let Some(bytes) = inputs.draw() {
        let damaged = folder.path().join(inputs.number.to_string());
        std::fs::create_dir(&damaged).expect("new");
        for entry in std::fs::read_dir(&whole).expect("a folder") {
            let path = entry.expect("readable").path();
            std::fs::copy(&path, damaged.join(path.file_name().expect("a file"))).expect("copied");
        }
        std::fs::write(damaged.join(name), &bytes).expect("writable");
        // What is cut off at the end was never acknowledged; what is changed before it is damage.
        let read = PushLog::open(&damaged).and_then(|log| log.entries_after(0));
        assert!(read.is_err() || read.is_ok_and(|entries| entries.len() <= 1), "{}", inputs.says(&bytes));
        std::fs::remove_dir_all(&damaged).expect("removable");
    }
}

/// A message in bytes: its header's length, its header, its body.
fn packed(message: &FlightData) -> Vec<u8> {
    let length = u32::try_from(message.data_header.len()).expect("small").to_le_bytes();
    [length.as_slice(), &message.data_header, &message.data_body].concat()
}

fn unpacked(bytes: &[u8]) -> FlightData {
    let (length, rest) = bytes.split_first_chunk::<4>().unwrap_or((&[0; 4], bytes));
    let (header, body) = rest.split_at((u32::from_le_bytes(*length) as usize).min(rest.len()));
    FlightData { data_header: header.to_vec().into(), data_body: body.to_vec().into(), ..FlightData::default() }
}

/// Batches of keys of every layout.
fn batches() -> Vec<RecordBatch> {
    let words: DictionaryArray<Int8Type> = [Some("a"), None, Some("b")].into_iter().collect();
    let lists = [Some(vec![Some(1.5), None]), None, Some(vec![])];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![Some(7), None, Some(9)])),
        Arc::new(Int32Array::from(vec![7, 8, 9])),
        Arc::new(Float64Array::from(vec![7.5, 8.0, 9.0])),
        Arc::new(StringArray::from(vec![Some("a"), None, Some("b")])),
        Arc::new(StringViewArray::from(vec!["a", "b", "a text that is longer than a view holds by itself"])),
        Arc::new(words),
        Arc::new(NullArray::new(3)),
        Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(lists)),
    ];
    let batch = |column| RecordBatch::try_from_iter_with_nullable([("number", column, true)]).expect("one column");
    columns.into_iter().map(batch).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_flight_messages_get_an_answer_or_an_error_and_the_server_lives_on() {
    let wire = Wire::start().await;
    let codecs = [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)];
    let streams: Vec<Vec<FlightData>> =
        batches().iter().flat_map(|batch| codecs.map(|codec| messages(batch, codec))).collect();
    let packed: Vec<Vec<u8>> = streams.iter().flatten().map(packed).collect();
    let mut inputs = Inputs::of("messages", 20, packed);
    while let Some(bytes) = inputs.draw() {
        let mut random = inputs.seeded();
        let stream = &streams[usize::try_from(random.below(streams.len() as u64)).expect("small")];
        let mut sent = stream.clone();
        let place = usize::try_from(random.below(sent.len() as u64)).expect("small");
        sent[place] = unpacked(&bytes);
        let answered = match random.below(3) {
            0 => wire.put(sent).await.map(|_| ()),
            _ => wire.exchange(sent).await.map(|_| ()),
        };
        // A handler that panics takes its connection with it.
        let lost = [tonic::Code::Unknown, tonic::Code::Unavailable, tonic::Code::Cancelled];
        if let Err(status) = answered {
            assert!(!lost.contains(&status.code()), "{status}\n{}", inputs.says(&bytes));
        }
    }
    wire.check_alive().await;
    wire.end().await;
}
