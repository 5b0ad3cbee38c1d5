"""Runs `alignserve bench`: checks the server, measures each load, and publishes the results."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import secrets
import selectors
import signal
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from alignserve._bench.arguments import settings
from alignserve._bench.document import document
from alignserve._bench.inputs import Inputs, image_inputs, text_inputs
from alignserve._bench.load import ClosedLoop, Load, OpenLoop
from alignserve._bench.plot import save_plot
from alignserve._bench.report import report
from alignserve._bench.runner import RunLength, measure
from alignserve._bench.sweep import Sweep
from alignserve._bench.ticker import Ticker
from alignserve._bench.workload import UnaryRequest, calls
from alignserve._cli.connection import connected, connection, metadata
from alignserve._results import ModelInfo

OK, SOME_FAILED, INTERRUPTED = 0, 1, 130  # as the other commands exit


def run(args: argparse.Namespace) -> int:
    """Measures, prints the results, and returns the exit code.

    Raises:
        AlignserveError: The server cannot be reached, or went away; earlier results are printed.
        OSError: A file cannot be read or written.
        ValueError: An input or a number is invalid.
    """
    if args.seed is None:
        args.seed = secrets.randbelow(
            1 << 32
        )  # the server must not have the inputs of an earlier run in its cache
    info = _model_info(args)
    _check_fits(args, info)
    workload = _workload(args)
    sweep = Sweep(args.server, info, settings(args))
    try:
        _run_precisely(_measure_all(args, workload, sweep))
    finally:
        _publish(sweep, args)
    if sweep.was_interrupted:
        return INTERRUPTED
    return SOME_FAILED if sweep.has_failures else OK


def _run_precisely(work: Coroutine[Any, Any, None]) -> None:
    # Only the select selector sleeps with microsecond precision; the others round up to milliseconds.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    task = loop.create_task(work)
    try:
        loop.run_until_complete(task)
    except KeyboardInterrupt:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        raise
    finally:
        loop.close()


async def _measure_all(args: argparse.Namespace, workload: Iterator[UnaryRequest], sweep: Sweep) -> None:
    stop = _stop_on_interrupt()
    run_length = RunLength(
        args.duration_seconds, args.warmup_seconds, args.max_requests, args.timeout_seconds
    )
    where = connection(args)
    for load in _loads(args):
        ticker = Ticker(load, sys.stderr)
        try:
            measurement = await measure(
                where.target.name,
                workload,
                load,
                run_length,
                connections=args.connections,
                streams=args.streams if args.transport == "stream" else 0,
                credentials=where.security.credentials,
                metadata=metadata(args),
                stop=stop,
                watch=ticker.watch,
            )
        finally:
            ticker.finish()
        sweep.measurements.append(measurement)
        if stop.is_set():
            sweep.measurements[-1] = dataclasses.replace(measurement, was_interrupted=True)
            return


def _stop_on_interrupt() -> asyncio.Event:
    """Returns an event that the first Ctrl-C sets; a second Ctrl-C ends the command as usual."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    # Not available on Windows or outside the main thread; there Ctrl-C loses the current measurement.
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGINT, interrupted)
    return stop


def _model_info(args: argparse.Namespace) -> ModelInfo:
    with connected(args) as client:
        return client.model_info()


def _check_fits(args: argparse.Namespace, info: ModelInfo) -> None:
    if args.items_per_request > info.max_client_batch_size:
        raise ValueError(
            f"--items-per-request is {args.items_per_request}, "
            f"but the server accepts at most {info.max_client_batch_size}"
        )


def _loads(args: argparse.Namespace) -> list[Load]:
    if args.rate is None:
        return [ClosedLoop(concurrency) for concurrency in args.concurrency]
    return [OpenLoop(rate, args.arrivals, args.seed, args.max_in_flight) for rate in args.rate]


def _workload(args: argparse.Namespace) -> Iterator[UnaryRequest]:
    weights = args.mix if args.work == "mix" else {args.work: 1.0}
    wants_images = any(kind != "text" for kind in weights)
    inputs = Inputs(
        images=image_inputs(args.images, args.seed, is_unique=args.unique) if wants_images else (),
        texts=text_inputs(args.texts_file, args.text_tokens, args.seed) if "text" in weights else (),
        labels=args.labels,
        items_per_request=args.items_per_request,
        is_unique=args.unique,
    )
    return calls(weights, inputs, args.seed)


def _publish(sweep: Sweep, args: argparse.Namespace) -> None:
    if not sweep.measurements:
        return
    data = json.dumps(document(sweep), ensure_ascii=False, indent=2) + "\n" if args.json else ""
    sys.stdout.write(data if args.json == "-" else report(sweep) + "\n")
    if args.json and args.json != "-":
        Path(args.json).write_text(data, encoding="utf-8")
    if args.save_plot:
        save_plot(sweep, args.save_plot)
