//! Fair shares of what there is only so much of: places, connections, rows that wait, bytes.
//!
//! Whoever is known by a name has at most its share, however much is free: what is left is there for others at once, and
//! nobody has to be thrown out for them. Who is not known by a name shares the whole with all others who are not.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use springhouse_featurestore::Error;

/// What is in use, by whom. Without locks, clocks or waiting.
#[derive(Debug)]
struct Used<K> {
    all: usize,
    by: HashMap<K, usize>,
}

impl<K> Default for Used<K> {
    fn default() -> Self {
        Self { all: 0, by: HashMap::new() }
    }
}

/// Why there is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// All of it is in use.
    Whole { used: usize, limit: usize },
    /// Who asks has its share.
    Share { used: usize, limit: usize },
}

impl Full {
    /// The error, of so many of a thing: "lookups that are open".
    pub(crate) fn error(self, what: &str, who: Option<&str>) -> Error {
        match self {
            Self::Whole { used, limit } => Error::busy(format!("there are as many {what} as there may be"))
                .with("in use", used)
                .with("limit", limit)
                .remedy("try again when others have ended"),
            Self::Share { used, limit } => Error::busy(format!("one caller has its share of {what}"))
                .with("caller", who.unwrap_or_default())
                .with("in use", used)
                .with("share", limit)
                .remedy("wait until some of them have ended: the rest is there for others"),
        }
    }
}

impl<K: Eq + Hash + Clone> Used<K> {
    /// Takes so much for one, within the bounds of the whole and of a share. Who has nothing gets what it asks for even where it
    /// is more than a share: else it would never get it.
    fn take(&mut self, who: Option<&K>, amount: usize, (whole, share): (usize, usize)) -> Result<(), Full> {
        if amount == 0 {
            return Ok(());
        }
        if amount > whole.saturating_sub(self.all) {
            return Err(Full::Whole { used: self.all, limit: whole });
        }
        if let Some(who) = who {
            let used = self.by.get(who).copied().unwrap_or_default();
            if used > 0 && amount > share.saturating_sub(used) {
                return Err(Full::Share { used, limit: share });
            }
            *self.by.entry(who.clone()).or_default() += amount;
        }
        self.all += amount;
        Ok(())
    }

    /// Gives back what was taken.
    fn give<Q: Eq + Hash + ?Sized>(&mut self, who: Option<&Q>, amount: usize)
    where
        K: Borrow<Q>,
    {
        self.all = self.all.saturating_sub(amount);
        if let Some(who) = who
            && let Some(used) = self.by.get_mut(who)
        {
            *used = used.saturating_sub(amount);
            if *used == 0 {
                self.by.remove(who);
            }
        }
    }
}

/// Something of which there is only so much, for many at once.
#[derive(Debug)]
pub(crate) struct Shares<K> {
    whole: usize,
    share: usize,
    used: Mutex<Used<K>>,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// So much of it, of which one may have half: two who take all that they can leave nobody out but each other.
    pub(crate) fn halves(whole: usize) -> Arc<Self> {
        Self::new(whole, whole.div_ceil(2))
    }

    /// So much of it, of which one may have a share.
    pub(crate) fn new(whole: usize, share: usize) -> Arc<Self> {
        Arc::new(Self { whole, share, used: Mutex::default() })
    }

    fn used(&self) -> MutexGuard<'_, Used<K>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes nothing yet, for one who may: no lock is taken, nor is anybody else asked.
    pub(crate) fn nothing(self: &Arc<Self>, who: Option<&K>) -> Share<K> {
        Share { of: Arc::clone(self), who: who.cloned(), amount: 0 }
    }

    /// Takes so much, and holds it for as long as what is given lives.
    pub(crate) fn take(self: &Arc<Self>, who: Option<&K>, amount: usize) -> Result<Share<K>, Full> {
        if amount > 0 {
            self.used().take(who, amount, (self.whole, self.share))?;
        }
        Ok(Share { of: Arc::clone(self), who: who.cloned(), amount })
    }
}

/// What one has taken.
#[derive(Debug)]
pub(crate) struct Share<K: Eq + Hash + Clone> {
    of: Arc<Shares<K>>,
    who: Option<K>,
    amount: usize,
}

impl<K: Eq + Hash + Clone> Share<K> {
    /// Whose it is.
    pub(crate) fn who(&self) -> Option<&K> {
        self.who.as_ref()
    }

    /// How much it is.
    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    /// Makes it larger or smaller; where it cannot be larger it stays as it is.
    pub(crate) fn resize(&mut self, amount: usize) -> Result<(), Full> {
        if amount > self.amount {
            self.of.used().take(self.who.as_ref(), amount - self.amount, (self.of.whole, self.of.share))?;
            self.amount = amount;
        }
        self.shrink(amount);
        Ok(())
    }

