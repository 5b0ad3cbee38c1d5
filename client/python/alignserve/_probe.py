"""Finds out why there is no connection, by a short look at the server's port after gRPC has given up.

gRPC reports only the last address that it tried: if `localhost` is `::1` and `127.0.0.1`, it says "connection
refused" although the other address rejected a certificate. And if a server closes a connection, gRPC only
says that it was closed.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import grpc

from alignserve._health import CHECK, SERVICE_NAME, decode_is_serving, encode_request
from alignserve._targets import Endpoint, Target, proxy_of
from alignserve.errors import AlignserveError, DeadlineExceededError, UnavailableError

MAX_PROBE_SECONDS = 3.0  # how long callers wait for a probe

# The wording of grpcio 1.85 and 1.76.
_OTHER_NAME = re.compile(r"ostname Verification|Peer name \S+ is not in peer certificate")
_CONNECT_SECONDS = 1.0  # for each address, and for each of its answers
_KEEP_SECONDS = 1.0  # calls that fail together share one probe
_MAX_ADDRESSES = 4
# HTTP/2's preface and an empty SETTINGS frame, which a gRPC server answers with its own settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS_TYPE = 4
_FRAME_HEADER_BYTES = 9

_Spoken: TypeAlias = Literal["grpc", "tls", "tls with client certificate", "https", "http", "unknown"]


@dataclass(frozen=True, slots=True)
class Security:
    """How the channel is encrypted.

    Attributes:
        credentials: Of the channel; `None` if it is not encrypted.
        has_client_certificate: Whether the credentials include a client certificate, or `None` if unknown.
    """

    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    has_client_certificate: bool | None = None


@dataclass(frozen=True, slots=True)
class _Finding:
    """What is wrong at one address, and what to do; without advice if the address just does not answer."""

    where: Endpoint
    fact: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why there is no connection.

    Attributes:
        message: For people, with advice.
        is_whole: Whether the message is complete; otherwise gRPC's own message is appended.
    """

    message: str
    is_whole: bool = True


