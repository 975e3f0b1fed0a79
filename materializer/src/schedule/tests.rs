//! A schedule whose catalog, logs and refreshes fail and panic when they are told to, at a clock that stands still.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use springhouse_featurestore::ErrorKind;
use springhouse_featurestore::catalog::{CatalogCommit, Change};
use springhouse_featurestore::definition::{Column, ColumnType, Definition, RowTime, Version};
use springhouse_featurestore::time::{Clock, DrivenClock};

use super::*;

/// What goes wrong at the moment, and what has been done.
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
#[derive(Debug, Default)]
struct Script {
    catalog_fails: bool,
    catalog_panics: bool,
    log_fails: HashSet<String>,
    panics: HashSet<String>,
    hangs: HashSet<String>,
    catalog_hangs: bool,
    read_until: Option<Timestamp>,
    tidying_fails: bool,
    tidying_panics: bool,
    tidied: Vec<String>,
    told: Vec<String>,
}

#[derive(Debug, Clone)]
struct Scripted {
    clock: Arc<DrivenClock>,
    views: Vec<FeatureView>,
    script: Arc<Mutex<Script>>,
}

impl Scripted {
    fn new(names: &[&str]) -> Self {
        let clock = Arc::new(DrivenClock::still(at(0)));
        Self { clock, views: names.iter().map(|name| view(name)).collect(), script: Arc::default() }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("not poisoned")
    }

    /// Begins a schedule that notes what it tells.
    fn start(&self) -> tokio::task::JoinHandle<Infallible> {
        self.start_with(patience)
    }

    /// The same, with another patience.
    fn start_with(&self, patience: fn(&Task) -> Duration) -> tokio::task::JoinHandle<Infallible> {
        let work = self.clone();
        tokio::spawn(async move {
            let script = Arc::clone(&work.script);
            let told = move |told: Told| script.lock().expect("not poisoned").told.push(short(&told));
            let schedule = Schedule { patience, ..Schedule::new(work, 1) };
            schedule.run(Duration::from_millis(1), told).await
        })
    }

    fn tidy(&self, what: &str) -> Result<()> {
        self.script().tidied.push(what.to_owned());
        let panics = self.script().tidying_panics;
        let fails = self.script().tidying_fails;
        assert!(!panics, "{what} is strange");
        if fails { Err(Error::unavailable("no store")) } else { Ok(()) }
    }

