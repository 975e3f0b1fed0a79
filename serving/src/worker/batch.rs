//! A worker of one contract version and one package: from questions to answers, a batch at a time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::concat;
use arrow::datatypes::SchemaRef;
use springhouse_featurestore::definition::{Column, Contract, FeatureView};
use springhouse_featurestore::enforce::{Enforced, Enforcer};
use springhouse_featurestore::lookup::LookupPlan;
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_sql::inputs::CompiledInputs;
use springhouse_sql::session::Session;
use tokio::sync::{Mutex, oneshot};

use super::queue::{Counters, Load, Waiting};
use super::{Answer, Pending, Question, Reply, WorkerOptions, send};
use crate::features::{DeployedContract, FeatureSource};
use crate::model::Model;
use crate::package::Package;
use crate::predict::too_many_rows;
use crate::shares::Share;

/// A running worker. It has no task of its own: whoever asks and finds the worker free leads the next batch, so that a
/// request that comes alone is answered where it stands, without waking anybody.
#[derive(Debug)]
pub struct ContractWorker {
    deployed: DeployedContract,
    steps: Steps,
    waiting: Waiting,
    /// Held by who leads a batch.
    turn: Arc<Mutex<()>>,
    load: Load,
    questions: AtomicU64,
    predictions: AtomicU64,
    most_rows: usize,
}

impl ContractWorker {
    /// Loads a package and starts.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Invalid`] when the package is not for this contract version.
    pub fn start(
        deployed: DeployedContract,
        package: &Package,
        source: Arc<dyn FeatureSource>,
        session: &Session,
        options: &WorkerOptions,
    ) -> Result<Arc<Self>> {
        let views: Vec<&FeatureView> = deployed.views.iter().collect();
        let plan = LookupPlan::new(&deployed.contract, &deployed.views)?;
        let keys = plan.keys();
        let steps = Steps {
            contract: deployed.contract.clone(),
            enforcer: Enforcer::new(&deployed.contract, &views, plan.schema())?,
            key_indices: key_indices(&deployed.contract, keys)?,
            key_schema: key_schema(keys),
            inputs: CompiledInputs::new(session, &deployed.contract, &views)?,
            model: crate::model::load(package, &deployed.contract)?,
            source,
            lookup_within: options.lookup_within,
        };
        Ok(Arc::new(Self {
            deployed,
            steps,
            waiting: Waiting::default(),
            turn: Arc::default(),
            load: Load::new(options.queue_rows),
            questions: AtomicU64::new(0),
            predictions: AtomicU64::new(0),
            most_rows: options.batch_rows,
        }))
    }

    /// What it serves.
    pub fn deployed(&self) -> &DeployedContract {
        &self.deployed
    }

    /// Its contract.
    pub fn contract(&self) -> &Contract {
        &self.deployed.contract
    }

    /// The most rows of one request.
    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// Its counts since it started.
    pub fn counters(&self) -> Counters {
        self.load.counters.read()
    }

