"""The dashboard of what callers experience: calls, latency, errors, refusals."""

from __future__ import annotations

from deploy.grafana.generator.panels import About, Json, Panel, Query, Row, board, graph, heat, number
from deploy.grafana.generator.promql import (
    PLACES,
    RPCS,
    SINGLE,
    buckets,
    or_zero,
    or_zeros,
    over,
    quantile,
    rate,
    series,
    total,
)

_UNARY = f'{RPCS}, grpc_type="unary"'
# As in deploy/prometheus/alerting_rules.yml: both error budgets, and the burn rate that pages.
_MAY_FAIL, _MAY_BE_SLOW, _PAGING_RATE = 0.001, 0.01, 14.4
_MAY_TAKE_SECONDS = 0.5
_NO_ROOM = 'reason=~"QUEUE_FULL|WOULD_MISS_DEADLINE"'
_CODE_COLORS = {
    "OK": "green",
    "INVALID_ARGUMENT": "blue",
    "RESOURCE_EXHAUSTED": "yellow",
    "DEADLINE_EXCEEDED": "purple",
    "CANCELLED": "#8e8e8e",
    "UNAVAILABLE": "orange",
    "PERMISSION_DENIED": "#0a7f8c",
    "INTERNAL": "red",
    "UNKNOWN": "dark-red",
}


def dashboard() -> Json:
    """Builds the dashboard."""
    description = "What callers see of the selected servers, in total."
    rows = [_now(), _calls(), _latency(), _failures(), _items(), _callers(), _connections()]
    return board("service", "Service", description, rows)


def _now() -> Row:
    failing = f"job:alignserve_errors:ratio_rate1h{{{PLACES}}}"
    serving = over("max", series("alignserve_state", 'state="serving"'), "cluster, namespace, instance")
    numbers: list[Panel] = [
        number(
            About(
                "Availability, last hour",
                "Share of calls that did not fail because of the server, for the worst job. The "
                "objective is 99.9 %.",
                "percentunit",
                ["AlignserveErrorBudgetBurn"],
                width=5,
            ),
            Query(f"1 - {over('max', failing)}", "available"),
            (None, "red"),
            (1 - _PAGING_RATE * _MAY_FAIL, "orange"),
            (1 - _MAY_FAIL, "green"),
            nothing="no calls",
        ),
        number(
            About(
                "Calls",
                "Calls started per second. If there are none and callers have not changed, calls no "
                "longer reach the servers.",
                "reqps",
                width=5,
            ),
            Query(rate("grpc_server_started_total", where=RPCS), "calls"),
            (None, "green"),
        ),
        number(
            About(
                "Latency, p99",
                "99 of 100 interactive calls with one item took less; the objective is half a second.",
                "s",
                ["AlignserveLatencyBudgetBurn"],
                width=5,
            ),
            Query(quantile(0.99, "grpc_server_handling_seconds", where=SINGLE), "p99"),
            (None, "green"),
            (_MAY_TAKE_SECONDS, "red"),
            nothing="no calls",
        ),
        number(
            About(
                "Refused for lack of capacity",
                "Calls and stream items per second. Add replicas, or find the caller that floods, below.",
                "ops",
                ["AlignserveRefusing"],
                width=5,
            ),
            Query(or_zero(rate("alignserve_rejected_total", where=_NO_ROOM)), "refused"),
            (None, "green"),
            (0.1, "orange"),
        ),
        number(
            About(
                "Ready replicas",
                "Servers that accept calls. If fewer than were deployed, the Fleet dashboard shows which "
                "one is loading, stalled or missing.",
                "none",
                ["AlignserveAbsent", "AlignserveVanished", "AlignserveNotReady", "AlignserveTargetDown"],
                width=4,
            ),
            Query(or_zero(over("sum", serving)), "ready"),
            (None, "red"),
            (1, "green"),
        ),
    ]
    return Row("Now", numbers, height=4)


