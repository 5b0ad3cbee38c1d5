"""The dashboard that compares servers, to find one that differs from the others."""

from __future__ import annotations

from deploy.grafana.generator.panels import (
    About,
    Json,
    Query,
    Row,
    board,
    graph,
    listing,
    number,
    timeline,
)
from deploy.grafana.generator.promql import (
    FIRING,
    RPCS,
    SINGLE,
    least,
    most,
    or_zero,
    or_zeros,
    over,
    quantile,
    rate,
    series,
    total,
)

_FAULTS = f'{RPCS}, grpc_code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DATA_LOSS"'
_HALF_AN_HOUR = "[30m]"  # as AlignserveRestarting counts
_DAY_SECONDS = 86400
_MODEL_LABELS = ("instance", "model_id", "runtime", "dtype", "device", "server_version", "fingerprint")


def dashboard() -> Json:
    """Builds the dashboard."""
    description = "Each server separately; a server with several workers counts as one."
    return board("fleet", "Fleet", description, [_state(), _load(), _capacity(), _health(), _processes()])


def _state() -> Row:
    up = most("up", "instance")
    ranks = ("loading", "draining", "stalled", "serving")  # of several workers' states, the last counts
    found = " or ".join(
        "{} * {}".format(rank, series("alignserve_state", f'state="{state}"'))
        for rank, state in enumerate(ranks, 1)
    )
    state = over("max", found, "instance")
    states = timeline(
        About(
            "State",
            "Down: the metrics port does not answer. Loading for long: see the log. Stalled: the "
            "device makes no progress. With several workers, one that serves is enough. Callers "
            "reach only servers that serve.",
            "none",
            ["AlignserveTargetDown", "AlignserveNotReady", "AlignserveStalled", "AlignserveVanished"],
            width=12,
        ),
        Query(or_zeros(state, up), "{{instance}}"),
        [
            ("down", "red"),
            ("loading", "orange"),
            ("draining", "blue"),
            ("stalled", "purple"),
            ("serving", "green"),
        ],
    )
    alerts = number(
        About(
            "Firing alerts",
            "Red marks in the graphs and Prometheus show which ones. Each has a runbook. For the whole job.",
            "none",
            width=6,
        ),
        Query(or_zero(over("count", FIRING)), "alerts"),
        (None, "green"),
        (1, "red"),
    )
    certificate = number(
        About(
            "Time until the first certificate expires",
            "Clients cannot connect after that. Renew the files; servers reload them.",
            "s",
            ["AlignserveCertificateExpires", "AlignserveCertificateExpiresSoon"],
            width=6,
        ),
        Query(over("min", f"{series('alignserve_certificate_expiry_timestamp_seconds')} - time()"), "left"),
        (None, "red"),
        (2 * _DAY_SECONDS, "orange"),
        (14 * _DAY_SECONDS, "green"),
        nothing="no TLS",
    )
    served = listing(
        About(
            "Served models",
            "Embeddings are comparable only if the fingerprints are equal. The cosine similarity is "
            "to transformers in float32, measured at startup; 1 is exact.",
            "none",
            width=24,
        ),
        over(
            "min",
            f"{series('alignserve_model_info')} * on (job, instance, worker) group_left () "
            f"{series('alignserve_model_min_cosine_similarity')}",
            ", ".join(_MODEL_LABELS),
        ),
        "min cosine similarity",
        _MODEL_LABELS,
    )
    return Row("State", [states, alerts, certificate, served])


def _load() -> Row:
    ended = rate("grpc_server_handled_total", "instance", RPCS)
    faults = rate("grpc_server_handled_total", "instance", _FAULTS)
    calls = graph(
        About(
            "Calls",
            "Started per second. If a ready server gets far fewer than others, the balancer does not "
            "know it, or clients balance by connection and have not reconnected.",
            "reqps",
        ),
        Query(rate("grpc_server_started_total", "instance", RPCS), "{{instance}}"),
    )
    failing = graph(
        About(
            "Calls that failed because of the server",
            "INTERNAL, UNKNOWN, UNAVAILABLE and DATA_LOSS as a share of calls, including streams "
            "that reached their maximum age. One server: check its log and restart it. All servers: "
            "they share a model or an input that fails.",
            "percentunit",
            ["AlignserveErrorBudgetBurn"],
        ),
        Query(f"{or_zeros(faults, ended)} / {ended}", "{{instance}}"),
    )
    slowest = graph(
        About(
            "Latency, p99",
            "99 of 100 interactive calls with one item took less time. If one server is slower, its "
            "machine is slower or shared.",
            "s",
            ["AlignserveLatencyBudgetBurn"],
        ),
        Query(
            quantile(0.99, "grpc_server_handling_seconds", "instance", SINGLE),
            "{{instance}}",
        ),
        limit=0.5,
    )
    return Row("Load", [calls, failing, slowest])


