//! How many of a view's committed rows are not what its sources give.

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use datafusion::functions_aggregate::expr_fn::{max, sum};
use datafusion::logical_expr::{Expr, lit};
use datafusion::prelude::DataFrame;
use springhouse_featurestore::Result;
use springhouse_featurestore::definition::{Column, FeatureView};
use springhouse_featurestore::tier::{AVAILABLE_TIME, DataFile, EVENT_TIME};
use springhouse_featurestore::time::Timestamp;

use super::{Sources, known};
use crate::session::{EventRange, Session, exact, query_error};

/// Marks rows that are committed,
const COMMITTED: &str = "@committed";

/// and those that the sources give.
const GIVEN: &str = "@given";

/// The rows of `files` that the sources do not give as they are (of what [`super::known_rows`] knows), and the rows that
/// they give for an entity and times of which `files` have none, or too few: a row whose values changed counts once.
///
/// # Errors
/// As [`super::view_rows`], and [`springhouse_featurestore::ErrorKind::Damaged`] when a file cannot be read.
pub async fn changed_rows(
    session: &Session,
    sources: &Sources<'_>,
    view: &FeatureView,
    known: Timestamp,
    files: &[DataFile],
) -> Result<u64> {
    let range = EventRange { until: Timestamp::MAX, pushed: Timestamp::MAX, ..EventRange::known_by(known) };
    let given = known::frame(session, sources, view, range).await?;
    let committed = session.committed_frame(sources.store, view, files).await?;
    let times = [EVENT_TIME, AVAILABLE_TIME].map(exact);
    let identity: Vec<Expr> = view.keys.iter().map(named).chain(times).collect();
    let whole: Vec<Expr> = identity.iter().cloned().chain(view.row_columns().iter().map(named)).collect();
    let marked = |frame: DataFrame, committed: i64| {
        let marks = [lit(committed).alias(COMMITTED), lit(1 - committed).alias(GIVEN)];
        frame.select(whole.iter().cloned().chain(marks).collect::<Vec<_>>())
    };
    let both = marked(committed, 1).and_then(|committed| committed.union(marked(given, 0)?)).map_err(query_error)?;
    let each_counts = view.windowed.is_some();
    let gone = surplus(both.clone(), whole.clone(), each_counts, COMMITTED, GIVEN).await?;
    let come = surplus(both, identity, each_counts, GIVEN, COMMITTED).await?;
    Ok(gone + come)
}

fn named(column: &Column) -> Expr {
    exact(&column.name)
}

/// Of rows that are equal by some columns, how many more there are of one kind than of the other; where several equal ones
/// stand for one, whether there is one at all.
async fn surplus(rows: DataFrame, by: Vec<Expr>, each_counts: bool, more: &str, less: &str) -> Result<u64> {
    let counted = |kind: &str| {
        let rows = if each_counts { sum(exact(kind)) } else { max(exact(kind)) };
        rows.alias(kind)
    };
    let groups = rows.aggregate(by, vec![counted(more), counted(less)]).map_err(query_error)?;
    let surplus = groups.filter(exact(more).gt(exact(less))).map_err(query_error)?;
    let total = vec![sum(exact(more) - exact(less)).alias(more)];
    let total = surplus.aggregate(Vec::new(), total).map_err(query_error)?.collect().await.map_err(query_error)?;
    let counts = total.iter().filter(|batch| batch.num_rows() > 0).map(|batch| {
        let count = batch.column(0).as_primitive::<Int64Type>();
        if count.is_valid(0) { count.value(0).cast_unsigned() } else { 0 }
    });
    Ok(counts.sum())
}
