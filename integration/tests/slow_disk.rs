//! Back-pressure: a disk that takes long to sync slows the producers, and the store does not hold what they send meanwhile.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::Float64Type;
use springhouse_featurestore::push::PushHeader;
use springhouse_featurestore::time::{Clock, SystemClock};
use springhouse_serving::FeatureSource;
use springhouse_serving::flight::{Pusher, RemoteFeatures};

use crate::project::{DEFINITIONS, TestProject, at};
use crate::push::refresh_all;

/// What a sync takes while the disk is slow, in milliseconds.
const SYNC: u64 = 1_000;

/// Each producer sends so many batches, all before it waits for an acknowledgement.
const PRODUCERS: u64 = 4;
const BATCHES: u64 = 60;

/// Events of a batch, and those of one synced write at most.
const EVENTS: u64 = 20_000;
const SYNCED_EVENTS: u64 = 80_000;

const USERS: u64 = 1_000;

/// The length of a user's name.
const NAME: usize = 150;

/// More than the store holds of pushes that wait and of those that it has just taken, half of what is sent.
const HELD_BYTES: u64 = SENT_BYTES / 2;

const ALL_EVENTS: u64 = PRODUCERS * BATCHES * EVENTS;

const SENT_BYTES: u64 = ALL_EVENTS * (NAME as u64 + 20);

fn whole(value: u64) -> i64 {
    i64::try_from(value).expect("small")
}

fn name(user: u64) -> String {
    format!("{user:0>NAME$}")
}

/// Events of a producer, with their number for an amount and for the second at which they happened.
fn events(producer: u64, batch: u64) -> RecordBatch {
    let first = (producer * BATCHES + batch) * EVENTS;
    let users = StringArray::from_iter_values((first..first + EVENTS).map(|number| name(number % USERS)));
    let times = (first..first + EVENTS).map(|number| whole(number) * 1_000_000);
    let times = TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC");
    let amounts = (first..first + EVENTS).map(|number| f64::from(u32::try_from(number).expect("small")));
    let columns: [(&str, ArrayRef, bool); 3] = [
        ("user_name", Arc::new(users), true),
        ("paid_at", Arc::new(times), true),
        ("amount", Arc::new(Float64Array::from_iter_values(amounts)), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).expect("three columns")
}

/// Makes a library of a fault: it is loaded before a program's C library.
pub fn library(fault: &str, folder: &Path) -> PathBuf {
    let source = format!("{}/faults/{fault}.c", env!("CARGO_MANIFEST_DIR"));
    let library = folder.join(format!("{fault}.so"));
    let made =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).args([&source, "-ldl"]).output();
    let made = made.expect("a C compiler, which RocksDB needs too");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    library
}

/// A store in a process of its own; it ends with the test.
struct Store(Child);

impl Drop for Store {
    fn drop(&mut self) {
        self.0.kill().expect("still running");
        self.0.wait().expect("ends");
    }
}

fn serve(project: &TestProject, port: u16, slow: &Path) -> Store {
    let started = Command::new(crate::flights::binary())
        .arg("--project")
        .arg(project.folder.path())
        .args(["--clock", &at(whole(ALL_EVENTS)).to_string(), "serve", "--role", "store", "--listen"])
        .arg(format!("127.0.0.1:{port}"))
        .env("LD_PRELOAD", library("slow_disk", project.folder.path()))
        .env("SLOW_DISK", slow)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Store(started.expect("starts"))
}

/// The most memory that a process has had, in bytes.
fn peak(store: &Store) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", store.0.id())).expect("running");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux says it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

async fn pusher(address: &str) -> Pusher {
    for _ in 0..500 {
        let store = RemoteFeatures::new(address).expect("an address");
        if let Ok(pusher) = store.pusher("paid", events(0, 0).schema()).await {
            return pusher;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the store does not start");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_slows_producers_and_memory_stays_bounded() {
    let project = TestProject::new(&[]);
    let state = project.apply(DEFINITIONS).await.expect("valid definitions");
    project.clock.set(at(1));
    refresh_all(&project, &state).await;
    std::fs::write(project.folder.path().join("springhouse.toml"), "store = \"store\"\n").expect("writable");
    let slow = project.folder.path().join("slow");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("free").port();
    let address = format!("http://127.0.0.1:{port}");
    let store = serve(&project, port, &slow);
    let mut pushers = Vec::new();
    for _ in 0..PRODUCERS {
        pushers.push(pusher(&address).await);
    }

    std::fs::write(&slow, SYNC.to_string()).expect("writable");
    let (before, began) = (peak(&store), SystemClock.now());
    let [sent, acknowledged] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let producers = (0..).zip(pushers).map(|(producer, mut pusher)| {
        let (sent, acknowledged) = (Arc::clone(&sent), Arc::clone(&acknowledged));
        tokio::spawn(async move {
            for batch in 0..BATCHES {
                pusher.send(&events(producer, batch), &PushHeader::default()).await.expect("sent");
                sent.fetch_add(1, Ordering::SeqCst);
            }
            for _ in 0..BATCHES {
                let ack = pusher.ack().await.expect("acknowledged");
                acknowledged.fetch_add(ack.rows, Ordering::SeqCst);
            }
        })
    });
    let producers: Vec<_> = producers.collect();
    while sent.load(Ordering::SeqCst) < PRODUCERS * BATCHES {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let taken = acknowledged.load(Ordering::SeqCst);
    let syncs = SystemClock.now().micros().abs_diff(began.micros()) / 1_000 / SYNC + 1;
    let held = peak(&store) - before;
    assert!(0 < taken && taken <= syncs * SYNCED_EVENTS, "{taken} events in {syncs} syncs");
    assert!(held < HELD_BYTES, "{held} bytes held of {SENT_BYTES} sent");

    // A disk that is quick again takes everything.
    std::fs::remove_file(&slow).expect("it was there");
    for producer in producers {
        producer.await.expect("no panic");
    }
    assert_eq!(acknowledged.load(Ordering::SeqCst), ALL_EVENTS);
    let users: ArrayRef = Arc::new(StringArray::from_iter_values((0..USERS).map(name)));
    let keys = RecordBatch::try_from_iter([("user_name", users)]).expect("keys");
    let contract = state.current_contract("fraud").expect("defined").pinned();
    let answer = RemoteFeatures::new(&address).expect("an address").lookup(&contract, keys).await.expect("looks up");
    let newest = (ALL_EVENTS - USERS..ALL_EVENTS).map(|number| f64::from(u32::try_from(number).expect("small")));
    assert!(answer["last_payment.amount"].as_primitive::<Float64Type>().values().iter().copied().eq(newest));
}
