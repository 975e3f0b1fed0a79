//! Batches that are refused: of each nothing is taken, and the same batch without what is wrong with it is. And one that is taken,
//! though some views fail on an event of it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::push::{EventSink, PushHeader};

use super::oracle::{FAILS, Seen, seen_batch};
use super::world::{Pushed, World};

/// The first second of the year 0.
const YEAR_ZERO: i64 = -62_167_219_200;

/// A time so far ahead that no tolerance reaches it, in seconds.
const AHEAD: i64 = 60;

/// A batch with another column in a column's place.
fn with(batch: &RecordBatch, name: &str, column: impl Array + 'static) -> RecordBatch {
    let column: ArrayRef = Arc::new(column);
    let columns = batch.schema_ref().fields().iter().zip(batch.columns()).map(|(field, held)| {
        (field.name().clone(), if field.name() == name { Arc::clone(&column) } else { Arc::clone(held) }, true)
    });
    RecordBatch::try_from_iter_with_nullable(columns).expect("as long as the others")
}

impl World {
    /// The events of the next batch of the source, of which the second is to be wrong.
    fn two_events(&mut self) -> [Seen; 2] {
        self.sequence += 1;
        loop {
            if let Some(events) = self.seen_events(self.owner, self.at(), false).first_chunk::<2>() {
                return *events;
            }
        }
    }

    /// A batch that is not of its source's types, zones or times.
    pub async fn wrong(&mut self) {
        let events = self.two_events();
        let (good, late) = (seen_batch(&events), self.at() + AHEAD);
        let times = |second: i64| {
            let times = [events[0].at, second].map(|second| second * 1_000_000);
            TimestampMicrosecondArray::from_iter_values(times)
        };
        let (bad, expected) = match self.random.below(5) {
            0 => (with(&good, "seen_at", times(YEAR_ZERO).with_timezone("UTC")), "outside of the years 1 to"),
            1 => (with(&good, "seen_at", times(late).with_timezone("UTC")), "lies in the future"),
            2 => (with(&good, "seen_at", times(events[1].at)), "times have no zone"),
            3 => (with(&good, "mark", Float64Array::from(vec![2.0, 2.75])), "column: mark"),
            _ => (with(&good, "amount", StringArray::from(vec!["2", "many"])), "column: amount"),
        };
        self.is_refused(bad, expected).await;
        self.is_taken(&events).await;
    }

    /// An event on which a view's query fails.
    pub async fn poison(&mut self) {
        let events = self.two_events();
        let [first, second] = events;
        let bad = seen_batch(&[first, Seen { mark: 0, ..second }]);
        self.is_refused(bad, "view: shares").await;
        self.is_taken(&events).await;
    }

    /// An event that some views do without: with others, or alone in a batch. Some of them read it again for as long as it lies
    /// within what they look back to.
    pub async fn set_aside(&mut self) {
        let [first, second] = self.two_events();
        let fails = Seen { mark: FAILS, ..second };
        let events = if self.chance(3) { vec![fails] } else { vec![first, fails] };
        self.say("some views fail on an event:");
        self.is_taken(&events).await;
    }

    fn header(&self) -> PushHeader {
        PushHeader { producer: Some("gate".to_owned()), sequence: Some(self.sequence), watermark: None }
    }

    async fn is_refused(&mut self, bad: RecordBatch, expected: &str) {
        self.say(format!("pushes what is refused: {expected}"));
        let refused = self.server().pushes.push("seen", bad, self.header()).await;
        let error = refused.expect_err(expected);
        assert!(error.kind() == ErrorKind::Invalid && error.chain().contains(expected), "{}", error.chain());
        self.check();
    }

    async fn is_taken(&mut self, events: &[Seen]) {
        self.say(format!("pushes what is taken: {events:?}"));
        let ack = self.server().pushes.push("seen", seen_batch(events), self.header()).await.expect("taken");
        assert!(!ack.duplicate, "nothing of it was taken before");
        self.pushed.extend(Pushed { seen: events.to_vec(), ..Pushed::default() });
        self.last = None;
    }
}
