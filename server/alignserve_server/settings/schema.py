"""Every setting of the server, from flags, environment variables (`ALIGNSERVE_…`) or a TOML file.

Flags override the environment, which overrides the file, which overrides the defaults.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignserve_server.settings.problems import (
    Problem,
    SettingsError,
    contradiction,
    expectation,
    problem_with,
    unknown,
)
from alignserve_server.settings.renamed import REMOVED, RENAMED, outdated
from alignserve_server.settings.sources import (
    Given,
    of_environment,
    of_file,
    of_flags,
    unknown_variables,
)

# Authentication and encryption: a value that is lost by accident must not open the server.
ACCESS = frozenset({"tls_certificate", "tls_key", "tls_client_ca", "api_keys_file", "require_auth"})

# The first setting of each group, and the group's title.
GROUPS = {
    "listen": "Ports",
    "tls_certificate": "Access",
    "workers": "Processes",
    "checkpoint": "Model",
    "max_batch_size": "Batching",
    "max_client_batch_size": "Request limits",
    "text_cache_bytes": "Caches",
    "drain_delay_seconds": "Shutdown and stalls",
    "keepalive_time_seconds": "Connections",
    "log_level": "Logs and traces",
}

_MAX_GRPC_INT = 2**31 - 1  # gRPC's options have 32 bits
_MAX_GRPC_SECONDS = 2_000_000.0  # gRPC counts milliseconds in 32 bits; 23 days

_ADDRESS = re.compile(r"(?:[^\s:\[\]]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})")


def _check_address(address: str) -> str:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[1]) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT, for example 127.0.0.1:50051 or [::]:50051")
    return address


def is_loopback(address: str) -> bool:
    """Returns whether HOST:PORT can be reached only from this machine."""
    host, _ = host_and_port(address)
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def host_and_port(address: str) -> tuple[str, int]:
    """Splits HOST:PORT, without the brackets of IPv6."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


IMAGE_FORMATS = ("avif", "tiff", "heic")  # off by default


def _check_image_formats(names: str) -> str:
    for name in filter(None, names.split(",")):
        if name.strip().lower() not in IMAGE_FORMATS:
            known = ", ".join(IMAGE_FORMATS)
            raise ValueError(
                f"unknown format {name.strip()!r}; use one or more of {known}, separated by commas"
            )
    return names


_ORIGIN = re.compile(r"https?://[^/\s,*?#]+")


def _check_origins(origins: str) -> str:
    for origin in filter(None, map(str.strip, origins.split(","))):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is not an origin; use * or, for example, https://app.example, without a path"
            )
    return origins


def _check_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", _check_text(device)):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return device


