//! Side-by-side measurements: each figure is a ratio to a peer or to a bare echo, taken in the same run, the two sides
//! alternating. Prints Markdown. Arguments choose among `lookups`, `direct`, `entity`, `predictions`, `pushes`, `jobs`,
//! `skewed`, `outage`, `switching`, `security` and `following`; without any it measures all. `datafusion FOLDER SQL` is a peer of
//! `scale.py`.

mod counting;
mod echo;
mod entity;
mod following;
mod grouping;
mod house;
mod jobs;
mod load;
mod lookups;
mod outage;
mod predictions;
mod pushes;
mod security;
mod skewed;
mod switching;

use std::process::ExitCode;

use springhouse_featurestore::Result;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // As in the binary too.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        load::note(&format!("huge pages stay on: {error}"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let measured = match runtime {
        Ok(runtime) => runtime.block_on(measure()),
        Err(error) => Err(springhouse_featurestore::Error::internal("no runtime").source(error)),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            load::note(&error.chain());
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|name| name == part);
    if let [peer, folder, sql] = wanted.as_slice()
        && peer == "datafusion"
    {
        return grouping::run(folder, sql).await;
    }
    if wanted == ["following"] {
        // It needs no features.
        return following::measure().await;
    }
    let house = house::House::build().await?;
    load::say("| measurement | ours | peer | ratio (median, spread) | p50 / p99 at half the load |");
    load::say("|---|---|---|---|---|");
    let mut peaks = Peaks::default();
    peaks.note("setting up");
    if wants("lookups") {
        lookups::measure(&house, house::Memory::Warm).await?;
        lookups::measure(&house, house::Memory::Off).await?;
        peaks.note("lookups");
    }
    if wants("direct") {
        lookups::measure_direct(&house).await?;
        peaks.note("direct");
    }
    if wants("entity") {
        entity::measure().await?;
        peaks.note("entity");
    }
    if wants("predictions") {
        predictions::measure(&house).await?;
        peaks.note("predictions");
    }
    if wants("jobs") {
        jobs::measure(&house).await?;
        peaks.note("jobs");
    }
    if wants("skewed") {
        skewed::measure().await?;
        peaks.note("skewed");
    }
    if wants("security") {
        security::measure(&house).await?;
        peaks.note("security");
    }
    if wants("outage") {
        outage::measure(&house).await?;
        peaks.note("outage");
    }
    if wants("switching") {
        switching::measure().await?;
        peaks.note("switching");
    }
    // Last: what is pushed ends up in the views that the others read.
    if wants("pushes") {
        pushes::measure(&house).await?;
        peaks.note("pushes");
    }
    peaks.say();
    if wants("following") {
        following::measure().await?;
    }
    Ok(())
}

/// The most memory of each part.
#[derive(Default)]
struct Peaks(Vec<String>);

impl Peaks {
    fn note(&mut self, part: &str) {
        self.0.extend(load::take_peak_memory().map(|megabytes| format!("{part} {megabytes} MB")));
    }

    fn say(&self) {
        load::say(&format!(
            "\nPeak memory of the process, which holds both sides and all callers: {}.",
            self.0.join(", ")
        ));
    }
}
