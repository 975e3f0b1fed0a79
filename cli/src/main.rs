//! The one binary: settings -> build -> run -> drain. Data goes to stdout, everything else to stderr.

mod commands;
mod plot;
mod project;
mod render;
mod sent;
mod settings;

use std::process::ExitCode;

use clap::Parser;
use springhouse_sql::nesting::STACK_BYTES;
use tracing_subscriber::EnvFilter;

use commands::Cli;

/// Batches are many small allocations that another thread often frees: the system's allocator is slow at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("SPRINGHOUSE_LOG").unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        .init();
    without_huge_pages();
    // Planning recurses into expressions: every thread may plan, and the main thread's stack is the shell's to choose.
    let main = std::thread::Builder::new().name("main".to_owned()).stack_size(STACK_BYTES).spawn(|| run(cli));
    match main.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        // It has said why.
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => {
            render::complain(&format!("no thread can be started: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_BYTES).build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            render::complain(&format!("the runtime cannot be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(code) => code,
        Err(error) => {
            render::complain(&error.chain());
            ExitCode::FAILURE
        }
    }
}

/// Huge pages that nobody asked for are cleared whole where a part of them is used: they make a process a fifth larger, and
/// a tenth slower where memory comes and goes.
fn without_huge_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
}
