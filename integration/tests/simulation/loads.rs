//! Views that are loaded, files that are merged and removed, and what comes between.

use std::pin::pin;
use std::sync::Arc;

use springhouse_featurestore::push::EventSink;
use springhouse_featurestore::time::Span;

use super::steps::{CALLS, End};
use super::world::World;

/// Fewer pushes than this are flushed one by one before files are merged.
const SMALL_FILES: u64 = 5;

/// How far a clock jumps before it is set back, in seconds: more than what is past is kept.
const JUMPS: [i64; 3] = [2 * 3_600, 86_400, 3 * 86_400];

impl World {
    /// Small files are merged, maybe while there are pushes, flushes and refreshes; and what nobody names goes at once.
    pub async fn compact(&mut self) {
        for _ in 0..self.random.below(SMALL_FILES) {
            self.push().await;
            self.flush().await;
        }
        let (view, jobs) = (self.any_view(), self.worker_jobs());
        self.say(format!("merges the files of {}", view.name));
        let job = async move { jobs.compact(&view).await };
        if self.chance(3) {
            job.await.expect("merges");
        } else {
            Box::pin(self.meanwhile(job)).await.expect("merges");
        }
        if self.chance(2) {
            self.say("removes garbage");
            self.project.jobs().collect_garbage(&self.state, Span::ZERO).await.expect("removes");
        }
        self.follow().await;
        if self.chance(3) {
            self.crash(End::WithoutDiskTier).await;
        }
    }

    /// A view whose rows are replaced by the same: it is loaded anew by who follows next.
    async fn replace_some(&mut self) {
        let (view, asked, jobs) = (self.any_view(), self.stretch(), self.worker_jobs());
        self.say(format!("backfills {} from {:?} until {:?}", view.name, asked.from, asked.until));
        jobs.backfill(&self.state, &view, asked, &()).await.expect("backfills");
    }

    /// Two follow the store at once while views are to be loaded anew, and while there are pushes and a flush.
    pub async fn loads(&mut self) {
        self.replace_some().await;
        self.replace_some().await;
        let store = Arc::clone(&self.takers[self.owner].store);
        let [first, second] = [(); 2].map(|()| Arc::clone(&self.server().features));
        self.say("two follow the store, beside pushes");
        store.stops_at(self.random.below(CALLS));
        let mut first = Box::pin(async move { first.follow(&()).await });
        let done = tokio::select! {
            biased;
            () = store.stopped() => None,
            done = &mut first => Some(done),
        };
        store.is_whole();
        let stopped = done.is_none();
        let going_on = async {
            match done {
                Some(done) => done,
                None => first.await,
            }
        };
        let meanwhile = async {
            if stopped {
                store.goes_on();
            }
            self.push().await;
            self.flush().await;
        };
        let (first, second, ()) = tokio::join!(going_on, second.follow_heads(&()), meanwhile);
        first.and(second).expect("both follow");
        self.follow().await;
    }

    /// Whoever serves is killed at some instant of a load or of a flush, and its disk tier is deleted.
    pub async fn lost_disk(&mut self) {
        let loading = self.chance(2);
        if loading {
            self.replace_some().await;
        } else {
            self.push().await;
        }
        let (store, call) = (Arc::clone(&self.takers[self.owner].store), self.random.below(CALLS));
        self.say(format!("is killed at call {call} of a {}", if loading { "load" } else { "flush" }));
        let (features, pushes) = (Arc::clone(&self.server().features), Arc::clone(&self.server().pushes));
        store.stops_at(call);
        {
            let job = async move {
                // How it ends is nobody's business any more.
                if loading { drop(features.follow(&()).await) } else { drop(pushes.flush().await) }
            };
            let mut job = pin!(job);
            tokio::select! {
                biased;
                () = store.stopped() => {}
                () = &mut job => {}
            }
        }
        store.is_whole();
        self.crash(End::WithoutDiskTier).await;
        self.settle().await;
    }

    /// All clocks jump ahead, and are set back by hours: before views are loaded, or while they are. What is answered
    /// meanwhile is right, or refused.
    pub async fn clock_back(&mut self) {
        let (jump, before) = (self.random.pick(&JUMPS), self.chance(2));
        self.say(format!("the clocks jump {jump} seconds ahead"));
        self.moves_on(jump);
        if self.chance(2) {
            self.refresh_all().await;
        }
        self.follow().await;
        self.check();
        if self.chance(3) {
            self.crash(End::WithoutDiskTier).await;
            self.check();
        }
        self.replace_some().await;
        if before {
            self.set_back(jump);
        }
        let store = Arc::clone(&self.takers[self.owner].store);
        let features = Arc::clone(&self.server().features);
        store.stops_at(self.random.below(CALLS));
        let mut following = Box::pin(async move { features.follow(&()).await });
        let done = tokio::select! {
            biased;
            () = store.stopped() => None,
            done = &mut following => Some(done),
        };
        store.is_whole();
        self.check_if_answered();
        if !before {
            self.set_back(jump);
        }
        match done {
            Some(done) => done.expect("follows"),
            None => {
                store.goes_on();
                following.await.expect("follows");
            }
        }
        self.follow().await;
    }

    fn set_back(&mut self, seconds: i64) {
        self.moves_on(-seconds);
        self.say(format!("the clocks are set back by {seconds} seconds"));
    }
}
