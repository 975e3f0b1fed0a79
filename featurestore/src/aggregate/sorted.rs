//! Lists in order without equals: how the sets and counts of summaries are kept, and merged in one pass over both.

use std::cmp::Ordering;

/// A list that is so many times shorter than the one that it goes into is searched for, element by element.
const MUCH_SHORTER: usize = 16;

/// Merges `theirs` into `ours`, both in `order` and without equals; of two equals `join` makes one.
///
/// In time proportional to both lengths, or for a list that is much shorter to its own length, times a search.
pub(super) fn merge_sorted<T: Clone>(
    ours: &mut Vec<T>,
    theirs: &[T],
    order: impl Fn(&T, &T) -> Ordering,
    join: impl Fn(&mut T, &T),
) {
    if theirs.len() * MUCH_SHORTER <= ours.len() {
        for new in theirs {
            match ours.binary_search_by(|held| order(held, new)) {
                Ok(place) => join(&mut ours[place], new),
                Err(place) => ours.insert(place, new.clone()),
            }
        }
        return;
    }
    if ours.is_empty() {
        ours.extend_from_slice(theirs);
        return;
    }
    let mut merged = Vec::with_capacity(ours.len() + theirs.len());
    let mut left = theirs;
    for mut held in ours.drain(..) {
        while let [new, rest @ ..] = left {
            match order(new, &held) {
                Ordering::Less => merged.push(new.clone()),
                Ordering::Equal => join(&mut held, new),
                Ordering::Greater => break,
            }
            left = rest;
        }
        merged.push(held);
    }
    merged.extend_from_slice(left);
    *ours = merged;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn merged_lists_are_those_of_a_map(
            ours in proptest::collection::btree_map(0_u16..400, 0_u64..9, 0..120),
            theirs in proptest::collection::btree_map(0_u16..400, 0_u64..9, 0..120),
            few in any::<bool>(),
        ) {
            let theirs: BTreeMap<u16, u64> = theirs.into_iter().take(if few { 3 } else { usize::MAX }).collect();
            let mut expected = ours.clone();
            for (key, count) in &theirs {
                *expected.entry(*key).or_default() += count;
            }
            let mut merged: Vec<(u16, u64)> = ours.into_iter().collect();
            let theirs: Vec<(u16, u64)> = theirs.into_iter().collect();
            merge_sorted(&mut merged, &theirs, |one, other| one.0.cmp(&other.0), |held, new| held.1 += new.1);
            prop_assert_eq!(merged, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
