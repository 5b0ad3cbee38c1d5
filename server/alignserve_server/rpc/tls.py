"""TLS for the ports, with certificates that are reloaded when they are renewed."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from alignserve_server.errors import StartupError
from alignserve_server.host.watched_files import WatchedFiles, read_whole
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_PIPE_SECONDS = 10.0  # for a key that another process is fetching


@dataclass(frozen=True)
class CertificateFiles:
    """Paths of the server's certificate files, in PEM.

    Attributes:
        certificate: The server's certificate, followed by the intermediate ones.
        key: Its private key, not encrypted.
        client_ca: The root certificates for client certificates, which become mandatory; or None.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Certificates:
    """The credentials of the ports. A renewed certificate is used for later connections.

    The current files stay in use if the new ones are unusable, such as a certificate whose key has not been
    written yet, or if the new ones are expired or not yet valid while the current ones are valid.
    """

    def __init__(self, files: CertificateFiles, publish_expiry: Callable[[float], object]) -> None:
        """Reads the files. An expired certificate is used as well, with a warning.

        The clock may be wrong, and clients that do not check the time can still connect; refusing to start
        would not help anyone.

        Args:
            files: Paths of the files.
            publish_expiry: Called with the Unix time at which the certificate expires, now and when renewed.

        Raises:
            StartupError: The files cannot be read or do not match.
        """
        self._files = files
        self._publish_expiry = publish_expiry
        paths = [files.certificate, files.key, *([files.client_ca] if files.client_ca else [])]
        self._watched = WatchedFiles(paths)
        self._renewing = threading.Lock()  # gRPC asks in a thread of its own
        try:
            self._in_use = _read(files, pipe_seconds=_PIPE_SECONDS)
        except (OSError, ValueError) as error:
            raise StartupError(
                f"cannot use the files of --tls-certificate, --tls-key and --tls-client-ca: {error}"
            ) from error
        self._use(self._in_use)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Returns credentials for a gRPC port, which are renewed by themselves."""
        told = self._in_use

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            """Returns the configuration for the connection about to be accepted; None if unchanged."""
            nonlocal told
            if (current := self._current()) is told:
                return None
            told = current
            return current.grpc_configuration()

        return grpc.dynamic_ssl_server_credentials(
            told.grpc_configuration(),
            renewed,  # type: ignore[arg-type]  # None means no change, which the types omit
            require_client_authentication=self._files.client_ca is not None,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Returns a context for other ports. Each of its connections uses the certificate of that moment."""
        used, context = self._in_use, self._in_use.ssl_context()
        listening = context

        def renew(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            nonlocal used, context
            if (current := self._current()) is not used:
                used = current
                try:
                    context = current.ssl_context()
                except ssl.SSLError as error:  # an exception would end the connection
                    _log.error("certificate_reload_failed", reason=str(error))
            connection.context = context

        listening.sni_callback = renew  # called even if the client names no server
        return listening

    def objection(self) -> str | None:
        """Returns why connections would fail now; None if they would not."""
        return self._in_use.objection(datetime.now(UTC))

    def _current(self) -> _Loaded:
        """Returns the content of the files, after a look whether they have changed."""
        with self._renewing:
            if self._watched.have_changed():
                self._renew()
            return self._in_use

    def _renew(self) -> None:
        try:
            renewed = self._better()
        except Exception as error:  # noqa: BLE001 — the connection would be refused
            self._watched.invalidate()
            _log.error("certificate_reload_failed", reason=str(error))
            return
        _log.info("certificate_reloaded", expires=renewed.expiry.isoformat())
        if renewed.expiry < self._in_use.expiry:
            _log.warning("certificate_expires_sooner", earlier_one=self._in_use.expiry.isoformat())
        self._use(renewed)

    def _better(self) -> _Loaded:
        renewed, now = _read(self._files, pipe_seconds=0.0), datetime.now(UTC)
        objection = renewed.objection(now)
        if objection is not None and self._in_use.objection(now) is None:
            raise ValueError(f"{objection}; the files in use are valid and stay in use")
        return renewed

    def _use(self, loaded: _Loaded) -> None:
        self._in_use = loaded
        self._publish_expiry(loaded.expiry.timestamp())
        objection = loaded.objection(datetime.now(UTC))
        if objection is not None:
            _log.warning("certificate_not_valid", reason=objection, advice="renew it, and check the clock")


@dataclass(frozen=True)
class _Loaded:
    """The content of matching files."""

    chain: bytes  # PEM, as are the others
    key: bytes
    roots: bytes | None
    certificate: x509.Certificate
    client_roots: Sequence[x509.Certificate]  # empty if clients need no certificate

    def grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.roots)

    def ssl_context(self) -> ssl.SSLContext:
        """Returns a context for HTTP/1.1.

        Raises:
            ssl.SSLError: OpenSSL refuses the certificate, for example because its key is too short.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        with _as_file(self.chain + b"\n" + self.key) as path:  # the module reads files only
            context.load_cert_chain(path)
        if self.roots is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.num_tickets = 0  # a resumed session shows no certificate to the current roots
            context.options |= ssl.OP_NO_TICKET
            context.load_verify_locations(cadata=self.roots.decode("ascii", "replace"))
        return context

    @property
    def expiry(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def objection(self, now: datetime) -> str | None:
        """Returns why connections would fail at the given time; None if they would not."""
        if (period := _other_period(self.certificate, now)) is not None:
            return f"the certificate {period}"
        periods = [_other_period(root, now) for root in self.client_roots]
        if periods and None not in periods:
            return f"none of the client CA certificates is valid now; the first {periods[0]}"
        return None


def _other_period(certificate: x509.Certificate, now: datetime) -> str | None:
    """Returns why a certificate is not valid at the given time; None if it is valid."""
    if now < certificate.not_valid_before_utc:
        return f"is not valid before {certificate.not_valid_before_utc.isoformat()}"
    if now >= certificate.not_valid_after_utc:
        return f"expired at {certificate.not_valid_after_utc.isoformat()}"
    return None


def _read(files: CertificateFiles, *, pipe_seconds: float) -> _Loaded:
    """Reads the files.

    Raises:
        OSError: One cannot be read.
        ValueError: One has no certificate, or the key does not match, is encrypted or of an unknown type.
    """
    read = partial(read_whole, pipe_seconds=pipe_seconds)
    certificate, key = read(files.certificate), read(files.key)
    roots = read(files.client_ca) if files.client_ca else None
    return _Loaded(
        certificate,
        key,
        roots,
        _checked_certificate(certificate, key),
        [] if roots is None else x509.load_pem_x509_certificates(roots),
    )


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Yields the path of a file with the content: a secret, which must not reach a disk."""
    with _memory_file() as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}" if file.name == file.fileno() else str(file.name)


def _memory_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("certificate"), "wb")  # noqa: PTH123 — a descriptor
    return NamedTemporaryFile()


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
        raise ValueError("the key does not match the certificate")
    return leaf
