"""alignserve as a Ray Serve application: replicas with one model each, behind Ray Serve's gRPC proxy."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NoReturn
from wsgiref.simple_server import WSGIServer

import grpc
import ray
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.errors import StartupError
from alignserve_server.observability.logs import configure_logs, get_logger
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.serving.loading import LoadEncoder, load_encoder
from alignserve_server.serving.server import Server
from alignserve_server.settings import Settings, load_settings
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

from deploy.ray.calls import RayBridge

_log = get_logger(__name__)

_MOST_REPLICAS_OF_A_NODE = 64
_PROXYS_OWN = {"require_auth", "tls_certificate", "tls_client_ca", "tls_key", "workers"}


def build(arguments: dict[str, Any]) -> serve.Application:
    """Builds the application for `serve run` and `serve deploy`; the arguments are the server's settings.

    Raises:
        ValueError: A setting is unknown, out of range, or not supported behind Ray Serve.
    """
    settings = load_settings(arguments)
    if void := _PROXYS_OWN & settings.model_fields_set:
        raise ValueError(
            f"{', '.join(sorted(void))}: not supported in a replica; Ray Serve opens the port, without TLS, "
            "and starts the processes"
        )
    return serve.deployment(Align).bind(settings)


class Align:
    """One replica: the model, its queues and its batches."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: Settings, load: LoadEncoder = load_encoder
    ) -> None:
        configure_logs(settings.log_level, settings.log_format)
        # Ray reserves cores for a replica, but does not stop it from counting and using all cores.
        os.environ["PYTHON_CPU_COUNT"] = str(max(1, int(_assigned_cores())))
        self._server = Server(settings, load)
        self._bridge = RayBridge(self._server)
        await self._server.load()
        if settings.metrics_listen is not None:
            self._metrics_server = _metrics_page(settings.metrics_listen, self._server)
            _log.info("metrics", port=self._metrics_server.server_port)

    async def EmbedImage(self, request: pb.EmbedImageRequest, grpc_context: RayServegRPCContext) -> Message:
        return await self._bridge.answer("EmbedImage", request, grpc_context)

    async def EmbedText(self, request: pb.EmbedTextRequest, grpc_context: RayServegRPCContext) -> Message:
        return await self._bridge.answer("EmbedText", request, grpc_context)

    async def Classify(self, request: pb.ClassifyRequest, grpc_context: RayServegRPCContext) -> Message:
        return await self._bridge.answer("Classify", request, grpc_context)

    async def Compare(self, request: pb.CompareRequest, grpc_context: RayServegRPCContext) -> Message:
        return await self._bridge.answer("Compare", request, grpc_context)

    async def EmbedQuery(self, request: pb.EmbedQueryRequest, grpc_context: RayServegRPCContext) -> Message:
        return await self._bridge.answer("EmbedQuery", request, grpc_context)

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, grpc_context: RayServegRPCContext
    ) -> Message:
        return await self._bridge.answer("GetModelInfo", request, grpc_context)

    async def StreamInfer(
        self, requests: gRPCInputStream[pb.StreamInferRequest], grpc_context: RayServegRPCContext
    ) -> AsyncIterator[Message]:
        async for answer in self._bridge.stream(requests, grpc_context):
            yield answer

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> Message:
        """Implements grpc.health.v1 Check, with the health of one replica."""
        return await self._bridge.answer("Check", request, grpc_context)

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,  # noqa: ARG002 — Ray Serve passes it
        grpc_context: RayServegRPCContext,
    ) -> NoReturn:
        """Refuses: for Ray Serve a watch would be a call in progress, and delay the end of its replica."""
        grpc_context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        grpc_context.set_details("health cannot be watched through Ray Serve; use Check")
        raise NotImplementedError

    async def check_health(self) -> None:
        """Passes while the replica can serve; Ray Serve replaces a replica that fails for long.

        Raises:
            ServingError: The replica cannot serve.
        """
        self._server.check_health()


def _assigned_cores() -> float:
    cores: float = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
    return cores


def _metrics_page(listen: str, server: Server) -> WSGIServer:
    """Serves the metrics on the first free port from `listen`, because replicas share a node's address."""
    host, _, first = listen.rpartition(":")
    for port in range(int(first), int(first) + _MOST_REPLICAS_OF_A_NODE):
        with suppress(StartupError):
            return serve_metrics_page(f"{host}:{port}", server.metrics.registry, lambda: server.state)
    raise StartupError(f"no free port for metrics at or after {listen}; choose another with metrics_listen")