class Probe:
    """Looks for the cause in a separate thread, since name resolution can block indefinitely.

    Args:
        target: Of the channel.
        security: Of the channel.
        options: Of the channel.
    """

    def __init__(self, target: Target, security: Security, options: Sequence[tuple[str, Any]]) -> None:
        self._target = target
        self._security = security
        self._options = options
        self._lock = threading.Lock()
        self._latest: Future[Cause | None] | None = None
        self._began_at = 0.0

    def begin(self) -> Future[Cause | None]:
        """Starts a probe and returns its future cause, which is `None` if nothing wrong is found."""
        with self._lock:
            if self._latest is not None and time.monotonic() - self._began_at < _KEEP_SECONDS:
                return self._latest
            self._latest = future = Future[Cause | None]()
            self._began_at = time.monotonic()
        # A daemon thread: a name that does not resolve must not keep the program from exiting.
        threading.Thread(target=self._run, args=(future,), name="alignserve-probe", daemon=True).start()
        return future

    def _run(self, future: Future[Cause | None]) -> None:
        cause = None
        with suppress(Exception):  # the cause only explains an error that is raised anyway
            cause = self._cause()
        future.set_result(cause)

    def _cause(self) -> Cause | None:
        if not self._target.endpoints:
            return None
        if proxy := proxy_of(self._target):
            variable, address = proxy
            told = (
                f"{self._target.name} was tried through the proxy {address} of {variable}; "
                "if it is reachable without a proxy, add its host to no_proxy"
            )
            return Cause(told, is_whole=False)
        try:
            addresses = [each for endpoint in self._target.endpoints for each in _resolved(endpoint)]
        except socket.gaierror as error:
            return Cause(
                f"the name in {self._target.name} cannot be resolved ({error.strerror}); check its spelling"
            )
        with ThreadPoolExecutor(_MAX_ADDRESSES, "alignserve-probe") as pool:
            findings = list(pool.map(lambda each: self._look(*each), addresses[:_MAX_ADDRESSES]))
        if not findings or any(finding is None for finding in findings):
            return None  # one address works now
        return Cause(_message(self._target, [finding for finding in findings if finding]))

    def _look(self, where: Endpoint, named: Endpoint) -> _Finding | None:
        try:
            spoken = _spoken(where)
        except ConnectionRefusedError:
            return _Finding(where, "connection refused")
        except TimeoutError:
            return _Finding(where, "no answer")
        except OSError as error:
            return _Finding(where, (error.strerror or str(error)).lower())
        if spoken in ("http", "https"):
            return _Finding(
                where,
                "an HTTP server answers, not a gRPC server",
                "use the port of --listen (50051 by default), not the metrics port or a web server's port",
            )
        if self._security.credentials is None:
            return _without_tls(where, spoken)
        return self._with_tls(self._security.credentials, where, named, spoken)

    def _with_tls(
        self, credentials: grpc.ChannelCredentials, where: Endpoint, named: Endpoint, spoken: _Spoken
    ) -> _Finding | None:
        if spoken == "grpc":
            return _Finding(
                where,
                "the server does not use TLS, but this client does",
                "leave out TLS (credentials, tls=True or https://; --tls, --ca-file), "
                "or start the server with --tls-certificate",
            )
        if not spoken.startswith("tls"):
            return _Finding(
                where, "the program that listens there is not a gRPC server", "check host and port"
            )
        said = self._said_by_grpc(credentials, where, named)
        if said is None:
            return None
        if found := _of_certificate(where, named, said):
            return found
        if spoken == "tls with client certificate":
            return _Finding(where, *_CLIENT_CERTIFICATE[self._security.has_client_certificate])
        return _Finding(where, said.rpartition("last error: ")[2], "check the server's log")

    def _said_by_grpc(
        self, credentials: grpc.ChannelCredentials, where: Endpoint, named: Endpoint
    ) -> str | None:
        """Returns gRPC's error for this address, with the channel's credentials; `None` if it connects."""
        family = "ipv6" if ":" in where.host else "ipv4"
        options = [
            ("grpc.default_authority", str(named)),
            *self._options,
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),  # otherwise it waits for the channel's own backoff
        ]
        with grpc.secure_channel(f"{family}:{where}", credentials, options) as channel:
            check = channel.unary_unary(CHECK, encode_request, decode_is_serving)
            try:
                check(SERVICE_NAME, timeout=_CONNECT_SECONDS)
            except grpc.RpcError as error:
                return str(error.details()) if error.code() is grpc.StatusCode.UNAVAILABLE else None
        return None


def lacks_cause(error: AlignserveError, *, waits: bool) -> bool:
    """Returns whether gRPC itself found no server: none has answered, and the error has no cause yet.

    Args:
        error: Of a call.
        waits: Whether the call waits for a server, so that it runs out of time if there is none.
    """
    kinds = (UnavailableError, DeadlineExceededError) if waits else UnavailableError
    return isinstance(error, kinds) and not error.reason and _is_of_grpc(error)


def with_cause(error: AlignserveError, cause: Cause | None) -> AlignserveError:
    """Returns an error with the cause as its message, and the original error as its `__cause__`."""
    if cause is None:
        return error
    message = cause.message if cause.is_whole else f"{cause.message}: {error.message}"
    explained = type(error)(message, error.code)
    explained.completed = error.completed
    explained.__cause__ = error
    return explained


def _is_of_grpc(error: AlignserveError) -> bool:
    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and cause.code() is error.code


_CLIENT_CERTIFICATE: dict[bool | None, tuple[str, str]] = {
    None: (
        "the server requires a client certificate, and received none or one that it does not trust",
        "give one that its client authority has signed (client_certificate and client_key; "
        "--certificate-file and --certificate-key-file)",
    ),
    False: (
        "the server requires a client certificate, and this client has none",
        "give one (client_certificate and client_key; --certificate-file and --certificate-key-file)",
    ),
    True: (
        "the server does not accept this client's certificate",
        "give one that has not expired and that its client authority (--tls-client-ca) has signed",
    ),
}


