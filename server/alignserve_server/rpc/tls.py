"""TLS of the gRPC port, with certificates that are read again when they are renewed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from alignserve_server.errors import StartupError
from alignserve_server.host.watched_files import WatchedFiles, read_whole
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_PIPE_SECONDS = 10.0  # for a key that is being fetched


@dataclass(frozen=True)
class CertificateFiles:
    """Where the server's certificate is, in PEM.

    Attributes:
        certificate: The server's, followed by those between it and the root.
        key: Its private key, not encrypted.
        client_ca: The roots of clients' certificates, without which none is let in; None asks for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Certificates:
    """The credentials of a port. A renewed certificate holds for the connections that come after it.

    Files that cannot be used, such as a certificate whose key has not been written yet, change nothing. Nor
    do those outside their period of validity, as long as the ones in use are within theirs.
    """

    def __init__(self, files: CertificateFiles, publish_expiry: Callable[[float], object]) -> None:
        """Reads the files. A certificate that has expired is used, for want of a better one, with a warning.

        It may be the clock that is wrong, and clients without one of their own go on; refusing to start would
        help none.

        Args:
            files: Where.
            publish_expiry: Is told the Unix time at which the certificate ends, now and when it is renewed.

        Raises:
            StartupError: They cannot be read or do not belong together.
        """
        self._files = files
        self._publish_expiry = publish_expiry
        paths = [files.certificate, files.key, *([files.client_ca] if files.client_ca else [])]
        self._watched = WatchedFiles(paths)
        try:
            self._in_use = _read(files, pipe_seconds=_PIPE_SECONDS)
        except (OSError, ValueError) as error:
            raise StartupError(
                f"cannot use the certificate of --tls-certificate, --tls-key and --tls-client-ca: {error}"
            ) from error
        self._use(self._in_use)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._in_use.configuration,
            self._renewed,  # type: ignore[arg-type]  # None is no change, which the types leave out
            require_client_authentication=files.client_ca is not None,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what has changed, for the connection that is about to be made; None if nothing has."""
        if not self._watched.have_changed():
            return None
        try:
            renewed = self._better()
        except Exception as error:  # noqa: BLE001 — gRPC would refuse the connection
            self._watched.invalidate()
            _log.error("certificate_reload_failed", reason=str(error))
            return None
        _log.info("certificate_reloaded", expires=renewed.expiry.isoformat())
        if renewed.expiry < self._in_use.expiry:
            _log.warning("certificate_expires_sooner", earlier_one=self._in_use.expiry.isoformat())
        self._use(renewed)
        return renewed.configuration

    def _better(self) -> _Loaded:
        renewed, now = _read(self._files, pipe_seconds=0.0), datetime.now(UTC)
        objection = renewed.objection(now)
        if objection is not None and self._in_use.objection(now) is None:
            raise ValueError(f"{objection}; the files in use are kept, which are valid")
        return renewed

    def _use(self, loaded: _Loaded) -> None:
        self._in_use = loaded
        self._publish_expiry(loaded.expiry.timestamp())
        objection = loaded.objection(datetime.now(UTC))
        if objection is not None:
            _log.warning("certificate_not_valid", reason=objection, advice="renew it, and check the clock")


@dataclass(frozen=True)
class _Loaded:
    """The content of files that belong together."""

    configuration: grpc.ServerCertificateConfiguration
    certificate: x509.Certificate
    client_roots: Sequence[x509.Certificate]  # none if clients need no certificate

    @property
    def expiry(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def objection(self, now: datetime) -> str | None:
        """Returns why connections would fail at a time; None if they would not."""
        if (period := _other_period(self.certificate, now)) is not None:
            return f"the certificate {period}"
        periods = [_other_period(root, now) for root in self.client_roots]
        if periods and None not in periods:
            return f"of the roots of clients' certificates, each is out of date; the first {periods[0]}"
        return None


def _other_period(certificate: x509.Certificate, now: datetime) -> str | None:
    """Returns in which other time a certificate is valid; None if it is valid now."""
    if now < certificate.not_valid_before_utc:
        return f"is not valid before {certificate.not_valid_before_utc.isoformat()}"
    if now >= certificate.not_valid_after_utc:
        return f"expired at {certificate.not_valid_after_utc.isoformat()}"
    return None


def _read(files: CertificateFiles, *, pipe_seconds: float) -> _Loaded:
    """Reads the files.

    Raises:
        OSError: One cannot be read.
        ValueError: One holds no certificate, or the key is another's, encrypted or of an unknown kind.
    """
    read = partial(read_whole, pipe_seconds=pipe_seconds)
    certificate, key = read(files.certificate), read(files.key)
    roots = read(files.client_ca) if files.client_ca else None
    return _Loaded(
        grpc.ssl_server_certificate_configuration([(key, certificate)], roots),
        _checked_certificate(certificate, key),
        [] if roots is None else x509.load_pem_x509_certificates(roots),
    )


def _checked_certificate(certificate: bytes, key: bytes) -> x509.Certificate:
    leaf = x509.load_pem_x509_certificates(certificate)[0]
    try:
        private = load_pem_private_key(key, password=None)
    except (TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise ValueError(f"the key cannot be read: {error}") from error
    theirs, ours = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (leaf.public_key(), private.public_key())
    )
    if theirs != ours:
        raise ValueError("the key is not that of the certificate")
    return leaf
