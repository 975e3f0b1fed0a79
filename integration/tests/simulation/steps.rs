//! What happens to a store, step by step.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use springhouse_featurestore::push::{EventSink, PushHeader};
use springhouse_featurestore::tier::{BackfillAsked, ObjectStore};
use springhouse_featurestore::time::Span;
use springhouse_materializer::Jobs;
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_sql::spine::{SpineOrder, SpineSource};

use super::faults::{Fault, Step};
use super::oracle::{
    MOST_NEWCOMERS, check_paid, check_seen, definitions, newcomer, seen_batch, views_of_bills, views_of_seen,
};
use super::world::World;
use crate::power_cut::{shadow_of_this_process, survivors, synced};
use crate::project::{Event, at, write_events};
use crate::push::{batch, closed};
use crate::windows::{USERS, number};

/// Calls of a job or a flush within which something happens to it.
pub const CALLS: u64 = 12;

/// Of what a flush or a backfill writes, within how much something happens to it; and of what a refresh does.
pub const CHANGES: u64 = 8;
const CHANGES_OF_REFRESH: u64 = 3;

/// A second so far ahead that nobody can have sent everything up to it: in 2099.
const FAR_AHEAD: i64 = 4_070_908_800;

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Killed: its folders are as they lie.
    Killed,
    /// Killed, and its disk tier is lost.
    WithoutDiskTier,
    /// The power is cut: of all folders is left what was synced.
    PowerCut,
}

impl World {
    pub async fn step(&mut self) {
        let passes = 1 + number(self.random.below(3_000));
        let passes = match self.random.below(8) {
            0 | 1 if self.faults.has(Fault::Clock) => 0,
            2 if self.faults.has(Fault::Clock) => 86_400,
            _ => passes,
        };
        self.moves_on(passes);
        let steps = self.steps.clone();
        match self.random.pick(&steps) {
            Step::Push => self.push().await,
            Step::Flush => self.flush().await,
            Step::Refresh => {
                if self.chance(2) {
                    self.grow_on_time().await;
                }
                self.say("refreshes");
                self.refresh_all().await;
                self.follow().await;
            }
            Step::Restart => self.start_again().await,
            Step::SentAgain => self.send_again().await,
            Step::Fault(fault) => Box::pin(self.suffer(fault)).await,
        }
        self.check();
    }

    pub async fn start_again(&mut self) {
        self.say("restarts");
        self.takers[self.owner].server = None;
        self.start(self.owner).await;
    }

