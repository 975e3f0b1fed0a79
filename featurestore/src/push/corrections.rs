//! What people changed about a producer: the newest change of each kind. A change that has not come to the store yet is not
//! lost to one of another kind.

use std::mem::discriminant;

use serde::{Deserialize, Serialize};

use super::{ProducerChange, ProducerCorrection};
use crate::catalog::Signature;
use crate::time::{Span, Timestamp};

/// The newest changes of a producer, one of each kind, the newest last. Written as a list; one alone, as it was kept before
/// there were several, is read too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMore")]
pub struct Corrections(Vec<ProducerCorrection>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    More(Vec<ProducerCorrection>),
    One(ProducerCorrection),
}

impl From<OneOrMore> for Corrections {
    fn from(read: OneOrMore) -> Self {
        match read {
            OneOrMore::More(corrections) => Self(corrections),
            OneOrMore::One(correction) => Self(vec![correction]),
        }
    }
}

fn is_of_the_kind(one: &ProducerChange, other: &ProducerChange) -> bool {
    discriminant(one) == discriminant(other)
}

impl Corrections {
    /// Whether nothing was ever changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest of all.
    pub fn last(&self) -> Option<&ProducerCorrection> {
        self.0.last()
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> impl Iterator<Item = &ProducerCorrection> {
        self.0.iter()
    }

    /// The one of the same kind as a change.
    pub fn of_kind(&self, change: &ProducerChange) -> Option<&ProducerCorrection> {
        self.0.iter().find(|known| is_of_the_kind(&known.change, change))
    }

    /// The one that retired the producer.
    pub fn retired(&self) -> Option<&ProducerCorrection> {
        self.of_kind(&ProducerChange::Retire)
    }

    /// The one that set its watermark back.
    pub fn watermark(&self) -> Option<&ProducerCorrection> {
        self.0.iter().find(|known| matches!(known.change, ProducerChange::Watermark(_)))
    }

    /// The one that set its sequence back.
    pub fn sequence(&self) -> Option<&ProducerCorrection> {
        self.0.iter().find(|known| matches!(known.change, ProducerChange::Sequence(_)))
    }

    /// The one that handed its name over.
    pub fn handed_over(&self) -> Option<&ProducerCorrection> {
        self.0.iter().find(|known| matches!(known.change, ProducerChange::HandOver(_)))
    }

    /// Puts a new one, which comes after all of before, whatever the clock says; gives where it comes.
    pub fn add(&mut self, change: ProducerChange, by: Signature) -> Timestamp {
        let next = self.last().map(|last| last.order() + Span::from_micros(1));
        let order = next.filter(|next| *next > by.at);
        let correction = ProducerCorrection { change, by, order };
        let order = correction.order();
        self.put(correction);
        order
    }

    /// Puts one in the place of that of its kind.
    pub fn put(&mut self, correction: ProducerCorrection) {
        self.0.retain(|known| !is_of_the_kind(&known.change, &correction.change));
        self.0.push(correction);
        self.0.sort_by_key(ProducerCorrection::order);
    }

    /// Those among these that others do not have, or have an older one of the kind of.
    #[must_use]
    pub fn newer_than(&self, others: &Self) -> Self {
        let is_newer =
            |of: &&ProducerCorrection| others.of_kind(&of.change).is_none_or(|known| known.order() < of.order());
        Self(self.0.iter().filter(is_newer).cloned().collect())
    }

    /// Those among these that others do not have as they are.
    #[must_use]
    pub fn not_in(&self, others: &Self) -> Self {
        Self(self.0.iter().filter(|of| !others.0.contains(of)).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn correction(change: ProducerChange, second: i64) -> ProducerCorrection {
        let by = Signature { at: Timestamp::from_micros(second), who: "ann".to_owned(), why: String::new() };
        ProducerCorrection::new(change, by)
    }

    #[test]
    fn of_each_kind_the_newest_is_kept_and_one_of_before_is_read() {
        let mut known = Corrections::default();
        known.put(correction(ProducerChange::Sequence(7), 1));
        known.put(correction(ProducerChange::Retire, 2));
        known.put(correction(ProducerChange::Sequence(5), 3));
        assert_eq!(known.all().map(|of| of.by.at.micros()).collect::<Vec<_>>(), [2, 3]);
        let mut other = Corrections::default();
        other.put(correction(ProducerChange::Retire, 1));
        other.put(correction(ProducerChange::Sequence(5), 3));
        assert_eq!(known.newer_than(&other).all().map(|of| of.by.at.micros()).collect::<Vec<_>>(), [2]);
        assert!(other.newer_than(&known).is_empty());
        let json = serde_json::to_string(&known).expect("JSON");
        assert_eq!(serde_json::from_str::<Corrections>(&json).expect("as it was written"), known);
        let alone = serde_json::to_string(&correction(ProducerChange::Retire, 2)).expect("JSON");
        let read: Corrections = serde_json::from_str(&alone).expect("as it was kept before");
        assert_eq!(read.retired(), Some(&correction(ProducerChange::Retire, 2)));
    }
}
