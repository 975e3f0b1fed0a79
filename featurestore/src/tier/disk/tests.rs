//! What the disk tier keeps over crashes, loads, additions and its time.

use super::*;
use crate::ErrorKind;
use crate::conformance;

#[test]
fn the_disk_tier_keeps_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance::run(|name| Box::new(DiskTier::open(&folder.path().join(name)).expect("a new folder")));
}

#[test]
fn what_was_applied_is_there_after_reopening() {
    let folder = tempfile::tempdir().expect("a folder");
    let view = conformance::view("kept");
    let mark = Mark::of_commit(3, None);
    let tier = DiskTier::open(folder.path()).expect("a new folder");
    tier.apply(&view, conformance::rows(&[("a", "1")]), mark).expect("writable");
    drop(tier);
    let tier = DiskTier::open(folder.path()).expect("reopened");
    let read = tier.read(&view, &[b"a"]).expect("readable");
    assert_eq!((read.rows[0].as_deref(), read.mark), (Some(b"1".as_slice()), mark));
}

#[test]
fn a_load_of_several_files_keeps_the_newest_row_of_each_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let view = conformance::view("large");
    let tier = DiskTier::open(folder.path()).expect("a new folder");
    let mut generation = tier.begin_generation(&view).expect("begun");
    // Three passes over the same keys, more bytes together than one buffer takes; the second pass is the newest.
    let (keys, width) = (2_000_u32, 16 << 10);
    for pass in [1_u8, 3, 2] {
        for key in 0..keys {
            let row = Bytes::from(vec![pass; width]);
            generation.add(vec![(Bytes::copy_from_slice(&key.to_be_bytes()), row)]).expect("writable");
        }
    }
    generation.finish(Mark::of_commit(1, None)).expect("ingested");
    for key in [0, 7, keys - 1] {
        let read = tier.read(&view, &[&key.to_be_bytes()]).expect("readable");
        assert_eq!(read.rows[0].as_ref().map(|row| (row[0], row.len())), Some((3, width)));
    }
    let left = std::fs::read_dir(folder.path()).expect("readable").filter_map(Result::ok);
    assert_eq!(left.filter(|file| file.file_name().to_string_lossy().starts_with("load-")).count(), 0);
}

#[test]
fn a_load_in_order_of_keys_merges_those_that_come_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let view = conformance::view("ordered");
    let tier = DiskTier::open(folder.path()).expect("a new folder");
    let mut generation = tier.begin_generation(&view).expect("begun");
    // As many bytes as three buffers take; a key comes again soon after, in the same buffer or in the next one.
    let (keys, width) = (12_000_u32, 16 << 10);
    let row = |value: u8| Bytes::from(vec![value; width]);
    for key in 0..keys {
        let again = key.saturating_sub(3);
        let of = |key: u32, value| (Bytes::copy_from_slice(&key.to_be_bytes()), row(value));
        generation.add(vec![of(key, 1), of(again, if again % 2 == 0 { 2 } else { 0 })]).expect("writable");
    }
    generation.finish(Mark::of_commit(1, None)).expect("ingested");
    for key in 0..keys - 3 {
        let read = tier.read(&view, &[&key.to_be_bytes()]).expect("readable");
        let expected = if key % 2 == 0 { 2 } else { 1 };
        assert_eq!(read.rows[0].as_ref().map(|row| (row[0], row.len())), Some((expected, width)), "key {key}");
    }
}

/// The mark and the rows of an addition lie in one ingestion: a process that dies right after it has both.
#[test]
fn what_was_added_is_there_after_reopening_with_its_mark() {
    let folder = tempfile::tempdir().expect("a folder");
    let view = conformance::view("added");
    let tier = DiskTier::open(folder.path()).expect("a new folder");
    tier.apply(&view, conformance::rows(&[("a", "1"), ("b", "1")]), Mark::of_commit(3, None)).expect("writable");
    let add = |tier: &DiskTier, commit| {
        let mut addition = tier.begin_addition(&view).expect("begun");
        addition.add(conformance::rows(&[("b", "2"), ("c", "2")])).expect("writable");
        addition.finish(Mark::of_commit(commit, None)).expect("ingested");
    };
    add(&tier, 5);
    // As if it had died before it wrote the mark where marks are.
    let before = DiskView { mark: Mark::of_commit(3, None), ..DiskView::default() };
    tier.database.put(view.to_string(), record_bytes(&before).expect("bytes")).expect("writable");
    drop(tier);
    let tier = DiskTier::open(folder.path()).expect("reopened");
    let read = tier.read(&view, &[b"a", b"b", b"c"]).expect("readable");
    let rows: Vec<_> = read.rows.iter().map(|row| row.as_deref()).collect();
    assert_eq!(rows, [b"1", b"2", b"2"].map(|row| Some(row.as_slice())));
    assert_eq!(read.mark, Mark::of_commit(5, None));
    tier.apply(&view, conformance::rows(&[("c", "3")]), Mark::of_commit(6, None)).expect("writable");
    drop(tier);
    let tier = DiskTier::open(folder.path()).expect("reopened");
    assert_eq!(tier.mark(&view).expect("readable"), Mark::of_commit(6, None));
    let left = std::fs::read_dir(folder.path()).expect("readable").filter_map(std::result::Result::ok);
    assert_eq!(left.filter(|file| file.file_name().to_string_lossy().starts_with(LOAD_FILES)).count(), 0);
}