    async fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Ambiguous => self.ambiguous().await,
            Fault::Backfill => Box::pin(self.backfill()).await,
            Fault::CopiedLog => Box::pin(self.copied_log()).await,
            Fault::ClockBack => Box::pin(self.clock_back()).await,
            Fault::Compact => Box::pin(self.compact()).await,
            Fault::Crash => {
                let end = if self.chance(3) { End::WithoutDiskTier } else { End::Killed };
                self.crash(end).await;
            }
            Fault::CutOff => Box::pin(self.cut_off()).await,
            Fault::Dying => self.dying().await,
            Fault::FirstRefresh => Box::pin(self.first_refresh()).await,
            Fault::LateFile => self.late_file().await,
            Fault::LateHistory => self.late_history().await,
            Fault::LatePut => self.late_put().await,
            Fault::Loads => Box::pin(self.loads()).await,
            Fault::LostAck => Box::pin(self.lost_ack()).await,
            Fault::LostDisk => Box::pin(self.lost_disk()).await,
            Fault::Poison => self.poison().await,
            Fault::PowerCut => self.crash(End::PowerCut).await,
            Fault::Producers => Box::pin(self.change_producers()).await,
            Fault::RefreshClock => self.drift(),
            Fault::SetAside => self.set_aside().await,
            Fault::Takers => self.take_over().await,
            Fault::Twice => Box::pin(self.twice()).await,
            Fault::Watermark => self.watermark().await,
            Fault::Wrong => self.wrong().await,
            Fault::Clock | Fault::Hours | Fault::Ties => {}
        }
    }

    /// Jobs of another process, whose object storage may have faults.
    pub fn worker_jobs(&self) -> Jobs {
        let store = Arc::clone(&self.worker) as Arc<dyn ObjectStore>;
        self.project.jobs_of(&store, &self.project.clock, 7)
    }

    /// A stretch of event time, which may be everything that has happened.
    pub fn stretch(&mut self) -> BackfillAsked {
        let (from, until) = if self.chance(2) {
            (0, self.now + 1)
        } else {
            let from = number(self.random.below(self.now.cast_unsigned()));
            (from, from + 1 + number(self.random.below(150_000)))
        };
        BackfillAsked { from: Some(at(from)), until: Some(at(until)), every: Span::from_secs(50_000) }
    }

    /// A backfill of history that has not changed: every tier loads the view anew, and nothing is other. There may be
    /// pushes, flushes and refreshes while it is computed.
    async fn backfill(&mut self) {
        let (view, asked, jobs) = (self.any_view(), self.stretch(), self.worker_jobs());
        self.say(format!("backfills {} from {:?} until {:?}", view.name, asked.from, asked.until));
        let (state, of) = (self.state.clone(), view.clone());
        let job = async move { jobs.backfill(&state, &of, asked, &()).await };
        if self.chance(3) {
            job.await.expect("backfills");
        } else if let Err(error) = Box::pin(self.meanwhile(job)).await {
            // A refresh in the middle found another history, and a backfill of that came first.
            assert!(error.to_string().contains("run the backfill again"), "backfills: {}", error.chain());
            self.worker_jobs().backfill(&self.state, &view, asked, &()).await.expect("backfills");
        }
        self.follow().await;
    }

    /// Runs a job that stops in the middle until there were pushes, a flush and maybe a refresh.
    pub async fn meanwhile<T>(&mut self, job: impl Future<Output = T>) -> T {
        let within = self.random.pick(&[4, CALLS]);
        self.meanwhile_within(within, job).await
    }

    /// The same, where it stops at one of its first calls.
    pub async fn meanwhile_within<T>(&mut self, within: u64, job: impl Future<Output = T>) -> T {
        let worker = Arc::clone(&self.worker);
        worker.stops_at(self.random.below(within));
        let mut job = Box::pin(job);
        let done = tokio::select! {
            biased;
            () = worker.stopped() => None,
            done = &mut job => Some(done),
        };
        worker.is_whole();
        if let Some(done) = done {
            return done;
        }
        self.say("meanwhile:");
        self.push().await;
        self.flush().await;
        if self.chance(2) {
            self.moves_on(1);
            self.push().await;
        }
        if self.chance(3) {
            self.refresh_all().await;
        }
        worker.goes_on();
        job.await
    }

    /// A view that is defined after events were pushed, and refreshed first while there are more.
    async fn first_refresh(&mut self) {
        if self.newcomers == MOST_NEWCOMERS {
            return self.refresh_meanwhile().await;
        }
        let name = newcomer(self.newcomers);
        self.newcomers += 1;
        self.say(format!("defines {name}, and refreshes it first"));
        let text = definitions(&self.faults, self.newcomers);
        self.state = self.project.apply(&text).await.expect("valid definitions");
        self.follow().await;
        if self.chance(2) {
            self.push().await;
        }
        let view = self.views().into_iter().find(|view| view.name == name).expect("defined");
        self.catches_up_with_history();
        let (jobs, state) = (self.worker_jobs(), self.state.clone());
        let job = async move { jobs.refresh(&state, &view).await };
        Box::pin(self.meanwhile(job)).await.expect("refreshes");
        self.was_read();
        self.follow().await;
    }

    /// A refresh that is in the middle while there are pushes and a flush: it is committed after them.
    async fn refresh_meanwhile(&mut self) {
        let (view, jobs, state) = (self.any_view(), self.worker_jobs(), self.state.clone());
        self.say(format!("refreshes {}", view.name));
        let job = async move { jobs.refresh(&state, &view).await };
        Box::pin(self.meanwhile(job)).await.expect("refreshes");
        self.refreshed = self.now;
        self.follow().await;
    }

    /// Object storage dies in the middle of a flush or of a refresh, and is there again.
    async fn dying(&mut self) {
        let calls = self.random.below(CALLS);
        if self.chance(2) {
            let view = self.any_view();
            self.worker.dies_after(calls);
            let refreshed = self.worker_jobs().refresh(&self.state, &view).await.is_ok();
            self.worker.is_whole();
            self.was_read();
            self.say(format!("object storage died after {calls} calls of a refresh, which succeeded: {refreshed}"));
        } else {
            let store = Arc::clone(&self.takers[self.owner].store);
            store.dies_after(calls);
            let flushed = self.server().pushes.flush().await.is_ok();
            store.is_whole();
            self.say(format!("object storage died after {calls} calls of a flush, which succeeded: {flushed}"));
            self.settle().await;
        }
        self.follow().await;
    }

    /// A process is killed in the middle of a flush, and views are refreshed before it is back: each promises no more than it has.
    async fn cut_off(&mut self) {
        self.push().await;
        let within = self.random.pick(&[CALLS, 4 * CALLS]);
        let call = self.random.below(within);
        let (store, pushes) = (Arc::clone(&self.takers[self.owner].store), Arc::clone(&self.server().pushes));
        store.stops_at(call);
        let ended = tokio::select! {
            biased;
            () = store.stopped() => false,
            flushed = pushes.flush() => flushed.is_ok(),
        };
        store.is_whole();
        drop(pushes);
        self.say(format!("the process is killed at call {call} of a flush, which had ended: {ended}"));
        self.settle().await;
        self.moves_on(1);
        self.refresh_all().await;
        self.crash(End::Killed).await;
        self.follow().await;
    }

    /// Object storage acts and answers an error; whoever hears it tries again, and it succeeds.
    async fn ambiguous(&mut self) {
        let change = self.random.below(CHANGES);
        match self.random.below(4) {
            0 => {
                let (view, change) = (self.any_view(), change % CHANGES_OF_REFRESH);
                self.say(format!("object storage answers change {change} of a refresh of {} with an error", view.name));
                self.worker.acts_and_fails(change);
                drop(self.worker_jobs().refresh(&self.state, &view).await);
                self.worker.is_whole();
                self.moves_on(1);
                self.refresh_all().await;
            }
            1 => {
                let (view, asked) = (self.any_view(), self.stretch());
                self.say(format!(
                    "object storage answers change {change} of a backfill of {} with an error",
                    view.name
                ));
                self.worker.acts_and_fails(change);
                drop(self.worker_jobs().backfill(&self.state, &view, asked, &()).await);
                self.worker.is_whole();
                self.worker_jobs().backfill(&self.state, &view, asked, &()).await.expect("backfills");
            }
            _ => {
                self.push().await;
                self.say(format!("object storage answers change {change} of a flush with an error"));
                let store = Arc::clone(&self.takers[self.owner].store);
                store.acts_and_fails(change);
                drop(self.server().pushes.flush().await);
                store.is_whole();
                self.settle().await;
                if self.chance(2) {
                    self.push().await;
                }
                self.flush().await;
            }
        }
        self.follow().await;
    }

    /// Object storage answers an error and acts later: before whoever heard it tries again, or after. What it then holds
    /// is what counts: all tiers are loaded from it.
    async fn late_put(&mut self) {
        let (put, after) = (self.random.below(CHANGES), self.chance(2));
        if self.chance(3) {
            let (view, put) = (self.any_view(), put % CHANGES_OF_REFRESH);
            self.say(format!("put {put} of a refresh of {} is late, after the next one: {after}", view.name));
            self.grow_on_time().await;
            self.worker.is_late(put);
            drop(self.worker_jobs().refresh(&self.state, &view).await);
            self.worker.is_whole();
            self.was_read();
            if !after {
                self.worker.arrives().await;
            }
            self.moves_on(100);
            self.grow_on_time().await;
            self.refresh_all().await;
            self.worker.arrives().await;
        } else {
            self.push().await;
            self.say(format!("put {put} of a flush is late, after the next one: {after}"));
            let store = Arc::clone(&self.takers[self.owner].store);
            store.is_late(put);
            drop(self.server().pushes.flush().await);
            store.is_whole();
            self.settle().await;
            if !after {
                store.arrives().await;
                self.settle().await;
            }
            self.push().await;
            self.flush().await;
            store.arrives().await;
            self.settle().await;
        }
        self.follow().await;
        self.crash(End::WithoutDiskTier).await;
    }

    /// A producer says that it has sent everything up to a time far ahead: it is refused, or nothing comes of it.
    async fn watermark(&mut self) {
        let seen = self.chance(2);
        let (source, producer) = if seen { ("seen", "gate") } else { ("paid", "till") };
        self.say(format!("{producer} says that it has sent everything up to 2099"));
        let nothing = if seen { seen_batch(&[]) } else { batch(&[]) };
        let watermark = Some(at(FAR_AHEAD));
        let header = PushHeader { producer: Some(producer.to_owned()), sequence: None, watermark };
        drop(self.server().pushes.push(source, nothing, header).await);
        if self.chance(2) {
            self.flush().await;
            self.say("refreshes");
            self.refresh_all().await;
            self.follow().await;
        }
    }

    /// What is on disk now is all that there is after it: the running process's folders are taken as they lie, or as they
    /// would lie after a power cut.
    pub async fn crash(&mut self, end: End) {
        self.say(format!("crashes: {end:?}"));
        let taker = self.takers[self.owner].folder.clone();
        let (disk, log, store) = (taker.join("disk"), taker.join("log"), self.project.folder.path().join("store"));
        let folders = if end == End::PowerCut { vec![&disk, &log, &store] } else { vec![&disk, &log] };
        let shadow = shadow_of_this_process();
        for folder in &folders {
            let left = folder.with_extension("left");
            match (&shadow, end) {
                (Some(shadow), End::PowerCut) => survivors(shadow, folder, &left),
                (None, End::PowerCut) => panic!("power_cut needs the library of faults/power_cut.c: see power_cut.rs"),
                _ => copied(folder, &left),
            }
        }
        self.takers[self.owner].server = None;
        closed(&disk).await;
        closed(&log).await;
        for folder in folders {
            std::fs::remove_dir_all(folder).expect("removable");
            std::fs::rename(folder.with_extension("left"), folder).expect("movable");
            if end == End::PowerCut {
                synced(folder);
            }
        }
        if end == End::WithoutDiskTier {
            std::fs::remove_dir_all(&disk).expect("removable");
        }
        self.start(self.owner).await;
    }

    /// In the end everything is on object storage, and training sets have it with the times at which it was known.
    pub async fn train(&mut self) {
        // Who asks for training sets has the right time.
        self.apart = 0;
        self.moves_on(60);
        self.bring_back().await;
        let now = self.at();
        let mut heartbeats = vec![("paid", "till", batch(&[])), ("seen", "gate", seen_batch(&[]))];
        if self.faults.has(Fault::Twice) {
            heartbeats.push(("bills", "desk", seen_batch(&[])));
        }
        for (source, producer, nothing) in heartbeats {
            let header = PushHeader { producer: Some(producer.to_owned()), sequence: None, watermark: Some(at(now)) };
            self.server().pushes.push(source, nothing, header).await.expect("a heartbeat");
        }
        self.told = [now; 3];
        self.flush().await;
        self.refresh_all().await;
        self.follow().await;
        self.check();
        let spine: Vec<Event> =
            (0..60).map(|_| (self.random.pick(&USERS), now - number(self.random.below(200_000)), 0, None)).collect();
        write_events(&self.project.folder.path().join("spine.parquet"), &spine);
        for rows in [RowsFrom::Committed, RowsFrom::Sources] {
            self.say(format!("makes a training set of {rows:?}"));
            self.training_set(&spine, rows).await;
        }
    }

    async fn training_set(&self, spine: &[Event], rows: RowsFrom) {
        let contract = self.state.current_contract("everything").expect("defined");
        let request = TrainingSetRequest {
            spine: SpineSource { from: "spine.parquet".to_owned(), time: "paid_at".to_owned(), lag: Span::ZERO },
            rows,
            as_of: AsOf::Known,
            with_features: true,
            order: SpineOrder::AsGiven,
        };
        let set = self.project.jobs().training_set(&self.state, contract, &request).await.expect("plans");
        let batches: Vec<_> = set.execute().try_collect().await.expect("runs");
        let all = arrow::compute::concat_batches(set.schema(), &batches).expect("one schema");
        let (views, (paid, seen)) = (views_of_seen(&self.faults, self.newcomers), self.events());
        let bills = self.known_bills();
        let place = format!("in a training set of {rows:?}");
        for (row, (user, now, ..)) in spine.iter().enumerate() {
            check_paid(&all, row, &paid, (Some(user), *now), &place);
            check_seen(&all, row, &views, &seen, (Some(user), *now), &place);
            check_seen(&all, row, views_of_bills(&self.faults), &bills, (Some(user), *now), &place);
        }
    }
}

/// Copies a folder of plain files; again where it changed meanwhile.
pub fn copied(from: &Path, to: &Path) {
    let listed = || -> BTreeMap<_, _> {
        let files = std::fs::read_dir(from).expect("readable").filter_map(Result::ok);
        files.filter_map(|file| Some((file.file_name(), file.metadata().ok()?.len()))).collect()
    };
    loop {
        let before = listed();
        drop(std::fs::remove_dir_all(to));
        std::fs::create_dir(to).expect("writable");
        let whole = before.keys().all(|name| std::fs::copy(from.join(name), to.join(name)).is_ok());
        if whole && listed() == before {
            return;
        }
    }
}
