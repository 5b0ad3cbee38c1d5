"""Every setting of the server, by flag, environment variable (`ALIGNSERVE_…`) or TOML file.

A flag wins over the environment, which wins over the file, which wins over the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignserve_server.settings.problems import (
    Problem,
    SettingsError,
    contradiction,
    expectation,
    problem_with,
    unknown,
)
from alignserve_server.settings.sources import (
    Given,
    of_environment,
    of_file,
    of_flags,
    unknown_variables,
)

# Who may call, and what is encrypted: a value that got lost must not open the server.
ACCESS = frozenset({"tls_certificate", "tls_key", "tls_client_ca", "api_keys_file", "require_auth"})

# The first setting of each group, and what the group is called.
GROUPS = {
    "listen": "Where it listens",
    "tls_certificate": "Access",
    "workers": "Processes",
    "checkpoint": "Model",
    "max_batch_size": "Batching",
    "max_client_batch_size": "Limits of a request",
    "text_cache_bytes": "Caches",
    "warmup": "Start and stop",
    "keepalive_time_seconds": "Connections",
    "log_level": "Logs and traces",
}

_MOST_OF_GRPC = 2**31 - 1  # its options are of 32 bits
_LONGEST_OF_GRPC = 2_000_000.0  # seconds, which it takes in milliseconds; 23 days

_ADDRESS = re.compile(r"(?:[^\s:\[\]]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})")


def _check_address(address: str) -> str:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[1]) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051 or [::]:50051")
    return address


def is_loopback(address: str) -> bool:
    """Says whether HOST:PORT can be reached from this machine alone."""
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


IMAGE_FORMATS = ("avif", "tiff", "heic")  # that can be turned on


def _check_image_formats(names: str) -> str:
    for name in filter(None, names.split(",")):
        if name.strip().lower() not in IMAGE_FORMATS:
            known = ", ".join(IMAGE_FORMATS)
            raise ValueError(f"unknown format {name.strip()!r}; known are {known}, separated by commas")
    return names


def _check_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", _check_text(device)):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return device


def _check_text(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("is empty" if not text.strip() else "has a zero byte")
    return text


def _check_path(path: Path) -> Path:
    _check_text(str(path))
    return path


def _check_secret_path(path: Path) -> Path:
    if "-----BEGIN" in str(path) or re.search(r"as_[a-z0-9-]+_[\w-]{40}", str(path)):
        raise ValueError("holds a secret itself; write it to a file, and give the file's path")
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

    listen: Address = Field("127.0.0.1:50051", description="HOST:PORT for gRPC; port 0 takes a free one")
    metrics_listen: Address = Field(
        "127.0.0.1:9464", description="HOST:PORT for Prometheus and HTTP probes: /metrics, /healthz, /readyz"
    )
    metrics: bool = Field(True, description="serve /metrics, /healthz and /readyz")
    reflection: bool = Field(True, description="serve gRPC reflection, for grpcurl and the like")

    tls_certificate: SecretPath | None = Field(
        None, description="the server's certificate and those up to the root, in PEM; turns TLS on"
    )
    tls_key: SecretPath | None = Field(None, description="its private key, in PEM, not encrypted")
    tls_client_ca: SecretPath | None = Field(
        None, description="roots of clients' certificates, in PEM; then no client comes in without one"
    )
    api_keys_file: SecretPath | None = Field(
        None,
        description="API keys, made by 'alignserve-server keys'; then no call comes in without one",
    )
    require_auth: bool = Field(
        False, description="refuse to start without TLS and either API keys or clients' certificates"
    )

    workers: Positive = Field(1, description="server processes that share the port, each with its own model")
    worker_timeout_seconds: float = Field(
        20.0,
        ge=0,
        allow_inf_nan=False,
        description="a worker whose event loop is silent for longer is killed and replaced; 0 kills none",
    )

    checkpoint: Text = Field(
        "mini", description="folder or hub id of an ALIGN checkpoint; 'mini' is embedded and works offline"
    )
    revision: Text | None = Field(None, description="branch, tag or commit of a hub id")
    device: Annotated[str, AfterValidator(_check_device)] = Field(
        "auto", description="auto, cpu, cuda or cuda:N"
    )
    runtime: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="what runs the model; auto is openvino on a CPU, if it is installed, else torch"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto", description="data type of the computation; auto is float32 on a CPU and float16 on a GPU"
    )
    min_cosine: float = Field(
        0.999,
        ge=0,
        le=1,
        description="least cosine with transformers in float32; below it, a more exact choice is served",
    )
    lanes: Positive | None = Field(
        None, description="batches run at once; default: as suits runtime and machine, two on a GPU"
    )
    threads_per_lane: Positive | None = Field(
        None, description="CPU threads that one batch uses; default: as suits runtime and machine"
    )
    cuda_graphs: bool = Field(
        True, description="on a GPU, capture forwards at the start and replay them; uses memory, saves time"
    )
    decode_threads: Positive | None = Field(
        None, description="threads that decode images; default: one per core"
    )
    calibration_dir: AnyPath | None = Field(
        None, description="folder of images like those that callers send; int8 is made from them"
    )
    cache_dir: AnyPath | None = Field(
        None,
        description="folder for conversions and measured batch sizes; default: $XDG_CACHE_HOME/alignserve",
    )

    max_batch_size: Positive = Field(
        32,
        description="maximum batch size; lowered at startup if larger batches do not raise throughput, and "
        "raised again if they do while serving",
    )
    max_image_batch_size: Positive | None = Field(
        None, description="maximum image batch size, used as given; default: max_batch_size, tuned at startup"
    )
    max_text_batch_size: Positive | None = Field(
        None, description="maximum text batch size, used as given; default: max_batch_size, tuned at startup"
    )
    max_queue_delay_seconds: float = Field(
        0.0, ge=0, description="longest that a free device waits to fill a batch; 0 never waits"
    )
    max_queue_size: Positive = Field(
        1024, le=_MOST_OF_GRPC // 2, description="most items waiting, per modality"
    )
    max_queue_bytes: Positive = Field(
        256 << 20, description="most bytes waiting, per modality, as callers sent them"
    )

    max_client_batch_size: Positive = Field(64, description="most images or texts in one request")
    max_labels: Positive = Field(1000, description="most labels in one Classify request")
    max_prompt_templates: Positive = Field(100, description="most prompt templates in one Classify request")
    max_image_bytes: Positive = Field(10 << 20, description="largest encoded image")
    max_image_pixels: Positive = Field(25_000_000, description="largest decoded image, width times height")
    image_formats: Annotated[str, AfterValidator(_check_image_formats)] | None = Field(
        None, description="further image formats to accept, separated by commas: avif, tiff, heic"
    )
    max_text_bytes: Positive = Field(32 << 10, description="longest text, before tokenization")
    max_request_bytes: Positive = Field(16 << 20, le=_MOST_OF_GRPC, description="largest request message")
    max_response_bytes: Positive = Field(
        16 << 20, description="largest response message; callers get up to 4 MiB unless they ask for more"
    )
    max_stream_in_flight: Positive = Field(32, description="most items in flight on one stream")

    text_cache_bytes: NotNegative = Field(
        64 << 20,
        description="memory for embeddings of recent texts, so that equal ones cost nothing; 0 is off",
    )
    image_cache_bytes: NotNegative = Field(0, description="the same for images, by the bytes of their files")
    label_cache_size: Positive = Field(10_000, description="labels whose embeddings are kept")

    warmup: bool = Field(True, description="run a batch of each modality before reporting ready")
    drain_delay_seconds: float = Field(
        2.0, ge=0, description="after SIGTERM, time to go on serving while balancers see NOT_SERVING"
    )
    shutdown_grace_seconds: float = Field(30.0, ge=0, description="then, time for accepted calls to finish")
    stall_timeout_seconds: float = Field(
        60.0, gt=0, description="a batch that runs longer turns health to NOT_SERVING"
    )
    stall_exit_seconds: float = Field(
        300.0, ge=0, description="a stall that lasts longer ends the process with code 3; 0 never does"
    )
    watchdog_interval_seconds: float = Field(1.0, gt=0, description="time between looks at that")

    keepalive_time_seconds: float = Field(
        30.0,
        ge=0.001,
        le=_LONGEST_OF_GRPC,
        description="idle time before the server pings a client",
    )
    keepalive_timeout_seconds: float = Field(
        10.0, ge=0.001, le=_LONGEST_OF_GRPC, description="time for a client to answer a ping"
    )
    max_connection_age_seconds: float = Field(
        300.0,
        ge=0,
        le=_LONGEST_OF_GRPC,
        description="age, give or take a tenth, at which clients are told to reconnect; 0 is never",
    )
    max_connection_age_grace_seconds: float = Field(
        300.0,
        gt=0,
        le=_LONGEST_OF_GRPC,
        description="then, time for the connection's calls to finish; the rest is cut off",
    )
    max_stream_age_seconds: float = Field(
        240.0, ge=0, description="age at which a stream ends, with all that was read answered; 0 is never"
    )

    request_timeout_seconds: float = Field(
        30.0, gt=0, description="time for the request of a unary call to arrive"
    )
    max_uploads: Positive = Field(
        64,
        description="unary calls whose request is received at once, each of which can take "
        "max_request_bytes; one connection gets at most half",
    )
    max_streams: Positive = Field(
        128,
        description="streams open at once, each of which can take max_request_bytes; one connection gets at "
        "most half",
    )
    max_unread_response_bytes: Positive = Field(
        128 << 20,
        description="bytes of responses that are being made or not yet read by their clients; one connection "
        "gets at most half",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level written"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto is console on a terminal and json elsewhere"
    )
    access_log_sample_ratio: float = Field(
        0.0, ge=0, le=1, description="share of calls that are logged, one line each; 0 is none"
    )
    tracing: bool = Field(
        False, description="send OpenTelemetry spans; where to, and of which calls, say the variables OTEL_…"
    )

    @property
    def is_protected(self) -> bool:
        """Whether what travels is encrypted and callers have to prove who they are."""
        return self.tls_certificate is not None and (
            self.api_keys_file is not None or self.tls_client_ca is not None
        )

    @property
    def further_image_formats(self) -> tuple[str, ...]:
        """Names in `image_formats`, each once, in capitals."""
        names = [name.strip().lower() for name in (self.image_formats or "").split(",")]
        return tuple(name.upper() for name in IMAGE_FORMATS if name in names)

    @model_validator(mode="after")
    def _check_contradictions(self) -> Settings:
        if found := list(self._contradictions()):
            raise ValueError("\n".join(found))
        return self

    def _contradictions(self) -> Iterator[str]:
        yield from self._contradicting_sizes()
        yield from self._contradicting_access()
        grace = self.max_connection_age_grace_seconds
        if self.max_connection_age_seconds and not 0 < self.max_stream_age_seconds < grace:
            yield (
                f"max_stream_age_seconds ({self.max_stream_age_seconds}) is not between 0 and "
                f"max_connection_age_grace_seconds ({grace}), so connections would cut streams off"
            )
        if 0 < self.worker_timeout_seconds < 1:
            yield (
                f"worker_timeout_seconds ({self.worker_timeout_seconds}) is less than 1, so workers would be "
                "killed that are merely busy; 0 kills none"
            )
        if self.workers > 1 and self.device.startswith("cuda:"):
            yield (
                f"device {self.device} cannot be shared by {self.workers} workers; cuda gives each its own"
            )

    def _contradicting_sizes(self) -> Iterator[str]:
        if self.max_client_batch_size > self.max_queue_size:
            yield (
                f"max_client_batch_size ({self.max_client_batch_size}) is larger than max_queue_size "
                f"({self.max_queue_size}), so the largest requests could never be admitted"
            )
        for limit in ("max_request_bytes", "max_queue_bytes"):
            if self.max_image_bytes > (most := getattr(self, limit)):
                yield f"max_image_bytes ({self.max_image_bytes}) is larger than {limit} ({most})"
        if self.max_response_bytes > self.max_unread_response_bytes:
            yield (
                f"max_response_bytes ({self.max_response_bytes}) is larger than max_unread_response_bytes "
                f"({self.max_unread_response_bytes})"
            )

    def _contradicting_access(self) -> Iterator[str]:
        if (self.tls_certificate is None) != (self.tls_key is None):
            yield "tls_certificate and tls_key belong together; give both or neither"
        if self.tls_client_ca is not None and self.tls_certificate is None:
            yield "tls_client_ca needs tls_certificate and tls_key"
        if self.require_auth and not self.is_protected:
            yield "require_auth needs tls_certificate and tls_key, and either api_keys_file or tls_client_ca"


@dataclass(frozen=True, slots=True)
class Reading:
    """What flags, environment and file say.

    Attributes:
        settings: Those that are in force; where there are problems, without what is wrong. None if even that
            contradicts itself.
        given: What was given, and where; the rest is default.
        problems: All that is wrong.
        unknown_variables: Variables `ALIGNSERVE_…` that are no setting; they may be mistyped.
    """

    settings: Settings | None
    given: Mapping[str, Given]
    problems: tuple[Problem, ...]
    unknown_variables: tuple[str, ...]


def read_settings(
    flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] | None = None
) -> Reading:
    """Reads the settings from the flags that were given, the environment and an optional TOML file.

    An empty variable is as if it were not set, and `none` unsets what can be unset.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not TOML.
    """
    environment = os.environ if environment is None else environment
    names = Settings.model_fields.keys()
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
        SettingsError: Some are wrong; it names them all.
        OSError: The file cannot be read.
        ValueError: It is not TOML.
    """
    reading = read_settings(flags, file)
    if reading.problems or reading.settings is None:
        raise SettingsError(reading.problems)
    return reading.settings


