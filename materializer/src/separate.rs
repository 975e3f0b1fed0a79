//! Which events a view's query takes, and on which it fails: tried together, and in halves where that fails.

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not};
use springhouse_featurestore::push::{EventPlace, PushEntry, SetAsidePlaces, WhySetAside};
use springhouse_featurestore::tier::places_of;
use springhouse_featurestore::{Error, ErrorKind, Result};

/// An event on which a query fails, and how.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) source: String,
    pub(crate) place: EventPlace,
    pub(crate) reason: String,
}

/// What was found of some events.
#[derive(Debug)]
pub(crate) struct Separated {
    /// Those that the query takes, in groups that it takes together.
    pub(crate) good: Vec<Vec<PushEntry>>,
    /// Those on which it fails.
    pub(crate) failed: Vec<Failed>,
    /// How many of these came last, with none after them that it takes.
    pub(crate) in_a_row: usize,
    /// What the first event failed with that was one too many: those after it were not looked at.
    pub(crate) stopped: Option<Error>,
}

/// When it is no use to look at more events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// So many have failed in a row so far,
    pub(crate) in_a_row: usize,
    /// and so many may.
    pub(crate) most_in_a_row: usize,
    /// So many may fail in all.
    pub(crate) most: usize,
}

impl Limits {
    /// Every event is looked at.
    pub(crate) const NONE: Self = Self { in_a_row: 0, most_in_a_row: usize::MAX, most: usize::MAX };
}

/// Tries events in their order.
///
/// # Errors
/// Those of `attempt` that say nothing about the events.
pub(crate) async fn separate<F: Future<Output = Result<()>>>(
    entries: Vec<PushEntry>,
    limits: Limits,
    attempt: impl Fn(Vec<PushEntry>) -> F,
) -> Result<Separated> {
    let mut found = Separated { good: Vec::new(), failed: Vec::new(), in_a_row: limits.in_a_row, stopped: None };
    let mut left = vec![entries];
    while let Some(some) = left.pop() {
        if some.is_empty() {
            continue;
        }
        let error = match attempt(some.clone()).await {
            Ok(()) => {
                found.in_a_row = 0;
                found.good.push(some);
                continue;
            }
            Err(error) if error.kind() != ErrorKind::Invalid => return Err(error),
            Err(error) => error,
        };
        match halves(some)? {
            Halves::Two(first, rest) => left.extend([rest, first]),
            Halves::One(..) if found.in_a_row >= limits.most_in_a_row || found.failed.len() >= limits.most => {
                found.stopped = Some(error);
                break;
            }
            Halves::One(source, place) => {
                found.in_a_row += 1;
                found.failed.push(Failed { source, place, reason: error.chain() });
            }
        }
    }
    Ok(found)
}

enum Halves {
    Two(Vec<PushEntry>, Vec<PushEntry>),
    /// There is one event, at this place of this source.
    One(String, EventPlace),
}

/// Some events in two parts: pushes apart, and the events of one push.
fn halves(mut some: Vec<PushEntry>) -> Result<Halves> {
    if some.len() > 1 {
        let rest = some.split_off(some.len() / 2);
        return Ok(Halves::Two(some, rest));
    }
    let entry = some.pop().ok_or_else(|| Error::internal("there are no events to separate"))?;
    // In halves they tell their places themselves.
    let events = entry.ordered_events();
    let rows = events.num_rows();
    if rows > 1 {
        let part = |from, length| with_events(&entry, events.slice(from, length));
        return Ok(Halves::Two(vec![part(0, rows / 2)?], vec![part(rows / 2, rows - rows / 2)?]));
    }
    let place = places_of(events)?.first().copied();
    // A heartbeat has no event; no query fails on it.
    Ok(Halves::One(entry.source, place.unwrap_or(EventPlace { position: entry.position, within: 0 })))
}

/// A push with some of its events, which tell their places.
fn with_events(entry: &PushEntry, events: RecordBatch) -> Result<PushEntry> {
    PushEntry::new(entry.position, entry.source.clone(), events, entry.origin.clone())
}

/// Events that are set aside, in their order, and when and why.
pub(crate) type Aside = (RecordBatch, Vec<WhySetAside>);