    /// Questions in the queue.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Busy`] when the queue is full, `Refused` by a rule, `Expired` after the
    /// deadline, `Invalid` for more rows than a batch has, `Unavailable` when the features cannot be looked up, or not in time.
    pub async fn ask(self: &Arc<Self>, question: Question) -> Result<Answer> {
        let rows = question.rows;
        if rows > self.most_rows {
            return Err(too_many_rows(rows, self.most_rows));
        }
        let texts = self.load.admit_texts(text_bytes(&question.columns), question.caller.as_ref())?;
        let share = self.load.admit(rows, question.caller.as_ref())?;
        let (reply, answer) = oneshot::channel();
        let deadline = question.deadline;
        let gone = || Error::unavailable("the worker has stopped");
        let number = self.questions.fetch_add(1, Ordering::Relaxed);
        let mut place = Place { worker: self, number, rows, waits: true, _shares: [share, texts] };
        self.waiting.add(number, Pending { question, reply });
        let answered = match deadline {
            None => self.answered(number, answer).await,
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), self.answered(number, answer)).await {
                Ok(answered) => answered,
                Err(_) => {
                    self.load.counters.expired.fetch_add(1, Ordering::Relaxed);
                    return Err(Error::expired("the deadline passed before the answer was ready"));
                }
            },
        };
        // Whatever was answered had been taken out of the line.
        place.waits = answered.is_err();
        answered.map_err(|_| gone())?
    }

    /// Waits for an answer, and leads batches whenever the worker is free.
    async fn answered(self: &Arc<Self>, number: u64, mut answer: oneshot::Receiver<Result<Answer>>) -> Answered {
        loop {
            let turn = tokio::select! {
                biased;
                answered = &mut answer => return answered,
                turn = Arc::clone(&self.turn).lock_owned() => turn,
            };
            let gathered = self.waiting.gather(self.most_rows);
            if gathered.is_empty() {
                // An earlier leader took the question along: with the turn free, its answer has been sent.
                drop(turn);
                return answer.await;
            }
            let alone = gathered.len() == 1 && gathered[0].0 == number;
            let batch = gathered.into_iter().map(|(_, pending)| pending).collect();
            if alone {
                self.lead(batch).await;
            } else {
                // Others wait for this batch too: it goes on when this caller goes.
                let worker = Arc::clone(self);
                tokio::spawn(async move {
                    worker.lead(batch).await;
                    drop(turn);
                });
            }
        }
    }

    /// Answers a batch.
    async fn lead(self: &Arc<Self>, gathered: Vec<Pending>) {
        let start = now();
        let (wanted, gone): (Vec<Pending>, Vec<Pending>) =
            gathered.into_iter().partition(|pending| pending.is_wanted(start));
        gone.into_iter().for_each(Pending::expire);
        if wanted.is_empty() {
            return;
        }
        let (questions, mut replies): (Vec<Question>, Vec<Reply>) =
            wanted.into_iter().map(|pending| (pending.question, pending.reply)).unzip();
        let rows = questions.iter().map(|question| question.rows).sum();
        let answers = tokio::select! {
            biased;
            answers = self.steps.answer(&questions, rows, self, &self.load) => answers,
            () = all_gone(&mut replies) => {
                tracing::debug!(rows, "all callers of a batch went before its features came");
                return;
            }
        };
        self.load.note(rows, start.elapsed());
        for (reply, answer) in replies.into_iter().zip(answers) {
            send(reply, answer);
        }
    }
}

/// Returns when nobody waits for these answers any more; whoever's deadline passes does not.
async fn all_gone(replies: &mut [Reply]) {
    for reply in replies {
        reply.closed().await;
    }
}

type Answered = Result<Result<Answer>, oneshot::error::RecvError>;

/// A request's place in the queue, given back when it is answered, its deadline passes or its caller goes.
struct Place<'a> {
    worker: &'a ContractWorker,
    number: u64,
    rows: usize,
    /// Whether it may stand in the line still.
    waits: bool,
    /// Those of its rows and of their texts.
    _shares: [Option<Share<Arc<str>>>; 2],
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.worker.waiting.remove(self.number);
        }
        self.worker.load.leave(self.rows);
    }
}

/// The bytes of columns' texts: of other types they follow from the rows.
fn text_bytes(columns: &[ArrayRef]) -> usize {
    let texts = columns.iter().filter_map(|column| column.as_string_opt::<i32>());
    texts.map(|texts| texts.value_data().len()).sum()
}

fn key_schema(keys: &[Column]) -> SchemaRef {
    let nullable: Vec<Column> = keys.iter().map(|key| Column::nullable(&key.name, key.column_type)).collect();
    Column::to_schema(&nullable)
}

fn key_indices(contract: &Contract, keys: &[Column]) -> Result<Vec<usize>> {
    keys.iter()
        .map(|key| {
            contract
                .request
                .iter()
                .position(|column| column.name == key.name)
                .ok_or_else(|| Error::internal("a key is not a request column").with("key", &key.name))
        })
        .collect()
}

/// Everything a batch passes through.
#[derive(Debug)]
struct Steps {
    contract: Contract,
    enforcer: Enforcer,
    key_indices: Vec<usize>,
    key_schema: SchemaRef,
    inputs: CompiledInputs,
    model: Box<dyn Model>,
    source: Arc<dyn FeatureSource>,
    lookup_within: Duration,
}

/// Deadlines are spans of real time, whatever time the project's clock shows.
#[expect(clippy::disallowed_methods, reason = "a caller's deadline runs in real time")]
fn now() -> Instant {
    Instant::now()
}

/// One request's rows in the batch.
fn ranges(wanted: &[Question]) -> Vec<Range<usize>> {
    let mut start = 0;
    wanted
        .iter()
        .map(|question| {
            let range = start..start + question.rows;
            start = range.end;
            range
        })
        .collect()
}

