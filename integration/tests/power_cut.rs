//! Power cuts: a process is killed, and of its folder is left what was synced. What was acknowledged is there again, once.
//!
//! `faults/power_cut.c` is loaded before the C library of a process, and keeps a shadow of what is durable; here a folder is
//! put into the state that its shadow says.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use springhouse_serving::flight::RemoteFeatures;

use crate::project::{Event, TestProject, at};
use crate::push::{KILLED_AT, all_are_there, batch_of, produce, refresh_all};
use crate::seeded::Seeded;
use crate::slow_disk::library;
use crate::windows::definitions;

/// The shadow of the process that asks, if it runs over a disk whose power can be cut.
pub fn shadow_of_this_process() -> Option<PathBuf> {
    std::env::var_os("POWER_CUT_SHADOW").map(PathBuf::from)
}

/// The name under which a shadow knows a file or a folder.
fn key_of(path: &Path) -> String {
    let found = fs::metadata(path).expect("there");
    let made = found.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    format!("{}.{}.{}", found.ino(), made.as_secs(), made.subsec_nanos())
}

/// Makes a folder of what is durable of another one, of which the process that uses it may be running.
pub fn survivors(shadow: &Path, of: &Path, to: &Path) {
    restored(shadow, &key_of(of), to);
}

fn restored(shadow: &Path, key: &str, to: &Path) {
    fs::create_dir(to).expect("new");
    let entries = match fs::read_to_string(shadow.join("dirs").join(key)) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.expect("readable"),
    };
    for entry in entries.lines() {
        let mut parts = entry.splitn(3, ' ');
        let (Some(kind), Some(key), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            panic!("a shadow's entry: {entry}");
        };
        let (to, bytes) = (to.join(name), shadow.join("files").join(key));
        if kind == "d" {
            restored(shadow, key, &to);
        } else if bytes.exists() {
            fs::copy(bytes, to).expect("writable");
        } else {
            // Its name was synced, and nothing of it.
            File::create(to).expect("writable");
        }
    }
}

/// Syncs a folder with all that is in it.
pub fn synced(folder: &Path) {
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            synced(&path);
        } else {
            File::open(&path).and_then(|file| file.sync_all()).expect("synced");
        }
    }
    File::open(folder).and_then(|folder| folder.sync_all()).expect("synced");
}

/// A machine on which a project is served, until its power is cut.
struct Machine<'a> {
    project: &'a TestProject,
    port: u16,
    library: PathBuf,
    /// A shadow for each start, and what the server said.
    shadows: tempfile::TempDir,
    starts: u32,
    child: Child,
}

