//! What a process measures, in the words of Prometheus (the `OpenMetrics` text format).
//!
//! Names begin with `springhouse_`; a view or a contract is named by its name and its version, in labels of their own.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use springhouse_featurestore::time::{Span, Timestamp};
use springhouse_featurestore::{Error, Result};

use crate::connections::TurnedAway;
use crate::features::FeatureStatus;
use crate::worker::{Contracts, Counters};

/// Names and values of labels.
pub type Labels = Vec<(&'static str, String)>;

/// One of a contract's counts.
type CountOf = fn(&Counters) -> u64;

/// Measurements of one moment.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { registry: Registry::with_prefix("springhouse") }
    }
}

impl Metrics {
    /// Adds values that rise and fall.
    pub fn gauges(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.registry.register(name, help, family);
    }

    /// Adds counts since the process began; `_total` is put behind the name.
    pub fn counters(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.registry.register(name, help, family);
    }

    /// Adds how a store and its views stand.
    pub fn add_features(&mut self, status: &FeatureStatus) {
        let commit = status.catalog_commit;
        #[expect(clippy::cast_precision_loss, reason = "there are not so many commits")]
        self.gauges("catalog_commit", "The newest catalog commit that is followed", [(Labels::new(), commit as f64)]);
        let views = &status.views;
        self.gauges(
            "view_watermark_timestamp_seconds",
            "Every event up to this time can be looked up",
            views.iter().filter_map(|view| Some((of_pinned("view", &view.view), unix_seconds(view.watermark?)))),
        );
        self.gauges(
            "view_lag_seconds",
            "Now less the watermark; absent before the first refresh",
            views.iter().filter_map(|view| Some((of_pinned("view", &view.view), view.lag_seconds?))),
        );
        self.gauges(
            "view_unavailable",
            "1 while lookups that need the view are refused",
            views.iter().map(|view| (of_pinned("view", &view.view), f64::from(u8::from(view.state.is_unavailable())))),
        );
        self.gauges(
            "view_trouble_since_timestamp_seconds",
            "Since when the view cannot be followed; absent while it can",
            views
                .iter()
                .filter_map(|view| Some((of_pinned("view", &view.view), unix_seconds(view.state.trouble()?.since)))),
        );
        #[expect(clippy::cast_precision_loss, reason = "there are at most a few thousand")]
        self.gauges(
            "view_set_aside_events",
            "Pushed events that the view does without, since its query fails on them",
            views.iter().map(|view| (of_pinned("view", &view.view), view.set_aside as f64)),
        );
        self.counters("memory_reads", "Keys asked for", [(Labels::new(), status.memory_reads)]);
        self.counters("memory_hits", "Keys answered from memory", [(Labels::new(), status.memory_hits)]);
    }

    /// Adds the connections that found no place.
    pub(crate) fn add_connections(&mut self, turned_away: &TurnedAway) {
        let counts = turned_away.counts().map(|(full, count)| (vec![("full", full.to_owned())], count));
        self.counters(
            "connections_turned_away",
            "Connections closed at once: the port, or one address, had its most",
            counts,
        );
    }

    /// Adds what was answered for contracts.
    pub fn add_contracts(&mut self, contracts: &Contracts) {
        let workers = contracts.all();
        let counted: Vec<(Labels, Counters)> = workers
            .iter()
            .map(|worker| (of_pinned("contract", &worker.contract().pinned().to_string()), worker.counters()))
            .collect();
        let kinds: [(&str, &str, CountOf); 6] = [
            ("requests", "Requests answered", |count| count.requests),
            ("rows", "Rows answered", |count| count.rows),
            ("fresh_rows", "Rows answered with every view fresh", |count| count.fresh_rows),
            ("refused_requests", "Requests that a FAIL rule refused", |count| count.refused),
            ("shed_requests", "Requests turned away because the queue was full", |count| count.shed),
            ("expired_requests", "Requests whose deadline passed in the queue", |count| count.expired),
        ];
        for (name, help, count) in kinds {
            let values = counted.iter().map(|(labels, counters)| (labels.clone(), count(counters)));
            self.counters(&format!("contract_{name}"), help, values);
        }
    }

    /// As text.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::Internal`] when a value cannot be written.
    pub fn text(&self) -> Result<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry)
            .map_err(|error| Error::internal("metrics cannot be written").source(error))?;
        Ok(text)
    }
}

/// A time as Prometheus has it: seconds since 1970.
pub fn unix_seconds(time: Timestamp) -> f64 {
    Span::from_micros(time.micros()).as_secs_f64()
}

/// The labels of a definition that is called `name@version`.
pub fn of_pinned(kind: &'static str, pinned: &str) -> Labels {
    let (name, version) = pinned.split_once('@').unwrap_or((pinned, ""));
    vec![(kind, name.to_owned()), ("version", version.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_with_their_names_and_labels() {
        let mut metrics = Metrics::default();
        metrics.gauges("view_lag_seconds", "Now less the watermark", [(of_pinned("view", "spent@abc"), 1.5)]);
        metrics.counters("refreshes", "Refreshes", [(of_pinned("view", "a \"b\"@1"), 3)]);
        let text = metrics.text().expect("written");
        assert!(text.contains("springhouse_view_lag_seconds{view=\"spent\",version=\"abc\"} 1.5\n"), "{text}");
        assert!(text.contains("springhouse_refreshes_total{view=\"a \\\"b\\\"\",version=\"1\"} 3\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
