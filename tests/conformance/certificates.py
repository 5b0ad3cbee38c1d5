"""Certificates for servers of cases: a private authority, a server on 127.0.0.1, and a client."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files; keys are PKCS #8, which every language reads."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    other_ca: Path  # has signed nothing here


def make_certificates(folder: Path) -> Certificates:
    """Writes fresh certificates into a folder."""
    authority, other = trustme.CA(), trustme.CA()
    made = Certificates(*(folder / f"{name}.pem" for name in Certificates.__dataclass_fields__))
    authority.cert_pem.write_to_path(made.ca)
    other.cert_pem.write_to_path(made.other_ca)
    server = authority.issue_cert("localhost", "127.0.0.1")
    client = authority.issue_cert("client.example", common_name="client")
    for issued, certificate, key in (
        (server, made.server, made.server_key),
        (client, made.client, made.client_key),
    ):
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(_pkcs8(issued.private_key_pem.bytes()))
    return made


def _pkcs8(pem: bytes) -> bytes:
    key = serialization.load_pem_private_key(pem, None)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
