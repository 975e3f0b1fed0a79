//! The suite that every [`OnlineTier`] passes: the contract on the trait, clause by clause.
//!
//! A tier's own test is one call of [`run`] with a function that makes an empty tier of the given name.

use bytes::Bytes;

use crate::definition::{Pinned, Version};
use crate::tier::{KeyedRow, Mark, OnlineTier, ReferenceTier};
use crate::time::Timestamp;

/// A view's name for tests.
pub fn view(name: &str) -> Pinned {
    Pinned::new(name, Version::from_text("0123456789ab"))
}

/// Keyed rows of text.
pub fn rows(pairs: &[(&str, &str)]) -> Vec<KeyedRow> {
    pairs.iter().map(|(key, row)| (Bytes::from((*key).to_owned()), Bytes::from((*row).to_owned()))).collect()
}

/// A mark for tests.
pub fn mark(commit: u64) -> Mark {
    Mark::of_commit(commit, Some(Timestamp::from_micros(commit.cast_signed() * 10)))
}

fn read(tier: &dyn OnlineTier, view: &Pinned, keys: &[&str]) -> (Vec<Option<String>>, Mark) {
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    let read = tier.read(view, &keys).expect("readable");
    let text = |row: Option<Bytes>| row.map(|row| String::from_utf8(row.to_vec()).expect("text was written"));
    (read.rows.into_iter().map(text).collect(), read.mark)
}

/// Runs the whole suite; `make` gives an empty tier.
///
/// # Panics
/// When the tier breaks its contract.
pub fn run(make: impl Fn(&str) -> Box<dyn OnlineTier>) {
    a_view_that_was_never_written_reads_as_nothing(&*make("never"));
    the_greatest_row_holds_in_any_order(&*make("greatest"));
    a_generation_replaces_all_or_nothing(&*make("generation"));
    an_addition_adds_all_or_nothing(&*make("addition"));
    versions_know_nothing_of_each_other(&*make("versions"));
    a_random_history_reads_as_the_reference_does(&*make("random"));
    views_of_one_entity_read_together_as_each_alone(&*make("together"));
    a_reader_never_sees_half_a_change(&*make("atomic"));
}

/// Clause: a view that was never written reads as nothing.
pub fn a_view_that_was_never_written_reads_as_nothing(tier: &dyn OnlineTier) {
    assert_eq!(read(tier, &view("v"), &["a", "b"]), (vec![None, None], Mark::default()));
    assert_eq!(tier.mark(&view("v")).expect("readable"), Mark::default());
}

/// Clause: of all rows given for a key the greatest holds.
pub fn the_greatest_row_holds_in_any_order(tier: &dyn OnlineTier) {
    let name = view("v");
    tier.apply(&name, rows(&[("a", "2"), ("b", "5"), ("a", "1")]), mark(1)).expect("writable");
    assert_eq!(
        read(tier, &name, &["a", "b", "c", "a"]).0,
        [Some("2"), Some("5"), None, Some("2")].map(|r| r.map(str::to_owned))
    );
    tier.apply(&name, rows(&[("b", "4"), ("c", "0"), ("a", "3")]), mark(2)).expect("writable");
    let expected = [Some("3"), Some("5"), Some("0")].map(|row| row.map(str::to_owned)).to_vec();
    assert_eq!(read(tier, &name, &["a", "b", "c"]), (expected.clone(), mark(2)));
    tier.apply(&name, rows(&[("a", "3"), ("b", "4")]), mark(2)).expect("the same again");
    assert_eq!(read(tier, &name, &["a", "b", "c"]), (expected, mark(2)));
}

