"""The dashboard of what happens between admission and answer: queue, batches, device, caches."""

from __future__ import annotations

from deploy.grafana.generator.panels import About, Json, Query, Row, board, graph, heat
from deploy.grafana.generator.promql import buckets, mean, most, quantile, rate, total


def dashboard() -> Json:
    """Builds it."""
    description = "Where the time of a call goes on the chosen servers, and how well the device is used."
    rows = [_queue(), _batches(), _device(), _gpu(), _caches()]
    return board("batching", "Batching and device", description, rows)


def _queue() -> Row:
    entries = graph(
        About(
            "Queue",
            "Images and texts that wait for a batch. A queue that never empties means that more comes in "
            "than the device can do; one that stands still means a stall.",
            "short",
            ["AlignserveStalled"],
        ),
        Query(total("alignserve_queue_entries", "modality"), "{{modality}}s"),
    )
    size = graph(
        About(
            "Queue, in bytes",
            "As sent by callers, of what waits. Near max_queue_bytes calls are refused although there is "
            "room by number: images are large.",
            "bytes",
        ),
        Query(total("alignserve_queue_bytes", "modality"), "{{modality}}s"),
    )
    wait = graph(
        About(
            "Time in the queue",
            "How long entries wait for their batch. Its rise is the first sign of too little capacity; from "
            "a quarter of a second on with a busy device, add replicas.",
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
        "Under load, batches of one mean that callers come one at a time, or that larger ones are no faster."
    )
    images = heat(
        About("Batches of images by size", f"How many entries batches had. {advice}", "short"),
        buckets(size, 'modality="image"'),
    )
    texts = heat(
        About("Batches of texts by size", f"How many entries batches had. {advice}", "short"),
        buckets(size, 'modality="text"'),
    )
    average = graph(
        About(
            "Batch size, mean and largest",
            "The largest is what was measured at the start or set. A mean close to it is a device that has "
            "more to do than it can; a largest that has fallen is a device that has run out of memory.",
            "short",
            ["AlignserveOutOfDeviceMemory"],
        ),
        Query(mean(size, "modality"), "{{modality}}s, mean"),
        Query(most("alignserve_max_batch_size", "modality"), "{{modality}}s, largest"),
    )
    padding = graph(
        About(
            "Padding",
            "Share of the text batches' tokens that are padding, which costs as much as text. More than a "
            "third means that few texts come at a time, of very different lengths.",
            "percentunit",
        ),
        Query(mean("alignserve_batch_padding_ratio"), "padding"),
    )
    compute = graph(
        About(
            "Time in the model, per batch",
            "If it rises and batches are no larger, something else uses the device, or its clock is "
            "throttled.",
            "s",
            ["AlignserveLatencyBudgetBurn"],
        ),
        *_median_and_p99("alignserve_batch_compute_seconds"),
    )
    splits = graph(
        About(
            "Batches split",
            "Batches per second that failed whole and were tried again in halves. out_of_memory: lower "
            "max_batch_size, or see what else takes the memory. error: one entry makes the model fail.",
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
            "Share of the time that the lanes spend in the model. Above nine tenths the next peak makes "
            "callers wait; low while entries wait, decoding is what takes the time, or the process gets too "
            "few cores.",
            "percentunit",
            ["AlignserveSaturated"],
        ),
        Query(f"{busy} / ({total('alignserve_lanes', 'instance')} > 0)", "{{instance}}"),
        limit=0.9,
    )
    cost = graph(
        About(
            "Time in the model, per image and text",
            "What an entry costs the device. It falls as batches grow; if it does not, batching gains "
            "nothing there.",
            "s",
        ),
        Query(f"{compute} / {entries}", "{{modality}}"),
    )
    preparing = graph(
        About(
            "Time to decode and tokenize",
            "Before the queue. If images take long, they are large, or decoding has too few cores: see "
            "decode_threads.",
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
            "As NVIDIA's library tells it, for whomever. If it is far below the lanes' share of time in the "
            "model, the GPU waits: for copies, or for a core to tell it what to do.",
            "percentunit",
        ),
        Query(most("alignserve_gpu_utilization_ratio", "gpu"), "{{gpu}}"),
    )
    memory = graph(
        About(
            "GPU memory",
            "Taken by whomever, and all there is. If more is taken than the models hold, another process "
            "shares the GPU, and batches may not fit.",
            "bytes",
            ["AlignserveOutOfDeviceMemory"],
        ),
        Query(most("alignserve_gpu_memory_used_bytes", "gpu"), "{{gpu}}, taken"),
        Query(most("alignserve_gpu_memory_bytes", "gpu"), "{{gpu}}, all"),
    )
    return Row("GPU, if there is one", [busy, memory])


def _caches() -> Row:
    saved = graph(
        About(
            "Found in a cache, or computed already for somebody else",
            "Share of labels, images and texts that cost the device nothing. If it falls and callers have "
            "not changed, the cache is too small for what they repeat. Images are kept only if "
            "image_cache_bytes is set.",
            "percentunit",
        ),
        Query(_saved("alignserve_label_cache"), "labels"),
        Query(_saved("alignserve_embedding_cache", "modality"), "{{modality}}s"),
    )
    kept = graph(
        About(
            "Embeddings in the caches",
            "If it stays level while the share found falls, give the cache more room.",
            "short",
        ),
        Query(total("alignserve_label_cache_entries"), "labels"),
        Query(total("alignserve_embedding_cache_entries", "modality"), "{{modality}}s"),
    )
    memory = graph(
        About(
            "Memory",
            "Of the processes, of the models on their devices, and of the caches. What rises for hours "
            "under a level load will not stop by itself: restart the server and report it.",
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
