//! Which views are followed, and which are not: one that cannot be loaded or followed is in trouble by itself, is named
//! wherever somebody asks, and is tried again with every look at the store.
//!
//! A view that was loaded once and whose storage does not answer is *behind*: it is looked up as it stands, and its lag
//! says how old that is (rule T7). A view of which nothing was ever loaded, or whose data or query is wrong, is
//! *unavailable*: whatever a lookup of it said could be false.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use springhouse_featurestore::definition::{Contract, Pinned};
use springhouse_featurestore::time::Timestamp;
use springhouse_featurestore::{Error, ErrorKind, Result};

/// How a view is followed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewState {
    /// All that was committed by the last look at the store can be looked up.
    #[default]
    Following,
    /// What can be looked up is what was committed before the trouble began.
    Behind(Trouble),
    /// Lookups of contracts that need it are refused.
    Unavailable(Trouble),
}

/// What is wrong with a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// When it was first found.
    pub since: Timestamp,
    /// What kind of failure it is, in words that quote nothing.
    #[serde(default)]
    pub kind: String,
    /// What happened when it was tried last. It may quote values of events: over the wire it is for those who may run queries,
    /// and empty for others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// A kind of failure of a view, in words that quote nothing.
pub(crate) fn in_words(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Invalid => "its query fails on what it reads",
        ErrorKind::Damaged | ErrorKind::NotFound => "what is stored of it is damaged or gone",
        ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::Conflict => "what it needs cannot be read or written now",
        _ => "a fault of this program",
    }
}

impl Trouble {
    /// What is wrong since a time, by the error of the last try.
    pub fn new(since: Timestamp, error: &Error) -> Self {
        Self { since, kind: in_words(error.kind()).to_owned(), reason: error.chain() }
    }

    /// What it is, as far as it is told.
    pub fn told(&self) -> &str {
        if self.reason.is_empty() { &self.kind } else { &self.reason }
    }
}

impl ViewState {
    /// What is wrong, if anything is.
    pub fn trouble(&self) -> Option<&Trouble> {
        match self {
            Self::Following => None,
            Self::Behind(trouble) | Self::Unavailable(trouble) => Some(trouble),
        }
    }

    /// The same for those who may not run queries: without what could quote values of events.
    #[must_use]
    pub fn without_reason(self) -> Self {
        let without = |trouble| Trouble { reason: String::new(), ..trouble };
        match self {
            Self::Following => Self::Following,
            Self::Behind(trouble) => Self::Behind(without(trouble)),
            Self::Unavailable(trouble) => Self::Unavailable(without(trouble)),
        }
    }

    /// Whether lookups are refused.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// After a failure at `now`; `loaded` is whether anything of the view can be looked up.
    fn after(before: Option<&Self>, error: &Error, loaded: bool, now: Timestamp) -> Self {
        let since = before.and_then(Self::trouble).map_or(now, |trouble| trouble.since);
        let trouble = Trouble::new(since, error);
        // Storage that does not answer says nothing about what was read before.
        if loaded && error.kind() == ErrorKind::Unavailable {
            Self::Behind(trouble)
        } else {
            Self::Unavailable(trouble)
        }
    }
}

/// The views that are not followed; the others are.
#[derive(Debug, Default)]
pub(super) struct Views {
    troubled: RwLock<HashMap<Pinned, ViewState>>,
    /// How many are unavailable: lookups look no further while none is.
    unavailable: AtomicUsize,
    /// Held by who follows a view: two would load the same commits.
    turns: Mutex<HashMap<Pinned, Arc<tokio::sync::Mutex<()>>>>,
}

impl Views {
    /// How a view is followed.
    pub(super) fn state(&self, view: &Pinned) -> ViewState {
        self.troubled.read().unwrap_or_else(PoisonError::into_inner).get(view).cloned().unwrap_or_default()
    }