    /// Waits until this has been tidied so many times.
    async fn until_tidied(&self, wanted: &str, times: usize) {
        for _ in 0..5_000 {
            if self.script().tidied.iter().filter(|tidied| *tidied == wanted).count() >= times {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{times} times {wanted} of {:?}", self.script().tidied);
    }

    /// Waits until it has been told of all these.
    async fn until_told(&self, wanted: &[&str]) {
        for _ in 0..5_000 {
            if wanted.iter().all(|wanted| self.script().told.iter().any(|told| told == wanted)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{wanted:?} of {:?}", self.script().told);
    }
}

fn short(told: &Told) -> String {
    match told {
        Told::Turn(TurnDone { view, result: Ok(refreshed), .. }) => {
            format!("{} refreshed at {}", view.name, refreshed.watermark.micros() / 1_000_000)
        }
        Told::Turn(TurnDone { view, result: Err(error), failures }) => {
            format!("{} failed {failures}: {:?}", view.name, error.kind())
        }
        Told::CatalogFailed { error, failures } => format!("catalog failed {failures}: {:?}", error.kind()),
        Told::CatalogRead => "catalog read".to_owned(),
    }
}

#[async_trait]
impl Work for Scripted {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn follow(&self, catalog: &CatalogState) -> Result<Option<CatalogState>> {
        let panics = self.script().catalog_panics;
        let fails = self.script().catalog_fails;
        assert!(!panics, "the catalog is strange");
        if fails {
            return Err(Error::unavailable("no store"));
        }
        let hangs = self.script().catalog_hangs;
        if hangs {
            std::future::pending::<()>().await;
        }
        if catalog.number() > 0 {
            return Ok(None);
        }
        let mut newer = catalog.clone();
        let changes =
            self.views.iter().map(|view| Change::Define(Box::new(Definition::FeatureView(view.clone())))).collect();
        newer.apply(1, CatalogCommit::new(at(0), "test", "test", changes));
        Ok(Some(newer))
    }

    async fn read_until(&self, view: &FeatureView) -> Result<Option<Timestamp>> {
        if self.script().log_fails.contains(&view.name) {
            return Err(Error::unavailable("no store"));
        }
        Ok(self.script().read_until)
    }

    async fn refresh(&self, _: &CatalogState, view: &FeatureView) -> Result<Refreshed> {
        let panics = self.script().panics.contains(&view.name);
        assert!(!panics, "{} is strange", view.name);
        let hangs = self.script().hangs.contains(&view.name);
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok(Refreshed {
            view: view.pinned().to_string(),
            rows: 1,
            since: None,
            watermark: self.now(),
            late: 0,
            appeared: 0,
            set_aside: 0,
            restated: None,
            held_back: None,
            committed: true,
            commit: 1,
            clock_ahead: None,
        })
    }

    async fn compact(&self, view: &FeatureView) -> Result<()> {
        self.tidy(&view.name)
    }

    async fn compact_pushes(&self) -> Result<()> {
        self.tidy("pushes")
    }

    async fn collect_garbage(&self) -> Result<()> {
        self.tidy("garbage")
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

/// A view that is refreshed every minute.
fn view(name: &str) -> FeatureView {
    FeatureView {
        name: name.to_owned(),
        version: Version::from_text("1"),
        policy: None,
        text: String::new(),
        entity: Pinned::new("user_account", Version::from_text("1")),
        keys: vec![Column::required("user_name", ColumnType::Utf8)],
        sources: Vec::new(),
        query: String::new(),
        row_time: RowTime::Static,
        refresh_every: Span::from_secs(60),
        ttl: None,
        lookback: None,
        windowed: None,
        ahead: false,
        features: vec![Column::nullable("amount", ColumnType::Float64)],
    }
}

#[tokio::test]
async fn a_job_that_panics_is_a_failure_of_its_view_and_the_others_go_on() {
    let work = Scripted::new(&["good", "strange"]);
    work.script().panics.insert("strange".to_owned());
    let schedule = work.start();
    work.until_told(&["good refreshed at 0", "strange failed 1: Internal"]).await;
    work.clock.set(at(1));
    work.until_told(&["strange failed 2: Internal"]).await;
    work.clock.set(at(60));
    work.until_told(&["good refreshed at 60", "strange failed 3: Internal"]).await;
    work.script().panics.clear();
    work.clock.set(at(64));
    work.until_told(&["strange refreshed at 64"]).await;
    schedule.abort();
}

#[tokio::test]
async fn a_catalog_that_cannot_be_read_is_tried_again_and_what_is_known_goes_on() {
    let work = Scripted::new(&["good"]);
    work.script().catalog_fails = true;
    let schedule = work.start();
    work.until_told(&["catalog failed 1: Unavailable"]).await;
    work.clock.set(at(1));
    work.until_told(&["catalog failed 2: Unavailable"]).await;
    // No more often than the clock says.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(work.script().told.len(), 2);
    work.script().catalog_fails = false;
    work.clock.set(at(3));
    work.until_told(&["catalog read", "good refreshed at 3"]).await;
    work.script().told.clear();
    work.script().catalog_panics = true;
    work.until_told(&["catalog failed 1: Internal"]).await;
    work.clock.set(at(63));
    work.until_told(&["good refreshed at 63"]).await;
    schedule.abort();
}

#[tokio::test]
async fn refreshes_that_hang_are_given_up_by_name_and_their_places_are_others() {
    let work = Scripted::new(&["good", "hung", "hung_too", "other"]);
    work.script().hangs.extend(["hung".to_owned(), "hung_too".to_owned()]);
    let schedule = work.start_with(|_| Duration::from_millis(50));
    let others = ["good refreshed at 0", "other refreshed at 0"];
    work.until_told(&[&others[..], &["hung failed 1: Unavailable", "hung_too failed 1: Unavailable"]].concat()).await;
    work.clock.set(at(1));
    work.until_told(&["hung failed 2: Unavailable"]).await;
    work.script().hangs.clear();
    work.clock.set(at(60));
    work.until_told(&["good refreshed at 60", "hung refreshed at 60", "hung_too refreshed at 60"]).await;
    // Of a catalog that hangs nothing is told before its time, and then it is read again.
    work.script().catalog_hangs = true;
    work.until_told(&["catalog failed 1: Unavailable"]).await;
    work.script().catalog_hangs = false;
    work.clock.set(at(70));
    work.until_told(&["catalog read"]).await;
    schedule.abort();
}

#[test]
fn patience_follows_a_views_interval_within_bounds() {
    let hours = |every: i64| {
        let view = FeatureView { refresh_every: Span::from_secs(every), ..view("v") };
        patience(&Task::View(Box::new(view), at(0))).as_secs() / 3_600
    };
    assert_eq!([60, 600, 3_600, 86_400].map(hours), [1, 3, 20, 24]);
}

#[tokio::test]
async fn a_view_whose_log_cannot_be_read_keeps_nobody_waiting() {
    let work = Scripted::new(&["good", "unread"]);
    work.script().log_fails.insert("unread".to_owned());
    let schedule = work.start();
    work.until_told(&["good refreshed at 0", "unread failed 1: Unavailable"]).await;
    work.script().log_fails.clear();
    work.clock.set(at(1));
    work.until_told(&["unread refreshed at 1"]).await;
    schedule.abort();
}

#[tokio::test]
async fn a_view_that_was_refreshed_before_waits_for_its_interval() {
    let work = Scripted::new(&["good"]);
    work.script().read_until = Some(at(-30));
    let schedule = work.start();
    work.clock.set(at(29));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(work.script().told, Vec::<String>::new());
    work.clock.set(at(30));
    work.until_told(&["good refreshed at 30"]).await;
    schedule.abort();
}

#[tokio::test]
async fn a_clock_that_is_set_back_keeps_nothing_waiting_for_the_time_that_it_was_ahead() {
    let work = Scripted::new(&["good", "strange"]);
    work.clock.set(at(86_400));
    work.script().panics.insert("strange".to_owned());
    let schedule = work.start();
    work.until_told(&["good refreshed at 86400", "strange failed 1: Internal"]).await;
    work.script().catalog_fails = true;
    work.until_told(&["catalog failed 1: Unavailable"]).await;
    work.script().catalog_fails = false;
    work.script().panics.clear();
    work.clock.set(at(0));
    work.until_told(&["good refreshed at 0", "strange refreshed at 0", "catalog read"]).await;
    for tidied in ["garbage", "pushes"] {
        work.until_tidied(tidied, 2).await;
    }
    // From then on its interval counts.
    work.script().told.clear();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(work.script().told, Vec::<String>::new());
    work.clock.set(at(60));
    work.until_told(&["good refreshed at 60", "strange refreshed at 60"]).await;
    schedule.abort();
}

#[tokio::test]
async fn a_view_that_was_refreshed_by_a_clock_ahead_does_not_wait_for_that_time() {
    let work = Scripted::new(&["good"]);
    work.script().read_until = Some(at(86_400));
    let schedule = work.start();
    work.until_told(&["good refreshed at 0"]).await;
    schedule.abort();
}

#[tokio::test]
async fn what_keeps_the_store_small_follows_each_turn_and_fails_none() {
    let work = Scripted::new(&["good"]);
    work.script().tidying_fails = true;
    let schedule = work.start();
    work.until_told(&["good refreshed at 0"]).await;
    work.clock.set(at(60));
    work.until_told(&["good refreshed at 60"]).await;
    work.script().tidying_panics = true;
    work.clock.set(at(86_400));
    work.until_told(&["good refreshed at 86400"]).await;
    work.clock.set(at(86_460));
    work.until_told(&["good refreshed at 86460"]).await;
    for _ in 0..5_000 {
        let count = |what: &str| work.script().tidied.iter().filter(|tidied| *tidied == what).count();
        if (count("good"), count("garbage"), count("pushes")) == (4, 2, 2) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut tidied = work.script().tidied.clone();
    tidied.sort_unstable();
    assert_eq!(tidied, ["garbage", "garbage", "good", "good", "good", "good", "pushes", "pushes"]);
    assert!(work.script().told.iter().all(|told| told.contains("refreshed")), "{:?}", work.script().told);
    schedule.abort();
}

#[test]
fn a_panic_is_told_with_what_it_said() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let joined = runtime.block_on(async { tokio::spawn(async { panic!("row {}", 7) }).await });
    let error = panicked(joined.expect_err("it panics"));
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("row 7"), "{error}");
}
