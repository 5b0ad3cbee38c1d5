"""The dashboard of what callers notice: calls, latency, errors, refusals."""

from __future__ import annotations

from deploy.grafana.generator.panels import About, Json, Query, Row, board, graph, heat
from deploy.grafana.generator.promql import RPCS, buckets, or_zero, or_zeros, quantile, rate, total

_UNARY = f'{RPCS}, grpc_type="unary"'
# As in deploy/prometheus/alerting_rules.yml: what may fail, what may be slow, and the burn rate that pages.
_MAY_FAIL, _MAY_BE_SLOW, _PAGING_RATE = 0.001, 0.01, 14.4


def dashboard() -> Json:
    """Builds it."""
    description = "What callers notice of the chosen servers, taken together."
    rows = [_calls(), _latency(), _failures(), _items(), _connections()]
    return board("service", "Service", description, rows)


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
        Query(rate("grpc_server_handled_total", "grpc_code", RPCS), "{{grpc_code}}"),
        is_stacked=True,
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
        About("Latency, median", f"Half of the unary calls took less. {advice}", "s"),
        Query(quantile(0.5, handling, "grpc_method", _UNARY), "{{grpc_method}}"),
    )
    slowest = graph(
        About(
            "Latency, p99",
            f"99 of 100 unary calls took less; the objective is half a second. {advice}",
            "s",
            ["AlignserveLatencyBudgetBurn"],
        ),
        Query(quantile(0.99, handling, "grpc_method", _UNARY), "{{grpc_method}}"),
        limit=0.5,
    )
    spread = heat(
        About(
            "Latency of all unary calls",
            "How many calls took how long. Two bands are two kinds of calls, such as texts that were in the "
            "cache and those that were not; a band that moves up is a queue that grows.",
            "s",
        ),
        buckets(handling, _UNARY),
    )
    return Row("Latency", [typical, slowest, spread])


def _failures() -> Row:
    refused = "alignserve_rejected_total"
    late = 'grpc_code="DEADLINE_EXCEEDED"'
    budgets = graph(
        About(
            "Error budgets, burn rate of the last hour",
            "How many times faster than the objective allows calls fail, or take longer than half a second. "
            "At 1 the budget lasts its month, at 14.4 two days. Of the whole job, whichever servers are "
            "chosen.",
            "none",
            ["AlignserveErrorBudgetBurn", "AlignserveLatencyBudgetBurn"],
        ),
        Query(f'job:alignserve_errors:ratio_rate1h{{job=~"$job"}} / {_MAY_FAIL}', "{{job}} failed"),
        Query(f'job:alignserve_slow:ratio_rate1h{{job=~"$job"}} / {_MAY_BE_SLOW}', "{{job}} slow"),
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
        Query(rate(refused, "reason"), "{{reason}}"),
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
        ),
        Query(total("alignserve_items_in_flight", "modality"), "{{modality}}s"),
    )
    unknown = graph(
        About(
            "Unknown tokens",
            "Share of the tokens of texts and label prompts that the vocabulary lacks, such as emoji. "
            "Texts of nothing else all get the same embedding.",
            "percentunit",
        ),
        Query(
            f"{or_zero(rate('alignserve_unknown_tokens_total'))} / {rate('alignserve_tokens_total')}",
            "unknown",
        ),
    )
    return Row("Images and texts", [admitted, lost, in_flight, unknown])


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
