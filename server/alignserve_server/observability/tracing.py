"""What happens to a call, step by step: as OpenTelemetry spans, and as one line of the access log.

Of a call that is followed, each step is noted when it is over, and all become spans at the call's end. A call
that is not followed costs a comparison. Nothing of what callers send is noted.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from alignserve_server.errors import ServingError, StartupError
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

Metadata: TypeAlias = Iterable[tuple[str, Any]]

_NO_TRACER = NoOpTracer()
_PROPAGATOR = TraceContextTextMapPropagator()  # https://www.w3.org/TR/trace-context/

# Which codes are the server's failures, and not its answer to what a caller sent:
# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/#server
_SERVER_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)

_current: ContextVar[CallTrace | None] = ContextVar("trace", default=None)


def current_trace() -> CallTrace | None:
    """Returns what is noted of the call that this task serves; None if it is not followed."""
    return _current.get()


class Tracing:
    """Decides which calls are followed."""

    def __init__(self, tracer: Tracer | None, access_log_sample_ratio: float) -> None:
        """Prepares to follow calls.

        Args:
            tracer: Makes spans, of the calls that its sampler draws; None makes none.
            access_log_sample_ratio: Share of calls that get a line in the log.
        """
        self._tracer = tracer
        self._access_log_sample_ratio = access_log_sample_ratio

    def begin(
        self, service: str, method: str, read_metadata: Callable[[], Metadata | None]
    ) -> CallTrace | None:
        """Follows a call from now on, for `current_trace` in the same task, if it is drawn.

        Its metadata may carry a `traceparent`, whose trace the call then belongs to.
        """
        if self._tracer is None and self._access_log_sample_ratio == 0.0:
            return None
        fields = _PROPAGATOR.fields
        carrier = {key: value for key, value in read_metadata() or () if key in fields}
        parent = _PROPAGATOR.extract(carrier) if carrier else Context()
        if self._tracer is None:
            span = get_current_span(parent)  # the caller's own, to tell it in the log
        else:
            name = f"{service}/{method}"
            about = {"rpc.system.name": "grpc", "rpc.method": name}
            span = self._tracer.start_span(name, parent, SpanKind.SERVER, about)
        is_logged = self._is_drawn(span.get_span_context())
        if not (is_logged or span.is_recording()):
            return None
        trace = CallTrace(self._tracer or _NO_TRACER, span, method if is_logged else None)
        _current.set(trace)
        return trace

    def _is_drawn(self, context: SpanContext) -> bool:
        """Draws calls for the log by their trace, so that those of one trace are all there, or none."""
        if not context.is_valid:
            return random.random() < self._access_log_sample_ratio  # noqa: S311 — not a secret
        return (context.trace_id & (1 << 64) - 1) < self._access_log_sample_ratio * (1 << 64)


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    start: float  # monotonic seconds
    end: float
    attributes: Mapping[str, AttributeValue]
    link: SpanContext | None


class CallTrace:
    """What is noted of one call, or of one item of a stream. Belongs to the event loop's thread."""

    __slots__ = ("_epoch", "_items", "_logged_method", "_span", "_start", "_steps", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, logged_method: str | None) -> None:
        self._tracer = tracer
        self._span = span
        self._logged_method = logged_method
        self._start = time.monotonic()
        self._epoch = time.time() - self._start
        self._steps: list[_Step] = []
        self._items = 0  # of a stream

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What leads from a metric to this call; None if its trace is not recorded."""
        return _exemplar(self._span)

    def note(
        self,
        name: str,
        start: float,
        end: float,
        link: SpanContext | None = None,
        **attributes: AttributeValue,
    ) -> None:
        """Notes a step that took from `start` to `end`, in monotonic seconds."""
        self._steps.append(_Step(name, max(start, self._start), end, attributes, link))

    def describe_embeddings(self, model: str, dimension: int) -> None:
        """Says that the call embeds, as OpenTelemetry's conventions for generative AI have it."""
        self._span.set_attributes(
            {
                "gen_ai.operation.name": "embeddings",
                "gen_ai.provider.name": "alignserve",
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
                "gen_ai.embeddings.dimension.count": dimension,
            }
        )

    def count_input_tokens(self, tokens: int) -> None:
        """Says how many tokens the call's texts have, those in the cache too."""
        self._span.set_attribute("gen_ai.usage.input_tokens", tokens)

    @contextmanager
    def item(self) -> Iterator[CallTrace]:
        """Follows an item of this stream, for the block."""
        self._items += 1
        span = self._tracer.start_span("item", set_span_in_context(self._span))
        item = CallTrace(self._tracer, span, None)
        try:
            yield item
        except BaseException as error:
            item.end(_code(error), error)
            raise
        item.end("OK")

    def end(self, code: str, error: BaseException | None = None) -> None:
        """Ends the call: makes its spans and its line in the log.

        Args:
            code: gRPC's, by name.
            error: What failed it.
        """
        end = time.monotonic()
        reason = error.reason if isinstance(error, ServingError) else None
        if code == "OK" and self._steps:
            self.note("respond", max(step.end for step in self._steps), end)
        if self._span.is_recording():
            self._end_span(code, reason, end)
        if self._logged_method is not None:
            _log.info("call", method=self._logged_method, code=code, **self._line(reason, end))

    def _end_span(self, code: str, reason: str | None, end: float) -> None:
        inside = set_span_in_context(self._span)
        for step in self._steps:
            links = [Link(step.link)] if step.link is not None else None
            child = self._tracer.start_span(
                step.name, inside, attributes=step.attributes, links=links, start_time=self._time(step.start)
            )
            child.end(self._time(step.end))
        self._span.set_attribute("rpc.status_code", code)
        if reason is not None:
            self._span.set_attribute("alignserve.reason", reason)
        if code in _SERVER_ERRORS:
            self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._time(end))

    def _line(self, reason: str | None, end: float) -> dict[str, object]:
        fields: dict[str, object] = {"seconds": round(end - self._start, 6)}
        if reason is not None:
            fields["reason"] = reason
        if self._items:
            fields["items"] = self._items
        for step in self._steps:
            seconds = f"{step.name}_seconds"
            fields[seconds] = round(fields.get(seconds, 0.0) + step.end - step.start, 6)  # type: ignore[operator]
            fields.update(step.attributes)
        context = self._span.get_span_context()
        if context.is_valid:
            fields |= _ids(context)
        return fields

    def _time(self, seconds: float) -> int:
        """Returns nanoseconds since 1970."""
        return round((seconds + self._epoch) * 1e9)

    @staticmethod
    def note_batch(
        waiting_since: Mapping[CallTrace, float], modality: str, size: int, start: float, end: float
    ) -> dict[str, str] | None:
        """Notes a batch for each of the calls that had something in it.

        The batch has one span, with a link to every call; it stands in the trace of one of them, so that it
        is kept if that is. Each call has its own steps `queue` and `compute`, the latter with a link to the
        batch.

        Args:
            waiting_since: When the first entry of each call was queued.
            modality: What the batch is of.
            size: Its entries, also those of calls that are not followed.
            start: When it left the queue, in monotonic seconds, as all times here.
            end: When the model was done.

        Returns:
            What leads from a metric to the batch.
        """
        span: Span = INVALID_SPAN
        if recording := [trace for trace in waiting_since if trace._span.is_recording()]:
            host = recording[0]
            span = host._tracer.start_span(
                "batch",
                set_span_in_context(host._span),
                attributes={"modality": modality, "batch_size": size},
                links=[Link(trace._span.get_span_context()) for trace in recording],
                start_time=host._time(start),
            )
            span.end(host._time(end))
        link = span.get_span_context() if recording else None
        for trace, since in waiting_since.items():
            trace.note("queue", since, start, modality=modality)
            trace.note("compute", start, end, link, modality=modality, batch_size=size)
        return _exemplar(span)


def _code(error: BaseException) -> str:
    if isinstance(error, ServingError):
        return error.code
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else "INTERNAL"


def _exemplar(span: Span) -> dict[str, str] | None:
    context = span.get_span_context()
    return _ids(context) if context.is_valid and context.trace_flags.sampled else None


def _ids(context: SpanContext) -> dict[str, str]:
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


class SpanExport:
    """Sends spans by OTLP.

    Where to, which share of calls, and under which name stand in OpenTelemetry's own variables, `OTEL_…`.
    """

    def __init__(self, version: str) -> None:
        """Prepares to send.

        Raises:
            StartupError: The extra `otel` is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise StartupError(
                f"tracing needs {error.name}; install it with pip install 'alignserve[server,otel]'"
            ) from error
        own = {
            "service.name": "alignserve",
            "service.version": version,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
        resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer: Tracer = self._provider.get_tracer("alignserve", version)

    def flush(self) -> None:
        """Sends what is left; takes long if the collector is away."""
        self._provider.force_flush()
