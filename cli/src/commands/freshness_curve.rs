//! `freshness-curve`: what staleness costs, so that an engineer can choose FRESH WITHIN.

use std::path::PathBuf;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};
use clap::Args;
use serde::Serialize;
use springhouse_featurestore::time::Span;
use springhouse_featurestore::{Error, Result};
use springhouse_materializer::training_set::{AsOf, RowsFrom, TrainingSetRequest};
use springhouse_serving::model;
use springhouse_serving::model::neural::area_under_curve;
use springhouse_serving::package::Package;
use springhouse_sql::spine::SpineOrder;

use super::{SpineArgs, parse_span, train, training_set};
use crate::plot::plot_curve;
use crate::project::Project;
use crate::render::{note, show, table};

/// What staleness costs: a package's quality on features as of some time earlier.
#[derive(Debug, Args)]
pub struct FreshnessCurve {
    /// The contract's name
    contract: String,
    /// The package's digest, or its first digits
    digest: String,
    #[command(flatten)]
    spine: SpineArgs,
    /// The column that says what was to be predicted: 0 or 1, or a boolean
    #[arg(long)]
    label: String,
    /// Lags: features are taken as of the row's time less each of these
    #[arg(long, value_delimiter = ',', value_parser = parse_span, default_value = "0h,1h,2h,4h,8h")]
    lags: Vec<Span>,
    /// An SVG file to plot to
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// Quality at one lag.
#[derive(Debug, Clone, Serialize)]
pub struct CurvePoint {
    /// How much older the features were.
    pub lag: Span,
    /// The area under the ROC curve.
    pub auc: f64,
    /// Rows with a label.
    pub rows: usize,
}

impl FreshnessCurve {
    /// Runs it.
    pub async fn run(&self, project: &Project, json: bool) -> Result<()> {
        let points = curve(project, &self.contract, &self.digest, &self.spine, &self.label, &self.lags).await?;
        if let Some(path) = &self.plot {
            plot_curve(path, &self.contract, &points)?;
            note(&format!("plotted to {}", path.display()));
        }
        show(json, &points, || shown(&points))
    }

    /// The demo's curve.
    pub fn of(contract: &str, digest: &str, spine: &str, time: &str, label: &str, plot: PathBuf) -> Self {
        let hours = |hours: i64| Span::from_secs(hours * 3600);
        Self {
            contract: contract.to_owned(),
            digest: digest.to_owned(),
            spine: SpineArgs { spine: spine.to_owned(), time: Some(time.to_owned()) },
            label: label.to_owned(),
            lags: [0, 1, 2, 4, 8].map(hours).to_vec(),
            plot: Some(plot),
        }
    }
}

/// The curve as people read it.
fn shown(points: &[CurvePoint]) -> String {
    let rows: Vec<Vec<String>> = points
        .iter()
        .map(|point| vec![point.lag.to_string(), format!("{:.3}", point.auc), point.rows.to_string()])
        .collect();
    table(&["features as of time less", "AUC", "rows"], &rows)
}

async fn curve(
    project: &Project,
    contract: &str,
    digest: &str,
    spine: &SpineArgs,
    label: &str,
    lags: &[Span],
) -> Result<Vec<CurvePoint>> {
    let (_, state) = project.catalog().await?;
    let record = state.package(digest)?;
    if record.contract.name != contract {
        return Err(Error::invalid("the package is for another contract").with("package", &record.contract));
    }
    let package = Package::load(&project.store()?, &record.digest).await?;
    let pinned = state.contract(&record.contract)?;
    let model = model::load(&package, pinned)?;
    let folder = tempfile::tempdir().map_err(|error| Error::unavailable("no temporary folder").source(error))?;
    let file = folder.path().join("lagged.parquet");
    let mut points = Vec::with_capacity(lags.len());
    for &lag in lags {
        let mut source = spine.source(&state)?;
        source.lag = lag;
        let request = TrainingSetRequest {
            spine: source,
            rows: RowsFrom::Committed,
            as_of: AsOf::Known,
            with_features: false,
            order: SpineOrder::AsGiven,
        };
        training_set::write(project, contract, &request, &file).await?;
        let names = package.manifest()?.inputs;
        let (inputs, labels) = train::read_labelled(&file, &names, label, Some(&pinned.pinned()))?;
        let scores = cast(&model.predict(&inputs)?[0], &DataType::Float32)?;
        let scores = scores.as_primitive::<Float32Type>().values().to_vec();
        points.push(CurvePoint { lag, auc: area_under_curve(&scores, &labels), rows: labels.len() });
    }
    Ok(points)
}