def _calls() -> Row:
    started = rate("grpc_server_started_total", "grpc_method", RPCS)
    begun = total("grpc_server_started_total", "grpc_method", RPCS)
    ended = total("grpc_server_handled_total", "grpc_method", RPCS)
    calls = graph(
        About(
            "Calls by RPC",
            "Calls started per second; a stream counts as one call. If this falls and callers have "
            "not changed, calls no longer reach the servers: the Fleet dashboard shows which servers "
            "are ready.",
            "reqps",
        ),
        Query(started, "{{grpc_method}}"),
    )
    ends = graph(
        About(
            "Calls by outcome",
            "Calls completed per second, by status code. INTERNAL, UNKNOWN and UNAVAILABLE are the "
            "server's fault, INVALID_ARGUMENT is the caller's. RESOURCE_EXHAUSTED means too little "
            "capacity or an exceeded quota.",
            "reqps",
            ["AlignserveErrorBudgetBurn"],
        ),
        Query(f"{rate('grpc_server_handled_total', 'grpc_code', RPCS)} > 0", "{{grpc_code}}"),
        is_stacked=True,
        colors=_CODE_COLORS,
    )
    running = graph(
        About(
            "Calls in progress",
            "Calls and streams in progress. If unary calls keep rising, the queue or the device "
            "holds them up.",
            "short",
        ),
        Query(f"{begun} - {or_zeros(ended, begun)}", "{{grpc_method}}"),
    )
    return Row("Calls", [calls, ends, running])


def _latency() -> Row:
    handling = "grpc_server_handling_seconds"
    advice = (
        "If it is high, the Batching dashboard shows whether the queue, decoding or the model takes the time."
    )
    typical = graph(
        About(
            "Latency, median",
            f"Half of the interactive calls with one item took less. {advice}",
            "s",
            width=6,
        ),
        Query(quantile(0.5, handling, "grpc_method", SINGLE), "{{grpc_method}}"),
    )
    slowest = graph(
        About(
            "Latency, p99",
            f"99 of 100 interactive calls with one item took less; the objective is half a second. {advice}",
            "s",
            ["AlignserveLatencyBudgetBurn"],
            width=6,
        ),
        Query(quantile(0.99, handling, "grpc_method", SINGLE), "{{grpc_method}}"),
        limit=_MAY_TAKE_SECONDS,
    )
    many = graph(
        About(
            "Latency, p99, by kind",
            "All unary calls, by priority and by whether they have one item or several. Calls with "
            "many items take longer, and bulk work waits for interactive calls: they have no "
            "objective.",
            "s",
            width=6,
        ),
        Query(quantile(0.99, handling, "priority, size", _UNARY), "{{priority}}, {{size}}"),
    )
    spread = heat(
        About(
            "Latency of all unary calls",
            "Distribution of latencies. Two bands are two kinds of calls, for example texts that "
            "were in the cache and texts that were not. A band that moves up is a growing queue.",
            "s",
            width=6,
        ),
        buckets(handling, _UNARY),
    )
    return Row("Latency", [typical, slowest, many, spread])


def _failures() -> Row:
    refused = "alignserve_rejected_total"
    late = 'grpc_code="DEADLINE_EXCEEDED"'
    budgets = graph(
        About(
            "Error budgets, burn rate of the last hour",
            "How much faster than the objective allows calls fail, or calls with one item take "
            "longer than half a second. At 1 the budget lasts for its month, at 14.4 for two days. "
            "For the whole job, regardless of the selected servers.",
            "none",
            ["AlignserveErrorBudgetBurn", "AlignserveLatencyBudgetBurn"],
        ),
        Query(
            f"job:alignserve_errors:ratio_rate1h{{{PLACES}}} / {_MAY_FAIL}", "{{namespace}} {{job}} failed"
        ),
        Query(f"job:alignserve_slow:ratio_rate1h{{{PLACES}}} / {_MAY_BE_SLOW}", "{{namespace}} {{job}} slow"),
        limit=_PAGING_RATE,
    )
    refusals = graph(
        About(
            "Refusals by reason",
            "Calls and stream items rejected per second. QUEUE_FULL and WOULD_MISS_DEADLINE: add "
            "replicas, or find the caller that floods. Other reasons are errors of callers, or "
            "servers that start, stop or stall.",
            "ops",
            ["AlignserveRefusing"],
        ),
        Query(f"{rate(refused, 'reason')} > 0", "{{reason}}"),
        Query(or_zero(rate(refused)), "all"),
    )
    missed = graph(
        About(
            "Deadlines missed",
            "Per second: calls that ended too late, calls rejected because they would have, and "
            "images and texts whose deadline passed in the queue. Callers set deadlines that are too "
            "short, or there is too little capacity.",
            "ops",
        ),
        Query(or_zero(rate("grpc_server_handled_total", where=f"{RPCS}, {late}")), "calls too late"),
        Query(or_zero(rate(refused, where='reason="WOULD_MISS_DEADLINE"')), "calls refused"),
        Query(rate("alignserve_items_total", "modality", 'outcome="expired"'), "{{modality}}s too late"),
    )
    return Row("What goes wrong", [budgets, refusals, missed])


