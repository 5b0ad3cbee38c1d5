"""The command `alignserve-server check`: tries all that a start needs, and names everything that fails."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from prometheus_client import CollectorRegistry

from alignserve_server.access.keys import KeysError, read_keys
from alignserve_server.host.cores import cpu_count
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.observability.tracing import SpanExport
from alignserve_server.rpc.tls import CertificateFiles, Certificates
from alignserve_server.serving.loading import load_encoder
from alignserve_server.settings import Settings, is_loopback
from alignserve_server.workers.reserved_port import reserved_port

_EXAMPLES = """\
examples:
  alignserve-server check --config server.toml
  alignserve-server check --config server.toml --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0

Opens the ports, reads keys and certificates, loads the model and compares it with the reference, as a start
does, but serves no calls. While a server is running on the same ports, let it take free ones, as in the
second example. Each line begins with ok, warn or FAIL. The exit code is 0, or 1 if something fails.
"""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")  # the first one wins

_Try: TypeAlias = Callable[[Settings, ExitStack], str]  # returns what was found; keeps what it holds


class Doubt(Exception):
    """The server starts nevertheless."""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of what is not a setting of the server."""
    return argparse.ArgumentParser(
        prog="alignserve-server check",
        usage="%(prog)s [--config FILE] [settings]",
        description="Tries everything that a start with these settings needs, and names all that fails.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def check(settings: Settings | None, problems: Sequence[str], doubts: Sequence[str]) -> int:
    """Runs the command.

    Args:
        settings: Those to try; None if they contradict each other.
        problems: What is wrong with them already.
        doubts: What may be wrong with them.

    Returns:
        The exit code: 0, or 1 if something fails.
    """
    has_failed = bool(problems)
    for line in problems:
        _tell("FAIL", "settings", line)
    for line in doubts:
        _tell("warn", "settings", line)
    if not problems:
        _tell("ok", "settings", "each is in its range, and none contradicts another")
    if settings is not None:
        with ExitStack() as held:  # all at once, as in a server: two may want the same port
            for subject, attempt in _attempts(settings):
                has_failed |= not _passes(subject, attempt, settings, held)
    return int(has_failed)


def _attempts(settings: Settings) -> Iterator[tuple[str, _Try]]:
    yield "listen", _listen
    if settings.metrics:
        yield "metrics_listen", _listen_for_metrics
    if settings.tls_certificate is not None and settings.tls_key is not None:
        yield "tls_certificate", _read_certificates
    if settings.keys_file is not None:
        yield "keys_file", _read_keys
    yield "workers", _count_workers
    if settings.tracing:
        yield "tracing", _prepare_tracing
    if settings.cache_folder is not None:
        yield "cache_folder", _write_cache
    if settings.calibration_folder is not None:
        yield "calibration_folder", _list_calibration
    yield "checkpoint", _load_model


def _passes(subject: str, attempt: _Try, settings: Settings, held: ExitStack) -> bool:
    try:
        _tell("ok", subject, attempt(settings, held))
    except Doubt as doubt:
        _tell("warn", subject, str(doubt))
    except Exception as error:  # noqa: BLE001 — whatever stands in the way of a start
        _tell("FAIL", subject, str(error) or type(error).__name__)
        return False
    return True


def _tell(verdict: str, subject: str, text: str) -> None:
    print(f"{verdict:4}  {subject:18}  {' '.join(text.split())}", flush=True)


def _listen(settings: Settings, held: ExitStack) -> str:
    held.enter_context(reserved_port(settings.listen))
    if not is_loopback(settings.listen) and not settings.is_protected:
        raise Doubt(f"{settings.listen} is free, but other machines reach it without TLS or without a key")
    return f"{settings.listen} is free"


def _listen_for_metrics(settings: Settings, held: ExitStack) -> str:
    page = serve_metrics_page(settings.metrics_listen, CollectorRegistry(), lambda: "loading")
    held.callback(page.server_close)
    held.callback(page.shutdown)
    return f"{settings.metrics_listen} is free"


def _read_certificates(settings: Settings, _held: ExitStack) -> str:
    assert settings.tls_certificate is not None  # noqa: S101 — else it is not asked
    assert settings.tls_key is not None  # noqa: S101
    expiries: list[float] = []
    files = CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    Certificates(files, expiries.append)
    expiry = datetime.fromtimestamp(expiries[-1], UTC)
    if expiry < datetime.now(UTC):
        raise Doubt(f"{settings.tls_certificate} expired at {expiry.isoformat()}")
    return f"certificate and key belong together, until {expiry.isoformat()}"


def _read_keys(settings: Settings, _held: ExitStack) -> str:
    assert settings.keys_file is not None  # noqa: S101 — else it is not asked
    try:
        count = len(read_keys(settings.keys_file))
    except KeysError as error:
        raise KeysError(f"{error}; make one with 'alignserve-server keys add'") from error
    if not count:
        raise Doubt(f"{settings.keys_file} has no key, so every call would be refused")
    return f"{count} keys in {settings.keys_file}"


def _count_workers(settings: Settings, _held: ExitStack) -> str:
    text = f"{settings.workers} on {cpu_count()} cores"
    if settings.workers > cpu_count():
        raise Doubt(f"{text}: workers would have to share cores")
    return text


def _prepare_tracing(_settings: Settings, _held: ExitStack) -> str:
    SpanExport(version("alignserve"))
    endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), "the default endpoint")
    return f"spans go to {endpoint}"


def _write_cache(settings: Settings, _held: ExitStack) -> str:
    assert settings.cache_folder is not None  # noqa: S101 — else it is not asked
    try:
        settings.cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.cache_folder):
            pass
    except OSError as error:
        raise OSError(f"{settings.cache_folder} cannot be written: {error.strerror}") from error
    return f"{settings.cache_folder} can be written"


def _list_calibration(settings: Settings, _held: ExitStack) -> str:
    folder: Path | None = settings.calibration_folder
    assert folder is not None  # noqa: S101 — else it is not asked
    try:
        return f"{sum(1 for _ in folder.iterdir())} files in {folder}"
    except OSError as error:
        raise OSError(f"{folder} cannot be read: {error.strerror}") from error


def _load_model(settings: Settings, _held: ExitStack) -> str:
    info = load_encoder(settings).info
    return (
        f"{info.model_id} on {info.runtime} in {info.dtype}, {info.device}; "
        f"minimum cosine with the reference {info.min_cosine:.6f}"
    )
