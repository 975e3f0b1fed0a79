//! View versions that nothing names any more leave the online tiers.
//!
//! A tier holds what is looked up. When a view's version is neither current nor pinned by a contract that is, or that is
//! deployed, nobody can ask for it; but who has just asked for a contract may still, and a roll back must find it warm. So it
//! is forgotten an hour later. Object storage keeps it: a version that is wanted again is loaded again.

use std::collections::{BTreeMap, BTreeSet};

use super::OnlineTier;
use crate::Result;
use crate::definition::Pinned;
use crate::time::{Span, Timestamp};

/// How long a version that nothing names is kept.
const KEPT: Span = Span::from_secs(3_600);

/// The versions that a tier holds and nothing names, each with when that was first seen.
#[derive(Debug, Default)]
pub struct Retired {
    since: BTreeMap<Pinned, Timestamp>,
}

impl Retired {
    /// Forgets the versions that nothing has named for an hour. The caller keeps others from changing them. Returns them.
    ///
    /// # Errors
    /// Those of the tier; what was not forgotten is the next time.
    pub fn forget(&mut self, tier: &dyn OnlineTier, needed: &BTreeSet<Pinned>, now: Timestamp) -> Result<Vec<Pinned>> {
        let unnamed: BTreeSet<Pinned> = tier.views().into_iter().filter(|view| !needed.contains(view)).collect();
        self.since.retain(|view, since| unnamed.contains(view) && *since <= now);
        let mut forgotten = Vec::new();
        for view in unnamed {
            let since = *self.since.entry(view.clone()).or_insert(now);
            if now.since(since) >= KEPT {
                tier.forget(&view)?;
                self.since.remove(&view);
                tracing::info!(%view, "forgotten: nothing names this version any more");
                forgotten.push(view);
            }
        }
        Ok(forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;
    use crate::definition::Version;
    use crate::tier::ReferenceTier;

    #[test]
    fn a_version_that_nothing_names_is_forgotten_an_hour_later_unless_it_is_named_again() {
        let tier = ReferenceTier::default();
        let (new, old) = (conformance::view("v"), Pinned::new("v", Version::from_text("ba9876543210")));
        for view in [&new, &old] {
            tier.apply(view, conformance::rows(&[("a", "1")]), conformance::mark(1)).expect("writable");
        }
        let at = |minutes: i64| Timestamp::from_micros(minutes * 60_000_000);
        let both = BTreeSet::from([new.clone(), old.clone()]);
        let one = BTreeSet::from([new.clone()]);
        let mut retired = Retired::default();
        for (minutes, needed) in [(0, &both), (10, &one), (69, &one), (69, &both), (70, &one), (129, &one)] {
            assert!(retired.forget(&tier, needed, at(minutes)).expect("forgets").is_empty(), "at {minutes} min");
        }
        assert_eq!(retired.forget(&tier, &one, at(130)).expect("forgets"), std::slice::from_ref(&old));
        assert_eq!(tier.views(), [new]);
        assert_eq!(tier.mark(&old).expect("readable"), crate::tier::Mark::default());
    }
}
