"""Queries in PromQL, from the metric contract: a name or label that is not in it can't be asked for.

Every selector carries the matchers of the dashboard's variables: job and instance, the host (an
instance is HOST/SOURCE[/HW_ID]), and the device or pipeline where the metric has such a label.
"""

from __future__ import annotations

from benchlab_otel.contract import HW_ID, PIPELINE_NAME, Metric, prometheus_name

SCOPE = ('job=~"$job"', 'instance=~"$instance"')
HOST = 'instance=~"$host/.*"'
SCOPED = ",".join([*SCOPE, HOST])


def scoped(metric: Metric, *matchers: str, part: str = "") -> str:
    """The series of a metric on the chosen hosts; `part` is `_bucket`, `_sum` or `_count` of a histogram."""
    name = prometheus_name(metric.name, metric.unit, metric.kind)
    return f"{name}{part}{{{','.join([SCOPED, *matchers])}}}"


def series(metric: Metric, *matchers: str, part: str = "") -> str:
    """The series of a metric on the chosen hosts, of the chosen devices and pipelines."""
    device = ['hw_id=~"$device"'] if HW_ID in metric.labels else []
    pipeline = ['pipeline_name=~"$pipeline"'] if PIPELINE_NAME in metric.labels else []
    return scoped(metric, *device, *pipeline, *matchers, part=part)


def rate(metric: Metric, *matchers: str, part: str = "") -> str:
    """What a counter gains in a second."""
    return f"rate({series(metric, *matchers, part=part)}[$__rate_interval])"


def total(by: str, expression: str) -> str:
    """Summed over all labels but `by`."""
    return f"sum by ({by}) ({expression})"


def quantile(q: float, metric: Metric, *matchers: str, by: str = "") -> str:
    """A quantile of a histogram, of all chosen series together or by labels."""
    labels = ", ".join(filter(None, ["le", by]))
    return f"histogram_quantile({q}, {total(labels, rate(metric, *matchers, part='_bucket'))})"


def mean(metric: Metric, *matchers: str, by: str = "") -> str:
    """The mean of a histogram's observations."""
    parts = (total(by, rate(metric, *matchers, part=part)) for part in ("_sum", "_count"))
    return " / ".join(parts)


def buckets(metric: Metric, *matchers: str) -> str:
    """What was added to each bucket, for a heatmap."""
    return f"sum by (le) (increase({series(metric, *matchers, part='_bucket')}[$__rate_interval]))"


def by_device(expression: str) -> str:
    """The same with a label `device`: the hw_id, of long ones the beginning, so that it fits a legend."""
    whole = f'label_replace({expression}, "device", "$1", "hw_id", "(.*)")'
    return f'label_replace({whole}, "device", "$1", "hw_id", "((?:gpu|benchlab)-[0-9A-Fa-f]{{8}}).*")'


def by_host(expression: str) -> str:
    """The same with a label `host`, taken from the instance."""
    return f'label_replace({expression}, "host", "$1", "instance", "([^/]+)/.*")'
