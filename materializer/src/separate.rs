//! Which events a view's query takes, and on which it fails: tried together, and in halves where that fails.

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not};
use springhouse_featurestore::push::{EventPlace, EventPlaces, PushEntry, SetAsidePlaces, WhySetAside};
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
    /// Those that the query takes, in groups that it takes together, each after those before it.
    pub(crate) good: Vec<Vec<PushEntry>>,
    /// Those on which it fails.
    pub(crate) failed: Vec<Failed>,
    /// How many of these came last, with none after them that it takes.
    pub(crate) in_a_row: usize,
    /// The first push with which there were too many, and what the query failed with: nothing is found of it and of those
    /// after it.
    pub(crate) stopped: Option<(u64, Error)>,
}

impl Separated {
    /// Forgets what was found of a push and of those after it.
    fn stop(&mut self, position: u64, error: Error) {
        for group in &mut self.good {
            group.retain(|entry| entry.position < position);
        }
        self.good.retain(|group| !group.is_empty());
        self.failed.retain(|failed| failed.place.position < position);
        self.stopped = Some((position, error));
    }
}

/// How far it is looked which events are at fault. Each one that is found costs some attempts, and whoever pushes may send
/// nothing but such: where many of a push fail, those that are left of it are set aside in parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// So many have failed in a row so far.
    pub(crate) in_a_row: usize,
    /// So many of a push are told apart one by one, and of one that follows as many in a row [`FEW`].
    pub(crate) alone: usize,
    /// So many may fail in all.
    pub(crate) most: usize,
    /// After so many attempts what is left is not told apart any more, neither pushes nor their parts.
    pub(crate) attempts: usize,
}

/// So many events of a push are told apart one by one, whatever came before it.
const FEW: usize = 8;

impl Limits {
    /// Every event is looked at by itself.
    pub(crate) const NONE: Self = Self { in_a_row: 0, alone: usize::MAX, most: usize::MAX, attempts: usize::MAX };

    /// Whether the rest of a push is not told apart any more, after so many of it that were, and so many in a row that failed.
    fn are_reached(&self, told_apart: usize, in_a_row: usize) -> bool {
        told_apart >= self.alone || in_a_row >= self.alone && told_apart >= FEW
    }
}

/// Tries events in their order: `attempt` is given those that the query has taken so far, and some that follow them.
///
/// # Errors
/// Those of `attempt` that say nothing about the events.
pub(crate) async fn separate<F: Future<Output = Result<()>>>(
    entries: Vec<PushEntry>,
    limits: Limits,
    attempt: impl Fn(Vec<PushEntry>, Vec<PushEntry>) -> F,
) -> Result<Separated> {
    let mut found = Separated { good: Vec::new(), failed: Vec::new(), in_a_row: limits.in_a_row, stopped: None };
    let mut left = vec![entries];
    // The push that is looked at, and how many of its parts have failed.
    let mut push = (0, 0);
    let mut attempts = 0_usize;
    while let Some(mut some) = left.pop() {
        if some.is_empty() {
            continue;
        }
        attempts += 1;
        let error = match attempt(found.good.concat(), some.clone()).await {
            Ok(()) => {
                found.in_a_row = 0;
                found.good.push(some);
                continue;
            }
            Err(error) if error.kind() != ErrorKind::Invalid => return Err(error),
            Err(error) => error,
        };
        let is_spent = attempts >= limits.attempts;
        if some.len() > 1 && is_spent {
            for entry in &some {
                found.failed.extend(all_of(entry, &error)?);
            }
            continue;
        }
        if some.len() > 1 {
            let rest = some.split_off(some.len() / 2);
            left.extend([rest, some]);
            continue;
        }
        let Some(entry) = some.pop() else { continue };
        if push.0 != entry.position {
            push = (entry.position, 0);
        }
        let rows = entry.ordered_events().num_rows();
        if rows > 1 && !is_spent && !limits.are_reached(push.1, found.in_a_row) {
            let [first, rest] = halves(&entry)?;
            left.extend([vec![rest], vec![first]]);
            continue;
        }
        if found.failed.len() + rows > limits.most {
            found.stop(entry.position, error);
            break;
        }
        push.1 += 1;
        found.in_a_row += rows;
        found.failed.extend(all_of(&entry, &error)?);
    }
    Ok(found)
}

