//! Which views are due for a refresh. Pure.

use springhouse_featurestore::definition::FeatureView;
use springhouse_featurestore::time::Timestamp;

/// Whether a view whose watermark is `watermark` is due at `now` under its `REFRESH EVERY`.
pub fn is_due(view: &FeatureView, watermark: Option<Timestamp>, now: Timestamp) -> bool {
    watermark.is_none_or(|mark| now >= mark + view.refresh_every)
}