def _items() -> Row:
    admitted = graph(
        About(
            "Images and texts",
            "Admitted per second, from unary calls and streams; label prompts count as texts. If it "
            "stays constant while demand rises, the server is saturated and rejects the rest.",
            "ops",
            width=6,
        ),
        Query(rate("alignserve_items_accepted_total", "modality"), "{{modality}}s"),
    )
    lost = graph(
        About(
            "Images and texts without a result",
            "Per second, by cause. Failed: unreadable inputs, or inputs on which the model fails. "
            "Cancelled: the caller cancelled the call. Expired: the deadline passed.",
            "ops",
            ["AlignserveItemsFailing"],
            width=6,
        ),
        Query(
            rate("alignserve_items_total", "modality, outcome", 'outcome!="ok"'), "{{modality}}s {{outcome}}"
        ),
    )
    in_flight = graph(
        About(
            "Images and texts in flight",
            "Admitted and not yet answered. If it stays close to max_queue_size, calls are about to "
            "be rejected; if it does not fall without traffic, something is stuck.",
            "short",
            width=6,
        ),
        Query(total("alignserve_items_in_flight", "modality"), "{{modality}}s"),
    )
    unknown = graph(
        About(
            "Unknown tokens",
            "Share of the tokens of texts and label prompts that are not in the vocabulary, such as "
            "emoji. Texts that contain only such tokens all get the same embedding.",
            "percentunit",
            width=6,
        ),
        Query(
            f"{or_zero(rate('alignserve_unknown_tokens_total'))} / {rate('alignserve_tokens_total')}",
            "unknown",
        ),
    )
    return Row("Images and texts", [admitted, lost, in_flight, unknown])


def _callers() -> Row:
    asked = graph(
        About(
            "Images and texts by caller",
            "Per second, by the name of the API key, accepted and rejected. If calls are rejected, a "
            "caller far above the others floods the server: lower its quota.",
            "ops",
            ["AlignserveRefusing"],
            width=12,
        ),
        Query(f"{rate('alignserve_caller_items_total', 'caller, outcome')} > 0", "{{caller}}, {{outcome}}"),
    )
    waiting = graph(
        About(
            "Images and texts waiting, by caller",
            "Admitted and waiting for a batch. A caller with many waiting items does not delay the "
            "others: callers take turns.",
            "short",
            width=12,
        ),
        Query(total("alignserve_caller_waiting_items", "caller"), "{{caller}}"),
    )
    return Row("Callers", [asked, waiting])


def _connections() -> Row:
    unread = graph(
        About(
            "Responses in progress or unread",
            "Bytes that clients have not read yet. If it stays close to max_unread_response_bytes, "
            "clients have stopped reading, and their further calls wait or are rejected.",
            "bytes",
        ),
        Query(total("alignserve_unread_response_bytes"), "bytes"),
    )
    open_calls = graph(
        About(
            "Uploads and streams",
            "Unary requests being received, and open streams. If uploads stay close to max_uploads, "
            "clients send slowly or never finish.",
            "short",
        ),
        Query(total("alignserve_uploads"), "uploads"),
        Query(total("alignserve_streams"), "streams"),
    )
    return Row("Connections", [unread, open_calls])