    /// Makes it no larger than this.
    pub(crate) fn shrink(&mut self, amount: usize) {
        if amount < self.amount {
            self.of.used().give(self.who.as_ref(), self.amount - amount);
            self.amount = amount;
        }
    }
}

impl<K: Eq + Hash + Clone> Drop for Share<K> {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.of.used().give(self.who.as_ref(), self.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Someone takes so much, or gives back the so-manieth of what is held.
    #[derive(Debug, Clone)]
    enum Step {
        Take(Option<u8>, usize),
        Give(usize),
        Resize(usize, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (proptest::option::of(0..4_u8), 0..9_usize).prop_map(|(who, amount)| Step::Take(who, amount)),
            (0..20_usize).prop_map(Step::Give),
            (0..20_usize, 0..9_usize).prop_map(|(which, amount)| Step::Resize(which, amount)),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// What is held of all.
    fn sum(held: &[Share<u8>]) -> usize {
        held.iter().map(|share| share.amount).sum()
    }

    /// What is held of one.
    fn sum_of(held: &[Share<u8>], who: Option<u8>) -> usize {
        held.iter().filter(|share| share.who == who).map(|share| share.amount).sum()
    }

    proptest! {
        #[test]
        fn nobody_has_more_than_a_share_and_all_together_no_more_than_there_is(steps in steps()) {
            let (whole, share) = (20, 7);
            let shares = Shares::new(whole, share);
            let mut held: Vec<Share<u8>> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(who, amount) => {
                        let (all, own) = (sum(&held), sum_of(&held, who));
                        let its = who.is_none() || own == 0 || own + amount <= share;
                        let fits = amount == 0 || all + amount <= whole && its;
                        match shares.take(who.as_ref(), amount) {
                            Ok(taken) => {
                                prop_assert!(fits);
                                held.push(taken);
                            }
                            Err(Full::Whole { used, .. }) => prop_assert!(all + amount > whole && used == all),
                            Err(Full::Share { used, .. }) => prop_assert!(!fits && used == own),
                        }
                    }
                    Step::Give(which) => {
                        if which < held.len() {
                            drop(held.swap_remove(which));
                        }
                    }
                    Step::Resize(which, amount) => {
                        if let Some(one) = held.get_mut(which) {
                            let before = one.amount;
                            let resized = one.resize(amount);
                            prop_assert_eq!(one.amount, if resized.is_ok() { amount } else { before });
                        }
                    }
                }
                prop_assert_eq!(shares.used().all, sum(&held));
                prop_assert!(shares.used().all <= whole);
                for who in 0..4_u8 {
                    prop_assert_eq!(shares.used().by.get(&who).copied().unwrap_or_default(), sum_of(&held, Some(who)));
                }
            }
            drop(held);
            // What nobody has any more is not kept in mind.
            prop_assert!(shares.used().all == 0 && shares.used().by.is_empty());
        }

        #[test]
        fn whoever_takes_all_that_it_can_leaves_the_rest_for_others(amounts in prop::collection::vec(1..5_usize, 0..99)) {
            let shares = Shares::halves(100);
            let greedy: Vec<Share<u8>> = amounts.iter().filter_map(|amount| shares.take(Some(&1), *amount).ok()).collect();
            prop_assert!(sum(&greedy) <= 50);
            prop_assert!(shares.take(Some(&2), 50).is_ok());
            prop_assert!(shares.take(None, 50).is_ok());
        }
    }

    #[test]
    fn who_is_not_known_by_name_may_have_the_whole_and_a_refusal_names_what_there_is() {
        let shares: Arc<Shares<Arc<str>>> = Shares::halves(4);
        let ann: Arc<str> = "ann".into();
        let all = shares.take(None, 4).expect("the whole");
        let full = shares.take(Some(&ann), 1).expect_err("nothing is left");
        assert_eq!(full, Full::Whole { used: 4, limit: 4 });
        drop(all);
        let half = shares.take(Some(&ann), 2).expect("half");
        let full = shares.take(Some(&ann), 1).expect_err("no more than half");
        assert_eq!(full, Full::Share { used: 2, limit: 2 });
        let error = full.error("lookups that are open", Some("ann")).to_string();
        assert!(error.contains("lookups that are open") && error.contains("caller: ann"), "{error}");
        drop(half);
        // What is larger than a share is had alone.
        shares.take(Some(&ann), 3).expect("who has nothing gets it");
    }
}
