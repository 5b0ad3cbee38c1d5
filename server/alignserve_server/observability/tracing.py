"""Traces sampled calls step by step, as OpenTelemetry spans and as a line of the access log.

Each step of a sampled call is recorded when it ends, and all become spans when the call ends. A call that is
not sampled costs one comparison. The content of requests is never recorded.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from alignserve_server.errors import ServingError
from alignserve_server.observability.batch_report import BatchReport
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

Metadata: TypeAlias = Iterable[tuple[str, Any]]

_NO_TRACER = NoOpTracer()
_PROPAGATOR = TraceContextTextMapPropagator()  # https://www.w3.org/TR/trace-context/

# The codes that are the server's failures, as opposed to its response to a bad request:
# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/#server
_SERVER_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class Tracing:
    """Decides which calls are sampled, and finds their traces by reservation."""

    def __init__(self, tracer: Tracer | None, access_log_sample_ratio: float) -> None:
        """Starts without calls.

        Args:
            tracer: Creates the spans of calls that its sampler samples; None creates none.
            access_log_sample_ratio: Share of calls with a line in the access log.
        """
        self._tracer = tracer
        self._access_log_sample_ratio = access_log_sample_ratio
        self._by_reservation: dict[int, CallTrace] = {}

    def begin(
        self, service: str, method: str, read_metadata: Callable[[], Metadata | None]
    ) -> CallTrace | None:
        """Returns the trace of a call that starts now, or None if it is not sampled.

        If its metadata has a `traceparent`, the call belongs to that trace.
        """
        if self._tracer is None and self._access_log_sample_ratio == 0.0:
            return None
        fields = _PROPAGATOR.fields
        carrier = {key: value for key, value in read_metadata() or () if key in fields}
        parent = _PROPAGATOR.extract(carrier) if carrier else Context()
        if self._tracer is None:
            span = get_current_span(parent)  # the caller's, for the log
        else:
            name = f"{service}/{method}"
            about = {"rpc.system.name": "grpc", "rpc.method": name}
            span = self._tracer.start_span(name, parent, SpanKind.SERVER, about)
        is_logged = self._is_logged(span.get_span_context())
        if not (is_logged or span.is_recording()):
            return None
        return CallTrace(
            self._tracer or _NO_TRACER, span, self._by_reservation, method if is_logged else None
        )

    def exemplar(self, reservation: int) -> dict[str, str] | None:
        """Returns the exemplar of a reservation's call, which links a metric to its trace; or None."""
        trace = self._by_reservation.get(reservation)
        return None if trace is None else trace.exemplar

    def note_batch(self, report: BatchReport) -> dict[str, str] | None:
        """Records a batch in the traces of the calls that had items in it.

        The batch has one span with links to all these calls. The span is in the trace of one of them, so that
        it is kept if that trace is. Each call has its own steps `queue` and `compute`, the latter with a link
        to the batch.

        Returns:
            The exemplar, which links a metric to the batch.
        """
        if not report.waiting_since:
            return None
        waiting_since = {
            trace: since
            for reservation, since in report.waiting_since.items()
            if (trace := self._by_reservation.get(reservation)) is not None
        }
        span = _batch_span([trace for trace in waiting_since if trace.is_recording], report)
        link = span.get_span_context() if span is not INVALID_SPAN else None
        for trace, since in waiting_since.items():
            trace.note("queue", since, report.start_time, modality=report.modality)
            trace.note(
                "compute",
                report.start_time,
                report.end_time,
                link,
                modality=report.modality,
                batch_size=report.size,
            )
        return _exemplar(span)

    def _is_logged(self, context: SpanContext) -> bool:
        """Samples calls for the log by trace id, so that the log has all calls of a trace or none."""
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
    """The trace of a call, or of an item of a stream. Only for the event loop's thread."""

    __slots__ = (
        "_by_reservation",
        "_epoch",
        "_items",
        "_logged_method",
        "_request_id",
        "_reservations",
        "_span",
        "_start",
        "_steps",
        "_tracer",
    )

    is_sampled = True

    def __init__(
        self, tracer: Tracer, span: Span, by_reservation: dict[int, CallTrace], logged_method: str | None
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._by_reservation = by_reservation  # those of all calls
        self._reservations: list[int] = []
        self._logged_method = logged_method
        self._start = time.monotonic()
        self._epoch = time.time() - self._start
        self._steps: list[_Step] = []
        self._items = 0  # of a stream
        self._request_id: str | None = None

    @property
    def exemplar(self) -> dict[str, str] | None:
        """The exemplar that links a metric to this call; None if its trace is not recorded."""
        return _exemplar(self._span)

    @property
    def is_recording(self) -> bool:
        """Whether the call gets spans, and not only a line in the log."""
        return self._span.is_recording()

    def follow(self, reservation: int) -> None:
        """Also records the batches of this reservation, until the call ends."""
        self._by_reservation[reservation] = self
        self._reservations.append(reservation)

    def note(
        self,
        name: str,
        start: float,
        end: float,
        link: SpanContext | None = None,
        **attributes: AttributeValue,
    ) -> None:
        """Records a step from `start` to `end`, in monotonic seconds."""
        self._steps.append(_Step(name, max(start, self._start), end, attributes, link))

    def describe_embeddings(self, model: str, dimension: int) -> None:
        """Adds the attributes of an embedding call, as in OpenTelemetry's conventions for generative AI."""
        self._span.set_attributes(
            {
                "gen_ai.operation.name": "embeddings",
                "gen_ai.provider.name": "alignserve",
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
                "gen_ai.embeddings.dimension.count": dimension,
            }
        )

    def identify(self, request_id: str) -> None:
        """Adds the id that the caller also gets."""
        self._request_id = request_id
        self._span.set_attribute("alignserve.request_id", request_id)

    def count_input_tokens(self, tokens: int) -> None:
        """Adds the number of tokens in the call's texts, including cached ones."""
        self._span.set_attribute("gen_ai.usage.input_tokens", tokens)

    @contextmanager
    def item(self) -> Iterator[CallTrace]:
        """Traces an item of this stream during the block."""
        self._items += 1
        span = self._tracer.start_span("item", set_span_in_context(self._span))
        item = CallTrace(self._tracer, span, self._by_reservation, None)
        try:
            yield item
        except BaseException as error:
            item.end(_code(error), error)
            raise
        item.end("OK")

    def end(self, code: str, error: BaseException | None = None) -> None:
        """Ends the call, and creates its spans and its line in the log.

        Args:
            code: Name of the gRPC code.
            error: The error that it failed with.
        """
        end = time.monotonic()
        for reservation in self._reservations:
            del self._by_reservation[reservation]
        self._reservations.clear()
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
        fields: dict[str, Any] = {"seconds": round(end - self._start, 6)}  # Any: those of steps add up
        if reason is not None:
            fields["reason"] = reason
        if self._request_id is not None:
            fields["request_id"] = self._request_id
        if self._items:
            fields["items"] = self._items
        for step in self._steps:
            seconds = f"{step.name}_seconds"
            fields[seconds] = round(fields.get(seconds, 0.0) + step.end - step.start, 6)
            fields.update(step.attributes)
        context = self._span.get_span_context()
        if context.is_valid:
            fields |= _ids(context)
        return fields

    def _time(self, seconds: float) -> int:
        """Returns a monotonic time in nanoseconds since 1970."""
        return round((seconds + self._epoch) * 1e9)

    def batch_span(self, report: BatchReport, links: Sequence[Link]) -> Span:
        """Starts the span of a batch in this call's trace."""
        span = self._tracer.start_span(
            "batch",
            set_span_in_context(self._span),
            attributes={"modality": report.modality, "batch_size": report.size},
            links=links,
            start_time=self._time(report.start_time),
        )
        span.end(self._time(report.end_time))
        return span

    def as_link(self) -> Link:
        """Returns a link to the call."""
        return Link(self._span.get_span_context())


def _batch_span(recording: Sequence[CallTrace], report: BatchReport) -> Span:
    """Starts the span of a batch if one of its calls is recorded."""
    return (
        recording[0].batch_span(report, [trace.as_link() for trace in recording])
        if recording
        else INVALID_SPAN
    )


def _code(error: BaseException) -> str:
    if isinstance(error, ServingError):
        return error.code
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else "INTERNAL"


def _exemplar(span: Span) -> dict[str, str] | None:
    context = span.get_span_context()
    return _ids(context) if context.is_valid and context.trace_flags.sampled else None


def _ids(context: SpanContext) -> dict[str, str]:
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