impl Steps {
    async fn answer(
        &self,
        wanted: &[Question],
        rows: usize,
        worker: &Arc<ContractWorker>,
        load: &Load,
    ) -> Vec<Result<Answer>> {
        let ranges = ranges(wanted);
        let scored = match self.features(wanted, rows).await {
            Ok((request, enforced)) => self.infer(&request, &enforced, rows).map(|output| (output, enforced)),
            Err(error) => Err(error),
        };
        match scored {
            Ok((output, enforced)) => {
                ranges.iter().map(|range| self.one(&output, &enforced, range, worker, load)).collect()
            }
            Err(error) if wanted.len() == 1 => vec![Err(error)],
            // It has nothing to do with any request: each by itself would fail so too, and hold the turn meanwhile.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                wanted.iter().map(|_| Err(Error::unavailable(error.chain()))).collect()
            }
            Err(error) => {
                // One request's values may have failed the batch: the others are answered by themselves.
                tracing::debug!(error = %error, requests = wanted.len(), "a batch failed; asking one by one");
                let mut answers = Vec::with_capacity(wanted.len());
                for question in wanted {
                    answers.push(self.alone(question, worker, load).await);
                }
                answers
            }
        }
    }

    async fn alone(&self, question: &Question, worker: &Arc<ContractWorker>, load: &Load) -> Result<Answer> {
        let rows = question.rows;
        let (request, enforced) = self.features(std::slice::from_ref(question), rows).await?;
        let output = self.infer(&request, &enforced, rows)?;
        self.one(&output, &enforced, &(0..rows), worker, load)
    }

    /// The request columns of the whole batch, and its features under the rules.
    async fn features(&self, wanted: &[Question], rows: usize) -> Result<(Vec<ArrayRef>, Enforced)> {
        let request: Vec<ArrayRef> = (0..self.contract.request.len())
            .map(|index| {
                let parts: Vec<&dyn arrow::array::Array> =
                    wanted.iter().map(|question| question.columns[index].as_ref()).collect();
                if let [_] = parts.as_slice() { Ok(Arc::clone(&wanted[0].columns[index])) } else { concat(&parts) }
            })
            .collect::<Result<_, _>>()?;
        let keys = self.key_indices.iter().map(|&index| Arc::clone(&request[index])).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let keys = RecordBatch::try_new_with_options(Arc::clone(&self.key_schema), keys, &options)?;
        let answer = self.look_up(keys).await?;
        Ok((request, self.enforcer.enforce(&answer)?))
    }

    /// The features of these keys, for as long as a lookup may take.
    async fn look_up(&self, keys: RecordBatch) -> Result<RecordBatch> {
        let contract = self.contract.pinned();
        let lookup = self.source.lookup(&contract, keys);
        tokio::time::timeout(self.lookup_within, lookup).await.unwrap_or_else(|_| {
            Err(Error::unavailable("the features were not looked up in time")
                .with("contract", &contract)
                .with("milliseconds", self.lookup_within.as_millis())
                .remedy("look at the feature server and the network to it; lookup_millis in springhouse.toml is the time given"))
        })
    }

    fn infer(&self, request: &[ArrayRef], enforced: &Enforced, rows: usize) -> Result<Vec<ArrayRef>> {
        let inputs = self.inputs.evaluate(request, &enforced.features, rows);
        self.model.predict(&inputs.map_err(|error| self.without_values(&error))?)
    }

    /// An error of an input, as its callers are told of it: what an expression says when it fails may quote a feature's value,
    /// which whoever may have predictions may not read.
    fn without_values(&self, error: &Error) -> Error {
        let contract = self.contract.pinned();
        tracing::debug!(%contract, error = %error.chain(), "an input cannot be computed");
        let told =
            Error::new(error.kind(), "an input of the contract cannot be computed of this request and its features")
                .with("contract", contract);
        let told = match error.context("input") {
            Some(input) => told.with("input", input),
            None => told,
        };
        told.remedy("look at the input's expression in the contract; the server's log (RUST_LOG=debug) says on which value it fails")
    }

    /// The part of a batch's answer that is one request's.
    fn one(
        &self,
        output: &[ArrayRef],
        enforced: &Enforced,
        rows: &Range<usize>,
        worker: &Arc<ContractWorker>,
        load: &Load,
    ) -> Result<Answer> {
        let findings = enforced.findings(rows);
        if let Some(refusal) = enforced.refusal(&findings) {
            load.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(refusal.with("contract", self.contract.pinned()));
        }
        load.counters.requests.fetch_add(1, Ordering::Relaxed);
        load.counters.rows.fetch_add(rows.len() as u64, Ordering::Relaxed);
        let fresh_rows = if findings.is_empty() { rows.len() } else { enforced.fresh_rows(rows) };
        load.counters.fresh_rows.fetch_add(fresh_rows as u64, Ordering::Relaxed);
        Ok(Answer {
            fresh_rows,
            columns: output.iter().map(|column| column.slice(rows.start, rows.len())).collect(),
            findings,
            worker: Arc::clone(worker),
            prediction: worker.predictions.fetch_add(1, Ordering::Relaxed) + 1,
        })
    }
}
