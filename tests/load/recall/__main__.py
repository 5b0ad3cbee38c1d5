"""Measures search engines: recall@10 by direction, latency, memory, build time and size.

python -m tests.load.recall --rows 100000 --engines alignserve,usearch-f16,… [--folder DIR]

Each engine builds in one process and searches in another, after a first query that is not counted. Engines
other than `alignserve` need packages of their own; see `engines.py`.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tests.load.recall.cones import MINI, Vectors
from tests.load.recall.engines import ENGINES
from tests.load.recall.exact import nearest, recall, write_images

_TOP_K = 10
_QUERIES = 200  # per direction, of which some are used
_DIRECTIONS = ("text", "image")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row of a table for each engine."""
    args = _arguments(argv)
    if args.step:
        print(json.dumps(_STEPS[args.step](args)))
        return
    vectors = Vectors(MINI, args.rows)
    args.folder.mkdir(parents=True, exist_ok=True)
    write_images(vectors, _images(args))
    _write_truth(vectors, args)
    print(
        "| engine | build | size | peak memory, build | recall@10, text → image | image → image "
        "| p50, p99 of a query | CPU of a query | memory, search |\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name in args.engines.split(","):
        print(_row(name, _step("build", name, args), _step("search", name, args)), flush=True)
        if not args.keep:
            shutil.rmtree(args.folder / f"{name}-{args.rows}", ignore_errors=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--engines", default="alignserve", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/alignserve-recall"))
    parser.add_argument("--queries", type=int, default=100, help="for each direction, at most 200")
    parser.add_argument("--keep", action="store_true", help="keep what the engines built")
    parser.add_argument("--step", choices=["build", "search"], help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _images(args: argparse.Namespace) -> Path:
    return Path(args.folder / f"images-{args.rows}.npy")


def _truth(args: argparse.Namespace) -> Path:
    return Path(args.folder / f"truth-{args.rows}.npz")


def _write_truth(vectors: Vectors, args: argparse.Namespace) -> None:
    if _truth(args).is_file():
        return
    images = np.load(_images(args), mmap_mode="r")
    queries = {"text": vectors.text_queries(_QUERIES), "image": vectors.image_queries(_QUERIES)}
    found = {name: nearest(images, some, _TOP_K) for name, some in queries.items()}
    for name, (_, cosines) in found.items():
        nearest_mean, tenth_mean = cosines[:, 0].mean(), cosines[:, -1].mean()
        print(f"{name}: cosine of the nearest {nearest_mean:.3f}, of the tenth {tenth_mean:.3f}")
    truths = {f"{name}_truth": rows for name, (rows, _) in found.items()}
    np.savez(_truth(args), **truths, **{f"{name}_queries": some for name, some in queries.items()})


def _step(step: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.load.recall", "--step", step, "--engines", name]
    command += ["--rows", str(args.rows), "--folder", str(args.folder), "--queries", str(args.queries)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _build(args: argparse.Namespace) -> dict[str, Any]:
    images = np.load(_images(args), mmap_mode="r")
    folder = args.folder / f"{args.engines}-{args.rows}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start, cpu = time.perf_counter(), time.process_time()
    ENGINES[args.engines]().build(folder, images)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": _peak_mb(),
        "size_mb": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
    }


def _search(args: argparse.Namespace) -> dict[str, Any]:
    truth = np.load(_truth(args))
    search = ENGINES[args.engines]().open(args.folder / f"{args.engines}-{args.rows}", _images(args))
    before = time.perf_counter()
    search(truth["image_queries"][0], _TOP_K)
    first = time.perf_counter() - before
    found: dict[str, Any] = {"first_ms": 1e3 * first}
    for direction in _DIRECTIONS:
        queries: NDArray[np.float32] = truth[f"{direction}_queries"][: args.queries]
        hits, times = [], []
        cpu = time.process_time()
        for query in queries:
            before = time.perf_counter()
            hits.append(search(query, _TOP_K))
            times.append(1e3 * (time.perf_counter() - before))
        found[f"{direction}_cpu_ms"] = 1e3 * (time.process_time() - cpu) / len(queries)
        found[direction] = recall(hits, truth[f"{direction}_truth"][: args.queries])
        found[f"{direction}_ms"] = np.percentile(times, [50, 99]).tolist()
    memory = psutil.Process().memory_full_info()
    return {**found, "rss_mb": memory.rss / 1e6, "private_mb": memory.uss / 1e6}


_STEPS = {"build": _build, "search": _search}


def _row(name: str, build: Mapping[str, Any], search: Mapping[str, Any]) -> str:
    (text50, text99), (image50, image99) = search["text_ms"], search["image_ms"]
    return (
        f"| {name} | {build['seconds']:.0f} s ({build['cpu_seconds']:.0f} s CPU) | {build['size_mb']:.0f} MB "
        f"| {build['peak_mb']:.0f} MB | {search['text']:.4f} | {search['image']:.4f} "
        f"| {text50:.1f}, {text99:.1f}; {image50:.1f}, {image99:.1f} ms (first {search['first_ms']:.0f}) "
        f"| {search['text_cpu_ms']:.1f}; {search['image_cpu_ms']:.1f} ms "
        f"| {search['rss_mb']:.0f} MB ({search['private_mb']:.0f} private) |"
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