def _capacity() -> Row:
    wait = series("instance:alignserve_queue_wait_seconds:p95_5m")
    busy = graph(
        About(
            "Device busy, last 5 minutes",
            "Share of the time that the lanes spend in the model. All servers above 90 %: add "
            "replicas. Only one: the load is not balanced.",
            "percentunit",
            ["AlignserveSaturated"],
        ),
        Query(
            over("max", series("instance:alignserve_device_busy:ratio_rate5m"), "instance"), "{{instance}}"
        ),
        limit=0.9,
    )
    waiting = graph(
        About(
            "Time in the queue, p95, last 5 minutes",
            "For the modality that waits longer. Above a quarter of a second there is too little capacity.",
            "s",
            ["AlignserveSaturated"],
        ),
        Query(over("max", wait, "instance"), "{{instance}}"),
        limit=0.25,
    )
    entries = graph(
        About(
            "Queue",
            "Images and texts waiting for a batch. A server whose queue does not move has stalled.",
            "short",
            ["AlignserveStalled"],
        ),
        Query(total("alignserve_queue_entries", "instance"), "{{instance}}"),
    )
    return Row("Capacity", [busy, waiting, entries])


def _health() -> Row:
    starts = f"changes({series('process_start_time_seconds')}{_HALF_AN_HOUR})"
    restarts = f"increase({series('alignserve_worker_restarts_total')}{_HALF_AN_HOUR})"
    hangs = f"increase({series('alignserve_worker_hangs_total')}{_HALF_AN_HOUR})"
    last = f"{series('alignserve_last_forward_timestamp_seconds')} > 0"
    again = graph(
        About(
            "Restarts in the last half hour",
            "Restarts of processes, including workers. More than three mean a crash loop; the log "
            "before the restart shows why. Exit code 3 is a stalled device.",
            "none",
            ["AlignserveRestarting", "AlignserveWorkerHung"],
        ),
        Query(over("sum", starts, "instance"), "{{instance}}"),
        Query(over("sum", restarts, "instance"), "{{instance}}, workers"),
        Query(over("sum", hangs, "instance"), "{{instance}}, workers that hung"),
        limit=3,
    )
    missing = graph(
        About(
            "Workers that are not ready",
            "Servers with --workers; the other workers keep serving. If it lasts, a worker cannot "
            "start: see worker_died in the log.",
            "none",
            ["AlignserveWorkerDown"],
        ),
        Query(over("sum", f"1 - {series('alignserve_worker_up')}", "instance"), "{{instance}}"),
        limit=1,
    )
    idle = graph(
        About(
            "Since the last batch",
            "Grows on an idle server, which is normal; with entries in the queue it is a stall.",
            "s",
            ["AlignserveStalled"],
        ),
        Query(f"time() - {over('max', last, 'instance')}", "{{instance}}"),
    )
    return Row("Health", [again, missing, idle])


def _processes() -> Row:
    lateness = "alignserve_event_loop_lag_seconds"
    memory = graph(
        About(
            "Memory of the processes",
            "Resident memory, all workers of a server together. If it rises for hours under constant "
            "load, it is a leak.",
            "bytes",
        ),
        Query(total("process_resident_memory_bytes", "instance"), "{{instance}}"),
    )
    cores = graph(
        About(
            "Cores in use",
            "If it reaches the limit of the container or the number of cores, all work waits for a core.",
            "none",
        ),
        Query(rate("process_cpu_seconds_total", "instance"), "{{instance}}"),
    )
    lag = graph(
        About(
            "Event loop lag",
            "Lag at the last check, for the worst worker. It is added to the latency of every call. "
            "More than a few milliseconds mean too few cores, or another process that uses them.",
            "s",
        ),
        Query(most(lateness, "instance"), "{{instance}}"),
    )
    tasks = graph(
        About(
            "Event loop, tasks",
            "Follows the number of calls in progress. If it does not fall with them, something leaks.",
            "short",
        ),
        Query(total("alignserve_event_loop_tasks", "instance"), "{{instance}}"),
    )
    lanes = graph(
        About(
            "Lanes",
            "Batches that a server can run concurrently. It should be equal for replicas on equal machines.",
            "short",
        ),
        Query(total("alignserve_lanes", "instance"), "{{instance}}"),
    )
    exactness = graph(
        About(
            "Minimum cosine similarity",
            "Measured at startup. Below 0.999, the runtime or the data type costs precision; see "
            "min_cosine_similarity.",
            "none",
        ),
        Query(least("alignserve_model_min_cosine_similarity", "instance"), "{{instance}}"),
    )
    unread = graph(
        About(
            "Log lines dropped",
            "Per second, because the reader of the log was too slow. Calls do not wait for the log; "
            "its collector has stopped or is too slow.",
            "short",
            ["AlignserveLogDropped"],
        ),
        Query(rate("alignserve_log_lines_dropped_total", "instance"), "{{instance}}"),
    )
    return Row("Processes", [memory, cores, lag, tasks, lanes, exactness, unread])
