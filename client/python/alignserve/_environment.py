"""Reads a client's connection settings from its arguments and the environment.

An argument overrides its variable, and an empty variable counts as unset. ALIGNSERVE_API_KEY is the
exception: if it is empty, a secret was probably not mounted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

from alignserve._call_defaults import AUTHORIZATION, Metadata
from alignserve._probe import Security
from alignserve._targets import DEFAULT_TARGET, Target, target_of

Pem: TypeAlias = str | os.PathLike[str] | bytes

TARGET_VARIABLES = ("ALIGNSERVE_TARGET", "ALIGNSERVE_SERVER")  # the second is an older name
_LISTEN = "ALIGNSERVE_LISTEN"  # the server's own setting, which a health check in its container also sees
_ALL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "[::]": "localhost"}  # noqa: S104 — the server listens there, not the client

_API_KEY = "ALIGNSERVE_API_KEY"
_TLS = "ALIGNSERVE_TLS"
_ROOT_CERTIFICATES = "ALIGNSERVE_ROOT_CERTIFICATES"
_CLIENT_CERTIFICATE = "ALIGNSERVE_CLIENT_CERTIFICATE"
_CLIENT_KEY = "ALIGNSERVE_CLIENT_KEY"
_TLS_FILES = (_ROOT_CERTIFICATES, _CLIENT_CERTIFICATE, _CLIENT_KEY)
_SWITCH = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True, slots=True)
class Tls:
    """How to encrypt the connection; fields that are `None` come from the environment.

    Attributes:
        credentials: Complete channel credentials; the other fields must be `None`.
        is_on: Whether to use TLS.
        root_certificates: Certificate authorities to trust for the server's certificate.
        client_certificate: This client's certificate chain.
        client_key: Its private key.
    """

    credentials: grpc.ChannelCredentials | None = None
    is_on: bool | None = None
    root_certificates: Pem | None = None
    client_certificate: Pem | None = None
    client_key: Pem | None = None

    @property
    def files(self) -> tuple[Pem | None, Pem | None, Pem | None]:
        """Returns the three PEM files, in the order of their variables."""
        return self.root_certificates, self.client_certificate, self.client_key


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a client connects to, and how."""

    target: Target
    security: Security

    @classmethod
    def of(cls, target: str | None, tls: Tls, environment: Mapping[str, str] | None = None) -> Connection:
        """Returns the connection for the arguments of a client.

        Raises:
            OSError: A certificate file cannot be read.
            ValueError: An argument or variable is invalid, or two contradict each other.
        """
        variables = os.environ if environment is None else environment
        where = target_of(target) if target is not None else _default_target(variables)
        if tls.credentials is not None:
            _check_alone(where, tls)
            return cls(where, Security(tls.credentials))
        if not _is_on(where, tls, variables):
            return cls(where, Security())
        return cls(where, _security(tls, variables))


def default_target(environment: Mapping[str, str] | None = None) -> str:
    """Returns the address from the environment, or that of a server on this machine."""
    return _named_target(os.environ if environment is None else environment)[1]


def default_api_key(metadata: Metadata, environment: Mapping[str, str] | None = None) -> str | None:
    """Returns the key from the environment, unless the metadata has one.

    Raises:
        ValueError: The variable is set but empty.
    """
    if any(key.lower() == AUTHORIZATION for key, _ in metadata):
        return None
    key = (os.environ if environment is None else environment).get(_API_KEY)
    if key is not None and not key.strip():
        raise ValueError(f"{_API_KEY} is empty; set it to the key, or unset it to call without one")
    return key


def _named_target(variables: Mapping[str, str]) -> tuple[str, str]:
    found = ((name, variables[name]) for name in TARGET_VARIABLES if variables.get(name, "").strip())
    host, colon, port = variables.get(_LISTEN, "").strip().rpartition(":")
    local = (_LISTEN, f"{_ALL_ADDRESSES.get(host, host)}:{port}") if colon else ("", DEFAULT_TARGET)
    return next(found, local)


def _default_target(variables: Mapping[str, str]) -> Target:
    name, value = _named_target(variables)
    try:
        return target_of(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_alone(target: Target, tls: Tls) -> None:
    if tls.is_on is not None or any(file is not None for file in tls.files):
        raise ValueError("credentials already include all TLS settings; leave out tls, certificates and key")
    if target.is_encrypted is False:
        raise ValueError("http:// and grpc:// are unencrypted, but credentials are given; use https://")


def _is_on(target: Target, tls: Tls, variables: Mapping[str, str]) -> bool:
    is_on = tls.is_on
    if is_on is None and any(file is not None for file in tls.files):
        is_on = True
    if is_on is not None and target.is_encrypted is not None and is_on != target.is_encrypted:
        raise ValueError(
            f"the scheme of the address turns TLS {'on' if target.is_encrypted else 'off'}, but other "
            "arguments do not; use https:// with TLS and http:// without"
        )
    if is_on is False and any(file is not None for file in tls.files):
        raise ValueError("certificates are given, but tls is off; leave out one of them")
    if is_on is not None or target.is_encrypted is not None:
        return bool(is_on or target.is_encrypted)
    return _is_on_by(variables)


def _is_on_by(variables: Mapping[str, str]) -> bool:
    files = [name for name in _TLS_FILES if variables.get(name)]
    value = variables.get(_TLS, "").strip().lower()
    if value and value not in _SWITCH:
        raise ValueError(f"{_TLS} is {value!r}; use true or false")
    if value and not _SWITCH[value] and files:
        raise ValueError(f"{_TLS} is {value}, but {files[0]} is set; unset one of them")
    return _SWITCH[value] if value else bool(files)


def _security(tls: Tls, variables: Mapping[str, str]) -> Security:
    root, certificate, key = (
        variables.get(name) or None if given is None else given
        for name, given in zip(_TLS_FILES, tls.files, strict=True)
    )
    if (certificate is None) != (key is None):
        raise ValueError(
            "a client certificate requires its key, and a key its certificate; give both (client_certificate "
            "and client_key; --certificate-file and --certificate-key-file)"
        )
    credentials = grpc.ssl_channel_credentials(
        _pem(_ROOT_CERTIFICATES, root), _pem(_CLIENT_KEY, key), _pem(_CLIENT_CERTIFICATE, certificate)
    )
    return Security(credentials, has_client_certificate=certificate is not None)


def read_pem(what: str, pem: Pem) -> bytes:
    """Returns the content of a PEM file, or the content that was given.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not PEM; `what` names it in the message.
    """
    content = pem if isinstance(pem, bytes) else Path(pem).read_bytes()
    if b"-----BEGIN " not in content:
        source = "its bytes" if isinstance(pem, bytes) else os.fspath(pem)
        raise ValueError(f"{what}: {source} is not PEM; PEM starts with -----BEGIN")
    return content


def _pem(name: str, pem: Pem | None) -> bytes | None:
    """Returns the content of a PEM file; `name` is the variable's name, and its suffix the argument's."""
    return None if pem is None else read_pem(name.removeprefix("ALIGNSERVE_").lower(), pem)
