"""The context of a call that batching needs, and the call's timings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeAlias

from alignserve_server.batching.fair_queue import ANONYMOUS, Flow

_DEADLINE_TOLERANCE_SECONDS = 0.02  # a client's timer starts before ours, so its reset can come first


class CallTrace(Protocol):
    """Records how one call, or one item of a stream, is served."""

    @property
    def is_sampled(self) -> bool:
        """Whether anything is recorded."""
        ...

    @property
    def exemplar(self) -> dict[str, str] | None:
        """Labels that link a metric to this call; None if its trace is not recorded."""
        ...

    def follow(self, reservation: int) -> None:
        """Also records the batches that are reported under this reservation number."""
        ...

    # attributes are strings and numbers
    def note(self, name: str, start: float, end: float, **attributes: Any) -> None:
        """Records a step from `start` to `end`, in monotonic seconds."""
        ...

    def describe_embeddings(self, model: str, dimension: int) -> None:
        """Records which model embeds the call's inputs, and the embedding dimension."""
        ...

    def count_input_tokens(self, tokens: int) -> None:
        """Records the number of tokens in the call's texts."""
        ...

    def item(self) -> AbstractContextManager[CallTrace]:
        """Returns a context manager that traces an item of this stream."""
        ...


class _NoTrace:
    """The trace of a call that is not sampled: records nothing."""

    is_sampled = False
    exemplar: dict[str, str] | None = None

    def follow(self, reservation: int) -> None: ...

    def note(self, name: str, start: float, end: float, **attributes: Any) -> None: ...

    def describe_embeddings(self, model: str, dimension: int) -> None: ...

    def count_input_tokens(self, tokens: int) -> None: ...

    def item(self) -> AbstractContextManager[CallTrace]:
        return nullcontext(NO_TRACE)


NO_TRACE: Final[CallTrace] = _NoTrace()


def _do_nothing() -> None:
    """Default for `on_admitted`."""


ItemPath: TypeAlias = Callable[[int], str]  # from an item's position to its path
TermPath: TypeAlias = Callable[[int, int], str]  # from the positions of a query and its term


@dataclass(frozen=True, slots=True)
class FieldPaths:
    """What a door calls the parts of its requests, in errors."""

    images: str = "images"
    image: ItemPath = "images[{}].content".format
    pixels: ItemPath = "images[{}].pixels".format
    texts: str = "texts"
    text: ItemPath = "texts[{}]".format
    labels: str = "labels"
    label: ItemPath = "labels[{}]".format
    prompt_templates: str = "prompt_templates"
    prompt_template: ItemPath = "prompt_templates[{}]".format
    top_k: str = "top_k"
    pairs: str = "pairs"
    pair_image: ItemPath = "pairs[{}].image.content".format
    pair_pixels: ItemPath = "pairs[{}].image.pixels".format
    pair_text: ItemPath = "pairs[{}].text".format
    queries: str = "queries"
    query: ItemPath = "queries[{}]".format
    terms: ItemPath = "queries[{}].terms".format
    term: TermPath = "queries[{}].terms[{}]".format
    term_image: TermPath = "queries[{}].terms[{}].image.content".format
    term_pixels: TermPath = "queries[{}].terms[{}].image.pixels".format
    term_text: TermPath = "queries[{}].terms[{}].text".format
    term_weight: TermPath = "queries[{}].terms[{}].weight".format
    priority: str = "priority"

    def of_pairs(self) -> FieldPaths:
        """Returns the paths for a call whose images and texts are pairs."""
        return replace(self, image=self.pair_image, pixels=self.pair_pixels, text=self.pair_text)


FIELD_PATHS = FieldPaths()  # of `alignserve.v1`


@dataclass(frozen=True, slots=True)
class CallContext:
    """What the engine needs to know about an RPC or stream item."""

    deadline: float | None = None  # in the event loop's time
    waits_for_room: bool = False  # streams wait; unary calls are refused
    on_admitted: Callable[[], None] = _do_nothing  # called when the items are admitted
    flow: Flow = ANONYMOUS  # whose turns the items take
    trace: CallTrace = NO_TRACE
    paths: FieldPaths = FIELD_PATHS

    def for_item(self, on_admitted: Callable[[], None], trace: CallTrace) -> CallContext:
        """Returns the context of one item of this stream, which waits for room."""
        return CallContext(self.deadline, True, on_admitted, self.flow, trace, self.paths)

    def seconds_left(self) -> float | None:
        """Returns the time until the deadline."""
        return None if self.deadline is None else self.deadline - asyncio.get_running_loop().time()

    def is_expired(self) -> bool:
        """Returns whether the deadline has passed, at least by the caller's clock."""
        return (
            self.deadline is not None
            and asyncio.get_running_loop().time() >= self.deadline - _DEADLINE_TOLERANCE_SECONDS
        )


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a call's time went, the batches that served it and the largest of them, and its cache hits."""

    preprocess_seconds: float
    queue_seconds: float
    compute_seconds: float
    batch_size: int
    cached_item_count: int
    runs: frozenset[tuple[int, int]] = frozenset()  # the batches that served it; see `queue.Run`

    @classmethod
    def of_both(cls, one: Timings, other: Timings) -> Timings:
        """Returns the timings of a call whose images and texts were served concurrently."""
        return cls(
            max(one.preprocess_seconds, other.preprocess_seconds),
            max(one.queue_seconds, other.queue_seconds),
            max(one.compute_seconds, other.compute_seconds),
            max(one.batch_size, other.batch_size),
            one.cached_item_count + other.cached_item_count,
            one.runs | other.runs,
        )
