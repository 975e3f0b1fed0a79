//! What a push log knows in memory: what it holds, and what producers have said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::PushEntry;
use super::names::{Counted, InUse};
use crate::push::{Corrections, ProducerState};
use crate::time::{Span, Timestamp};

/// Entries of so many bytes, the newest, are held in memory too: what is flushed is seldom read back from the disk.
const RECENT_BYTES: u64 = 64 << 20;

/// What an entry takes in memory beside its events.
const ENTRY_BYTES: u64 = 1 << 10;

/// What each of its rows takes beside them: its place in the order of writes.
const ROW_BYTES: u64 = 16;

/// How far a log has got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogReach {
    /// The position of the newest push.
    pub last: u64,
    /// For each source the time up to which every event has been pushed: the least of what its producers say.
    pub watermarks: BTreeMap<String, Timestamp>,
}

/// What is known of producers, by source and producer.
pub(super) type Producers<T> = BTreeMap<(String, String), T>;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) last: u64,
    /// Which log this is.
    pub(super) incarnation: u64,
    /// The epoch that it took last.
    pub(super) epoch: Option<u64>,
    /// The sources that were pushed to, as far as the log knows.
    pub(super) sources: BTreeSet<String>,
    pub(super) sequences: Producers<u64>,
    pub(super) watermarks: Producers<Timestamp>,
    /// When each was last heard of, or learned of from another log.
    pub(super) heard: Producers<Timestamp>,
    /// Of those that were heard of beyond the latest time, by a clock that was ahead: since when others are.
    pub(super) ahead: Producers<Timestamp>,
    /// When those were retired that are not counted any more.
    pub(super) retired: Producers<Timestamp>,
    /// The callers whose they are.
    pub(super) owners: Producers<String>,
    /// Where the correction comes that set the sequence of each back last.
    pub(super) set_back: Producers<Timestamp>,
    /// What people changed about each last.
    pub(super) corrected: Producers<Corrections>,
    /// Those under which pushes are under way.
    pub(super) in_use: Producers<InUse>,
    /// How many there are of a source, once somebody has asked.
    pub(super) counted: BTreeMap<String, Counted>,
    /// When a source was last looked through for names that may leave.
    pub(super) looked: BTreeMap<String, Timestamp>,
    /// When anybody was last heard of since the log was opened.
    pub(super) latest: Option<Timestamp>,
    /// How long a producer may be silent while others speak and still count; `None` for ever.
    pub(super) silence: Option<Span>,
    /// The entries that are held.
    pub(super) held: VecDeque<Held>,
    /// Bytes of all of them.
    pub(super) bytes: u64,
    /// Bytes of those that are in memory too.
    pub(super) recent_bytes: u64,
}

/// An entry that the log holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) position: u64,
    pub(super) bytes: u64,
    /// Itself, while it is among the newest.
    pub(super) entry: Option<PushEntry>,
}

impl Held {
    pub(super) fn recent_bytes(&self) -> u64 {
        self.entry.as_ref().map_or(0, |entry| self.bytes + ENTRY_BYTES + ROW_BYTES * entry.events.num_rows() as u64)
    }
}

impl State {
    /// Adds an entry, and lets the oldest ones in memory go where there are too many.
    pub(super) fn hold(&mut self, entry: PushEntry, bytes: u64) {
        let held = Held { position: entry.position, bytes, entry: Some(entry) };
        (self.bytes, self.recent_bytes) = (self.bytes + bytes, self.recent_bytes + held.recent_bytes());
        self.held.push_back(held);
        let mut index = self.held.partition_point(|held| held.entry.is_none());
        while self.recent_bytes > RECENT_BYTES && index < self.held.len() {
            self.recent_bytes -= self.held[index].recent_bytes();
            self.held[index].entry = None;
            index += 1;
        }
    }

    /// The entries after a position that are in memory, and how many before those are not.
    pub(super) fn recent_after(&self, position: u64) -> (usize, Vec<PushEntry>) {
        let first = self.held.partition_point(|held| held.position <= position);
        let recent: Vec<PushEntry> = self.held.range(first..).filter_map(|held| held.entry.clone()).collect();
        (self.held.len() - first - recent.len(), recent)
    }

    /// The first and the last position that is held up to one.
    pub(super) fn held_until(&self, position: u64) -> Option<(u64, u64)> {
        let gone = self.held.partition_point(|held| held.position <= position);
        Some((self.held.front()?.position, self.held.get(gone.checked_sub(1)?)?.position))
    }

    /// Holds nothing up to a position any more.
    pub(super) fn let_go(&mut self, position: u64) {
        while self.held.front().is_some_and(|held| held.position <= position)
            && let Some(held) = self.held.pop_front()
        {
            self.bytes -= held.bytes;
            self.recent_bytes -= held.recent_bytes();
        }
    }

    pub(super) fn reach(&self) -> LogReach {
        let mut least: BTreeMap<String, Timestamp> = BTreeMap::new();
        for (of, watermark) in self.watermarks.iter().filter(|(of, _)| !self.is_silent(of)) {
            let source = &of.0;
            least.entry(source.clone()).and_modify(|held| *held = (*held).min(*watermark)).or_insert(*watermark);
        }
        LogReach { last: self.last, watermarks: least }
    }

    /// Whether a producer says nothing any more while others do.
    pub(super) fn is_silent(&self, of: &(String, String)) -> bool {
        let (Some(silence), Some(latest), Some(heard)) = (self.silence, self.latest, self.heard_by(of)) else {
            return false;
        };
        latest.since(heard) > silence
    }

    /// When a producer was last heard of, or if that lies ahead, when it was first seen that it does.
    pub(super) fn heard_by(&self, of: &(String, String)) -> Option<Timestamp> {
        self.ahead.get(of).or_else(|| self.heard.get(of)).copied()
    }

    /// Somebody is heard of at a time. Who was heard of beyond it counts as heard of now, and not for ever; unless the clock was
    /// behind for a moment, and comes to where it had been.
    pub(super) fn goes_on(&mut self, at: Timestamp) {
        if self.latest.is_none_or(|latest| at < latest) {
            let ahead = self.heard.iter().filter(|(_, heard)| **heard > at).map(|(of, _)| {
                let since = self.ahead.get(of).map_or(at, |since| at.min(*since));
                (of.clone(), since)
            });
            self.ahead = ahead.collect();
        } else {
            self.ahead.retain(|of, _| self.heard.get(of).is_some_and(|heard| *heard > at));
        }
        self.latest = Some(at);
    }

    pub(super) fn producer(&self, of: &(String, String)) -> ProducerState {
        ProducerState {
            source: of.0.clone(),
            producer: of.1.clone(),
            sequence: self.sequences.get(of).copied(),
            watermark: self.watermarks.get(of).copied(),
            heard: self.heard.get(of).copied(),
            retired: self.retired.get(of).copied(),
            silent: self.watermarks.contains_key(of) && self.is_silent(of),
            corrected: self.corrected.get(of).and_then(Corrections::last).cloned(),
            owner: self.owners.get(of).cloned(),
        }
    }
}
