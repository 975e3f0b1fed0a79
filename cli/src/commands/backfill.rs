//! `backfill`: a view's rows of a stretch of event time computed anew.

use clap::Args;
use springhouse_featurestore::catalog::Signature;
use springhouse_featurestore::tier::BackfillAsked;
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};

use crate::project::{Project, who};
use crate::render::{Bar, show};

/// Compute a view's rows of a stretch of event time anew; run again after a kill it goes on where it was.
#[derive(Debug, Args)]
pub struct Backfill {
    /// The view's name
    view: String,
    /// The least event time; the first event's when it is not given
    #[arg(long, value_parser = super::parse_time)]
    from: Option<Timestamp>,
    /// The event time before which rows are computed; just after the view's watermark when it is not given
    #[arg(long, value_parser = super::parse_time)]
    until: Option<Timestamp>,
    /// The length of the ranges that are computed by themselves
    #[arg(long, value_parser = super::parse_span, default_value = "30 days")]
    every: Span,
    /// Compute all rows anew and set the watermark back to now, for a view that was refreshed while a clock was ahead: see check
    #[arg(long, conflicts_with_all = ["from", "until"])]
    reset_watermark: bool,
    /// Why the watermark is set back, for the record
    #[arg(long, short, requires = "reset_watermark", default_value = "", hide_default_value = true)]
    message: String,
    /// Memory for sorting, such as 512MiB; beyond it rows are spilled to disk
    #[arg(long, value_parser = super::parse_bytes, default_value = "1GiB")]
    memory: usize,
    /// Commit, and leave this host's disk tier as it is: another host serves
    #[arg(long)]
    no_load: bool,
}

impl Backfill {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        if self.every <= Span::ZERO {
            return Err(Error::invalid("a range has no length").with("every", self.every).remedy("--every '30 days'"));
        }
        let (_, state) = project.catalog().await?;
        let jobs = project.jobs()?.with_memory(self.memory);
        let asked = BackfillAsked { from: self.from, until: self.until, every: self.every };
        for view in super::refresh::chosen(&state, std::slice::from_ref(&self.view))? {
            let done = if self.reset_watermark {
                let by = Signature { at: project.clock().now(), who: who(), why: self.message.clone() };
                jobs.reset(&state, view, self.every, by, &Bar::default()).await?
            } else {
                jobs.backfill(&state, view, asked, &Bar::default()).await?
            };
            if !self.no_load {
                super::refresh::load_tiers(project).await?;
            }
            show(json, &done, || {
                let resumed =
                    if done.resumed > 0 { format!(", {} of them before", done.resumed) } else { String::new() };
                format!(
                    "{}: {} rows from {} until {}, in {} ranges{resumed}; commit {}",
                    done.view, done.rows, done.from, done.until, done.ranges, done.commit
                )
            })?;
        }
        Ok(())
    }
}