def _resolved(named: Endpoint) -> list[tuple[Endpoint, Endpoint]]:
    """Returns each address of each endpoint, with the endpoint."""
    found = socket.getaddrinfo(named.host, named.port, type=socket.SOCK_STREAM)
    return [(Endpoint(host, named.port), named) for host in dict.fromkeys(str(each[4][0]) for each in found)]


def _spoken(where: Endpoint) -> _Spoken:
    """Finds out which protocol a port speaks.

    Raises:
        OSError: The port cannot be reached.
    """
    return _by_tls(where) or _by_preface(where)


def _by_tls(where: Endpoint) -> _Spoken | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # no data is sent; gRPC decides whether the client trusts the server
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with _connected(where) as plain:
        try:
            with context.wrap_socket(plain) as encrypted:
                if encrypted.selected_alpn_protocol() != "h2":
                    return "https"
                return _after_handshake(encrypted)
        except ssl.SSLError as error:
            return "tls with client certificate" if "ALERT" in (error.reason or "") else None
        except OSError:  # unencrypted servers close the connection or stay silent
            return None


def _after_handshake(encrypted: ssl.SSLSocket) -> _Spoken:
    # In TLS 1.3 a server checks the client's certificate after the handshake; without one it sends an alert
    # or, like gRPC, just closes. Otherwise it sends its settings.
    try:
        return "tls" if encrypted.recv(1) else "tls with client certificate"
    except TimeoutError:
        return "tls"
    except OSError:
        return "tls with client certificate"


def _by_preface(where: Endpoint) -> _Spoken:
    received = b""
    with _connected(where) as plain, suppress(OSError):
        plain.sendall(_PREFACE)
        while len(received) < _FRAME_HEADER_BYTES and (more := plain.recv(_FRAME_HEADER_BYTES)):
            received += more
    if received.startswith(b"HTTP/") or received[:1] == b"<":
        return "http"
    is_frame = len(received) >= _FRAME_HEADER_BYTES and received[3] == _SETTINGS_TYPE
    return "grpc" if is_frame else "unknown"


def _connected(where: Endpoint) -> socket.socket:
    return socket.create_connection((where.host, where.port), timeout=_CONNECT_SECONDS)


def _without_tls(where: Endpoint, spoken: _Spoken) -> _Finding | None:
    if spoken == "grpc":
        return None
    if spoken.startswith("tls"):
        return _Finding(
            where,
            "the server uses TLS, but this client does not",
            "turn it on (tls=True, root_certificates=… or https://; --tls, --ca-file)",
        )
    return _Finding(where, "the program that listens there is not a gRPC server", "check host and port")


def _of_certificate(where: Endpoint, named: Endpoint, said: str) -> _Finding | None:
    """Returns what is wrong with the server's certificate, from gRPC's error message."""
    if _OTHER_NAME.search(said):
        return _Finding(
            where,
            f"the server's certificate is not for the name {named.host!r}",
            "connect by a name that is in it, or have one issued for this name",
        )
    if "CERTIFICATE_VERIFY_FAILED" not in said:
        return None
    if "expired" in said:
        return _Finding(where, "the server's certificate has expired", "renew it on the server")
    if "not yet valid" in said:
        return _Finding(where, "the server's certificate is not valid yet", "check both clocks")
    return _Finding(
        where,
        "the server's certificate is signed by an authority that this client does not trust",
        "give that authority's certificate (root_certificates; --ca-file)",
    )


def _message(target: Target, findings: Sequence[_Finding]) -> str:
    telling = next((finding for finding in findings if finding.advice), None)
    others = ", ".join(_fact(finding, target) for finding in findings if finding is not telling)
    if telling is None:
        return f"no server at {target.name}: {others}; start alignserve-server there, or give another address"
    tried = f" (also tried {others})" if others else ""
    return f"cannot connect to {target.name}: {_fact(telling, target)}; {telling.advice}{tried}"


def _fact(finding: _Finding, target: Target) -> str:
    is_named = str(finding.where) == target.name
    return finding.fact if is_named else f"{finding.where}: {finding.fact}"
