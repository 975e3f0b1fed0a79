//! What people see: data on stdout as text or JSON, the rest on stderr, bars for long work on a terminal.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;
use springhouse_featurestore::tier::Progress;
use springhouse_featurestore::{Error, Result};

/// Writes a line of data. A reader that has gone (`| head`) is no error.
pub fn say(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Writes a line about the work.
#[expect(clippy::disallowed_macros, reason = "the one place that writes to stderr")]
pub fn note(line: &str) {
    eprintln!("{line}");
}

/// Writes an error.
pub fn complain(error: &str) {
    if error.starts_with("error: ") { note(error) } else { note(&format!("error: {error}")) }
}

/// Writes a value as JSON when it is asked for, else its text.
pub fn show(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    if json {
        let rendered = serde_json::to_string_pretty(value);
        say(&rendered.map_err(|error| Error::internal("the result cannot be written as JSON").source(error))?);
    } else {
        say(&text());
    }
    Ok(())
}

/// Columns of text, each as wide as its widest cell.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(header.to_vec())).chain(body).collect::<Vec<_>>().join("\n")
}

/// A bar on a terminal, nothing elsewhere.
#[derive(Debug, Default)]
pub struct Bar(Mutex<Option<ProgressBar>>);

impl Progress for Bar {
    fn begin(&self, what: &str, rows: u64) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = if rows == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(rows) };
        let template = if rows == 0 {
            "{spinner} {msg} {human_pos} rows {rate}"
        } else {
            "{msg} {wide_bar} {human_pos}/{human_len} rows {rate} {eta} left"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                // A bar that cannot be drawn is no reason to stop the work.
                write!(out, "{:.0}/s", state.per_sec()).unwrap_or_default();
            };
            bar.set_style(style.with_key("rate", rate));
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        if let Ok(mut held) = self.0.lock() {
            *held = Some(bar);
        }
    }

    fn advance(&self, rows: u64) {
        if let Ok(held) = self.0.lock()
            && let Some(bar) = held.as_ref()
        {
            bar.inc(rows);
        }
    }

    fn end(&self) {
        if let Ok(mut held) = self.0.lock()
            && let Some(bar) = held.take()
        {
            bar.finish_and_clear();
        }
    }
}
