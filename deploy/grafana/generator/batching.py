"""The dashboard for the time between admission and answer: queue, batches, device, caches."""

from __future__ import annotations

from deploy.grafana.generator.panels import About, Json, Query, Row, board, graph, heat, listing
from deploy.grafana.generator.promql import buckets, least, mean, most, over, quantile, rate, series, total


def dashboard() -> Json:
    """Builds the dashboard."""
    description = "Where the time of a call goes on the selected servers, and how well the device is used."
    rows = [_queue(), _batches(), _device(), _gpu(), _caches()]
    return board("batching", "Batching and device", description, rows)


def _queue() -> Row:
    entries = graph(
        About(
            "Queue",
            "Images and texts waiting for a batch. A queue that never empties means that more "
            "arrives than the device can process; a queue that does not move means a stall.",
            "short",
            ["AlignserveStalled"],
        ),
        Query(total("alignserve_queue_entries", "modality"), "{{modality}}s"),
    )
    size = graph(
        About(
            "Queue, in bytes",
            "Size of the waiting items, as received. Close to max_queue_bytes calls are rejected "
            "although max_queue_size is not reached: images are large.",
            "bytes",
        ),
        Query(total("alignserve_queue_bytes", "modality"), "{{modality}}s"),
    )
    wait = graph(
        About(
            "Time in the queue",
            "How long entries wait for their batch. A rise is the first sign of too little capacity. "
            "Above a quarter of a second with a busy device, add replicas.",
            "s",
            ["AlignserveSaturated", "AlignserveLatencyBudgetBurn"],
        ),
        *_median_and_p99("alignserve_queue_wait_seconds"),
        limit=0.25,
    )
    return Row("Queue", [entries, size, wait])


def _batches() -> Row:
    size = "alignserve_batch_size"
    advice = (
        "Under load, batches of one mean that calls arrive one by one, or that larger ones are not faster."
    )
    images = heat(
        About("Batches of images by size", f"Number of entries per batch. {advice}", "short"),
        buckets(size, 'modality="image"'),
    )
    texts = heat(
        About("Batches of texts by size", f"Number of entries per batch. {advice}", "short"),
        buckets(size, 'modality="text"'),
    )
    average = graph(
        About(
            "Batch size, mean and largest",
            "The largest is set or measured at startup. A mean close to it means an overloaded "
            "device; if the largest has fallen, the device ran out of memory.",
            "short",
            ["AlignserveOutOfDeviceMemory"],
        ),
        Query(mean(size, "modality"), "{{modality}}s, mean"),
        Query(most("alignserve_max_batch_size", "modality"), "{{modality}}s, largest"),
    )
    padding = graph(
        About(
            "Padding",
            "Share of padding among the tokens of text batches; padding costs as much as text. More "
            "than a third means that few texts of very different lengths arrive at a time.",
            "percentunit",
        ),
        Query(mean("alignserve_batch_padding_ratio"), "padding"),
    )
    compute = graph(
        About(
            "Time in the model, per batch",
            "If it rises while batches do not grow, something else uses the device, or its clock is "
            "throttled.",
            "s",
            ["AlignserveLatencyBudgetBurn"],
        ),
        *_median_and_p99("alignserve_batch_compute_seconds"),
    )
    splits = graph(
        About(
            "Batches split",
            "Batches per second that failed and were retried in halves. out_of_memory: lower "
            "max_batch_size, or find out what else uses the memory. error: the model fails on an "
            "entry.",
            "ops",
            ["AlignserveOutOfDeviceMemory", "AlignserveItemsFailing"],
        ),
        Query(rate("alignserve_batch_splits_total", "reason"), "{{reason}}"),
    )
    return Row("Batches", [images, texts, average, padding, compute, splits])


