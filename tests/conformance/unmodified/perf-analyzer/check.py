"""Triton's perf_analyzer against the Open Inference Protocol: unary, batched and streaming load.

Prints one JSON line per check; see ../README.md.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

TARGET = os.environ["ALIGNSERVE_TARGET"]
PHOTO = Path(os.environ["ALIGNSERVE_PHOTOS"], "cat.jpg")
PROGRAM = Path(sys.executable).parent / "perf_analyzer"
# It links CUDA's runtime, which no check uses.
LIBRARIES = Path(
    sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages/nvidia/cuda_runtime/lib"
)
RUN_SECONDS = 60


def main() -> None:
    report(
        client="perf_analyzer",
        versions={"tritonclient": version("tritonclient"), "python": platform.python_version()},
    )
    with tempfile.TemporaryDirectory() as folder:
        checks: dict[str, Callable[[], str]] = {
            "texts in batches of 8": lambda: run(
                "-m", "text", "-b", "8", "--string-length", "20", folder=folder
            ),
            "a stream of texts": lambda: run(
                "-m", "text", "--streaming", "--string-data", "a cat", folder=folder
            ),
            "photos": lambda: run(
                "-m", "image", "--input-data", data(folder, image=encoded()), folder=folder
            ),
            "scores of labels": lambda: run(
                *("-m", "classify", "--shape", "image:1", "--shape", "labels:2"),
                *("--input-data", data(folder, image=encoded(), labels=["cat", "dog"])),
                folder=folder,
            ),
        }
        for name, check in checks.items():
            try:
                report(check=name, ok=True, detail=check())
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                report(check=name, ok=False, detail=f"{type(error).__name__}: {error}"[-500:])


def report(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def encoded() -> dict[str, str]:
    """Returns the photo as an element of a BYTES tensor: its length and its bytes."""
    photo = PHOTO.read_bytes()
    return {"b64": base64.b64encode(struct.pack("<I", len(photo)) + photo).decode()}


def data(folder: str, **inputs: Any) -> str:
    path = Path(folder, f"{'-'.join(inputs)}.json")
    path.write_text(json.dumps({"data": [inputs]}))
    return str(path)


def run(*arguments: str, folder: str) -> str:
    """Measures 50 requests; returns the rate and what the server counted."""
    results = Path(folder, "results.csv")
    results.unlink(missing_ok=True)
    command = [
        str(PROGRAM),
        *("-i", "grpc", "-u", TARGET, "--concurrency-range", "2", "--request-count", "50"),
        *("-f", str(results), *arguments),
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(LIBRARIES)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with results.open() as file:
        (row,) = csv.DictReader(file)
    rate = float(row["Inferences/Second"])
    assert rate > 0, row
    assert "Successful request count" in done.stdout, done.stdout
    counted = [line.strip() for line in done.stdout.splitlines() if "count:" in line]
    return f"{rate:.0f} inferences/s; {', '.join(counted)}"


if __name__ == "__main__":
    main()