#[test]
fn rows_beyond_their_ttl_leave_and_a_clock_that_is_set_back_is_told() {
    use crate::encoding::{RowHeader, RowLayout, WriteOrder};
    use crate::time::Span;
    let folder = tempfile::tempdir().expect("a folder");
    let view = conformance::view("expiring");
    let tier = DiskTier::open(folder.path()).expect("a new folder");
    let hour = |hours: i64| Timestamp::from_micros(hours * 3_600_000_000);
    let row = |event_time| {
        let header = RowHeader { event_time, available_time: event_time, written: WriteOrder::default() };
        Bytes::from(RowLayout::new(&[]).encode(&[header], &[]).expect("no columns").remove(0))
    };
    let keyed = |key: &'static str, at| (Bytes::from(key), row(at));
    let rows = vec![keyed("old", hour(1)), keyed("new", hour(90)), keyed("always", Timestamp::MIN)];
    tier.apply(&view, rows, Mark::of_commit(1, None)).expect("writable");
    let expiry = Expiry::of_ttl(Span::from_secs(24 * 3_600));
    let compact = |tier: &DiskTier| {
        let handle = tier.family_handle(&family(&view, 0)).expect("there");
        // The first makes values of what was merged.
        for _ in 0..2 {
            tier.database.compact_range_cf(&handle, None::<&[u8]>, None::<&[u8]>);
        }
    };
    let held = |tier: &DiskTier| {
        let read = tier.read(&view, &[b"old", b"new", b"always"]).expect("readable");
        read.rows.iter().map(Option::is_some).collect::<Vec<_>>()
    };
    compact(&tier);
    assert!(tier.expire(&view, &expiry, hour(20)).expect("told"));
    compact(&tier);
    assert_eq!(held(&tier), [true, true, true]);
    assert!(tier.expire(&view, &expiry, hour(100)).expect("told"));
    compact(&tier);
    assert_eq!(held(&tier), [false, true, true]);
    assert!(tier.expire(&view, &expiry, hour(99)).expect("told"), "within the margin");
    drop(tier);
    let tier = DiskTier::open(folder.path()).expect("reopened");
    assert!(!tier.expire(&view, &expiry, hour(20)).expect("told"), "rows that were alive then are gone");
    tier.forget(&view).expect("forgets");
    assert!(tier.expire(&view, &expiry, hour(20)).expect("told"));
}

#[test]
fn a_clock_that_was_set_back_takes_nothing_away_and_the_next_generation_has_what_was_let_go_of() {
    use crate::encoding::{RowHeader, RowLayout, WriteOrder};
    use crate::time::Span;
    let folder = tempfile::tempdir().expect("a folder");
    let view = conformance::view("expiring");
    let tier = DiskTier::open(folder.path()).expect("a new folder");
    let hour = |hours: i64| Timestamp::from_micros(hours * 3_600_000_000);
    let keyed = |key: &'static str, event_time| {
        let header = RowHeader { event_time, available_time: event_time, written: WriteOrder::default() };
        (Bytes::from(key), Bytes::from(RowLayout::new(&[]).encode(&[header], &[]).expect("no columns").remove(0)))
    };
    let rows = || vec![keyed("old", hour(1)), keyed("new", hour(90))];
    let held = |tier: &DiskTier| {
        let read = tier.read(&view, &[b"old", b"new"]).expect("readable");
        read.rows.iter().map(Option::is_some).collect::<Vec<_>>()
    };
    let compact = |tier: &DiskTier, generation| {
        let handle = tier.family_handle(&family(&view, generation)).expect("there");
        // The first makes values of what was merged.
        for _ in 0..2 {
            tier.database.compact_range_cf(&handle, None::<&[u8]>, None::<&[u8]>);
        }
    };
    let expiry = Expiry::of_ttl(Span::from_secs(24 * 3_600));
    tier.apply(&view, rows(), Mark::of_commit(1, None)).expect("writable");
    compact(&tier, 0);
    assert!(tier.expire(&view, &expiry, hour(100)).expect("told"));
    compact(&tier, 0);
    assert_eq!(held(&tier), [false, true]);
    for _ in 0..2 {
        assert!(!tier.expire(&view, &expiry, hour(20)).expect("told"), "until it is loaded again");
        assert_eq!(held(&tier), [false, true], "what is there is answered meanwhile");
    }
    let mut generation = tier.begin_generation(&view).expect("begun");
    generation.add(rows()).expect("writable");
    generation.settle().expect("writable");
    compact(&tier, 1);
    generation.finish(Mark::of_commit(1, None)).expect("finishes");
    compact(&tier, 1);
    assert_eq!(held(&tier), [true, true]);
    assert!(tier.expire(&view, &expiry, hour(20)).expect("told"), "it lacks nothing");
    assert!(tier.expire(&view, &expiry, hour(100)).expect("told"));
    // Loaded for another reason, while what is past goes: what was let go of is remembered.
    let mut generation = tier.begin_generation(&view).expect("begun");
    generation.add(rows()).expect("writable");
    generation.finish(Mark::of_commit(2, None)).expect("finishes");
    assert!(!tier.expire(&view, &expiry, hour(20)).expect("told"));
}

#[test]
fn a_folder_in_use_and_a_damaged_one_are_named_with_the_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = DiskTier::open(folder.path()).expect("a new folder");
    let error = DiskTier::open(folder.path()).expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    drop(tier);
    std::fs::write(folder.path().join("CURRENT"), "MANIFEST-999999\n").expect("writable");
    let error = DiskTier::open(folder.path()).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("delete the folder"), "{error}");
}