/// The events of a push, or of a part of it, in two parts.
fn halves(entry: &PushEntry) -> Result<[PushEntry; 2]> {
    // In halves they tell their places themselves.
    let events = entry.ordered_events();
    let (rows, half) = (events.num_rows(), events.num_rows() / 2);
    Ok([with_events(entry, events.slice(0, half))?, with_events(entry, events.slice(half, rows - half))?])
}

/// All events of a push, or of a part of it, as such on which a query fails.
///
/// # Errors
/// [`ErrorKind::Internal`] when Arrow refuses.
pub(crate) fn all_of(entry: &PushEntry, error: &Error) -> Result<Vec<Failed>> {
    let mut places = places_of(entry.ordered_events())?;
    if places.is_empty() {
        // A heartbeat has no event; no query fails on it.
        places.push(EventPlace { position: entry.position, within: 0 });
    }
    let reason = match places.len() {
        1 => error.chain(),
        several => format!("one of {several} events of a push that were not told apart: {}", error.chain()),
    };
    let failed = places.into_iter();
    Ok(failed.map(|place| Failed { source: entry.source.clone(), place, reason: reason.clone() }).collect())
}

/// The places of all events of some pushes, or of parts of them.
///
/// # Errors
/// As [`places_of`].
pub(crate) fn places_of_all(entries: &[PushEntry]) -> Result<EventPlaces> {
    let mut places = EventPlaces::new();
    for entry in entries {
        places.extend(places_of(entry.ordered_events())?);
    }
    Ok(places)
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
    async fn divides(_taken: Vec<PushEntry>, entries: Vec<PushEntry>) -> Result<()> {
        if values(&entries).contains(&0) { Err(Error::invalid("Divide by zero")) } else { Ok(()) }
    }

    fn within(in_a_row: usize, alone: usize) -> Limits {
        Limits { in_a_row, alone, ..Limits::NONE }
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
    async fn the_rest_of_a_push_of_which_many_fail_is_not_told_apart_and_good_ones_after_it_are_taken() {
        let attempts = std::cell::Cell::new(0);
        let counting = |taken, some| {
            attempts.set(attempts.get() + 1);
            divides(taken, some)
        };
        let entries = vec![entry(1, &[0; 4_096]), entry(2, &[0; 4_096]), entry(3, &[5, 0, 6])];
        let found = separate(entries, within(0, 100), counting).await.expect("separated");
        assert_eq!((found.failed.len(), found.stopped.is_some()), (2 * 4_096 + 1, false));
        assert_eq!(values(&found.good.concat()), [5, 6], "one of a push after it costs only itself");
        assert!(attempts.get() < 400, "{} attempts", attempts.get());
        assert!(found.failed[4_000].reason.contains("not told apart"), "{}", found.failed[4_000].reason);
    }

    #[tokio::test]
    async fn too_many_end_it_before_their_push() {
        let few = Limits { most: 2, ..Limits::NONE };
        let entries = vec![entry(3, &[1, 0]), entry(4, &[2, 0, 3, 0]), entry(5, &[4])];
        let found = separate(entries, few, divides).await.expect("separated");
        assert_eq!((values(&found.good.concat()), found.failed.len()), (vec![1], 1));
        assert_eq!(found.stopped.map(|(position, _)| position), Some(4));
    }

    #[tokio::test]
    async fn events_are_tried_after_those_that_were_taken_before_them() {
        // The sum of all must not be 3.
        let sums = async |taken: Vec<PushEntry>, some: Vec<PushEntry>| {
            let sum: i64 = values(&taken).into_iter().chain(values(&some)).sum();
            if sum == 3 { Err(Error::invalid("three")) } else { Ok(()) }
        };
        let found = separate(vec![entry(1, &[1]), entry(2, &[2])], Limits::NONE, sums).await.expect("separated");
        assert_eq!((values(&found.good.concat()), found.failed[0].place), (vec![1], place(2, 0)));
    }

    #[tokio::test]
    async fn what_is_not_about_the_events_sets_none_aside() {
        let away = async |_, _| Err(Error::unavailable("no store"));
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