def _device() -> Row:
    busy = rate("alignserve_device_busy_seconds_total", "instance")
    compute = rate("alignserve_batch_compute_seconds_sum", "modality")
    entries = rate("alignserve_batch_size_sum", "modality")
    use = graph(
        About(
            "Device busy",
            "Share of the time that the lanes spend in the model. Above 90 %, callers wait at the "
            "next peak. If it is low while entries wait, decoding is the bottleneck, or the process "
            "has too few cores.",
            "percentunit",
            ["AlignserveSaturated"],
        ),
        Query(f"{busy} / ({total('alignserve_lanes', 'instance')} > 0)", "{{instance}}"),
        limit=0.9,
    )
    cost = graph(
        About(
            "Time in the model, per image and text",
            "Device time per entry. It falls as batches grow; otherwise batching has no benefit there.",
            "s",
        ),
        Query(f"{compute} / {entries}", "{{modality}}"),
    )
    preparing = graph(
        About(
            "Time to decode and tokenize",
            "Before the queue. If images take long, they are large, or decoding has too few cores: "
            "see decode_threads.",
            "s",
            ["AlignserveLatencyBudgetBurn"],
        ),
        *_median_and_p99("alignserve_preprocess_seconds"),
    )
    return Row("Device", [use, cost, preparing])


def _gpu() -> Row:
    busy = graph(
        About(
            "GPU busy",
            "GPU utilization reported by NVML, all processes. If it is far below the lanes' share of "
            "time in the model, the GPU waits for copies or for a CPU core.",
            "percentunit",
        ),
        Query(most("alignserve_gpu_utilization_ratio", "gpu"), "{{gpu}}"),
    )
    memory = graph(
        About(
            "GPU memory",
            "Used memory, all processes, and total memory. If more is used than the models hold, "
            "another process shares the GPU, and batches may not fit.",
            "bytes",
            ["AlignserveOutOfDeviceMemory"],
        ),
        Query(most("alignserve_gpu_memory_used_bytes", "gpu"), "{{gpu}}, taken"),
        Query(most("alignserve_gpu_memory_bytes", "gpu"), "{{gpu}}, all"),
    )
    graphs = graph(
        About(
            "CUDA graphs",
            "Batch sizes that are captured as a graph, on the server that has fewest. At 0, a forward is "
            "launched kernel by kernel, and the GPU waits for the CPU.",
            "short",
        ),
        Query(least("alignserve_cuda_graphs", "modality"), "{{modality}}s"),
    )
    kernels = listing(
        About(
            "Kernels",
            "How many servers embed images with which kernels; see the server's setting cuda_kernels.",
            "short",
            width=24,
        ),
        over("count", series("alignserve_gpu_info"), "kernels"),
        "servers",
        ["kernels"],
    )
    return Row("GPU, if there is one", [busy, memory, graphs, kernels])


def _caches() -> Row:
    saved = graph(
        About(
            "Cache hits and coalesced items",
            "Share of labels, images and texts that cost no device time. If it falls and callers "
            "have not changed, the cache is too small for the inputs that repeat. Images are cached "
            "only if image_cache_bytes is set.",
            "percentunit",
        ),
        Query(_saved("alignserve_label_cache"), "labels"),
        Query(_saved("alignserve_embedding_cache", "modality"), "{{modality}}s"),
    )
    kept = graph(
        About(
            "Embeddings in the caches",
            "If it stays constant while the cache hit ratio falls, increase the size of the cache.",
            "short",
        ),
        Query(total("alignserve_label_cache_entries"), "labels"),
        Query(total("alignserve_embedding_cache_entries", "modality"), "{{modality}}s"),
    )
    memory = graph(
        About(
            "Memory",
            "Memory of the processes, of the models on their devices, and of the caches. If it rises "
            "for hours under constant load, it is a leak: restart the server and report it.",
            "bytes",
            ["AlignserveOutOfDeviceMemory"],
        ),
        Query(total("process_resident_memory_bytes"), "processes"),
        Query(total("alignserve_device_memory_bytes"), "models"),
        Query(total("alignserve_embedding_cache_bytes", "modality"), "cache of {{modality}}s"),
    )
    return Row("Caches and memory", [saved, kept, memory])


def _median_and_p99(histogram: str) -> tuple[Query, Query]:
    return (
        Query(quantile(0.5, histogram, "modality"), "{{modality}}, median"),
        Query(quantile(0.99, histogram, "modality"), "{{modality}}, p99"),
    )


def _saved(cache: str, by: str = "") -> str:
    hits, shared, computed = (
        rate(f"{cache}_{outcome}_total", by) for outcome in ("hits", "coalesced", "misses")
    )
    return f"({hits} + {shared}) / ({hits} + {shared} + {computed})"
