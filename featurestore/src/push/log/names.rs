//! The names of producers: how many a source may have, and a caller of it, and which of them leave.
//!
//! What a name has said is remembered for ever: a batch whose sequence is not greater than its last was sent before. So there
//! are only so many, and one caller may have a part of them. A name is in use from when a push under it is admitted until that has
//! ended; it is kept, and becomes a caller's, with the first push that is taken of it.
//!
//! Where there is no room for another, those leave that have nothing to say and are silent for long: that never sent a sequence,
//! and hold no watermark back (one that is retired holds none). A name that has sent a sequence never leaves, whoever it is of and
//! however long it is silent: what it sends again would count again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rocksdb::WriteBatch;

use super::PushLog;
use super::format::producer_key;
use super::state::{Producers, State};
use crate::time::{Span, Timestamp};
use crate::{Error, Result};

/// The most names of producers of a source, and those of them that one caller may have, and that may have come from those whom
/// nobody asked who they are.
const MOST: Most = Most { all: 10_000, of_one: 2_500, of_nobody: 5_000 };

/// The most bytes of a producer's name.
const MOST_NAME_BYTES: usize = 256;

/// A name that has nothing to say leaves when it was not heard of for longer than this while others were.
const LEAVES_AFTER: Span = Span::from_secs(30 * 24 * 60 * 60);

/// How often a source without room is looked through for names that may leave.
const LOOK_EVERY: Span = Span::from_secs(60 * 60);

#[derive(Debug, Clone, Copy)]
struct Most {
    all: usize,
    of_one: usize,
    of_nobody: usize,
}

impl Most {
    fn of(self, caller: Option<&str>) -> usize {
        if caller.is_some() { self.of_one } else { self.of_nobody }
    }
}

/// A name under which pushes are under way.
#[derive(Debug, Default)]
pub(super) struct InUse {
    pushes: usize,
    /// Whose it becomes with the first of them that is taken.
    pub(super) caller: Option<String>,
}

/// The names of a source that are kept.
#[derive(Debug, Default)]
pub(super) struct Counted {
    all: usize,
    by: HashMap<Option<String>, usize>,
}

/// A producer's name, in use for as long as this lives.
#[derive(Debug)]
pub struct NameInUse {
    log: Arc<PushLog>,
    of: (String, String),
}

impl Drop for NameInUse {
    fn drop(&mut self) {
        let mut state = self.log.state();
        if let Some(in_use) = state.in_use.get_mut(&self.of) {
            in_use.pushes -= 1;
            if in_use.pushes == 0 {
                state.in_use.remove(&self.of);
            }
        }
    }
}

/// Of producers those of a source.
pub(super) fn of_source<'a, T>(
    producers: &'a Producers<T>,
    source: &'a str,
) -> impl Iterator<Item = &'a (String, String)> {
    let all = producers.range((source.to_owned(), String::new())..);
    all.map(|(of, _)| of).take_while(move |of| of.0 == source)
}

impl State {
    /// Whether a producer has said something that whoever has its name could make false.
    pub(super) fn has_said(&self, of: &(String, String)) -> bool {
        self.sequences.contains_key(of) || self.watermarks.contains_key(of)
    }

    /// Whether a producer's name is kept.
    pub(super) fn is_kept(&self, of: &(String, String)) -> bool {
        self.has_said(of) || self.heard.contains_key(of) || self.owners.contains_key(of)
    }

    /// The caller whose a name becomes with a push that is appended.
    pub(super) fn claimed(&self, of: &(String, String)) -> Option<String> {
        self.in_use.get(of).and_then(|in_use| in_use.caller.clone()).filter(|_| !self.owners.contains_key(of))
    }

    /// Names are kept from here on that were not, or have become callers'. They are counted when somebody asks.
    pub(super) fn keep_names(&mut self, owners: Producers<String>, heard: &Producers<Timestamp>) {
        let new = heard.keys().filter(|of| !self.is_kept(of)).chain(owners.keys());
        let sources: BTreeSet<String> = new.map(|of| of.0.clone()).collect();
        self.counted.retain(|source, _| !sources.contains(source));
        self.owners.extend(owners);
    }

    fn counted(&mut self, source: &str) -> &Counted {
        if !self.counted.contains_key(source) {
            let said = of_source(&self.sequences, source).chain(of_source(&self.watermarks, source));
            let names = said.chain(of_source(&self.heard, source)).chain(of_source(&self.owners, source));
            let names: BTreeSet<&(String, String)> = names.collect();
            let mut counted = Counted { all: names.len(), by: HashMap::new() };
            for of in names {
                *counted.by.entry(self.owners.get(of).cloned()).or_default() += 1;
            }
            self.counted.insert(source.to_owned(), counted);
        }
        &self.counted[source]
    }