    /// What is held by who follows a view.
    pub(super) fn turn(&self, view: &Pinned) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(view.clone()).or_default())
    }

    /// A view was followed up to its newest commit.
    pub(super) fn followed(&self, view: &Pinned) {
        let known = self.troubled.read().unwrap_or_else(PoisonError::into_inner).contains_key(view);
        if known {
            tracing::info!(%view, "the view can be followed again");
            self.change(|troubled| {
                troubled.remove(view);
            });
        }
    }

    /// A view could not be followed; `loaded` is whether anything of it can be looked up.
    pub(super) fn failed(&self, view: &Pinned, error: &Error, loaded: bool, now: Timestamp) {
        self.change(|troubled| {
            let state = ViewState::after(troubled.get(view), error, loaded, now);
            tracing::error!(
                %view, error = %error.chain(), unavailable = state.is_unavailable(),
                "a view cannot be followed; the others go on"
            );
            troubled.insert(view.clone(), state);
        });
    }

    /// Forgets the views that are no longer live.
    pub(super) fn retain(&self, is_live: impl Fn(&Pinned) -> bool) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has one keeps others from following the view.
        turns.retain(|view, turn| is_live(view) || Arc::strong_count(turn) > 1);
        drop(turns);
        let any = !self.troubled.read().unwrap_or_else(PoisonError::into_inner).is_empty();
        if any {
            self.change(|troubled| troubled.retain(|view, _| is_live(view)));
        }
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<Pinned, ViewState>)) {
        let mut troubled = self.troubled.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut troubled);
        let unavailable = troubled.values().filter(|state| state.is_unavailable()).count();
        self.unavailable.store(unavailable, Ordering::Release);
    }

    /// Refuses the lookup of a contract that needs an unavailable view.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] names the view, since when, and what kind of failure it is.
    pub(super) fn check(&self, contract: &Contract) -> Result<()> {
        if self.unavailable.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let troubled = self.troubled.read().unwrap_or_else(PoisonError::into_inner);
        for rule in &contract.features {
            if let Some(ViewState::Unavailable(trouble)) = troubled.get(&rule.view) {
                return Err(unavailable(contract, &rule.view, trouble));
            }
        }
        Ok(())
    }
}

/// The refusal of a lookup: the view, since when, and what kind of failure it is. What the view's query said may quote values of
/// others' events, and who reads or asks for predictions may not see those.
pub(super) fn unavailable(contract: &Contract, view: &Pinned, trouble: &Trouble) -> Error {
    Error::unavailable("a view of the contract is unavailable")
        .with("contract", contract.pinned())
        .with("view", view)
        .with("since", trouble.since)
        .with("failure", &trouble.kind)
        .remedy(
            "`springhouse status` by a caller with the scope query, or the server's log, has the reason; the view is tried again \
             every second",
        )
}

#[cfg(test)]
mod tests {
    use springhouse_featurestore::definition::Version;

    use super::*;

    fn view() -> Pinned {
        Pinned::new("spent", Version::from_text("1"))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_view_that_was_loaded_is_behind_while_storage_does_not_answer() {
        let views = Views::default();
        views.failed(&view(), &Error::unavailable("no store"), true, at(1));
        assert!(matches!(views.state(&view()), ViewState::Behind(_)));
        views.followed(&view());
        assert_eq!(views.state(&view()), ViewState::Following);
    }

    #[test]
    fn a_view_that_was_never_loaded_or_is_damaged_is_unavailable_since_the_first_time() {
        let views = Views::default();
        views.failed(&view(), &Error::unavailable("no store"), false, at(1));
        views.failed(&view(), &Error::damaged("a commit is damaged"), true, at(2));
        let trouble = Trouble::new(at(1), &Error::damaged("a commit is damaged"));
        assert_eq!(views.state(&view()), ViewState::Unavailable(trouble));
        assert_eq!(views.unavailable.load(Ordering::Acquire), 1);
        views.retain(|_| false);
        assert_eq!(views.unavailable.load(Ordering::Acquire), 0);
    }

    #[test]
    fn who_may_not_run_queries_is_told_the_kind_of_a_failure_and_no_value() {
        let failed = Error::invalid("Cannot cast string 'ann@example.com' to value of Int64 type");
        let trouble = Trouble::new(at(1), &failed);
        let (request, features, inputs, output) = Default::default();
        let contract = Contract {
            name: "fraud".to_owned(),
            version: Version::from_text("1"),
            policy: None,
            text: String::new(),
            tier: "interactive".to_owned(),
            request,
            features,
            inputs,
            output,
            latency: None,
            availability: None,
        };
        let refused = unavailable(&contract, &view(), &trouble).chain();
        assert!(
            refused.contains("spent@1") && refused.contains("its query fails") && !refused.contains("ann@"),
            "{refused}"
        );
        for state in [ViewState::Behind(trouble.clone()), ViewState::Unavailable(trouble.clone())] {
            assert!(state.trouble().expect("in trouble").told().contains("ann@"));
            let told = serde_json::to_string(&state.without_reason()).expect("writable");
            assert!(told.contains("its query fails") && !told.contains("ann@"), "{told}");
        }
    }
}
