"""TLS of the gRPC port, with certificates that are read again when they are renewed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from alignserve_server.errors import StartupError
from alignserve_server.logs import get_logger
from alignserve_server.watched import WatchedFiles

_log = get_logger(__name__)


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

    Files that cannot be used, such as a certificate whose key has not been written yet, change nothing.
    """

    def __init__(self, files: CertificateFiles, publish_expiry: Callable[[float], object]) -> None:
        """Reads the files.

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
            first = self._read()
        except (OSError, ValueError) as error:
            raise StartupError(
                f"cannot use the certificate of --tls-certificate, --tls-key and --tls-client-ca: {error}"
            ) from error
        self.credentials = grpc.dynamic_ssl_server_credentials(
            first,
            self._renewed,  # type: ignore[arg-type]  # None is no change, which the types leave out
            require_client_authentication=files.client_ca is not None,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what has changed, for the connection that is about to be made; None if nothing has."""
        if not self._watched.have_changed():
            return None
        try:
            configuration = self._read()
        except Exception as error:  # noqa: BLE001 — gRPC would refuse the connection
            self._watched.look_again()
            _log.error("certificate_not_read", reason=str(error))
            return None
        _log.info("certificate_read")
        return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key = self._files.certificate.read_bytes(), self._files.key.read_bytes()
        roots = self._files.client_ca.read_bytes() if self._files.client_ca else None
        expiry = _checked_expiry(certificate, key)
        if roots is not None:
            x509.load_pem_x509_certificates(roots)
        configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], roots)
        self._publish_expiry(expiry)
        return configuration


def _checked_expiry(certificate: bytes, key: bytes) -> float:
    """Returns the Unix time at which a certificate ends.

    Raises:
        ValueError: It is none, or the key is another's, encrypted or of an unknown kind.
    """
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
    return leaf.not_valid_after_utc.timestamp()
