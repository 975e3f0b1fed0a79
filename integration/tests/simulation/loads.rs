//! Views that are loaded, files that are merged and removed, and what comes between.

use std::pin::pin;
use std::sync::Arc;

use springhouse_featurestore::Result;
use springhouse_featurestore::push::EventSink;
use springhouse_featurestore::time::Span;
use springhouse_materializer::Jobs;

use super::steps::{CALLS, End};
use super::world::World;

/// Fewer pushes than this are flushed one by one before files are merged.
const SMALL_FILES: u64 = 5;

/// More files of pushed events than there are.
const MOST_FILES: u64 = 1_000;

/// How far a clock jumps before it is set back, in seconds: more than what is past is kept.
const JUMPS: [i64; 3] = [2 * 3_600, 86_400, 3 * 86_400];

impl World {
    /// Files of a view and of pushed events are merged, maybe while there are pushes, flushes and refreshes, or object storage
    /// dies; and what nobody names goes at once. Of pushed events two that follow each other are merged too, whatever their
    /// sizes, as many flushes would have it.
    pub async fn compact(&mut self) {
        for _ in 0..self.random.below(SMALL_FILES) {
            self.push().await;
            self.flush().await;
        }
        let (view, jobs, which) = (self.any_view(), self.worker_jobs(), self.random.below(MOST_FILES));
        self.say(format!("merges the files of {} and of pushed events", view.name));
        let job = async move {
            jobs.compact(&view).await?;
            jobs.compact_pushes().await?;
            merge_neighbours(&jobs, which).await
        };
        match self.random.below(4) {
            0 => {
                let calls = self.random.below(4 * CALLS);
                self.worker.dies_after(calls);
                // How many calls it takes to read files, and so whether it got through, is not the same each time.
                drop(job.await);
                self.worker.is_whole();
                self.say(format!("object storage died after {calls} calls"));
            }
            1 => job.await.expect("merges"),
            _ => Box::pin(self.meanwhile_within(4, job)).await.expect("merges"),
        }
        if self.chance(2) {
            // Who takes pushes looks at what was merged, as it does by itself every few seconds.
            self.flush().await;
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

    /// All clocks jump ahead, and are set back by hours: before views are loaded, or while they are. What is answered until they
    /// are set back is right, or refused; from then on what there is is answered, until all of it is loaded again.
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
        if !before {
            self.check_if_answered();
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

/// Merges two files that follow each other of each source's pushed events, where there are such.
async fn merge_neighbours(jobs: &Jobs, which: u64) -> Result<()> {
    let pushed = jobs.pushed();
    for (source, files) in pushed.state().await?.files {
        let pairs: Vec<_> = files.windows(2).collect();
        let Some(index) = which.checked_rem(pairs.len() as u64) else { continue };
        let pair = pairs[usize::try_from(index).expect("small")];
        // Of two files with these positions one would have to be the other.
        let [after, until] = [pair[0].positions.map(|of| of.after), pair[1].positions.map(|of| of.until)];
        let name = format!("pair-{}-{}", after.unwrap_or(0), until.unwrap_or(0));
        let merged = pushed.merge(&source, &name, pair).await?;
        pushed.replace(&source, pair, &merged, jobs.clock().now()).await?;
    }
    Ok(())
}
