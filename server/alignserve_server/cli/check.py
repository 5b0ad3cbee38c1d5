"""The command `alignserve-server check`: tests everything that a start needs and reports what fails."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from prometheus_client import CollectorRegistry

from alignserve_server.access.keys import KeysError, read_keys
from alignserve_server.cli.command import command_parser
from alignserve_server.errors import StartupError
from alignserve_server.host.cores import cpu_count
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.observability.span_export import SpanExport
from alignserve_server.rpc.tls import CertificateFiles, Certificates
from alignserve_server.serving.loading import load_encoder
from alignserve_server.settings import Settings, is_loopback
from alignserve_server.workers.reserved_port import reserved_port

_EXAMPLES = """\
examples:
  alignserve-server check --config server.toml
  alignserve-server check --config server.toml --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0

Opens the ports, reads keys and certificates, loads the model and compares it with the reference, like a
start, but serves no calls. If a server is running on the same ports, use free ones, as in the second example.
Each line starts with ok, warn or FAIL. The exit code is 1 if anything fails, otherwise 0.
"""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")  # the first one wins

_Try: TypeAlias = Callable[
    [Settings, ExitStack], str
]  # returns what it found; keeps resources open in the stack


class CheckWarning(Exception):
    """Something is probably wrong, but the server starts."""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `alignserve-server check`, without the settings."""
    return command_parser(
        "check",
        "Tests everything that a start with these settings needs, and reports everything that fails.",
        _EXAMPLES,
        usage="%(prog)s [--config FILE] [settings]",
    )


def check(settings: Settings | None, problems: Sequence[str], warnings: Sequence[str]) -> int:
    """Runs the command.

    Args:
        settings: The settings to test; None if they contradict each other.
        problems: Errors found in them so far.
        warnings: Possible errors, such as unknown variables.

    Returns:
        The exit code: 0, or 1 if something fails.
    """
    has_failed = bool(problems)
    for line in problems:
        _report("FAIL", "settings", line)
    for line in warnings:
        _report("warn", "settings", line)
    if not problems:
        _report("ok", "settings", "all values are valid and consistent")
    if settings is not None:
        with ExitStack() as held:  # at the same time, as in a server: two may use the same port
            for subject, attempt in _attempts(settings):
                has_failed |= not _passes(subject, attempt, settings, held)
    return int(has_failed)


def _attempts(settings: Settings) -> Iterator[tuple[str, _Try]]:
    yield "listen", _listen
    if settings.metrics_listen is not None:
        yield "metrics_listen", _listen_for_metrics
    if settings.http_listen is not None:
        yield "http_listen", _listen_for_http
    if settings.tls_certificate is not None and settings.tls_key is not None:
        yield "tls_certificate", _read_certificates
    if settings.api_keys_file is not None:
        yield "api_keys_file", _read_keys
    yield "workers", _count_workers
    if settings.tracing:
        yield "tracing", _prepare_tracing
    if settings.cache_dir is not None:
        yield "cache_dir", _write_cache
    if settings.calibration_dir is not None:
        yield "calibration_dir", _list_calibration
    yield "checkpoint", _load_model


def _passes(subject: str, attempt: _Try, settings: Settings, held: ExitStack) -> bool:
    try:
        _report("ok", subject, attempt(settings, held))
    except CheckWarning as warning:
        _report("warn", subject, str(warning))
    except Exception as error:  # noqa: BLE001 — anything that prevents a start
        _report("FAIL", subject, str(error) or type(error).__name__)
        return False
    return True


def _report(verdict: str, subject: str, text: str) -> None:
    print(f"{verdict:4}  {subject:18}  {' '.join(text.split())}", flush=True)


def _listen(settings: Settings, held: ExitStack) -> str:
    held.enter_context(reserved_port(settings.listen))
    if not is_loopback(settings.listen) and not settings.is_protected:
        raise CheckWarning(
            f"{settings.listen} is free, but other machines can reach it without TLS or authentication"
        )
    return f"{settings.listen} is free"


def _listen_for_http(settings: Settings, held: ExitStack) -> str:
    assert settings.http_listen is not None  # noqa: S101 — otherwise not tested
    for package in ("httptools", "orjson", "starlette", "uvicorn"):
        if find_spec(package) is None:
            raise StartupError(f"{package} is missing; pip install 'alignserve[server,http]'")
    held.enter_context(reserved_port(settings.http_listen, "--http-listen"))
    return f"{settings.http_listen} is free"


def _listen_for_metrics(settings: Settings, held: ExitStack) -> str:
    assert settings.metrics_listen is not None  # noqa: S101 — otherwise not tested
    page = serve_metrics_page(settings.metrics_listen, CollectorRegistry(), lambda: "loading")
    held.callback(page.server_close)
    held.callback(page.shutdown)
    return f"{settings.metrics_listen} is free"


def _read_certificates(settings: Settings, _held: ExitStack) -> str:
    assert settings.tls_certificate is not None  # noqa: S101 — otherwise not tested
    assert settings.tls_key is not None  # noqa: S101 — goes with the certificate
    expiries: list[float] = []
    files = CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    Certificates(files, expiries.append)
    expiry = datetime.fromtimestamp(expiries[-1], UTC)
    if expiry < datetime.now(UTC):
        raise CheckWarning(f"{settings.tls_certificate} expired at {expiry.isoformat()}; renew it")
    return f"certificate and key match; valid until {expiry.isoformat()}"


def _read_keys(settings: Settings, _held: ExitStack) -> str:
    assert settings.api_keys_file is not None  # noqa: S101 — otherwise not tested
    try:
        count = len(read_keys(settings.api_keys_file))
    except KeysError as error:
        raise KeysError(f"{error}; create one with 'alignserve-server keys add'") from error
    if not count:
        raise CheckWarning(f"{settings.api_keys_file} contains no key, so every call would be refused")
    return f"{count} keys in {settings.api_keys_file}"


def _count_workers(settings: Settings, _held: ExitStack) -> str:
    fronts = f" with {settings.front_processes} front processes" if settings.front_processes else ""
    text = f"{settings.workers}{fronts} on {cpu_count()} cores"
    if settings.workers > cpu_count():
        raise CheckWarning(f"{text}: workers would share cores; lower workers")
    return text


def _prepare_tracing(_settings: Settings, _held: ExitStack) -> str:
    SpanExport(version("alignserve-server"))
    endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), "OpenTelemetry's default endpoint")
    return f"spans are exported to {endpoint}"


def _write_cache(settings: Settings, _held: ExitStack) -> str:
    assert settings.cache_dir is not None  # noqa: S101 — otherwise not tested
    try:
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.cache_dir):
            pass
    except OSError as error:
        raise OSError(f"{settings.cache_dir} is not writable: {error.strerror}") from error
    return f"{settings.cache_dir} is writable"


def _list_calibration(settings: Settings, _held: ExitStack) -> str:
    folder: Path | None = settings.calibration_dir
    assert folder is not None  # noqa: S101 — otherwise not tested
    try:
        return f"{sum(1 for _ in folder.iterdir())} files in {folder}"
    except OSError as error:
        raise OSError(f"{folder} is not readable: {error.strerror}") from error


def _load_model(settings: Settings, _held: ExitStack) -> str:
    info = load_encoder(settings).info
    return (
        f"{info.model_id} on {info.runtime} in {info.dtype}, {info.device}; "
        f"minimum cosine similarity to the reference {info.min_cosine_similarity:.6f}"
    )
