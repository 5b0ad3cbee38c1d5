"""Every setting of the server, by flag, environment variable (`ALIGNSERVE_…`) or TOML file.

A flag wins over the environment, which wins over the file, which wins over the default.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

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


Address = Annotated[str, AfterValidator(_check_address)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class Settings(BaseSettings):
    """Settings of `alignserve-server`."""

    model_config = SettingsConfigDict(env_prefix="ALIGNSERVE_", extra="forbid", frozen=True)

    # Where
    listen: Address = Field("127.0.0.1:50051", description="HOST:PORT for gRPC; port 0 takes a free one")
    metrics_listen: Address = Field(
        "127.0.0.1:9464", description="HOST:PORT for Prometheus and HTTP probes: /metrics, /healthz, /readyz"
    )
    metrics: bool = Field(True, description="serve /metrics, /healthz and /readyz")
    reflection: bool = Field(True, description="serve gRPC reflection, for grpcurl and the like")

    # Access
    tls_certificate: Path | None = Field(
        None, description="the server's certificate and those up to the root, in PEM; turns TLS on"
    )
    tls_key: Path | None = Field(None, description="its private key, in PEM, not encrypted")
    tls_client_ca: Path | None = Field(
        None, description="roots of clients' certificates, in PEM; then no client comes in without one"
    )
    keys_file: Path | None = Field(
        None,
        description="API keys, made by 'alignserve-server keys'; then no call comes in without one",
    )
    require_auth: bool = Field(
        False, description="refuse to start without TLS and either API keys or clients' certificates"
    )

    # Processes
    workers: Positive = Field(1, description="server processes that share the port, each with its own model")
    worker_timeout_seconds: float = Field(
        20.0,
        ge=0,
        allow_inf_nan=False,
        description="a worker whose event loop is silent for longer is killed and replaced; 0 kills none",
    )

    # Model
    checkpoint: str = Field(
        "mini", description="folder or hub id of an ALIGN checkpoint; 'mini' is embedded and works offline"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
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
    calibration_folder: Path | None = Field(
        None, description="folder of images like those that callers send; int8 is made from them"
    )
    cache_folder: Path | None = Field(
        None, description="folder for converted models; default: $XDG_CACHE_HOME/alignserve"
    )

    # Batching
    max_batch_size: Positive = Field(
        32, description="most entries in one batch; fewer where larger ones prove no faster at the start"
    )
    max_image_batch_size: Positive | None = Field(
        None, description="the same for images alone, without proof; default: max_batch_size, with proof"
    )
    max_queue_delay_ms: float = Field(
        0.0, ge=0, description="longest that a free device waits to fill a batch; 0 never waits"
    )
    max_queue_size: Positive = Field(1024, description="most items waiting, per modality")
    max_queue_bytes: Positive = Field(
        256 << 20, description="most bytes waiting, per modality, as callers sent them"
    )

    # Limits of a request
    max_client_batch_size: Positive = Field(64, description="most images or texts in one request")
    max_labels: Positive = Field(1000, description="most labels in one Classify request")
    max_prompt_templates: Positive = Field(100, description="most prompt templates in one Classify request")
    max_image_bytes: Positive = Field(10 << 20, description="largest encoded image")
    max_image_pixels: Positive = Field(25_000_000, description="largest decoded image, width times height")
    max_text_bytes: Positive = Field(32 << 10, description="longest text, before tokenization")
    max_request_bytes: Positive = Field(16 << 20, description="largest request message")
    max_response_bytes: Positive = Field(
        16 << 20, description="largest response message; callers get up to 4 MiB unless they ask for more"
    )
    max_stream_in_flight: Positive = Field(32, description="most items in flight on one stream")

    # Caches
    text_cache_bytes: NotNegative = Field(
        64 << 20,
        description="memory for embeddings of recent texts, so that equal ones cost nothing; 0 is off",
    )
    image_cache_bytes: NotNegative = Field(0, description="the same for images, by the bytes of their files")
    label_cache_size: Positive = Field(10_000, description="labels whose embeddings are kept")

    # Life
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

    # Connections
    keepalive_time_seconds: float = Field(
        30.0, gt=0, description="idle time before the server pings a client"
    )
    keepalive_timeout_seconds: float = Field(10.0, gt=0, description="time for a client to answer a ping")
    max_connection_age_seconds: float = Field(
        300.0,
        ge=0,
        description="age, give or take a tenth, at which clients are told to reconnect; 0 is never",
    )
    max_connection_age_grace_seconds: float = Field(
        300.0, gt=0, description="then, time for the connection's calls to finish; the rest is cut off"
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

    # Logs and traces
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level written"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto is console on a terminal and json elsewhere"
    )
    access_log_ratio: float = Field(
        0.0, ge=0, le=1, description="share of calls that are logged, one line each; 0 is none"
    )
    tracing: bool = Field(
        False, description="send OpenTelemetry spans; where to, and of which calls, say the variables OTEL_…"
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Settings:
        if self.max_client_batch_size > self.max_queue_size:
            raise ValueError(
                f"max_client_batch_size ({self.max_client_batch_size}) is larger than max_queue_size "
                f"({self.max_queue_size}), so the largest requests could never be admitted"
            )
        if self.max_image_bytes > min(self.max_request_bytes, self.max_queue_bytes):
            raise ValueError("max_image_bytes is larger than max_request_bytes or max_queue_bytes")
        if self.max_response_bytes > self.max_unread_response_bytes:
            raise ValueError("max_response_bytes is larger than max_unread_response_bytes")
        return self

    @model_validator(mode="after")
    def _check_access(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together; give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.require_auth and not self.is_protected:
            raise ValueError(
                "require_auth needs tls_certificate and tls_key, and either keys_file or tls_client_ca"
            )
        return self

    @property
    def is_protected(self) -> bool:
        """Whether what travels is encrypted and callers have to prove who they are."""
        return self.tls_certificate is not None and (
            self.keys_file is not None or self.tls_client_ca is not None
        )

    @model_validator(mode="after")
    def _check_ages(self) -> Settings:
        grace = self.max_connection_age_grace_seconds
        if self.max_connection_age_seconds and not 0 < self.max_stream_age_seconds < grace:
            raise ValueError(
                f"max_stream_age_seconds ({self.max_stream_age_seconds}) is not between 0 and "
                f"max_connection_age_grace_seconds ({grace}), so connections would cut streams off"
            )
        return self

    @model_validator(mode="after")
    def _check_worker_timeout(self) -> Settings:
        if 0 < self.worker_timeout_seconds < 1:
            raise ValueError(
                f"worker_timeout_seconds ({self.worker_timeout_seconds}) is less than 1, so workers would be "
                "killed that are merely busy; 0 kills none"
            )
        return self

    @model_validator(mode="after")
    def _check_device(self) -> Settings:
        if self.workers > 1 and self.device.startswith("cuda:"):
            raise ValueError(
                f"device {self.device} cannot be shared by {self.workers} workers; cuda gives each its own"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 — the names are pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources: what is passed in (flags), environment, file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(flags: dict[str, object], file: Path | None = None) -> Settings:
    """Builds the settings from the flags that were given, the environment and an optional TOML file.

    Raises:
        pydantic.ValidationError: A value is out of range or a name is unknown.
    """

    class FileSettings(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    return FileSettings(**flags)  # type: ignore[arg-type]  # pydantic checks the values