    /// Whether there is room for a name that is new, to its source or to its caller.
    fn check_room(&mut self, of: &(String, String), caller: Option<&str>, most: Most) -> Result<()> {
        let is_used = self.in_use.get(of);
        let is_new = !self.is_kept(of) && is_used.is_none();
        let is_new_to_caller = match caller {
            None => is_new,
            Some(_) => !self.owners.contains_key(of) && is_used.is_none_or(|in_use| in_use.caller.is_none()),
        };
        if !is_new && !is_new_to_caller {
            return Ok(());
        }
        let coming = self.in_use.iter().filter(|(other, _)| other.0 == of.0 && !self.is_kept(other)).count();
        let claimed = self.in_use.iter().filter(|(other, in_use)| {
            other.0 == of.0 && !self.owners.contains_key(*other) && in_use.caller.as_deref() == caller
        });
        let claimed = claimed.filter(|(other, _)| caller.is_some() || !self.is_kept(other)).count();
        let counted = self.counted(&of.0);
        let all = counted.all + coming;
        let its = counted.by.get(&caller.map(ToOwned::to_owned)).copied().unwrap_or_default() + claimed;
        let remedy = "let each sender keep its name: what a name has sent is remembered, so that nothing counts twice";
        if is_new && all >= most.all {
            return Err(Error::busy("the source has as many producers as there may be")
                .with("source", &of.0)
                .with("producers", all)
                .remedy(remedy));
        }
        if is_new_to_caller && its >= most.of(caller) {
            return Err(Error::busy("one caller has as many producers of the source as it may have")
                .with("source", &of.0)
                .with("caller", caller.unwrap_or("nobody in particular"))
                .with("producers", its)
                .remedy(remedy));
        }
        Ok(())
    }

    /// Whether a name has nothing to say and is silent for long.
    fn may_leave(&self, of: &(String, String), latest: Timestamp) -> bool {
        let is_silent = self.heard_by(of).is_some_and(|heard| latest.since(heard) > LEAVES_AFTER);
        is_silent && !self.has_said(of) && !self.in_use.contains_key(of)
    }

    fn forget(&mut self, of: &(String, String)) {
        self.heard.remove(of);
        self.ahead.remove(of);
        self.retired.remove(of);
        self.owners.remove(of);
        self.corrected.remove(of);
        self.set_back.remove(of);
    }
}

impl PushLog {
    /// Lets a push in under a producer's name: where callers are known by name, a name is the caller's who uses it first. What is
    /// given is held until the push has been appended, or has ended without; only what is appended makes a name a caller's.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Forbidden`] names the caller whose the name is, or says that it is to be handed over,
    /// [`crate::ErrorKind::Invalid`] for a name that is too long, [`crate::ErrorKind::Busy`] with too many names.
    pub fn admit(self: &Arc<Self>, source: &str, producer: &str, caller: Option<&str>) -> Result<NameInUse> {
        self.admit_of(source, producer, caller, MOST)
    }

    fn admit_of(self: &Arc<Self>, source: &str, producer: &str, caller: Option<&str>, most: Most) -> Result<NameInUse> {
        if producer.len() > MOST_NAME_BYTES {
            return Err(Error::invalid("a producer's name is too long")
                .with("bytes", producer.len())
                .with("limit", MOST_NAME_BYTES)
                .remedy("give each producer a short name, and keep it"));
        }
        let of = (source.to_owned(), producer.to_owned());
        let mut state = self.state();
        if let Some(caller) = caller {
            state.check_owner(&of, caller)?;
        }
        state.check_room(&of, caller, most)?;
        let in_use = state.in_use.entry(of.clone()).or_default();
        in_use.pushes += 1;
        if let (None, Some(caller)) = (&in_use.caller, caller) {
            in_use.caller = Some(caller.to_owned());
        }
        drop(state);
        Ok(NameInUse { log: Arc::clone(self), of })
    }

    /// Lets those names of a source go that have nothing to say and are silent for long; gives how many. A source is looked
    /// through once an hour at most.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn let_silent_names_go(&self, source: &str) -> Result<usize> {
        let latest = {
            let mut state = self.state();
            let Some(latest) = state.latest else { return Ok(0) };
            if state.looked.get(source).is_some_and(|looked| latest.since(*looked) < LOOK_EVERY) {
                return Ok(0);
            }
            state.looked.insert(source.to_owned(), latest);
            latest
        };
        // Whoever appends under one of them has it in use, and is not overtaken.
        let _appending = self.appending();
        let leaving: Vec<(String, String)> = {
            let state = self.state();
            of_source(&state.heard, source).filter(|of| state.may_leave(of, latest)).cloned().collect()
        };
        if leaving.is_empty() {
            return Ok(0);
        }
        let mut batch = WriteBatch::default();
        for (source, producer) in &leaving {
            for kind in *b"hrocb" {
                batch.delete(producer_key(kind, source, producer));
            }
        }
        self.write(batch)?;
        let mut state = self.state();
        for of in &leaving {
            state.forget(of);
        }
        state.counted.remove(source);
        tracing::info!(
            source,
            names = leaving.len(),
            "names of producers left that had nothing to say and were silent"
        );
        Ok(leaving.len())
    }
}

#[cfg(test)]
mod tests;
