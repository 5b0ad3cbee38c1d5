"""The dashboard of what callers notice: calls, latency, errors, refusals."""

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
# As in deploy/prometheus/alerting_rules.yml: what may fail, what may be slow, and the burn rate that pages.
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
    """Builds it."""
    description = "What callers notice of the chosen servers, taken together."
    rows = [_now(), _calls(), _latency(), _failures(), _items(), _callers(), _connections()]
    return board("service", "Service", description, rows)


def _now() -> Row:
    failing = f"job:alignserve_errors:ratio_rate1h{{{PLACES}}}"
    serving = over("max", series("alignserve_state", 'state="serving"'), "cluster, namespace, instance")
    numbers: list[Panel] = [
        number(
            About(
                "Availability, last hour",
                "Share of calls that did not fail by the server's fault, of the worst job. The objective is "
                "99.9 %.",
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
                "Calls begun per second. None while callers have not changed: they no longer get here.",
                "reqps",
                width=5,
            ),
            Query(rate("grpc_server_started_total", where=RPCS), "calls"),
            (None, "green"),
        ),
        number(
            About(
                "Latency, p99",
                "99 of 100 interactive calls of one image or text took less; the objective is half a second.",
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
                "Servers that take calls. Fewer than were deployed: the Fleet dashboard shows which one "
                "loads, has stalled or is gone.",
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
            "Calls begun per second; a stream counts once, whatever it carries. If this falls and callers "
            "have not changed, they no longer get here: the Fleet dashboard shows which servers are ready.",
            "reqps",
        ),
        Query(started, "{{grpc_method}}"),
    )
    ends = graph(
        About(
            "Calls by outcome",
            "Calls ended per second, by status code. INTERNAL, UNKNOWN and UNAVAILABLE are the server's "
            "fault; INVALID_ARGUMENT is a caller's; RESOURCE_EXHAUSTED is too little capacity, or a "
            "caller's quota.",
            "reqps",
            ["AlignserveErrorBudgetBurn"],
        ),
        Query(f"{rate('grpc_server_handled_total', 'grpc_code', RPCS)} > 0", "{{grpc_code}}"),
        is_stacked=True,
        colors=_CODE_COLORS,
    )
    running = graph(
        About(
            "Calls under way",
            "Calls and streams that have begun and not ended. Unary calls that only rise are held up by the "
            "queue or the device.",
            "short",
        ),
        Query(f"{begun} - {or_zeros(ended, begun)}", "{{grpc_method}}"),
    )
    return Row("Calls", [calls, ends, running])


def _latency() -> Row:
    handling = "grpc_server_handling_seconds"
    advice = (
        "If it is long, see on the Batching dashboard whether waiting, decoding or the model takes the time."
    )
    typical = graph(
        About(
            "Latency, median",
            f"Half of the interactive calls of one item took less. {advice}",
            "s",
            width=6,
        ),
        Query(quantile(0.5, handling, "grpc_method", SINGLE), "{{grpc_method}}"),
    )
    slowest = graph(
        About(
            "Latency, p99",
            f"99 of 100 interactive calls of one item took less; the objective is half a second. {advice}",
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
            "Of all unary calls, by priority and whether they have one item or several. Many items take "
            "longer by nature, and bulk work waits for interactive calls: no objective is about them.",
            "s",
            width=6,
        ),
        Query(quantile(0.99, handling, "priority, size", _UNARY), "{{priority}}, {{size}}"),
    )
    spread = heat(
        About(
            "Latency of all unary calls",
            "How many calls took how long. Two bands are two kinds of calls, such as texts that were in the "
            "cache and those that were not; a band that moves up is a queue that grows.",
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
            "How many times faster than the objective allows calls fail, or those of one item take longer "
            "than half a second. "
            "At 1 the budget lasts its month, at 14.4 two days. Of the whole job, whichever servers are "
            "chosen.",
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
            "Calls and stream items refused per second. QUEUE_FULL and WOULD_MISS_DEADLINE: add replicas, "
            "or find the caller that floods. The other reasons are callers' mistakes, or servers that "
            "start, stop or stall.",
            "ops",
            ["AlignserveRefusing"],
        ),
        Query(f"{rate(refused, 'reason')} > 0", "{{reason}}"),
        Query(or_zero(rate(refused)), "all"),
    )
    missed = graph(
        About(
            "Deadlines missed",
            "Calls per second that ended too late, those refused because they would have, and images and "
            "texts whose time was over before their turn. Callers allow too little time, or there is too "
            "little capacity.",
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
            "Admitted per second, from unary calls and streams, label prompts among the texts. If it stays "
            "level while more is asked for, the server is saturated, and the rest is refused.",
            "ops",
            width=6,
        ),
        Query(rate("alignserve_items_accepted_total", "modality"), "{{modality}}s"),
    )
    lost = graph(
        About(
            "Images and texts without a result",
            "Per second, by what came in between. Failed: inputs that cannot be read, or a model that fails "
            "on them. Cancelled: their callers left. Expired: their deadline passed.",
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
            "Admitted and not yet answered. If it stays near max_queue_size, callers are about to be "
            "refused; if it does not come down without traffic, something is stuck.",
            "short",
            width=6,
        ),
        Query(total("alignserve_items_in_flight", "modality"), "{{modality}}s"),
    )
    unknown = graph(
        About(
            "Unknown tokens",
            "Share of the tokens of texts and label prompts that the vocabulary lacks, such as emoji. "
            "Texts of nothing else all get the same embedding.",
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
            "Per second, by the name of the API key, admitted and refused. One that is far above the others "
            "when calls are refused is the caller that floods: lower its quota.",
            "ops",
            ["AlignserveRefusing"],
            width=12,
        ),
        Query(f"{rate('alignserve_caller_items_total', 'caller, outcome')} > 0", "{{caller}}, {{outcome}}"),
    )
    waiting = graph(
        About(
            "Images and texts that wait, by caller",
            "Admitted, and in no batch yet. One caller with many does not hold up others: turns are fair.",
            "short",
            width=12,
        ),
        Query(total("alignserve_caller_waiting_items", "caller"), "{{caller}}"),
    )
    return Row("Callers", [asked, waiting])


def _connections() -> Row:
    unread = graph(
        About(
            "Responses being made or unread",
            "Bytes that clients have not read yet. If it stays near max_unread_response_bytes, clients have "
            "stopped reading, and what they still ask for is refused or waits.",
            "bytes",
        ),
        Query(total("alignserve_unread_response_bytes"), "bytes"),
    )
    open_calls = graph(
        About(
            "Uploads and streams",
            "Unary calls whose request is arriving, and open streams. If uploads stay near max_uploads, "
            "clients are slow to send, or never end.",
            "short",
        ),
        Query(total("alignserve_uploads"), "uploads"),
        Query(total("alignserve_streams"), "streams"),
    )
    return Row("Connections", [unread, open_calls])
