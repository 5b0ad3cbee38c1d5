"""How near the server comes to its ceiling, and what its callers wait under load."""

from __future__ import annotations

import statistics
from functools import partial

from alignserve._bench.load import ClosedLoop, OpenLoop
from alignserve._bench.runner import Extent
from alignserve_server.batching.tuning import best_batch_size
from alignserve_server.model.align import AlignEncoder, load_align
from alignserve_server.model.checkpoint import resolve_checkpoint

from tests.load.inputs import PHOTOS, TEXTS, grpc_calls
from tests.load.measuring import Rates, grpc_rates
from tests.load.offline import offline_rate
from tests.processes import server_process

_CONCURRENCY = {"image": 32, "text": 128}
_LOADS = (0.5, 0.7, 0.9)
_MAX_BATCH_SIZE = 32


def run(checkpoint: str, rounds: int, seconds: float) -> str:
    """Measures and returns a section of the results."""
    ceilings = {modality: _ceiling(checkpoint, modality, rounds, seconds) for modality in ("image", "text")}
    rows, open_rows = [], []
    with server_process("--checkpoint", checkpoint) as server:
        for modality, (batch_size, ceiling) in ceilings.items():
            calls, extent = partial(grpc_calls, modality), Extent(seconds, warmup_seconds=1.0)
            load = ClosedLoop(_CONCURRENCY[modality])
            served = grpc_rates(server.address, calls, load, extent, rounds)
            many = partial(grpc_calls, modality, 16)
            in_requests_of_16 = grpc_rates(server.address, many, ClosedLoop(8), extent, rounds)
            streamed = grpc_rates(server.address, calls, load, extent, rounds, streams=4)
            rows.append(
                f"| {modality} | {ceiling:.0f} (batch {batch_size}) | {_share(served, ceiling)} "
                f"| {_share(in_requests_of_16, ceiling)} | {_share(streamed, ceiling)} |"
            )
            for share in _LOADS:
                rate = OpenLoop(share * served.items_per_second)
                open_rows.append(
                    _open_row(modality, share, grpc_rates(server.address, calls, rate, extent, rounds))
                )
    return "\n".join(
        [
            f"## Saturated: {checkpoint.rstrip('/').rpartition('/')[2]}",
            "",
            "Items per second, and the share of the ceiling: the same encoder in a loop at its best batch,",
            "with decoding overlapped and no server. What the client takes of the cores the server lacks.",
            "",
            "| items | ceiling | one item a call | 16 items a call | 4 streams |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Open loop: calls of one item come at random, at a share of what one item a call reaches above;",
            "milliseconds from the time a call was due.",
            "",
            "| items | load | calls/s | p50 | p99 |",
            "|---|---|---|---|---|",
            *open_rows,
        ]
    )


def _ceiling(checkpoint: str, modality: str, rounds: int, seconds: float) -> tuple[int, float]:
    encoder = load_align(resolve_checkpoint(checkpoint))
    encoder.enter_lane()
    batch_size = _best_batch_size(encoder, modality)
    rates = [offline_rate(encoder, modality, batch_size, seconds) for _ in range(rounds)]
    return batch_size, statistics.median(rates)


def _best_batch_size(encoder: AlignEncoder, modality: str) -> int:
    if modality == "image":
        pixels = encoder.preprocess_image(PHOTOS[0])
        return best_batch_size(lambda size: encoder.encode_images([pixels] * size), _MAX_BATCH_SIZE)
    text = encoder.tokenize(TEXTS[0], truncate=True)
    return best_batch_size(lambda size: encoder.encode_texts([text] * size), _MAX_BATCH_SIZE)


def _open_row(modality: str, share: float, rates: Rates) -> str:
    times = f"{rates.p50_ms:.1f} | {rates.p99_ms:.1f}"
    return f"| {modality} | {share:.0%} | {rates.items_per_second:.0f} | {times} |"


def _share(rates: Rates, ceiling: float) -> str:
    failures = f", {rates.failed} failed" if rates.failed else ""
    return f"{rates.items_per_second:.0f} ({rates.items_per_second / ceiling:.2f}){failures}"
