"""The PromQL of the panels: it selects only the chosen servers, and adds up their workers."""

from __future__ import annotations

PLACES = 'cluster=~"$cluster", namespace=~"$namespace", job=~"$job"'
CHOSEN = f'{PLACES}, instance=~"$instance"'
RPCS = 'grpc_service="alignserve.v1.AlignService"'  # without health checks and reflection
FIRING = f'ALERTS{{alertname=~"Alignserve.+", alertstate="firing", {PLACES}}}'
SINGLE = f'{RPCS}, grpc_type="unary", priority="interactive", size="single"'  # of the latency objective


def series(metric: str, where: str = "") -> str:
    """Selects the series of the chosen servers; `where` holds further label matchers."""
    return f"{metric}{{{CHOSEN}{where and ', ' + where}}}"


def over(operator: str, vector: str, by: str = "") -> str:
    """Aggregates a vector; `by` holds the labels that are kept."""
    return f"{operator} by ({by}) ({vector})" if by else f"{operator}({vector})"


def total(metric: str, by: str = "", where: str = "") -> str:
    """Adds up a gauge."""
    return over("sum", series(metric, where), by)


def most(metric: str, by: str = "") -> str:
    """Takes the largest value of a gauge."""
    return over("max", series(metric), by)


def least(metric: str, by: str = "") -> str:
    """Takes the smallest value of a gauge."""
    return over("min", series(metric), by)


def rate(counter: str, by: str = "", where: str = "") -> str:
    """Adds up the growth of a counter per second."""
    return over("sum", f"rate({series(counter, where)}[$__rate_interval])", by)


def quantile(q: float, histogram: str, by: str = "", where: str = "") -> str:
    """Estimates a quantile of a histogram's recent counts."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', labels, where)})"


def mean(histogram: str, by: str = "") -> str:
    """Computes the mean of a histogram's recent counts."""
    return f"{rate(f'{histogram}_sum', by)} / {rate(f'{histogram}_count', by)}"


def buckets(histogram: str, where: str = "") -> str:
    """Counts by bucket, for a heatmap."""
    return over("sum", f"increase({series(f'{histogram}_bucket', where)}[$__rate_interval])", "le")


def or_zero(vector: str) -> str:
    """Shows 0 if there are no events; the vector has no labels."""
    return f"{vector} or vector(0)"


def or_zeros(vector: str, like: str) -> str:
    """Shows 0 for each label set of `like` that the vector lacks."""
    return f"({vector} or 0 * {like})"
