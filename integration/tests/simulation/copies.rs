//! Copies of a push log: one that is older is restored, or the copy and the log that it is of both feed the store, by turns.
//!
//! What was acknowledged after the copy was made, and neither copied nor flushed, is lost with a log that is replaced; with
//! one that comes back it is not. Everything else counts once.

use super::steps::copied;
use super::takers::APART;
use super::world::{Counts, World};
use crate::push::closed;

impl World {
    pub async fn copied_log(&mut self) {
        self.push().await;
        if self.chance(2) {
            self.flush().await;
            self.push().await;
        }
        let log = self.takers[self.owner].folder.join("log");
        let copy = log.with_extension("copy");
        copied(&log, &copy);
        let held = self.pushed.counts();
        self.say(format!("the log of taker {} is copied, and goes on", self.owner));
        self.moves_on(APART);
        self.push().await;
        if self.chance(2) {
            self.flush().await;
            if self.chance(2) {
                self.push().await;
            }
        }
        let kept = std::array::from_fn(|source| held[source].max(self.flushed[source]));
        self.last = None;
        self.moves_on(APART);
        let other = 1 - self.owner;
        if self.takers[other].parked.is_empty() && self.chance(2) {
            self.copy_takes_over(kept).await;
        } else {
            self.restore_copy(kept).await;
        }
        self.check();
        self.push().await;
        if self.chance(2) {
            self.flush().await;
        }
    }

    /// The copy is put in the place of the log; the disk tier may have more than it.
    async fn restore_copy(&mut self, kept: Counts) {
        let folder = self.takers[self.owner].folder.clone();
        let (disk, log) = (folder.join("disk"), folder.join("log"));
        let lost = self.pushed.split_off(kept);
        let without_disk = self.chance(2);
        self.say(format!("the copy is restored, and {lost:?} is lost; the disk tier too: {without_disk}"));
        self.takers[self.owner].server = None;
        closed(&disk).await;
        closed(&log).await;
        std::fs::remove_dir_all(&log).expect("removable");
        std::fs::rename(log.with_extension("copy"), &log).expect("movable");
        if without_disk {
            std::fs::remove_dir_all(&disk).expect("removable");
        }
        self.start(self.owner).await;
    }

    /// The other taker begins with the copy, and the one whose log it was may go on a while and come back.
    async fn copy_takes_over(&mut self, kept: Counts) {
        let (older, newer) = (self.owner, 1 - self.owner);
        let copy = self.takers[older].folder.join("log.copy");
        let log = self.takers[newer].folder.join("log");
        closed(&log).await;
        std::fs::remove_dir_all(&log).expect("removable");
        std::fs::rename(copy, &log).expect("movable");
        let parked = self.pushed.split_off(kept);
        let goes_on = self.chance(2);
        self.say(format!("taker {newer} begins with the copy, taker {older} keeps {parked:?} and goes on: {goes_on}"));
        self.takers[older].parked = parked;
        if !goes_on {
            self.takers[older].server = None;
        }
        self.start(newer).await;
        self.check();
        self.push().await;
        // What both hold is in the store then: what is left in the other's log is its alone.
        self.flush().await;
        self.moves_on(APART);
        if goes_on {
            self.outlives(older).await;
            self.moves_on(APART);
            self.follow().await;
            self.takers[older].server = None;
        }
        if self.chance(2) {
            self.bring_back().await;
        }
    }
}
