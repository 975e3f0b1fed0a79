//! Windows over histories that clocks on a wall have stamped, through the changes of their zone: refresh, pushes in any
//! order, lookups and training sets against the oracle of the windows, which is told UTC by rules of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use springhouse_featurestore::parquet_file::ParquetFileWriter;
use springhouse_featurestore::push::{EventSink, PushHeader};

use crate::project::{Event, TestProject, at};
use crate::push::{Server, heartbeat, refresh_all, training_sets};
use crate::seeded::Seeded;
use crate::windows::{USERS, by_values, check, definitions, number};

/// An event as a clock in New York showed it: user, seconds after 1970 on its face, amount.
type Shown = (&'static str, i64, Option<f64>);

/// When clocks in New York went forward in 2013, on their faces, and when they went back.
const CHANGES: [&str; 2] = ["2013-03-10T02:00:00Z", "2013-11-03T02:00:00Z"];

fn seconds(text: &str) -> i64 {
    springhouse_featurestore::time::Timestamp::parse(text).expect("a time").micros() / 1_000_000
}

/// The second at which a clock in New York showed this in 2013, said plainly: of the two that there may be the later, and
/// where there is none, as if the clock had not been put forward.
fn utc_of(shown: i64) -> i64 {
    let summer = seconds("2013-03-10T07:00:00Z")..seconds("2013-11-03T06:00:00Z");
    let candidates = [(4, true), (5, false)].map(|(hours, in_summer)| (shown + hours * 3_600, in_summer));
    let fitting = candidates.into_iter().filter(|(utc, in_summer)| summer.contains(utc) == *in_summer);
    fitting.map(|(utc, _)| utc).max().unwrap_or(shown + 5 * 3_600)
}

fn history(random: &mut Seeded, change: i64) -> Vec<Shown> {
    let (on_steps, range) = (random.below(2) == 0, random.pick(&[4_000, 20_000, 200_000]));
    (0..random.below(60))
        .map(|_| {
            let shown = change - number(range / 2) + number(random.below(range));
            let amount = match random.below(10) {
                0 => None,
                1 => Some(f64::NAN),
                _ => Some(f64::from(i32::try_from(random.below(200)).expect("small") - 100) / 2.0),
            };
            (random.pick(&USERS[..3]), if on_steps { shown - shown % 60 } else { shown }, amount)
        })
        .collect()
}

/// Events as the oracle takes them: known as soon as they happened.
fn in_utc(shown: &[Shown]) -> Vec<Event> {
    shown.iter().map(|(user, second, amount)| (*user, utc_of(*second), utc_of(*second), *amount)).collect()
}

fn batch(shown: &[Shown]) -> RecordBatch {
    let users: ArrayRef = Arc::new(StringArray::from_iter_values(shown.iter().map(|event| event.0)));
    let times = shown.iter().map(|event| event.1 * 1_000_000);
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(times));
    let amounts: ArrayRef = Arc::new(Float64Array::from_iter(shown.iter().map(|event| event.2)));
    let columns = [("user_name", users, true), ("paid_at", times, true), ("amount", amounts, true)];
    RecordBatch::try_from_iter_with_nullable(columns).expect("three columns")
}

fn write(path: &Path, shown: &[Shown]) {
    let batch = batch(shown);
    let mut file = ParquetFileWriter::create(path, batch.schema(), &BTreeMap::new()).expect("writable");
    file.write(&batch).expect("writable");
    file.finish().expect("writable");
}

fn local_definitions() -> String {
    definitions()
        .replace("paid_at AVAILABLE AT known_at\n", "paid_at AT TIME ZONE 'America/New_York'\n")
        .replace(", known_at", "")
}

fn check_lookups(server: &Server, shown: &[Shown], now: i64, case: u64) {
    let (users, events): (Vec<Option<&str>>, _) = (USERS.map(Some).into_iter().chain([None]).collect(), in_utc(shown));
    let answer = server.lookup(&users);
    for (row, user) in users.into_iter().enumerate() {
        check(&answer, row, &events, user, now, now, &format!("case {case}, {user:?} at {now}"));
    }
}

#[tokio::test]
async fn windows_over_local_times_are_those_of_the_oracle_on_every_path() {
    let mut random = Seeded::new(47);
    for case in 0..24 {
        let change = seconds(CHANGES[usize::from(case % 2 == 0)]);
        let events = history(&mut random, change);
        // What happened before this is history; the rest is pushed.
        let mut now = utc_of(change) - 5_400 + number(random.below(10_800));
        let (mut held, mut left): (Vec<Shown>, Vec<Shown>) =
            events.into_iter().partition(|event| utc_of(event.1) <= now);
        let project = TestProject::new(&[]);
        write(&project.folder.path().join("payments.parquet"), &held);
        by_values(&mut held, |event| event.2);
        let state = project.apply(&local_definitions()).await.expect("valid definitions");
        project.clock.set(at(now));
        refresh_all(&project, &state).await;
        let server = Server::start_on(&project, &project.store, if case % 3 == 0 { 0 } else { 1 << 20 }).await;
        check_lookups(&server, &held, now, case);
        for last in [false, false, true] {
            now += if last { 120_000 } else { 600 + number(random.below(7_200)) };
            project.clock.set(at(now));
            // In any order, and some come much later than they happened.
            let (mut due, rest): (Vec<Shown>, Vec<Shown>) =
                left.into_iter().partition(|event| utc_of(event.1) <= now && (last || random.below(4) > 0));
            left = rest;
            random.shuffle(&mut due);
            for events in due.chunks(3) {
                server.pushes.push("paid", batch(events), PushHeader::default()).await.expect("taken");
            }
            held.extend(due);
            check_lookups(&server, &held, now, case);
        }
        assert!(left.is_empty(), "{left:?}");
        heartbeat(&server, now).await;
        server.pushes.flush().await.expect("flushes");
        refresh_all(&project, &state).await;
        server.features.follow(&()).await.expect("follows");
        check_lookups(&server, &held, now, case);
        training_sets(&project, &state, &in_utc(&held), now, &mut random, case).await;
    }
}
