"""Parses server addresses, as people write them, into channel targets with their hosts and ports."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_TARGET = "127.0.0.1:50051"

_DEFAULT_PORT = 50051
_HTTPS_PORT = 443
_IS_ENCRYPTED = {"http": False, "grpc": False, "https": True, "grpcs": True}  # by URL scheme
# gRPC's own schemes, for names that gRPC resolves itself.
_GRPC_SCHEMES = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p"})
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):(?!\d+$)")  # but not the colon before a port
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # in the order in which gRPC reads them
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host, by name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Returns whether it is this machine, which no proxy can reach."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(self.host.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return bool(mapped.is_loopback or mapped.is_unspecified)


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a channel.

    Attributes:
        name: The target as gRPC accepts it.
        is_encrypted: Whether the URL scheme implies TLS, or `None` if it was not a URL.
        endpoints: Hosts and ports in it; empty for Unix sockets and similar targets.
    """

    name: str
    is_encrypted: bool | None
    endpoints: tuple[Endpoint, ...]

    @property
    def is_loopback(self) -> bool:
        """Returns whether it leads only to this machine."""
        return bool(self.endpoints) and all(endpoint.is_loopback for endpoint in self.endpoints)


def target_of(text: str) -> Target:
    """Parses `HOST`, `HOST:PORT`, `http://…`, `https://…`, `grpc://…`, `grpcs://…` or a gRPC target.

    Raises:
        ValueError: It is none of these; the message never contains the user or password of a URL.
    """
    text = text.strip()
    found = _SCHEME.match(text) if not _is_ipv6(text) else None
    scheme = found[1].lower() if found else ""
    if scheme in _IS_ENCRYPTED and text[len(scheme) :].startswith("://"):
        return _from_url(text, scheme)
    if scheme in _GRPC_SCHEMES:
        return Target(text, None, _endpoints_of(scheme, text[len(scheme) + 1 :]))
    if "://" in text:
        raise ValueError(
            f"the scheme {text.partition('://')[0]!r} is unknown; use HOST:PORT, http:// or https://"
        )
    endpoint = _endpoint(text, _DEFAULT_PORT)
    return Target(str(endpoint), None, (endpoint,))


def proxy_of(target: Target, environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Returns the variable and the `HOST:PORT` of the HTTP proxy that gRPC uses, or `None`."""
    if target.is_loopback or not target.endpoints:
        return None
    variable = next((name for name in _PROXY_VARIABLES if environment.get(name)), None)
    if variable is None:
        return None
    exempt = next((environment[name] for name in _NO_PROXY_VARIABLES if environment.get(name)), "")
    host = target.endpoints[0].host
    if any(host.endswith(entry.strip()) for entry in exempt.split(",") if entry.strip()):
        return None
    return variable, environment[variable].rpartition("://")[2].rpartition("@")[2].rstrip("/")


def _from_url(text: str, scheme: str) -> Target:
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError(
            f"{scheme}:// with a user or password is not supported; send keys with api_key or --api-key-file"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(
            f"{text!r} has a path, which gRPC does not support; use {scheme}://{parts.netloc} (a proxy that "
            "serves under a path cannot be used)"
        )
    endpoint = _endpoint(parts.netloc, _HTTPS_PORT if scheme == "https" else _DEFAULT_PORT)
    return Target(str(endpoint), _IS_ENCRYPTED[scheme], (endpoint,))


def _endpoint(text: str, default_port: int) -> Endpoint:
    if _is_ipv6(text):
        return Endpoint(text, default_port)
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host = text
    if "@" in text:
        raise ValueError("an address has no user or password; send keys with api_key or --api-key-file")
    if not host or any(character.isspace() or character == "/" for character in text):
        raise ValueError(f"{text!r} is not an address; use HOST:PORT, such as {DEFAULT_TARGET}")
    if not colon and host.isdecimal():
        raise ValueError(f"{text!r} is only a port; use HOST:PORT, such as 127.0.0.1:{text}")
    if colon and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} has no port from 1 to 65535 after its colon; use HOST:PORT")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError(f"{text!r} is not an address; write IPv6 addresses as [::1]:50051")
    return Endpoint(host.strip("[]"), int(port) if colon else default_port)


def _endpoints_of(scheme: str, rest: str) -> tuple[Endpoint, ...]:
    """Returns the endpoints of a gRPC target; empty if it is invalid, which gRPC itself will report."""
    if scheme not in ("dns", "ipv4", "ipv6"):
        return ()
    names = rest.rpartition("/")[2] if scheme == "dns" else rest.lstrip("/")
    try:
        return tuple(
            _endpoint(name.replace("%5B", "[").replace("%5D", "]"), 443) for name in names.split(",")
        )
    except ValueError:
        return ()


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text.partition("%")[0]).version == 6
    except ValueError:
        return False
