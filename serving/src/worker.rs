//! The worker: one request's way, step by step.
//!
//! 1. *Admit*: the queue holds a bounded number of rows; beyond it a request is refused at once with a computed delay. One
//!    caller has at most half of them.
//! 2. *Batch*: whoever asks and finds the worker free takes what has gathered, up to a number of rows; there is no
//!    timer. Requests whose caller has gone or whose deadline has passed leave the queue before any work is done for them.
//! 3. *Look up*: the features of the whole batch, once. It is given up when nobody waits for it any more, and when it takes
//!    longer than a lookup may: a store that does not answer holds the turn no longer than that.
//! 4. *Enforce*: the contract's rules; a request with a row that a `FAIL` rule refuses is answered with that.
//! 5. *Inputs*: the contract's expressions over the whole batch, the code that makes training sets.
//! 6. *Infer*, and answer each request with its rows, findings and versions.

mod batch;
mod contracts;
mod queue;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use arrow::array::ArrayRef;
use springhouse_featurestore::enforce::Finding;
use springhouse_featurestore::{Error, Result};
use tokio::sync::oneshot;

pub use batch::ContractWorker;
pub use contracts::{Contracts, WorkerOptions};
pub use queue::Counters;

/// A request's columns in the order of the contract's `REQUEST`, and by when its caller wants an answer.
#[derive(Debug, Clone)]
pub struct Question {
    /// The columns.
    pub columns: Vec<ArrayRef>,
    /// Their rows.
    pub rows: usize,
    /// The caller's deadline.
    pub deadline: Option<Instant>,
    /// Who has a share of the queue by its name; none where nobody is asked who they are.
    pub caller: Option<Arc<str>>,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The columns of the contract's `OUTPUT`.
    pub columns: Vec<ArrayRef>,
    /// What was not fresh, and which rule was applied.
    pub findings: Vec<Finding>,
    /// How many rows had every view fresh.
    pub fresh_rows: usize,
    /// The worker that answered: contract version and package.
    pub worker: Arc<ContractWorker>,
    /// A number that no other prediction of this process has.
    pub prediction: u64,
}

/// Where an answer goes.
pub(crate) type Reply = oneshot::Sender<Result<Answer>>;

/// A question on its way.
#[derive(Debug)]
pub(crate) struct Pending {
    question: Question,
    reply: Reply,
}

impl Pending {
    /// Whether anybody would still read the answer.
    fn is_wanted(&self, now: Instant) -> bool {
        !self.reply.is_closed() && self.question.deadline.is_none_or(|deadline| now < deadline)
    }

    /// Tells a caller that still listens that its time is over.
    fn expire(self) {
        send(self.reply, Err(Error::expired("the deadline passed before the request's turn came")));
    }
}

fn send(reply: Reply, answer: Result<Answer>) {
    if reply.send(answer).is_err() {
        tracing::debug!("the caller went before its answer");
    }
}
