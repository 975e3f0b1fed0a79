//! History in a simulation: it grows by files, some of them late, and who reads it may have another clock.

use super::oracle::{Seen, write_seen};
use super::world::World;
use crate::windows::number;

/// How far the clock of who refreshes may be from the others', in seconds: as clocks are that are kept, and as none should be.
const APART: [i64; 9] = [0, 0, 3, -3, 40, -40, 5_000, -5_000, 100_000];

/// History is no younger than this many seconds: takers' clocks may be behind.
const YOUNGEST: i64 = 4;

impl World {
    /// The clock of who refreshes.
    pub fn now_of_refreshes(&self) -> i64 {
        self.now + self.apart
    }

    /// Who refreshes has another clock from here on.
    pub fn drift(&mut self) {
        self.apart = self.random.pick(&APART);
        self.moves_on(0);
        self.say(format!("the clock of who refreshes is {} seconds ahead", self.apart));
    }

    /// A view that is refreshed first reads all history: the clock of who does so is not behind that, though it may be
    /// behind pushes.
    pub fn catches_up_with_history(&mut self) {
        let latest = self.seen_before.iter().map(|event| event.at).max().unwrap_or_default();
        self.apart = self.apart.max(latest - self.now);
        self.moves_on(0);
    }

    /// History was read, or may have been.
    pub fn was_read(&mut self) {
        self.refreshed = self.refreshed.max(self.now_of_refreshes());
    }

    /// The second before which history's events lie: nobody's clock is behind them.
    pub fn readable_until(&self) -> i64 {
        self.now.min(self.now_of_refreshes()) - YOUNGEST
    }

    /// Adds a file of a few events to the history of `seen`, which happened from one second to before another.
    pub fn grow(&mut self, most: u64, times: (i64, i64)) {
        let events = self.some_history(most, times);
        if !events.is_empty() {
            self.add_to_history(events);
        }
    }

    /// A few events at even seconds, no two of a user at one.
    fn some_history(&mut self, most: u64, (from, until): (i64, i64)) -> Vec<Seen> {
        let length = until - from;
        let mut events = Vec::new();
        if length < 4 {
            return events;
        }
        for _ in 0..=self.random.below(most) {
            let second = from + number(self.random.below(length.cast_unsigned()));
            let event = self.seen_at(second + second.rem_euclid(2));
            let taken = |other: &Seen| (other.user, other.at) == (event.user, event.at);
            let others = self.seen_before.iter().chain(&self.withheld);
            if event.at < until && !others.chain(&events).any(taken) {
                events.push(event);
            }
        }
        events
    }

    fn add_to_history(&mut self, events: Vec<Seen>) {
        self.files += 1;
        write_seen(self.project.folder.path(), "seen", &format!("{}.parquet", self.files), &events);
        self.seen_before.extend(events);
    }

    /// History grows by what happened since it was last read. Nothing that reaches back waits in the log then.
    pub async fn grow_on_time(&mut self) {
        self.flush().await;
        self.grow(5, (self.refreshed + 1, self.readable_until()));
    }

    /// History has a new file, of old events.
    pub async fn late_file(&mut self) {
        self.flush().await;
        self.say("history has a new file");
        let until = self.readable_until();
        let from = number(self.random.below(self.refreshed.min(until).cast_unsigned()));
        self.grow(5, (from, until));
        self.refresh_all().await;
        self.follow().await;
    }

    /// A file of history is on its way, for as long as it takes, while it is refreshed, backfilled and pushed past the
    /// times of its events; then everybody sees it.
    pub async fn late_history(&mut self) {
        if self.withheld.is_empty() {
            let events = self.some_history(5, (self.refreshed + 1, self.readable_until()));
            self.say(format!("a file of history is on its way: {events:?}"));
            self.withheld = events;
            return;
        }
        let latest = self.withheld.iter().map(|event| event.at).max().unwrap_or_default();
        if latest >= self.readable_until() {
            return;
        }
        self.flush().await;
        self.say("the file of history is there");
        let events = std::mem::take(&mut self.withheld);
        self.add_to_history(events);
        self.refresh_all().await;
        self.follow().await;
    }
}
