//! The sweep at the heart of the point-in-time join. Pure: no engine types, no I/O.

/// The best row so far of the key being swept.
///
/// Rows are offered in order of (key, visible time); questions come in order of (key, time), each after all rows that
/// are visible by then. `K` is a key, `R` says where a row lies.
#[derive(Debug)]
pub(super) struct Sweep<K, R> {
    key: Option<K>,
    best: Option<((i64, i64), R)>,
}

impl<K, R: Clone> Sweep<K, R> {
    pub(super) fn new() -> Self {
        Self { key: None, best: None }
    }

    /// Offers a row with its (event, available) times. Of rows with equal times the later offered holds.
    /// `is` tells whether the row is of the key held, `key` makes the row's own.
    pub(super) fn offer(&mut self, is: impl Fn(&K) -> bool, key: impl FnOnce() -> K, times: (i64, i64), row: R) {
        if !self.key.as_ref().is_some_and(is) {
            self.key = Some(key());
            self.best = None;
        }
        if self.best.as_ref().is_none_or(|(held, _)| times >= *held) {
            self.best = Some((times, row));
        }
    }

    /// The best row so far, of whatever key.
    pub(super) fn best(&self) -> Option<&R> {
        self.best.as_ref().map(|(_, row)| row)
    }

    /// The row that holds now for the key that `is` recognises.
    pub(super) fn answer(&self, is: impl Fn(&K) -> bool) -> Option<R> {
        let same = self.key.as_ref().is_some_and(is);
        self.best.as_ref().filter(|_| same).map(|(_, row)| row.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Row = (String, i64, i64);

    /// Rules T3 and T5 said plainly: a filter over all rows per question.
    fn oracle(rows: &[Row], key: &str, time: i64) -> Option<(i64, i64)> {
        rows.iter()
            .filter(|(of, event, available)| of == key && *event <= time && *available <= time)
            .map(|(_, event, available)| (*event, *available))
            .max()
    }

    fn swept(rows: &[Row], questions: &[(String, i64)]) -> Vec<Option<(i64, i64)>> {
        let mut sweep: Sweep<String, usize> = Sweep::new();
        let mut next = 0;
        let mut answers = Vec::new();
        for (key, time) in questions {
            while let Some((of, event, available)) = rows.get(next)
                && (of, *event.max(available)) <= (key, *time)
            {
                sweep.offer(|held| held == of, || of.clone(), (*event, *available), next);
                next += 1;
            }
            answers.push(sweep.answer(|held| held == key).map(|row| (rows[row].1, rows[row].2)));
        }
        answers
    }

    proptest! {
        #[test]
        fn the_sweep_answers_as_a_filter_over_all_rows(
            mut rows in proptest::collection::vec(("[a-c]", 0_i64..20, 0_i64..20), 0..60),
            mut questions in proptest::collection::vec(("[a-d]", -1_i64..22), 0..40),
        ) {
            rows.sort_by_key(|(key, event, available)| (key.clone(), *event.max(available), *event, *available));
            questions.sort();
            let expected: Vec<_> = questions.iter().map(|(key, time)| oracle(&rows, key, *time)).collect();
            prop_assert_eq!(swept(&rows, &questions), expected);
        }
    }

    #[test]
    fn a_late_row_is_not_seen_before_it_was_known_and_never_hides_a_newer_one() {
        let rows = [("a".to_owned(), 5, 5), ("a".to_owned(), 7, 20)];
        let ask = |times: &[i64]| swept(&rows, &times.iter().map(|t| ("a".to_owned(), *t)).collect::<Vec<_>>());
        assert_eq!(ask(&[4, 5, 19, 20]), [None, Some((5, 5)), Some((5, 5)), Some((7, 20))]);
        let rows = [("a".to_owned(), 7, 7), ("a".to_owned(), 5, 20)];
        let answers = swept(&rows, &[("a".to_owned(), 30)]);
        assert_eq!(answers, [Some((7, 7))]);
    }
}