def _check_text(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("is empty" if not text.strip() else "contains a NUL byte")
    return text


def _check_path(path: Path) -> Path:
    _check_text(str(path))
    return path


def _check_secret_path(path: Path) -> Path:
    if "-----BEGIN" in str(path) or re.search(r"as_[a-z0-9-]+_[\w-]{40}", str(path)):
        raise ValueError("is a secret; write it to a file and give the path of the file")
    return _check_path(path)


Address = Annotated[str, AfterValidator(_check_address)]
Text = Annotated[str, AfterValidator(_check_text)]
AnyPath = Annotated[Path, AfterValidator(_check_path)]
SecretPath = Annotated[Path, AfterValidator(_check_secret_path)]
Positive = Annotated[int, Field(ge=1, le=2**63 - 1)]
NotNegative = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Settings(BaseModel):
    """Settings of `alignserve-server`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    listen: Address = Field("127.0.0.1:50051", description="address for gRPC; port 0 picks a free port")
    metrics_listen: Address | None = Field(
        "127.0.0.1:9464", description="HTTP address for /metrics, /healthz and /readyz; none disables them"
    )
    http_listen: Address | None = Field(
        None,
        description="address for Connect, gRPC-Web and JSON over HTTP/1.1; needs the extra 'http'; default: "
        "none",
    )
    http_cors_origins: Annotated[str, AfterValidator(_check_origins)] | None = Field(
        None,
        description="origins whose web pages may call, separated by commas, for example "
        "https://app.example; * for all",
    )
    http_page: bool = Field(
        True, description="serve a page at / of the HTTP port, to try the API in a browser"
    )
    open_inference: bool = Field(
        True,
        description="serve the Open Inference Protocol (KServe v2), spoken by tritonclient, on the gRPC port",
    )
    reflection: bool = Field(True, description="serve gRPC reflection, which grpcurl and similar tools use")

    tls_certificate: SecretPath | None = Field(
        None, description="PEM file with the server certificate chain; enables TLS"
    )
    tls_key: SecretPath | None = Field(
        None, description="PEM file with the private key of tls_certificate, unencrypted"
    )
    tls_client_ca: SecretPath | None = Field(
        None, description="PEM file with the CA certificates for client certificates, which become mandatory"
    )
    api_keys_file: SecretPath | None = Field(
        None,
        description="file of API keys, created by 'alignserve-server keys'; API keys become mandatory",
    )
    require_auth: bool = Field(
        False, description="refuse to start without TLS and either API keys or client certificates"
    )

    workers: Positive = Field(
        1, description="number of server processes that share the port, each with its own model"
    )
    front_processes: NotNegative = Field(
        0,
        description="number of processes that take calls and prepare inputs for the process that runs the "
        "model, in each worker; 0: the process with the model takes the calls itself",
    )
    worker_timeout_seconds: float = Field(
        20.0,
        ge=0,
        allow_inf_nan=False,
        description="kill and replace a worker whose event loop does not respond for this long; 0 never does",
    )

    checkpoint: Text = Field(
        "mini",
        description="directory or Hugging Face Hub id of an ALIGN checkpoint; 'mini' is embedded and works "
        "offline",
    )
    revision: Text | None = Field(
        None, description="branch, tag or commit of the checkpoint on the Hugging Face Hub"
    )
    device: Annotated[str, AfterValidator(_check_device)] = Field(
        "auto",
        description="device for the model: auto, cpu, cuda or cuda:N; with workers, cuda gives each its own "
        "GPU, and cuda:N shares one",
    )
    runtime: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="runtime for the model; auto is openvino on a CPU if it is installed, otherwise torch",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto", description="data type of the computation; auto is float32 on a CPU and float16 on a GPU"
    )
    min_cosine_similarity: float = Field(
        0.999,
        ge=0,
        le=1,
        description="minimum cosine similarity to the float32 reference; otherwise falls back to a more "
        "precise configuration",
    )
    lanes: Positive | None = Field(
        None,
        description="number of batches in progress at once, which take turns on a GPU; default: chosen for "
        "runtime and machine, 3 on a GPU",
    )
    threads_per_lane: Positive | None = Field(
        None, description="CPU threads per running batch; default: chosen for runtime and machine"
    )
    cuda_graphs: bool = Field(
        True,
        description="on a GPU, capture CUDA graphs at startup and replay them: faster, but uses more memory",
    )
    cuda_kernels: Literal["auto", "plain", "epilogues", "fused", "compiled"] = Field(
        "auto",
        description="on a GPU, kernels of the image model: torch's (plain), two sets in Triton (epilogues, "
        "fused), or torch.compile's; auto measures all but the last at startup",
    )
    decode_threads: Positive | None = Field(
        None,
        description="threads for decoding images, in each process that takes calls; default: one per core, "
        "divided among the fronts",
    )
    calibration_dir: AnyPath | None = Field(
        None, description="directory of sample images that resemble production traffic; required for int8"
    )
    cache_dir: AnyPath | None = Field(
        None,
        description="directory for converted models, compiled kernels and measured batch sizes; default: "
        "$XDG_CACHE_HOME/alignserve",
    )

    max_batch_size: Positive | None = Field(
        None,
        description="maximum batch size; lowered at startup if larger batches do not raise throughput, and "
        "raised again if they do while serving; default: 32 on a CPU, 64 images and 256 texts on a GPU",
    )
    max_image_batch_size: Positive | None = Field(
        None, description="maximum image batch size, used as given; default: max_batch_size, tuned at startup"
    )
    max_text_batch_size: Positive | None = Field(
        None, description="maximum text batch size, used as given; default: max_batch_size, tuned at startup"
    )
    max_queue_delay_seconds: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="maximum time that a free device waits for more items to fill a batch; 0 never waits",
    )
    max_queue_size: Positive = Field(
        1024, le=_MAX_GRPC_INT // 2, description="maximum number of waiting items per modality"
    )
    max_queue_bytes: Positive = Field(
        256 << 20, description="maximum size of waiting items per modality, as received"
    )

    max_client_batch_size: Positive = Field(
        64, description="maximum number of images, texts, pairs or query terms per request"
    )
    max_labels: Positive = Field(1000, description="maximum number of labels per Classify request")
    max_prompt_templates: Positive = Field(
        100, description="maximum number of prompt templates per Classify request"
    )
    max_image_bytes: Positive = Field(
        10 << 20, description="maximum size of an image file; not of raw pixels"
    )
    max_image_pixels: Positive = Field(
        25_000_000, description="maximum size of a decoded image, width times height"
    )
    extra_image_formats: Annotated[str, AfterValidator(_check_image_formats)] | None = Field(
        None, description="image formats to accept in addition, separated by commas: avif, tiff, heic"
    )
    max_text_bytes: Positive = Field(32 << 10, description="maximum size of a text, before tokenization")
    max_request_bytes: Positive = Field(
        16 << 20, le=_MAX_GRPC_INT, description="maximum size of a request message"
    )
    max_response_bytes: Positive = Field(
        16 << 20,
        description="maximum size of a response message; clients that do not ask for more get up to 4 MiB",
    )
    max_stream_in_flight: Positive = Field(32, description="maximum number of items in flight per stream")

    text_cache_bytes: NotNegative = Field(
        64 << 20,
        description="memory for cached embeddings of recent texts; 0 disables the cache",
    )
    image_cache_bytes: NotNegative = Field(
        0,
        description="memory for cached embeddings of recent images, by the bytes of their files; 0 "
        "disables the cache",
    )
    label_cache_size: Positive = Field(
        10_000, description="maximum number of labels whose embeddings are cached"
    )

    drain_delay_seconds: float = Field(
        2.0, ge=0, description="after SIGTERM, time to keep serving while load balancers see NOT_SERVING"
    )
    shutdown_grace_seconds: float = Field(
        30.0, ge=0, description="after the drain delay, time for accepted calls to finish"
    )
    stall_timeout_seconds: float = Field(
        60.0, gt=0, description="report NOT_SERVING if a batch runs longer than this"
    )
    stall_exit_seconds: float = Field(
        300.0, ge=0, description="exit with code 3 if a stall lasts longer than this; 0 never does"
    )

    keepalive_time_seconds: float = Field(
        30.0,
        ge=0.001,
        le=_MAX_GRPC_SECONDS,
        description="idle time before the server pings a client",
    )
    keepalive_timeout_seconds: float = Field(
        10.0, ge=0.001, le=_MAX_GRPC_SECONDS, description="time for a client to answer a ping"
    )
    max_connection_age_seconds: float = Field(
        300.0,
        ge=0,
        le=_MAX_GRPC_SECONDS,
        description="age, plus or minus a tenth, at which clients are told to reconnect; 0 never does",
    )
    max_connection_age_grace_seconds: float = Field(
        300.0,
        gt=0,
        le=_MAX_GRPC_SECONDS,
        description="after the maximum age, time for the connection's calls to finish before they are "
        "cancelled",
    )
    max_stream_age_seconds: float = Field(
        240.0,
        ge=0,
        description="age at which a stream ends, once everything read from it is answered; 0 never does",
    )

    http_idle_timeout_seconds: float = Field(
        75.0,
        gt=0,
        allow_inf_nan=False,
        description="close an HTTP connection whose client neither sends nor reads for this long",
    )
    http_max_connections: Positive = Field(
        1024, description="maximum number of HTTP connections; a new one replaces an idle one"
    )

    request_timeout_seconds: float = Field(
        30.0, gt=0, description="time for the request of a unary call to arrive"
    )
    max_uploads: Positive = Field(
        64,
        description="maximum number of unary requests being received, each up to max_request_bytes; at "
        "most half of them per connection",
    )
    max_streams: Positive = Field(
        128,
        description="maximum number of open streams, each of which can hold max_request_bytes; at most "
        "half of them per connection",
    )
    max_unread_response_bytes: Positive = Field(
        128 << 20,
        description="maximum size of responses that are in progress or not yet read by clients; at most "
        "half of it per connection",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum level of log lines"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto is console on a terminal, otherwise json"
    )
    access_log_sample_ratio: float = Field(
        0.0, ge=0, le=1, description="share of calls to log, one line each; 0 logs none"
    )
    tracing: bool = Field(
        False, description="export OpenTelemetry traces; configured by the standard OTEL_* variables"
    )

    @property
    def shares_ports(self) -> bool:
        """Whether several processes listen on the same ports."""
        return self.workers > 1 or self.front_processes > 0

    @property
    def is_protected(self) -> bool:
        """Whether traffic is encrypted and callers must authenticate."""
        return self.tls_certificate is not None and (
            self.api_keys_file is not None or self.tls_client_ca is not None
        )

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """The origins in `http_cors_origins`."""
        return tuple(filter(None, map(str.strip, (self.http_cors_origins or "").split(","))))

    @property
    def accepted_extra_formats(self) -> tuple[str, ...]:
        """The names in `extra_image_formats`, each once, in capitals."""
        names = [name.strip().lower() for name in (self.extra_image_formats or "").split(",")]
        return tuple(name.upper() for name in IMAGE_FORMATS if name in names)

    @model_validator(mode="after")
    def _check_contradictions(self) -> Settings:
        if found := list(self._contradictions()):
            raise ValueError("\n".join(found))
        return self

    def _contradictions(self) -> Iterator[str]:
        yield from self._contradicting_sizes()
        yield from self._contradicting_access()
        yield from self._contradicting_ports()
        yield from self._contradicting_processes()
        grace = self.max_connection_age_grace_seconds
        if self.max_connection_age_seconds and not 0 < self.max_stream_age_seconds < grace:
            yield (
                f"max_stream_age_seconds ({self.max_stream_age_seconds}) is not between 0 and "
                f"max_connection_age_grace_seconds ({grace}), so connections would cut off streams"
            )

    def _contradicting_processes(self) -> Iterator[str]:
        if 0 < self.worker_timeout_seconds < 1:
            yield (
                f"worker_timeout_seconds ({self.worker_timeout_seconds}) is less than 1, so workers that "
                "are only busy would be killed; use 1 or more, or 0 to kill none"
            )
        for name, number, default in (
            ("front_processes", self.front_processes, 0),
            ("workers", self.workers, 1),
        ):
            if number != default and sys.platform != "linux":
                yield f"{name} ({number}) needs Linux; use {default}"

    def _contradicting_sizes(self) -> Iterator[str]:
        if self.max_client_batch_size > self.max_queue_size:
            yield (
                f"max_client_batch_size ({self.max_client_batch_size}) is larger than max_queue_size "
                f"({self.max_queue_size}), so the largest requests would never be admitted"
            )
        for limit in ("max_request_bytes", "max_queue_bytes"):
            if self.max_image_bytes > (value := getattr(self, limit)):
                yield f"max_image_bytes ({self.max_image_bytes}) is larger than {limit} ({value})"
        if self.max_response_bytes > self.max_unread_response_bytes:
            yield (
                f"max_response_bytes ({self.max_response_bytes}) is larger than max_unread_response_bytes "
                f"({self.max_unread_response_bytes})"
            )

    def _contradicting_ports(self) -> Iterator[str]:
        if self.http_cors_origins is not None and self.http_listen is None:
            yield "http_cors_origins needs http_listen"

    def _contradicting_access(self) -> Iterator[str]:
        if (self.tls_certificate is None) != (self.tls_key is None):
            yield "tls_certificate and tls_key must be set together"
        if self.tls_client_ca is not None and self.tls_certificate is None:
            yield "tls_client_ca needs tls_certificate and tls_key"
        if self.require_auth and not self.is_protected:
            yield "require_auth needs tls_certificate and tls_key, and either api_keys_file or tls_client_ca"


@dataclass(frozen=True, slots=True)
class Reading:
    """The settings from flags, environment and file.

    Attributes:
        settings: The effective settings, without values that are invalid. None if the others contradict each
            other.
        given: The values that were given, and where; all others are defaults.
        problems: Every error.
        unknown_variables: Variables `ALIGNSERVE_…` that are not a setting; they may be mistyped.
    """

    settings: Settings | None
    given: Mapping[str, Given]
    problems: tuple[Problem, ...]
    unknown_variables: tuple[str, ...]


def read_settings(
    flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] | None = None
) -> Reading:
    """Reads the settings from flags, the environment and an optional TOML file.

    An empty variable counts as unset, and `none` unsets a setting that can be unset.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not TOML.
    """
    environment = os.environ if environment is None else environment
    names = {*Settings.model_fields, *RENAMED, *REMOVED}
    sources = [of_flags(flags), of_environment(environment, names), {} if file is None else of_file(file)]
    given: dict[str, Given] = {}
    problems: list[Problem] = []
    for source in sources:
        for name, one in source.items():
            if (problem := _problem_with(name, one)) is not None:
                problems.append(problem)
            elif not _is_empty(one):
                given.setdefault(name, one)
    wrong = {name for problem in problems for name in problem.names}
    usable = {name: one for name, one in given.items() if name not in wrong}
    settings, found = _validated(usable)
    return Reading(settings, given, (*problems, *found), tuple(unknown_variables(environment, names)))


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Builds the settings; see `read_settings`.

    Raises:
        SettingsError: Some are invalid; it names all of them.
        OSError: The file cannot be read.
        ValueError: It is not TOML.
    """
    reading = read_settings(flags, file)
    if reading.problems or reading.settings is None:
        raise SettingsError(reading.problems)
    return reading.settings


def _problem_with(name: str, given: Given) -> Problem | None:
    """Returns what is wrong with a value regardless of its type and range."""
    if (problem := outdated(name, given)) is not None:
        return problem
    if name not in Settings.model_fields:
        return unknown(name, given, Settings.model_fields)
    if not _is_empty(given) or (given.is_variable and name not in ACCESS):
        return None
    if name in ACCESS:
        advice = "a secret may be missing; give a value, or none to do without it"
        return problem_with(name, given, f"is empty and would open the server: {advice}", is_secret=True)
    return problem_with(name, given, "is empty; give a value or omit it")


def _is_empty(given: Given) -> bool:
    return isinstance(given.value, str) and not given.value.strip()


def _value(name: str, given: Given) -> Any:
    field = Settings.model_fields[name]
    if not isinstance(given.value, str) or given.value.strip().lower() != "none":
        return given.value
    if NoneType in get_args(field.annotation):
        return None
    return field.default if name in ACCESS else given.value


def _validated(given: Mapping[str, Given]) -> tuple[Settings | None, list[Problem]]:
    """Returns the settings from values that are not empty, leaving out invalid ones, and their problems."""
    try:
        return Settings(**{name: _value(name, one) for name, one in given.items()}), []
    except ValidationError as error:
        errors = error.errors()
    wrong = {str(error["loc"][0]): error for error in errors if error["loc"]}
    if not wrong:  # each value is valid, but some contradict each other
        messages = [str(error["ctx"]["error"]) for error in errors]
        return None, [contradiction(line, given) for text in messages for line in text.splitlines()]
    found = [
        problem_with(name, given[name], expectation(error), is_secret=name in ACCESS)
        for name, error in wrong.items()
    ]
    settings, rest = _validated({name: one for name, one in given.items() if name not in wrong})
    return settings, [*found, *(one for one in rest if not _mentions(one, wrong))]


def _mentions(problem: Problem, names: Mapping[str, object]) -> bool:
    return any(re.search(rf"\b{name}\b", problem.message) for name in names)
