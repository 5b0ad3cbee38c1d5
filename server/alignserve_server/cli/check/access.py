"""Checks of certificates and API keys, and of the clock by which they expire."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import alignserve_server
from alignserve_server.access.keys import KeysError, read_keys
from alignserve_server.cli.check.deployment import Check, Deployment
from alignserve_server.cli.check.report import CheckWarning
from alignserve_server.host.clock import is_synchronized, utc
from alignserve_server.rpc.tls import CertificateFiles, Certificates

_EXPIRY_NOTICE = timedelta(days=14)
_MAX_STEP_SECONDS = 0.5
_YEAR_SECONDS = 365 * 24 * 3600.0


def access_checks(deployment: Deployment) -> Iterator[tuple[str, Check]]:
    """Yields the checks that the settings call for."""
    settings = deployment.settings
    if settings.tls_certificate is not None and settings.tls_key is not None:
        yield "tls_certificate", read_certificates
    if settings.api_keys_file is not None:
        yield "api_keys_file", check_keys


def read_certificates(deployment: Deployment) -> str:
    """Reads the files, and compares their period with the clock."""
    settings = deployment.settings
    assert settings.tls_certificate is not None  # noqa: S101 — otherwise not checked
    assert settings.tls_key is not None  # noqa: S101 — goes with the certificate
    expiries: list[float] = []
    files = CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    certificates = Certificates(files, expiries.append)
    if (objection := certificates.objection()) is not None:
        raise CheckWarning(f"{settings.tls_certificate}: {objection}; renew it, and check the clock")
    expiry = datetime.fromtimestamp(expiries[-1], UTC)
    if expiry < datetime.now(UTC) + _EXPIRY_NOTICE:
        raise CheckWarning(
            f"{settings.tls_certificate} expires soon, at {expiry.isoformat()}; renew it. The server reads "
            "the new files by itself"
        )
    return f"certificate and key match; valid until {expiry.isoformat()}"


def check_keys(deployment: Deployment) -> str:
    """Reads the keys, and finds those that have expired."""
    path = deployment.settings.api_keys_file
    assert path is not None  # noqa: S101 — otherwise not checked
    try:
        keys = read_keys(path)
    except KeysError as error:
        raise KeysError(f"{error}; create one with 'alignserve-server keys add'") from error
    today = datetime.now(UTC).date()
    expired = [name for name, key in keys.items() if key.has_expired(today)]
    if len(expired) == len(keys):
        held = "only expired keys" if keys else "no key"
        raise CheckWarning(
            f"{path} contains {held}, so every call would be refused; add one with "
            "'alignserve-server keys add'"
        )
    if expired:
        raise CheckWarning(
            f"{len(expired)} of {len(keys)} keys in {path} have expired, such as {expired[0]!r}; add new "
            "ones with 'alignserve-server keys add', and revoke these"
        )
    return f"{len(keys)} keys in {path}{_next_expiry([key.expires for key in keys.values() if key.expires])}"


def check_clock(deployment: Deployment, installed: Path | None = None, now: float | None = None) -> str:
    """Compares the clock with the time of the installation, with a steady clock, and with NTP's state.

    Args:
        deployment: Its clock has run since the first check.
        installed: A file of this package, which cannot be from the future.
        now: Unix time; by default of the system clock.
    """
    now = time.time() if now is None else now
    built = (installed or Path(alignserve_server.__file__)).stat().st_mtime
    advice = "certificates, keys and logs depend on it; set the clock, for example with NTP"
    if now < built:
        raise CheckWarning(
            f"the clock says {utc(now)}, but this server was installed at {utc(built)}; {advice}"
        )
    if now > built + 20 * _YEAR_SECONDS:
        raise CheckWarning(f"the clock says {utc(now)}, which is far in the future; {advice}")
    if abs(step := deployment.clock.seconds()) > _MAX_STEP_SECONDS:
        raise CheckWarning(f"the clock moved by {step:+.1f} s during the check; {advice}")
    state = {True: "kept by NTP", False: "not kept by NTP, as far as the kernel knows"}
    found = is_synchronized()
    return f"{utc(now)}{'' if found is None else f', {state[found]}'}"


def _next_expiry(days: list[date]) -> str:
    return f"; the next one expires on {min(days).isoformat()}" if days else ""
