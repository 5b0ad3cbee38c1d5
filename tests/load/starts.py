"""Prints the batch sizes that servers choose on a busy machine: `python -m tests.load.starts`.

Starts share only the converted model; with `--keep-sizes` they also share the chosen sizes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import BIN


def main() -> None:
    """Starts servers one after the other and prints the sizes of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=6)
    parser.add_argument("--busy-loops", type=int, default=2)
    parser.add_argument("--keep-sizes", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        _sizes(cache)  # converts the model
        shutil.rmtree(Path(cache, "tuning"), ignore_errors=True)
        with _busy(arguments.busy_loops):
            for _ in range(arguments.starts):
                print(json.dumps(_sizes(cache)), flush=True)
                if not arguments.keep_sizes:
                    shutil.rmtree(Path(cache, "tuning"), ignore_errors=True)


def _sizes(cache: str) -> dict[str, int]:
    command = [
        *(str(BIN / "alignserve-server"), "--log-format", "json", "--drain-delay-seconds", "0"),
        *("--listen", "127.0.0.1:0", "--metrics-listen", "none", "--cache-dir", cache),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            records = (json.loads(line) for line in server.stderr)
            sizes: dict[str, int] = next(
                record["max_batch_size"] for record in records if record["event"] == "ready"
            )
            return sizes
        finally:
            server.terminate()
            server.stderr.read()


@contextmanager
def _busy(loops: int) -> Iterator[None]:
    """Keeps that many cores busy within the block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
