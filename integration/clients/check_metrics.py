"""Prometheus' own parser against a running process: every sample has a type, and those that dashboards need are there."""

import sys
import urllib.error
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

(address,) = sys.argv[1:]

with urllib.request.urlopen(f"http://{address}/metrics") as answer:
    assert answer.headers["content-type"].startswith("application/openmetrics-text"), answer.headers
    families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}

assert all(name.startswith("springhouse_") for name in families), families
(lag,) = families["springhouse_view_lag_seconds"].samples
assert lag.labels["view"] == "last_payment" and len(lag.labels["version"]) >= 8, lag
assert lag.value >= 0 and families["springhouse_view_lag_seconds"].type == "gauge"
(watermark,) = families["springhouse_view_watermark_timestamp_seconds"].samples
assert watermark.value > 0, watermark
(rows,) = families["springhouse_contract_rows"].samples
assert rows.labels["contract"] == "fraud" and rows.name.endswith("_total") and rows.value > 0, rows
assert families["springhouse_contract_rows"].type == "counter"

try:
    urllib.request.urlopen(f"http://{address}/")
    raise AssertionError("there is nothing at /")
except urllib.error.HTTPError as error:
    assert error.code == 404 and "/metrics" in error.read().decode()