/// Clause: a generation is atomic.
pub fn a_generation_replaces_all_or_nothing(tier: &dyn OnlineTier) {
    let name = view("v");
    tier.apply(&name, rows(&[("a", "9"), ("b", "9")]), mark(1)).expect("writable");
    assert_eq!(read(tier, &name, &["a", "c"]).0, [Some("9".to_owned()), None]);
    let mut dropped = tier.begin_generation(&name).expect("writable");
    dropped.add(rows(&[("a", "0"), ("c", "0")])).expect("writable");
    drop(dropped);
    assert_eq!(read(tier, &name, &["a", "c"]), (vec![Some("9".to_owned()), None], mark(1)));
    let mut generation = tier.begin_generation(&name).expect("writable");
    generation.add(rows(&[("a", "2"), ("c", "1")])).expect("writable");
    generation.add(rows(&[("a", "1"), ("c", "3")])).expect("writable");
    assert_eq!(read(tier, &name, &["a", "c"]).1, mark(1));
    generation.finish(mark(7)).expect("writable");
    assert_eq!(read(tier, &name, &["a", "b", "c"]), (vec![Some("2".to_owned()), None, Some("3".to_owned())], mark(7)));
}

/// Clause: an addition is atomic, and keeps what it does not change.
pub fn an_addition_adds_all_or_nothing(tier: &dyn OnlineTier) {
    let name = view("v");
    tier.apply(&name, rows(&[("a", "5"), ("b", "5")]), mark(1)).expect("writable");
    assert_eq!(read(tier, &name, &["a", "c"]).0, [Some("5".to_owned()), None]);
    let mut dropped = tier.begin_addition(&name).expect("writable");
    dropped.add(rows(&[("a", "9"), ("c", "9")])).expect("writable");
    drop(dropped);
    assert_eq!(read(tier, &name, &["a", "c"]), (vec![Some("5".to_owned()), None], mark(1)));
    let mut addition = tier.begin_addition(&name).expect("writable");
    addition.add(rows(&[("c", "1"), ("a", "4")])).expect("writable");
    addition.add(rows(&[("a", "7"), ("d", "1"), ("c", "3")])).expect("writable");
    assert_eq!(read(tier, &name, &["a", "d"]), (vec![Some("5".to_owned()), None], mark(1)));
    addition.finish(mark(4)).expect("writable");
    let expected = ["7", "5", "3", "1"].map(|row| Some(row.to_owned())).to_vec();
    assert_eq!(read(tier, &name, &["a", "b", "c", "d"]), (expected, mark(4)));
    tier.apply(&name, rows(&[("a", "6"), ("b", "8")]), mark(5)).expect("writable");
    let expected = ["7", "8"].map(|row| Some(row.to_owned())).to_vec();
    assert_eq!(read(tier, &name, &["a", "b"]), (expected, mark(5)));
    assert_eq!(tier.views(), [name]);
}

/// Clause: versions know nothing of each other.
pub fn versions_know_nothing_of_each_other(tier: &dyn OnlineTier) {
    let (old, new) = (view("v"), Pinned::new("v", Version::from_text("ba9876543210")));
    tier.apply(&old, rows(&[("a", "old")]), mark(1)).expect("writable");
    tier.apply(&new, rows(&[("a", "new")]), mark(2)).expect("writable");
    assert_eq!(read(tier, &old, &["a"]), (vec![Some("old".to_owned())], mark(1)));
    tier.forget(&old).expect("writable");
    assert_eq!(read(tier, &old, &["a"]), (vec![None], Mark::default()));
    assert_eq!(read(tier, &new, &["a"]), (vec![Some("new".to_owned())], mark(2)));
}

