"""The dashboard of the servers side by side: which one is not like the others."""

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
    """Builds it."""
    description = "Each server by itself; one with several workers is one server."
    return board("fleet", "Fleet", description, [_state(), _load(), _capacity(), _health(), _processes()])


def _state() -> Row:
    up = most("up", "instance")
    ranks = ("loading", "draining", "stalled", "serving")  # of several workers the last one counts
    found = " or ".join(
        "{} * {}".format(rank, series("alignserve_state", f'state="{state}"'))
        for rank, state in enumerate(ranks, 1)
    )
    state = over("max", found, "instance")
    states = timeline(
        About(
            "State",
            "Down: no answer from the metrics page. Loading for long: its log tells what it waits for. "
            "Stalled: its device does not move on. Of several workers one that serves is enough. Callers "
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
            "Alerts that fire",
            "Which ones, the red marks in the graphs tell, and Prometheus. Each has a runbook. Of the whole "
            "job.",
            "none",
            width=6,
        ),
        Query(or_zero(over("count", FIRING)), "alerts"),
        (None, "green"),
        (1, "red"),
    )
    certificate = number(
        About(
            "Until the first certificate ends",
            "After that nobody can connect. Renew the files; servers read them by themselves.",
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
            "What is served",
            "Vectors may be compared only if the fingerprints are the same. Least cosine: with transformers "
            "in float32 at the start; 1 is exact.",
            "none",
            width=24,
        ),
        over(
            "min",
            f"{series('alignserve_model_info')} * on (job, instance, worker) group_left () "
            f"{series('alignserve_model_min_cosine_similarity')}",
            ", ".join(_MODEL_LABELS),
        ),
        "least cosine",
        _MODEL_LABELS,
    )
    return Row("State", [states, alerts, certificate, served])


def _load() -> Row:
    ended = rate("grpc_server_handled_total", "instance", RPCS)
    faults = rate("grpc_server_handled_total", "instance", _FAULTS)
    calls = graph(
        About(
            "Calls",
            "Begun per second. Ready servers that get far less than others are not known to the balancer, "
            "or clients spread by connection and have not come round.",
            "reqps",
        ),
        Query(rate("grpc_server_started_total", "instance", RPCS), "{{instance}}"),
    )
    failing = graph(
        About(
            "Calls that failed by the server's fault",
            "INTERNAL, UNKNOWN, UNAVAILABLE and DATA_LOSS as a share of calls; streams that end by their "
            "age are among them. One server alone: look into its log, and restart it. All: a model or an "
            "input they have in common.",
            "percentunit",
            ["AlignserveErrorBudgetBurn"],
        ),
        Query(f"{or_zeros(faults, ended)} / {ended}", "{{instance}}"),
    )
    slowest = graph(
        About(
            "Latency, p99",
            "99 of 100 interactive calls of one item took less. One server alone: its machine is slower, or "
            "shared.",
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
            "Device busy, of the last 5 minutes",
            "Share of the time that the lanes spend in the model. All above nine tenths: add replicas. One "
            "alone: calls are not spread.",
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
            "Time in the queue, p95 of the last 5 minutes",
            "Of the modality that waits longer. From a quarter of a second on there is too little capacity.",
            "s",
            ["AlignserveSaturated"],
        ),
        Query(over("max", wait, "instance"), "{{instance}}"),
        limit=0.25,
    )
    entries = graph(
        About(
            "Queue",
            "Images and texts that wait for a batch. A server whose queue does not move has stalled.",
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
            "Of processes, workers among them. More than three mean that a server dies again and again; its "
            "log of the time before tells why: exit code 3 is a device that stalled.",
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
            "Of servers with --workers; the others serve on. If it lasts, something keeps the worker from "
            "starting: worker_died in the log.",
            "none",
            ["AlignserveWorkerDown"],
        ),
        Query(over("sum", f"1 - {series('alignserve_worker_up')}", "instance"), "{{instance}}"),
        limit=1,
    )
    idle = graph(
        About(
            "Since the last batch",
            "Grows on an idle server, which is fine; with entries in the queue it is a stall.",
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
            "Resident, all workers of a server together. What rises for hours under a level load does not "
            "stop.",
            "bytes",
        ),
        Query(total("process_resident_memory_bytes", "instance"), "{{instance}}"),
    )
    cores = graph(
        About(
            "Cores in use",
            "At the number that the container may use, or the machine has, everything waits for a core.",
            "none",
        ),
        Query(rate("process_cpu_seconds_total", "instance"), "{{instance}}"),
    )
    lag = graph(
        About(
            "Event loop, lateness",
            "By how much it was late when last looked at, in the worst worker. More than some milliseconds "
            "are added to every call: too few cores, or a neighbour that takes them.",
            "s",
        ),
        Query(most(lateness, "instance"), "{{instance}}"),
    )
    tasks = graph(
        About(
            "Event loop, tasks",
            "Goes with the calls under way. If it does not come down with them, something leaks.",
            "short",
        ),
        Query(total("alignserve_event_loop_tasks", "instance"), "{{instance}}"),
    )
    lanes = graph(
        About(
            "Lanes",
            "Batches that a server can run at once. Replicas on equal machines should have the same.",
            "short",
        ),
        Query(total("alignserve_lanes", "instance"), "{{instance}}"),
    )
    exactness = graph(
        About(
            "Least cosine with transformers",
            "Compared at the start. Below 0.999 the runtime or the data type costs exactness; see "
            "min_cosine_similarity.",
            "none",
        ),
        Query(least("alignserve_model_min_cosine_similarity", "instance"), "{{instance}}"),
    )
    unread = graph(
        About(
            "Log lines dropped",
            "Per second, because nobody read the log in time. Calls do not wait for it; the collector of the "
            "log has stopped or is too slow.",
            "short",
            ["AlignserveLogDropped"],
        ),
        Query(rate("alignserve_log_lines_dropped_total", "instance"), "{{instance}}"),
    )
    return Row("Processes", [memory, cores, lag, tasks, lanes, exactness, unread])
