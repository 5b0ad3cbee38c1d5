"""`python -m tests.gpu`: runs the check on this machine's GPU, or prepares it for a bare machine.

Only the standard library is imported here, so that a bare machine can install the steps' dependencies.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.gpu import machine
from tests.gpu.check import Check
from tests.gpu.plan import Step, module_of, patient, selected
from tests.gpu.prepare import FOLDER, prepare
from tests.gpu.report import summary
from tests.gpu.results import Results, read_tables
from tests.gpu.runner import Outcome, Runner

_RESULTS, _LOG, _SUMMARY = "results.jsonl", "log.txt", "summary.md"
_PRETENDED_VARIABLES = {
    "TRITON_INTERPRET": "1",  # runs Triton kernels in Python
    "ALIGNSERVE_CUDA_KERNELS": "plain",  # in servers, since that takes minutes
    "OMP_NUM_THREADS": "1",
}
_PATIENCE = 5.0  # factor for time limits: nothing is measured, and a CPU may have other work
_NO_GPU = """\
************************************************************************
NO GPU: CUDA is simulated on the CPU. This shows that the check works,
and measures nothing. Figures are omitted.
************************************************************************"""


def main() -> int:
    """Runs the command; returns its exit code."""
    arguments = _parse()
    if arguments.command == "prepare":
        return prepare(arguments.python)
    if arguments.command == "step":
        return _run_step(arguments)
    return _run(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description="The check for a machine with a GPU."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the check on this machine")
    run.add_argument(
        "--pretend", action="store_true", help="simulate CUDA on the CPU; the default without a GPU"
    )
    run.add_argument("--require-gpu", action="store_true", help="fail if there is no GPU")
    run.add_argument(
        "--seconds",
        type=float,
        default=480.0,
        metavar="S",
        help="total time limit of all steps (default: 480)",
    )
    run.add_argument(
        "--steps", type=_names, default=[], metavar="NAME,…", help="comma-separated names (default: all)"
    )
    run.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=FOLDER / "results",
        help="folder for results (default: .gpu/results)",
    )
    run.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        default=_work(),
        help="folder for the checkpoint (default: %(default)s)",
    )
    run.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="wheels to install first on a bare machine"
    )
    made = commands.add_parser(
        "prepare", help="download the packages that a bare machine lacks to .gpu/wheels"
    )
    made.add_argument("--python", default="3.12", help="Python version of the bare machine (default: 3.12)")
    step = commands.add_parser("step", help="run one step in this process, as `run` does")
    step.add_argument("name")
    step.add_argument("--output", type=Path, required=True)
    step.add_argument("--work", type=Path, required=True)
    step.add_argument("--pretend", action="store_true")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    try:
        selected(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


def _work() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignserve-gpu-check"


def _run(arguments: argparse.Namespace) -> int:
    device = None if arguments.pretend else machine.gpu()
    if device is None and arguments.require_gpu:
        print("nvidia-smi finds no GPU", file=sys.stderr)
        return 2
    if device is None:
        print(_NO_GPU, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the running step ends too
    _make_folders(arguments)
    site = arguments.work / "site" if arguments.wheels else None
    if site:
        machine.install(arguments.wheels, site)
    environment = machine.environment(arguments.work, site)
    heading = machine.heading(device)
    outcomes: list[Outcome] = []
    for outcome in _outcomes(arguments, environment, is_pretended=device is None):
        print(json.dumps(asdict(outcome)), flush=True)
        outcomes.append(outcome)
        tables = read_tables(arguments.output / _RESULTS)
        text = summary(heading, outcomes, tables, is_pretended=device is None)
        (arguments.output / _SUMMARY).write_text(text, "utf-8")  # after each step, in case the run is cut off
    print((arguments.output / _SUMMARY).read_text("utf-8"), flush=True)
    return 1 if any(one.verdict in ("failed", "timed out") for one in outcomes) else 0


def _make_folders(arguments: argparse.Namespace) -> None:
    for folder in (arguments.output, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (_RESULTS, _LOG, _SUMMARY):
        (arguments.output / name).unlink(missing_ok=True)


def _outcomes(
    arguments: argparse.Namespace, environment: dict[str, str], *, is_pretended: bool
) -> Iterator[Outcome]:
    folders = ["--output", str(arguments.output.resolve()), "--work", str(arguments.work.resolve())]
    flags = [*folders, *(["--pretend"] if is_pretended else [])]
    steps, limit = selected(arguments.steps), arguments.seconds
    if is_pretended:
        environment = environment | _PRETENDED_VARIABLES
        steps, limit = patient(steps, _PATIENCE), _PATIENCE * limit

    def command(step: Step) -> list[str]:
        return [sys.executable, "-m", "tests.gpu", "step", step.name, *flags]

    with (arguments.output / _LOG).open("ab") as log:
        yield from Runner(command, log, limit, environment).run(steps)


def _run_step(arguments: argparse.Namespace) -> int:
    results = Results(arguments.output / _RESULTS, arguments.name, has_figures=not arguments.pretend)
    check = Check(results, arguments.output, arguments.work, arguments.pretend)
    step = importlib.import_module(f"tests.gpu.steps.{module_of(arguments.name)}")
    step.run(check)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
