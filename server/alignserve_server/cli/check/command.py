"""Runs the checks of `alignserve-server check` in order, and reports what they find."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from alignserve_server.cli.check.access import access_checks, check_clock
from alignserve_server.cli.check.deployment import Check, Deployment
from alignserve_server.cli.check.files import checks_of_files, find_checkpoint
from alignserve_server.cli.check.host import host_checks
from alignserve_server.cli.check.model import collected_warnings, load_model
from alignserve_server.cli.check.network import network_checks
from alignserve_server.cli.check.packages import check_packages
from alignserve_server.cli.check.picture import compare_picture
from alignserve_server.cli.check.report import Report
from alignserve_server.cli.check.runtime import check_device, check_runtime
from alignserve_server.cli.command import command_parser
from alignserve_server.settings import Settings

_EXAMPLES = """\
examples:
  alignserve-server check --config server.toml
  alignserve-server check --config server.toml --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0
  alignserve-server check --checkpoint /models/align --quick --json
  alignserve-server check --checkpoint kakaobrain/align-base --picture 000000039769.jpg

Opens the ports, reads keys and certificates, examines the checkpoint and the machine, loads the model and
compares it with the reference, like a start, but serves no calls. If a server is running on the same ports,
use free ones, as in the second example. Each line starts with ok, warn or FAIL; a start fails with the words
of a FAIL. The exit code is 1 if anything fails, otherwise 0.
"""

_OF_FILES = ("checkpoint", "config", "tokenizer", "image_processor", "dimensions", "temperature", "reference")
_NEEDED_TO_LOAD = frozenset({*_OF_FILES, "device", "runtime"})


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `alignserve-server check`, without the settings."""
    result = command_parser(
        "check",
        "Tests everything that a start with these settings needs, and reports everything that fails.",
        _EXAMPLES,
        usage="%(prog)s [--quick | --picture FILE] [--json] [--config FILE] [settings]",
    )
    extent = result.add_mutually_exclusive_group()  # a picture needs the model
    extent.add_argument(
        "--quick", action="store_true", help="do not load the model; a second instead of several"
    )
    extent.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="compare the scores of a picture with transformers: with its published figures for COCO val2017 "
        "000000039769 and kakaobrain/align-base, otherwise with transformers itself, which needs torch",
    )
    result.add_argument("--json", action="store_true", help="print JSON instead of lines")
    return result


def check(
    arguments: argparse.Namespace,
    settings: Settings | None,
    problems: Sequence[str],
    warnings: Sequence[str],
) -> int:
    """Runs the command.

    Args:
        arguments: The parsed command line.
        settings: The settings to test; None if they contradict each other.
        problems: Errors found in them so far.
        warnings: Possible errors, such as unknown variables.

    Returns:
        The exit code: 0, or 1 if something fails.
    """
    report = Report(is_json=arguments.json)
    for line in problems:
        report.add("FAIL", "settings", line)
    for line in warnings:
        report.add("warn", "settings", line)
    if not problems:
        report.add("ok", "settings", "all values are valid and consistent")
    if settings is not None:
        with ExitStack() as held, collected_warnings() as logged:
            deployment = Deployment(settings, held)
            _examine(deployment, report)
            if not arguments.quick:
                _load(deployment, report, logged, arguments.picture)
            report.run("clock", lambda: check_clock(deployment))
    return report.end()


def _examine(deployment: Deployment, report: Report) -> None:
    """Runs the checks that need no model."""
    _run(report, deployment, network_checks(deployment))
    _run(report, deployment, access_checks(deployment))
    report.run("packages", check_packages)
    if deployment.settings.checkpoint != "fake":
        examine_checkpoint(deployment, report)
    _run(report, deployment, host_checks(deployment))


def examine_checkpoint(deployment: Deployment, report: Report) -> None:
    """Runs the checks of the checkpoint, and of what would run it, without loading it."""
    report.run("checkpoint", lambda: find_checkpoint(deployment))
    _run(report, deployment, checks_of_files(deployment))
    report.run("device", lambda: check_device(deployment))
    report.run("runtime", lambda: check_runtime(deployment))


def _run(report: Report, deployment: Deployment, checks: Iterator[tuple[str, Check]]) -> None:
    for subject, one in checks:
        report.run(subject, partial(one, deployment))


def _load(deployment: Deployment, report: Report, logged: Sequence[str], picture: Path | None) -> None:
    """Loads the model, unless it is known why that fails."""
    if report.has_failed_in(_NEEDED_TO_LOAD):
        return
    earlier = len(logged)
    is_loaded = report.run("model", lambda: load_model(deployment))
    for warning in logged[earlier:]:
        report.add("warn", "model", warning)
    if picture is not None and is_loaded:
        report.run("picture", lambda: compare_picture(deployment, picture))
