"""Why there is no connection: a short look at the server's port, after gRPC has given up.

gRPC reports the last of the addresses that it tried, so of a `localhost` that is `::1` and `127.0.0.1` it
says "connection refused" where the other one has refused a certificate; and what a server closes, it calls
closed.
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

LONGEST_SECONDS = 3.0  # that a probe is waited for

# In the words of grpcio 1.85 and of 1.76.
_OTHER_NAME = re.compile(r"ostname Verification|Peer name \S+ is not in peer certificate")
_CONNECT_SECONDS = 1.0  # for one address, and for each answer of it
_KEEP_SECONDS = 1.0  # callers that fail together share one look
_MAX_ADDRESSES = 4
# HTTP/2's preface and an empty SETTINGS frame, to which a server of gRPC answers with its own settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS_TYPE = 4
_FRAME_HEADER_BYTES = 9

_Spoken: TypeAlias = Literal["grpc", "tls", "tls with client certificate", "https", "http", "unknown"]


@dataclass(frozen=True, slots=True)
class Security:
    """How the channel is encrypted.

    Attributes:
        credentials: Of the channel; `None` is in the clear.
        has_client_certificate: Whether there is one in them, or `None` if that is not known.
    """

    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    has_client_certificate: bool | None = None


@dataclass(frozen=True, slots=True)
class _Finding:
    """What is wrong at one address, and what to do; there is no advice where just nothing answers."""

    where: Endpoint
    fact: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why there is no connection.

    Attributes:
        message: For people, with what to do.
        is_whole: Whether it says all; otherwise gRPC's own words are needed beside it.
    """

    message: str
    is_whole: bool = True


class Probe:
    """Looks for the cause in a thread of its own, since the resolver of names can block for any time.

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
        """Returns the cause to come, or `None` where nothing wrong is found."""
        with self._lock:
            if self._latest is not None and time.monotonic() - self._began_at < _KEEP_SECONDS:
                return self._latest
            self._latest = future = Future[Cause | None]()
            self._began_at = time.monotonic()
        # A daemon: a name that does not resolve must not keep the program from ending.
        threading.Thread(target=self._run, args=(future,), name="alignserve-probe", daemon=True).start()
        return future

    def _run(self, future: Future[Cause | None]) -> None:
        cause = None
        with suppress(Exception):  # it only adds to an error that is raised anyway
            cause = self._cause()
        future.set_result(cause)

    def _cause(self) -> Cause | None:
        if not self._target.endpoints:
            return None
        if proxy := proxy_of(self._target):
            variable, address = proxy
            told = (
                f"{self._target.name} was tried through the proxy {address} of {variable}; "
                "if it is reached without, name its host in no_proxy"
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
            return None  # one address works by now
        return Cause(_told(self._target, [finding for finding in findings if finding]))

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
                "give the port of --listen (50051 by default), not that of the metrics or of a web server",
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
                "the server does not use TLS, and this client does",
                "leave out TLS (credentials, tls=True or https://; --tls, --ca-file), "
                "or start the server with --tls-certificate",
            )
        if not spoken.startswith("tls"):
            return _Finding(where, "what listens there is no server of gRPC", "check host and port")
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
        """Asks gRPC about one address alone, with the channel's own credentials; `None` if it connects."""
        family = "ipv6" if ":" in where.host else "ipv4"
        options = [
            ("grpc.default_authority", str(named)),
            *self._options,
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),  # or it waits for the channel's own pause to end
        ]
        with grpc.secure_channel(f"{family}:{where}", credentials, options) as channel:
            check = channel.unary_unary(CHECK, encode_request, decode_is_serving)
            try:
                check(SERVICE_NAME, timeout=_CONNECT_SECONDS)
            except grpc.RpcError as error:
                return str(error.details()) if error.code() is grpc.StatusCode.UNAVAILABLE else None
        return None


def lacks_cause(error: AlignserveError, *, waits: bool) -> bool:
    """Returns whether gRPC itself found no server: none has answered, and nobody has looked for the cause.

    Args:
        error: Of a call.
        waits: Whether the call was to wait for a server, so that its time runs out where there is none.
    """
    kinds = (UnavailableError, DeadlineExceededError) if waits else UnavailableError
    return isinstance(error, kinds) and not error.reason and _is_of_grpc(error)


def with_cause(error: AlignserveError, cause: Cause | None) -> AlignserveError:
    """Returns the error with the cause as its message; the error itself is that one's `__cause__`."""
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
        "the server asks for a client certificate, and got none or one that it does not trust",
        "give one that its client authority has signed (client_certificate and client_key; "
        "--certificate-file and --certificate-key-file)",
    ),
    False: (
        "the server asks for a client certificate, and this client has none",
        "give one (client_certificate and client_key; --certificate-file and --certificate-key-file)",
    ),
    True: (
        "the server does not accept this client's certificate",
        "give one that has not expired and that its client authority (--tls-client-ca) has signed",
    ),
}


def _resolved(named: Endpoint) -> list[tuple[Endpoint, Endpoint]]:
    """Returns each address of an endpoint, with the endpoint."""
    found = socket.getaddrinfo(named.host, named.port, type=socket.SOCK_STREAM)
    return [(Endpoint(host, named.port), named) for host in dict.fromkeys(str(each[4][0]) for each in found)]


def _spoken(where: Endpoint) -> _Spoken:
    """Finds out what is spoken at a port.

    Raises:
        OSError: There is no connection.
    """
    return _by_tls(where) or _by_preface(where)


def _by_tls(where: Endpoint) -> _Spoken | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # nothing is sent; whom the client trusts, gRPC is asked about
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
        except OSError:  # closed or silent, as servers in the clear are to what they do not understand
            return None


def _after_handshake(encrypted: ssl.SSLSocket) -> _Spoken:
    # In TLS 1.3 a server looks for the client's certificate after the handshake, and where there is none it
    # sends an alert or, as gRPC does, just closes. Otherwise its settings come.
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
            "the server uses TLS, and this client does not",
            "turn it on (tls=True, root_certificates=… or https://; --tls, --ca-file)",
        )
    return _Finding(where, "what listens there is no server of gRPC", "check host and port")


def _of_certificate(where: Endpoint, named: Endpoint, said: str) -> _Finding | None:
    """Returns what is wrong with the server's certificate, by what gRPC has said."""
    if _OTHER_NAME.search(said):
        return _Finding(
            where,
            f"the server's certificate is not for the name {named.host!r}",
            "connect by a name that is in it, or have one issued for this name",
        )
    if "CERTIFICATE_VERIFY_FAILED" not in said:
        return None
    if "expired" in said:
        return _Finding(where, "the server's certificate has expired", "renew it at the server")
    if "not yet valid" in said:
        return _Finding(where, "the server's certificate is not valid yet", "compare the clocks")
    return _Finding(
        where,
        "the server's certificate is signed by an authority that this client does not trust",
        "name that authority's certificate (root_certificates; --ca-file)",
    )


def _told(target: Target, findings: Sequence[_Finding]) -> str:
    telling = next((finding for finding in findings if finding.advice), None)
    others = ", ".join(_fact(finding, target) for finding in findings if finding is not telling)
    if telling is None:
        return f"no server at {target.name}: {others}; start alignserve-server there, or give another address"
    tried = f" (also tried {others})" if others else ""
    return f"cannot connect to {target.name}: {_fact(telling, target)}; {telling.advice}{tried}"


def _fact(finding: _Finding, target: Target) -> str:
    is_named = str(finding.where) == target.name
    return finding.fact if is_named else f"{finding.where}: {finding.fact}"