def _problem_with(name: str, given: Given) -> Problem | None:
    """Returns what is wrong with a value whatever it may be."""
    if name not in Settings.model_fields:
        return unknown(name, given, Settings.model_fields)
    if not _is_empty(given) or (_is_variable(given) and name not in ACCESS):
        return None
    if name in ACCESS:
        advice = "a secret may be missing; give a value, or none to do without"
        return problem_with(name, given, f"is empty, and the server would be open: {advice}", is_secret=True)
    return problem_with(name, given, "is empty; give a value, or leave it out")


def _is_empty(given: Given) -> bool:
    return isinstance(given.value, str) and not given.value.strip()


def _is_variable(given: Given) -> bool:
    return given.separator == "="


def _value(name: str, given: Given) -> Any:
    default = Settings.model_fields[name].default
    is_none = isinstance(given.value, str) and given.value.strip().lower() == "none"
    return default if is_none and (default is None or name in ACCESS) else given.value


def _validated(given: Mapping[str, Given]) -> tuple[Settings | None, list[Problem]]:
    """Returns the settings, and what is wrong with values that are not empty; without those, if some are."""
    try:
        return Settings(**{name: _value(name, one) for name, one in given.items()}), []
    except ValidationError as error:
        errors = error.errors()
    wrong = {str(error["loc"][0]): error for error in errors if error["loc"]}
    if not wrong:  # single values are right, so the rest were compared
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