/// The reference is the oracle of a long random history of applies, loads and reads.
pub fn a_random_history_reads_as_the_reference_does(tier: &dyn OnlineTier) {
    let (oracle, name) = (ReferenceTier::default(), view("v"));
    let mut state: u32 = 1;
    let mut next = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % below
    };
    for commit in 1..200 {
        let given: Vec<(String, String)> =
            (0..next(8)).map(|_| (format!("k{}", next(20)), format!("{:04}", next(10_000)))).collect();
        let given: Vec<(&str, &str)> = given.iter().map(|(key, row)| (key.as_str(), row.as_str())).collect();
        for target in [tier, &oracle as &dyn OnlineTier] {
            if commit % 11 == 0 {
                let mut addition = target.begin_addition(&name).expect("writable");
                addition.add(rows(&given)).expect("writable");
                addition.finish(mark(commit)).expect("writable");
            } else if commit % 37 == 0 {
                let mut generation = target.begin_generation(&name).expect("writable");
                generation.add(rows(&given)).expect("writable");
                generation.finish(mark(commit)).expect("writable");
            } else {
                target.apply(&name, rows(&given), mark(commit)).expect("writable");
            }
        }
        let keys: Vec<String> = (0..6).map(|_| format!("k{}", next(22))).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        assert_eq!(read(tier, &name, &keys), read(&oracle, &name, &keys), "after commit {commit}");
    }
}

/// Views of one entity are read together, in groups that overlap, while each changes by itself.
pub fn views_of_one_entity_read_together_as_each_alone(tier: &dyn OnlineTier) {
    let oracle = ReferenceTier::default();
    let views: Vec<Pinned> = ["u", "v", "w"].map(view).to_vec();
    let groups = [vec![0, 1, 2], vec![2, 0], vec![1], vec![1, 2]];
    for commit in 1..90_u64 {
        let (changed, key) = (&views[usize::try_from(commit % 3).expect("small")], format!("k{}", commit * 5 % 7));
        let row = format!("{:02}", commit * 37 % 100);
        for target in [tier, &oracle as &dyn OnlineTier] {
            if commit % 20 == 0 {
                let mut generation = target.begin_generation(changed).expect("writable");
                generation.add(rows(&[(&key, &row)])).expect("writable");
                generation.finish(mark(commit)).expect("writable");
            } else if commit % 31 == 0 {
                target.forget(changed).expect("writable");
            } else {
                target.apply(changed, rows(&[(&key, &row)]), mark(commit)).expect("writable");
            }
        }
        let keys: [&[u8]; 4] = [b"k3", b"k0", b"k6", b"k9"];
        for group in &groups {
            let asked: Vec<Pinned> = group.iter().map(|&index| views[index].clone()).collect();
            let (found, expected) = (tier.read_entities(&asked, &keys), oracle.read_entities(&asked, &keys));
            let (found, expected) = (found.expect("readable"), expected.expect("readable"));
            assert_eq!(found.entities, expected.entities, "after commit {commit}, views {group:?}");
            assert_eq!(found.marks, expected.marks, "after commit {commit}, views {group:?}");
        }
    }
}

/// Clause: a read sees all of a change with its mark, or none: a writer moves two keys together while readers look.
pub fn a_reader_never_sees_half_a_change(tier: &dyn OnlineTier) {
    let name = view("v");
    tier.apply(&name, rows(&[("a", "0000"), ("b", "0000")]), mark(0)).expect("writable");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for commit in 1..=300_u64 {
                let row = format!("{commit:04}");
                let pair = [("a", row.as_str()), ("b", row.as_str())];
                if commit % 50 == 0 {
                    let mut generation = tier.begin_generation(&name).expect("writable");
                    generation.add(rows(&pair)).expect("writable");
                    generation.finish(mark(commit)).expect("writable");
                } else {
                    tier.apply(&name, rows(&pair), mark(commit)).expect("writable");
                }
            }
        });
        while !writer.is_finished() {
            let (found, mark) = read(tier, &name, &["a", "b"]);
            let expected = Some(format!("{:04}", mark.commit));
            assert_eq!(found, [expected.clone(), expected]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::MemoryTier;

    #[test]
    fn the_reference_keeps_the_contract() {
        run(|_| Box::new(ReferenceTier::default()));
    }

    #[test]
    fn the_memory_tier_keeps_the_contract_at_any_size() {
        for bytes in [0, 400, 1 << 20] {
            run(|_| Box::new(MemoryTier::new(ReferenceTier::default(), bytes)));
        }
    }
}