impl<'a> Machine<'a> {
    fn new(project: &'a TestProject) -> Self {
        let bound = std::net::TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr());
        let (shadows, port) = (tempfile::tempdir().expect("a folder"), bound.expect("free").port());
        let library = library("power_cut", shadows.path());
        let child = Self::started(project, port, &library, &shadows.path().join("0"));
        Self { project, port, library, shadows, starts: 0, child }
    }

    fn started(project: &TestProject, port: u16, library: &Path, shadow: &Path) -> Child {
        fs::create_dir(shadow).expect("new");
        let said = File::create(shadow.with_extension("said")).expect("writable");
        Command::new(crate::flights::binary())
            .arg("--project")
            .arg(project.folder.path())
            .args(["--clock", &at(KILLED_AT).to_string(), "serve", "--role", "store", "--listen"])
            .arg(format!("127.0.0.1:{port}"))
            .env("LD_PRELOAD", library)
            .env("POWER_CUT_FOLDER", project.folder.path())
            .env("POWER_CUT_SHADOW", shadow)
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .expect("starts")
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn shadow(&self) -> PathBuf {
        self.shadows.path().join(self.starts.to_string())
    }

    /// Cuts the power: nothing of the process runs any more, and what was not synced is gone.
    fn cut(&mut self) {
        if let Some(ended) = self.child.try_wait().expect("ours") {
            let said = fs::read_to_string(self.shadow().with_extension("said")).expect("readable");
            panic!("the server ended by itself after {} power cuts, {ended}: {said}", self.starts);
        }
        self.child.kill().expect("running");
        self.child.wait().expect("ended");
        let (folder, left) = (self.project.folder.path(), self.shadows.path().join("left"));
        // Without one the process has not begun yet.
        let Ok(root) = fs::read_to_string(self.shadow().join("root")) else { return };
        restored(&self.shadow(), root.trim(), &left);
        for entry in fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.expect("removable");
        }
        for entry in fs::read_dir(&left).expect("readable") {
            let entry = entry.expect("readable");
            fs::rename(entry.path(), folder.join(entry.file_name())).expect("movable");
        }
        fs::remove_dir(left).expect("empty");
    }

    fn start(&mut self) {
        self.starts += 1;
        self.child = Self::started(self.project, self.port, &self.library, &self.shadow());
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // It may have ended by itself, which was told.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Flushes again and again, as far as there is somebody to do it; says how often it was done.
async fn flush_often(address: String, done: Arc<AtomicBool>, flushes: Arc<AtomicU64>) {
    while !done.load(Ordering::SeqCst) {
        let store = RemoteFeatures::new(&address).expect("an address");
        if store.act("flush", "").await.is_ok() {
            flushes.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_once_after_power_cuts() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    let state = project.apply(&definitions()).await.expect("valid definitions");
    project.clock.set(at(1_000));
    refresh_all(&project, &state).await;
    fs::write(project.folder.path().join("springhouse.toml"), "store = \"store\"\n").expect("writable");
    let mut machine = Machine::new(&project);
    let (address, batches) = (machine.address(), 1_500);
    let producers: Vec<_> = (0..3).map(|producer| tokio::spawn(produce(address.clone(), producer, batches))).collect();
    let (done, flushes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let flushing = tokio::spawn(flush_often(address.clone(), Arc::clone(&done), Arc::clone(&flushes)));
    let mut random = Seeded::new(78);
    while producers.iter().any(|producer| !producer.is_finished()) {
        tokio::time::sleep(Duration::from_millis(50 + random.below(350))).await;
        if producers.iter().all(tokio::task::JoinHandle::is_finished) {
            break;
        }
        machine.cut();
        machine.start();
        // With each cut there is a little more time, so that the end is reached.
        tokio::time::sleep(Duration::from_millis(150 * u64::from(machine.starts))).await;
    }
    for producer in producers {
        producer.await.expect("no panic");
    }
    done.store(true, Ordering::SeqCst);
    flushing.await.expect("no panic");
    assert!(machine.starts >= 3, "{} power cuts", machine.starts);
    let mut events: Vec<Event> = vec![("ann", 10, 10, Some(1.0))];
    events.extend((0..3).flat_map(|producer| (1..=batches).flat_map(move |sequence| batch_of(producer, sequence))));
    let flushes = flushes.load(Ordering::SeqCst);
    // As it is, and once more after everything was flushed: what was let go of is where it was moved to.
    for last in ["", ", and after the last"] {
        let place = format!("after {} power cuts and {flushes} flushes{last}", machine.starts);
        all_are_there(&address, &state, &events, &place).await;
        if last.is_empty() {
            machine.cut();
            machine.start();
            while RemoteFeatures::new(&address).expect("an address").act("status", "").await.is_err() {
                assert!(machine.child.try_wait().expect("ours").is_none(), "it starts after the last power cut");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// The simulation itself, on a disk that forgets at a crash what was not synced: object storage, disk tier and push log.
/// `POWER_CUT_SEEDS` and `POWER_CUT_FAULTS` say which seeds, and what may go wrong besides.
#[test]
fn the_simulation_survives_power_cuts() {
    let folder = tempfile::tempdir().expect("a folder");
    let [disk, shadow] = ["disk", "shadow"].map(|name| folder.path().join(name));
    fs::create_dir(&disk).expect("new");
    fs::create_dir(&shadow).expect("new");
    let simulated = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "simulation::every_answer_is_right_whatever_happens", "--nocapture"])
        .env("SIMULATION_FAULTS", std::env::var("POWER_CUT_FAULTS").unwrap_or_else(|_| "power_cut,dying".to_owned()))
        .env("SIMULATION_SEEDS", std::env::var("POWER_CUT_SEEDS").unwrap_or_else(|_| "0..24".to_owned()))
        .env("TMPDIR", &disk)
        .env("LD_PRELOAD", library("power_cut", folder.path()))
        .env("POWER_CUT_FOLDER", &disk)
        .env("POWER_CUT_SHADOW", &shadow)
        .output()
        .expect("starts");
    let said = [simulated.stdout, simulated.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(simulated.status.success() && said.contains("1 passed"), "{said}");
}

/// The library and what is made of its shadow, against a folder whose fate is known.
#[test]
fn a_power_cut_leaves_what_was_synced_and_nothing_else() {
    if shadow_of_this_process().is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let [disk, shadow] = ["disk", "shadow"].map(|name| folder.path().join(name));
        fs::create_dir(&disk).expect("new");
        fs::create_dir(&shadow).expect("new");
        fs::write(disk.join("before"), "it began").expect("writable");
        let cut = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "power_cut::a_power_cut_leaves_what_was_synced_and_nothing_else", "--nocapture"])
            .env("LD_PRELOAD", library("power_cut", folder.path()))
            .env("POWER_CUT_FOLDER", &disk)
            .env("POWER_CUT_SHADOW", &shadow)
            .output()
            .expect("starts");
        assert!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stdout));
        let left = folder.path().join("left");
        survivors(&shadow, &disk, &left);
        let mut names: Vec<String> = fs::read_dir(&left)
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["before", "empty", "old", "removed", "whole"]);
        let bytes = |name: &str| fs::read_to_string(left.join(name)).expect("readable");
        assert_eq!(names.iter().map(|name| bytes(name)).collect::<Vec<_>>(), ["it began", "", "new", "there", "one"]);
        return;
    }
    // The other process, over the disk.
    let disk = PathBuf::from(std::env::var_os("POWER_CUT_FOLDER").expect("set with the shadow"));
    let write = |name: &str, text: &str| fs::write(disk.join(name), text).expect("writable");
    let sync = |name: &str| File::open(disk.join(name)).and_then(|file| file.sync_all()).expect("synced");
    for (name, text) in [("whole", "one"), ("old", "first"), ("removed", "there"), ("new", "new")] {
        write(name, text);
        sync(name);
    }
    write("empty", "never synced");
    fs::rename(disk.join("new"), disk.join("old")).expect("movable");
    sync(".");
    // From here on no folder is synced.
    write("whole", "one and two");
    write("unseen", "its name is not synced");
    sync("unseen");
    fs::remove_file(disk.join("removed")).expect("there");
    fs::rename(disk.join("old"), disk.join("moved")).expect("movable");
    fs::create_dir(disk.join("folder")).expect("new");
}
