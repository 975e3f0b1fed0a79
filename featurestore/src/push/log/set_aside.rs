//! The events that views of this process do without and that no commit tells of yet.
//!
//! Whoever tries an event first, to apply it or to commit it, decides; who applies or commits it later holds to that, after a
//! crash too. So the tiers never have a row that the commits leave out, nor lack one that they have.
//!
//! | key | value |
//! |---|---|
//! | `a`, view's name, `00`, its version, `00`, position (8), row (8) | when (8), why |

use std::collections::{BTreeMap, HashMap};

use rocksdb::{Direction, IteratorMode, WriteBatch};
use serde::{Deserialize, Serialize};

use super::{PushLog, damaged, number};
use crate::Result;
use crate::definition::{Pinned, Version};
use crate::time::Timestamp;

/// The kind of these records.
pub(super) const KIND: u8 = b'a';

/// The place of an event among those of all pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventPlace {
    /// The push's position.
    pub position: u64,
    /// Its row in the push.
    pub within: u64,
}

/// When an event was set aside, and what the view's query failed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhySetAside {
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// The error.
    pub reason: String,
}

/// Events that are set aside, by their places.
pub type SetAsidePlaces = BTreeMap<EventPlace, WhySetAside>;

fn view_key(view: &Pinned) -> Vec<u8> {
    [&[KIND], view.name.as_bytes(), &[0], view.version.as_str().as_bytes(), &[0]].concat()
}

fn key(view: &Pinned, EventPlace { position, within }: EventPlace) -> Vec<u8> {
    [view_key(view).as_slice(), &position.to_be_bytes(), &within.to_be_bytes()].concat()
}

fn read(key: &[u8], value: &[u8]) -> Option<(Pinned, EventPlace, WhySetAside)> {
    let (view, place) = key.get(1..)?.split_at_checked(key.len().checked_sub(17)?)?;
    let (name, version) = std::str::from_utf8(view).ok()?.strip_suffix('\0')?.split_once('\0')?;
    let place = EventPlace { position: number(place.get(..8)?)?, within: number(place.get(8..)?)? };
    let at = Timestamp::from_micros(number(value.get(..8)?)?.cast_signed());
    let reason = std::str::from_utf8(value.get(8..)?).ok()?.to_owned();
    Some((Pinned::new(name, Version::from_text(version)), place, WhySetAside { at, reason }))
}

impl PushLog {
    /// Notes events that a view does without; synced.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn set_aside(&self, view: &Pinned, events: &SetAsidePlaces) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (place, WhySetAside { at, reason }) in events {
            batch.put(key(view, *place), [&at.micros().to_be_bytes(), reason.as_bytes()].concat());
        }
        self.write(batch)
    }

    /// The events that are noted, by view.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] for a record that cannot be read.
    pub fn all_set_aside(&self) -> Result<HashMap<Pinned, SetAsidePlaces>> {
        let mut all: HashMap<Pinned, SetAsidePlaces> = HashMap::new();
        for item in self.database.iterator(IteratorMode::From(&[KIND], Direction::Forward)) {
            let (key, value) = item.map_err(|error| self.failed(error))?;
            if key.first() != Some(&KIND) {
                break;
            }
            let read = read(&key, &value);
            let (view, place, why) =
                read.ok_or_else(|| damaged(&self.folder, "an event that is set aside is not readable"))?;
            all.entry(view).or_default().insert(place, why);
        }
        Ok(all)
    }

    /// Forgets what is noted of a view's events up to a position: a commit tells of them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn let_set_aside_go(&self, view: &Pinned, until: u64) -> Result<()> {
        let least = EventPlace { position: 0, within: 0 };
        let beyond = EventPlace { position: until, within: u64::MAX };
        let mut batch = WriteBatch::default();
        batch.delete_range(key(view, least), key(view, beyond));
        self.database.write(batch).map_err(|error| self.failed(error))
    }

    /// Forgets all that is noted: the events get other positions, and are tried anew.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unavailable`] when the disk fails.
    pub fn forget_set_aside(&self) -> Result<()> {
        let mut batch = WriteBatch::default();
        batch.delete_range([KIND], [KIND + 1]);
        self.write(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_known_after_a_restart_until_a_commit_tells_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let view = |name: &str| Pinned::new(name, Version::from_text("3f2a"));
        let place = |position, within| EventPlace { position, within };
        let why = |second: i64| WhySetAside {
            at: Timestamp::from_micros(second * 1_000_000),
            reason: "Divide by zero".to_owned(),
        };
        let shares = SetAsidePlaces::from([(place(4, 1), why(1)), (place(4, 2), why(1)), (place(300, 0), why(-2))]);
        let log = PushLog::open(folder.path()).expect("opens");
        log.set_aside(&view("shares"), &shares).expect("noted");
        log.set_aside(&view("share"), &SetAsidePlaces::from([(place(4, 1), why(3))])).expect("noted");
        drop(log);
        let log = PushLog::open(folder.path()).expect("opens");
        let all = log.all_set_aside().expect("readable");
        assert_eq!((all.len(), &all[&view("shares")]), (2, &shares));
        log.let_set_aside_go(&view("shares"), 4).expect("gone");
        let all = log.all_set_aside().expect("readable");
        assert_eq!(all[&view("shares")].keys().copied().collect::<Vec<_>>(), [place(300, 0)]);
        assert_eq!(all[&view("share")].len(), 1, "another view's stays");
        log.forget_set_aside().expect("gone");
        assert!(log.all_set_aside().expect("readable").is_empty());
    }
}