/// A push without those of its events that are set aside, and these, where there are any.
///
/// # Errors
/// [`ErrorKind::Internal`] when Arrow refuses.
pub(crate) fn parted(entry: PushEntry, places: &SetAsidePlaces) -> Result<(PushEntry, Option<Aside>)> {
    let place = |within| EventPlace { position: entry.position, within };
    if places.range(place(0)..=place(u64::MAX)).next().is_none() {
        return Ok((entry, None));
    }
    let events = entry.ordered_events();
    let found: Vec<Option<&WhySetAside>> = places_of(events)?.iter().map(|place| places.get(place)).collect();
    let is_aside: BooleanArray = found.iter().map(|why| Some(why.is_some())).collect();
    let aside = filter_record_batch(events, &is_aside)?;
    let kept = filter_record_batch(events, &not(&is_aside)?)?;
    let whys = found.into_iter().flatten().cloned().collect();
    Ok((with_events(&entry, kept)?, Some((aside, whys))))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use springhouse_featurestore::push::PushOrigin;
    use springhouse_featurestore::time::Timestamp;

    use super::*;

    fn entry(position: u64, values: &[i64]) -> PushEntry {
        let array: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
        let events = RecordBatch::try_from_iter([("value", array)]).expect("a batch");
        PushEntry::new(position, "paid".to_owned(), events, PushOrigin::default()).expect("an entry")
    }

    fn values(entries: &[PushEntry]) -> Vec<i64> {
        entries.iter().flat_map(|entry| entry.events["value"].as_primitive::<Int64Type>().values().to_vec()).collect()
    }

    /// A query that fails on 0.
    async fn divides(entries: Vec<PushEntry>) -> Result<()> {
        if values(&entries).contains(&0) { Err(Error::invalid("Divide by zero")) } else { Ok(()) }
    }

    fn within(in_a_row: usize, most_in_a_row: usize) -> Limits {
        Limits { in_a_row, most_in_a_row, ..Limits::NONE }
    }

    fn place(position: u64, within: u64) -> EventPlace {
        EventPlace { position, within }
    }

    #[tokio::test]
    async fn one_bad_event_of_a_push_is_told_from_the_others_by_its_place() {
        let entries = vec![entry(3, &[5, 6]), entry(4, &[1, 0, 2, 0]), entry(7, &[0])];
        let found = separate(entries, within(0, 9), divides).await.expect("separated");
        let failed: Vec<EventPlace> = found.failed.iter().map(|failed| failed.place).collect();
        assert_eq!(failed, [place(4, 1), place(4, 3), place(7, 0)]);
        assert_eq!(values(&found.good.concat()), [5, 6, 1, 2]);
        assert_eq!((found.in_a_row, found.stopped.is_some()), (2, false));
        // Those that it takes still tell the places that they had.
        let last = found.good.concat().pop().expect("some");
        assert_eq!(places_of(last.ordered_events()).expect("places"), [place(4, 2)]);
    }

    #[tokio::test]
    async fn a_query_that_fails_on_one_after_another_is_tried_no_further() {
        let entries: Vec<PushEntry> = (1..=1_000).map(|position| entry(position, &[0])).collect();
        let found = separate(entries, within(0, 3), divides).await.expect("separated");
        assert_eq!((found.failed.len(), found.stopped.is_some()), (3, true));
        let again = separate(vec![entry(9, &[0])], within(3, 3), divides).await.expect("separated");
        assert!(again.failed.is_empty() && again.stopped.is_some());
        let other = separate(vec![entry(9, &[1, 0])], within(3, 3), divides).await.expect("separated");
        assert_eq!((other.failed.len(), other.in_a_row), (1, 1), "one between that it takes");
        let few = Limits { most: 1, ..Limits::NONE };
        let many = separate(vec![entry(9, &[0, 1, 0, 1, 0])], few, divides).await.expect("separated");
        assert_eq!((many.failed.len(), many.stopped.is_some()), (1, true));
    }

    #[tokio::test]
    async fn what_is_not_about_the_events_sets_none_aside() {
        let away = async |_| Err(Error::unavailable("no store"));
        let error = separate(vec![entry(1, &[1])], within(0, 9), away).await.expect_err("the store's");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_push_goes_on_without_what_is_set_aside_of_it() {
        let why = WhySetAside { at: Timestamp::from_micros(1), reason: "Divide by zero".to_owned() };
        let places = SetAsidePlaces::from([(place(4, 1), why.clone())]);
        let (kept, aside) = parted(entry(4, &[1, 0, 2]), &places).expect("parted");
        assert_eq!(values(&[kept]), [1, 2]);
        let (events, whys) = aside.expect("one");
        assert_eq!((places_of(&events).expect("places"), whys), (vec![place(4, 1)], vec![why]));
        let (kept, aside) = parted(entry(5, &[0]), &places).expect("parted");
        assert_eq!((kept.events.num_columns(), aside.is_none()), (1, true), "nothing of it is set aside");
    }
}
