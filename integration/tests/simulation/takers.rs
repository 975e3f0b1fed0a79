//! Two takers of pushes for one store: who began last owns it.
//!
//! The other one may not know yet, and acknowledge events into its own log: until it flushes. From then on it refuses.
//! What it acknowledged and had not flushed is not in the store; it is, once, when that taker is started again.

use std::pin::pin;
use std::sync::Arc;

use springhouse_featurestore::push::EventSink;

use super::faults::Fault;
use super::steps::{CHANGES, End};
use super::world::{Sent, World};

/// Calls of a flush within which another taker begins.
const CALLS: u64 = 10;

/// Clocks of takers differ by less than this many seconds.
pub const APART: i64 = 10;

impl World {
    /// The other taker begins, maybe while the first one flushes; each then does what it did before.
    pub async fn take_over(&mut self) {
        let (older, newer) = (self.owner, 1 - self.owner);
        self.push().await;
        self.moves_on(APART);
        self.say(format!("taker {newer} begins; taker {older} goes on"));
        let older_pushes = Arc::clone(&self.server().pushes);
        let store = Arc::clone(&self.takers[older].store);
        let mut flush = pin!(async move { older_pushes.flush().await });
        // Whether the older one is in the middle of a flush then.
        let stopped = self.chance(2) && {
            store.stops_at(self.random.below(CALLS));
            let stopped = tokio::select! {
                biased;
                () = store.stopped() => true,
                done = &mut flush => {
                    done.expect("nobody has come between");
                    false
                }
            };
            store.is_whole();
            stopped
        };
        let late = !stopped && self.flushes_late(older).await;
        self.settle().await;
        self.gives_way(newer).await;
        self.check();
        if self.chance(2) {
            self.push().await;
            self.flush().await;
        }
        if stopped {
            self.say(format!("the flush of taker {older} goes on"));
            store.goes_on();
            let flushed = flush.await;
            let parked = &self.takers[older].parked;
            assert!(parked.is_empty() || flushed.is_err(), "an older taker flushed {parked:?}");
        }
        if late {
            store.arrives().await;
            self.settle().await;
        }
        self.passes(older).await;
    }

    /// Maybe a taker flushes just before another begins, and a put of it is on its way for long.
    async fn flushes_late(&mut self, older: usize) -> bool {
        if !self.faults.has(Fault::LatePut) || self.chance(2) {
            return false;
        }
        let (put, pushes) = (self.random.below(CHANGES), Arc::clone(&self.server().pushes));
        self.say(format!("put {put} of a flush of taker {older} is late"));
        let store = Arc::clone(&self.takers[older].store);
        store.is_late(put);
        drop(pushes.flush().await);
        store.is_whole();
        true
    }

    /// The older taker goes on until it knows better, and ends.
    async fn passes(&mut self, older: usize) {
        // What both push at one time would have no order.
        self.moves_on(APART);
        self.outlives(older).await;
        self.moves_on(APART);
        self.follow().await;
        self.check();
        self.takers[older].server = None;
        self.push().await;
        self.flush().await;
    }

    /// Another taker begins: what it kept comes to the store, and what the owner acknowledged and has not flushed does not.
    async fn gives_way(&mut self, newer: usize) {
        let older = self.owner;
        let parked = self.pushed.split_off(self.flushed);
        self.takers[older].parked = parked;
        self.start(newer).await;
        let own = std::mem::take(&mut self.takers[newer].parked);
        self.say(format!("taker {newer} brings {:?}, taker {older} keeps {:?}", own, self.takers[older].parked));
        self.pushed.extend(own);
        self.last = None;
    }

    /// A batch is taken and nobody hears that it was: its producer sends it again, after a restart or a crash, or to the
    /// other taker, which knows of it only what was flushed. It counts once.
    pub async fn lost_ack(&mut self) {
        self.push().await;
        let Some(sent) = self.last.clone().filter(|sent| !sent.events.is_empty()) else { return };
        let (older, newer) = (self.owner, 1 - self.owner);
        match self.random.below(4) {
            0 => self.start_again().await,
            1 => self.crash(End::Killed).await,
            2 => {
                self.flush().await;
                self.fail_over(newer).await;
            }
            _ => {
                self.fail_over(newer).await;
                return self.taken_by_both(older, sent).await;
            }
        }
        self.last = Some(sent);
        self.send_again().await;
    }

    /// The owner ends, and another taker begins.
    pub async fn fail_over(&mut self, newer: usize) {
        let older = self.owner;
        self.say(format!("taker {older} ends"));
        self.moves_on(APART);
        self.takers[older].server = None;
        self.gives_way(newer).await;
    }

    /// A batch that another taker keeps is sent to this one.
    async fn taken_by_both(&mut self, keeps: usize, mut sent: Sent) {
        self.say("sends the last batch to the other taker");
        let (now, [paid, seen, _]) = (self.at(), sent.events.counts());
        let kept = self.takers[keeps].parked.counts();
        // It is the last that was pushed; where the other comes back, it is not taken a second time. Of bills each is told.
        self.takers[keeps].parked.split_off([kept[0] - paid, kept[1] - seen, kept[2]]);
        sent.events.known_at(now);
        let Sent { source, batch, header, events } = sent.clone();
        let ack = self.server().pushes.push(source, batch, header).await.expect("taken");
        assert!(!ack.duplicate, "this taker has never seen it");
        self.pushed.extend(events);
        self.flush().await;
        self.last = Some(sent);
    }

    /// What a taker does that does not own the store any more.
    pub async fn outlives(&mut self, older: usize) {
        let pushes = Arc::clone(&self.takers[older].server.as_ref().expect("running").pushes);
        let Sent { source, batch, header, events } = self.next_batch(older);
        if pushes.push(source, batch, header).await.is_ok() {
            self.say(format!("taker {older} acknowledges {events:?}"));
            self.takers[older].parked.extend(events);
        }
        let (flushed, parked) = (pushes.flush().await, &self.takers[older].parked);
        assert!(parked.is_empty() || flushed.is_err(), "an older taker flushed {parked:?}");
        let Sent { source, batch, header, .. } = self.next_batch(older);
        let refused = pushes.push(source, batch, header).await;
        assert!(refused.is_err(), "an older taker acknowledges pushes: {refused:?}");
    }

    /// What a taker keeps that does not run comes to the store.
    pub async fn bring_back(&mut self) {
        let (owner, other) = (self.owner, 1 - self.owner);
        if self.takers[other].parked.is_empty() {
            return;
        }
        self.say(format!("taker {other} comes back, and taker {owner} ends"));
        self.flush().await;
        self.takers[owner].server = None;
        self.moves_on(APART);
        self.start(other).await;
        let own = std::mem::take(&mut self.takers[other].parked);
        self.pushed.extend(own);
        self.last = None;
    }
}
