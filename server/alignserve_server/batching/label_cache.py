"""Caches label embeddings: each averages its prompts, and calls with the same label share the work."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.call import FIELD_PATHS, ItemPath
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.errors import InvalidArgument, ServingError, all_valid, as_value
from alignserve_server.model.encoder import l2_normalize
from alignserve_server.model.zero_shot import LabelSet, prompts_of

LabelEmbedding: TypeAlias = NDArray[np.float32]  # (embedding_dimension,), L2-normalized
LabelEmbeddings: TypeAlias = NDArray[np.float32]  # (labels, embedding_dimension), each L2-normalized
EmbedPrompts: TypeAlias = Callable[
    [Sequence[str], Any], Awaitable[Sequence[NDArray[np.float32] | ServingError]]
]


@dataclass(eq=False, slots=True)
class _Pending:
    """A label that calls are waiting for."""

    key: bytes
    label: str
    templates: Sequence[str]
    future: asyncio.Future[LabelEmbedding]
    waiting: dict[Hashable, int] = field(default_factory=dict)  # number of calls, by flow
    begun_by: dict[Hashable, _Work] = field(default_factory=dict)  # by flow, each at its own turns

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(as_value(error))
            self.future.exception()  # marks it as retrieved, since every waiter may have left


@dataclass(eq=False, slots=True)
class _Work:
    """The work of one call: those of its labels that no other call of its flow has started."""

    flow: Hashable
    labels: Sequence[_Pending]
    ended: asyncio.Future[None]  # done when all labels have answers, from any call, or the work has failed
    unsettled: int  # labels without an answer
    begun: set[_Pending] = field(default_factory=set)  # started and not yet settled
    has_caller: bool = True  # if not, started labels continue while other calls of the flow wait for them
    task: asyncio.Task[None] | None = None
    error: Exception | None = None

    def note_settled(self, _: asyncio.Future[LabelEmbedding]) -> None:
        """Counts an answer; the last one ends the wait."""
        self.unsettled -= 1
        if not self.unsettled:
            self._end()

    def fail(self, error: Exception) -> None:
        """Ends the wait for all labels, including those that other flows embed."""
        self.error = as_value(error)
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def prompts(self) -> Iterator[_Prompt]:
        """Yields the remaining prompts; starts each label and builds each prompt only at its turn."""
        for pending in self._to_begin():
            if not self.has_caller:
                return
            pending.begun_by[self.flow] = self
            self.begun.add(pending)
            embeddings: list[NDArray[np.float32]] = []
            for text in prompts_of(pending.label, pending.templates):
                if pending not in self.begun:  # a prompt failed, another flow was faster, or all callers left
                    break
                yield _Prompt(text, pending, embeddings)

    def _to_begin(self) -> Iterator[_Pending]:
        """Yields labels that no flow has started, then unsettled ones that only other flows have started."""
        for skips_others in (True, False):
            for pending in self.labels:
                if pending.future.done() or self.flow in pending.begun_by:
                    continue
                if not (skips_others and pending.begun_by):
                    yield pending


class _Prompt(NamedTuple):
    """One prompt of a label, and the embeddings of the label's earlier prompts."""

    text: str
    pending: _Pending
    embeddings: list[NDArray[np.float32]]


class LabelCache:
    """A least-recently-used cache of label embeddings.

    Calls that miss the same label at the same time share its embedding. Each call goes through its own labels
    at its own turns, and waits for labels that another call of its flow has started. It starts a label again
    if another flow has started it, so that no call waits for another caller's turns: the first result settles
    the label for all calls. When the last call that waits for a label leaves, its work is cancelled.
    """

    def __init__(
        self, max_labels: int, embed_prompts: EmbedPrompts, observer: BatchObserver, *, prompts_at_once: int
    ) -> None:
        """Starts empty.

        Args:
            max_labels: Maximum number of labels kept.
            embed_prompts: Embeds prompts on a flow's behalf. Returns for each an embedding, not normalized,
                or an error. Should embed equal prompts of several flows once.
            observer: Notified of hits and misses.
            prompts_at_once: Maximum number of prompts that one call builds and embeds at a time. All prompts,
                labels times templates, are many times the size of the request.
        """
        self._max_labels = max_labels
        self._embed_prompts = embed_prompts
        self._observer = observer
        self._prompts_at_once = prompts_at_once
        self._cached: OrderedDict[bytes, LabelEmbedding] = OrderedDict()
        self._pending: dict[bytes, _Pending] = {}
        observer.watch_label_cache(lambda: len(self._cached))

    def cached(self, labels: LabelSet) -> LabelEmbeddings | None:
        """Returns the embeddings in order if all are in the cache; if not, call `embed`."""
        if not all(key in self._cached for key in labels.keys):
            return None
        self._observer.labels_looked_up(len(labels.keys), 0, 0)
        return np.stack([self._use(key) for key in labels.keys])

    async def embed(
        self, labels: LabelSet, flow: Hashable = None, path: ItemPath = FIELD_PATHS.label
    ) -> tuple[LabelEmbeddings, int]:
        """Embeds labels, each as the average of its prompts, at the turns of a flow.

        Returns:
            The embeddings in order, and how many were in the cache.

        Raises:
            InvalidArgument: A prompt is too long; names each invalid label by the path.
            ServingError: A prompt failed, or `embed_prompts` raised the error.
        """
        keys = labels.keys
        found: dict[bytes, LabelEmbedding | InvalidArgument] = {
            key: self._use(key) for key in keys if key in self._cached
        }
        hits = sum(key in found for key in keys)
        missing = {key: label for key, label in zip(keys, labels.labels, strict=True) if key not in found}
        new = [key for key in missing if key not in self._pending]
        self._observer.labels_looked_up(hits, len(new), len(keys) - hits - len(new))
        loop = asyncio.get_running_loop()
        for key in new:
            self._pending[key] = _Pending(key, missing[key], labels.templates, loop.create_future())
        answers = found | await self._wait([self._pending[key] for key in missing], flow)
        embeddings = all_valid([answers[key] for key in keys], path)
        return np.stack(embeddings), hits

    def _use(self, key: bytes) -> LabelEmbedding:
        self._cached.move_to_end(key)
        return self._cached[key]

    async def _wait(
        self, labels: Sequence[_Pending], flow: Hashable
    ) -> dict[bytes, LabelEmbedding | InvalidArgument]:
        if not labels:
            return {}
        loop = asyncio.get_running_loop()
        work = _Work(flow, labels, loop.create_future(), len(labels))
        for pending in labels:
            pending.waiting[flow] = pending.waiting.get(flow, 0) + 1
            pending.future.add_done_callback(work.note_settled)
        work.task = loop.create_task(self._embed(work))
        try:
            await work.ended
        finally:
            work.has_caller = False
            for pending in labels:
                pending.future.remove_done_callback(work.note_settled)
                self._leave(pending, flow)
            _cancel_if_idle(work)
        if work.error is not None:
            raise _own(work.error)
        return {pending.key: _answer(pending.future) for pending in labels}

    def _leave(self, pending: _Pending, flow: Hashable) -> None:
        """Removes a waiting call; gives up work that no call waits for."""
        pending.waiting[flow] -= 1
        if pending.waiting[flow]:
            return
        del pending.waiting[flow]
        if flow in pending.begun_by:
            _give_up(pending, flow)
        if not pending.waiting and not pending.future.done():
            pending.future.cancel()
            del self._pending[pending.key]

    async def _embed(self, work: _Work) -> None:
        prompts = work.prompts()
        try:
            while chunk := list(islice(prompts, self._prompts_at_once)):
                answers = await self._embed_prompts([prompt.text for prompt in chunk], work.flow)
                for prompt, answer in zip(chunk, answers, strict=True):
                    self._take(prompt, answer)
        except Exception as error:  # noqa: BLE001 — every waiter gets an answer, whatever the error
            for pending in list(work.begun):
                self._fail(pending, error)
            work.fail(error)

    def _take(self, prompt: _Prompt, answer: NDArray[np.float32] | ServingError) -> None:
        """Adds the answer to one prompt; the last answer, or an error, settles the label."""
        pending = prompt.pending
        if pending.future.done():
            return
        if isinstance(answer, ServingError):
            self._fail(pending, answer)
            return
        prompt.embeddings.append(answer)
        if len(prompt.embeddings) == max(1, len(pending.templates)):
            embedding = l2_normalize(l2_normalize(np.stack(prompt.embeddings)).mean(axis=0))
            pending.future.set_result(embedding)
            self._settle(pending)
            self._keep(pending.key, embedding)

    def _fail(self, pending: _Pending, error: Exception) -> None:
        if not pending.future.done():
            pending.fail(error)
            self._settle(pending)

    def _settle(self, pending: _Pending) -> None:
        """Ends all work on a label that has its answer."""
        del self._pending[pending.key]
        for flow in list(pending.begun_by):
            _give_up(pending, flow)

    def _keep(self, key: bytes, embedding: LabelEmbedding) -> None:
        self._cached[key] = embedding
        while len(self._cached) > self._max_labels:
            self._cached.popitem(last=False)


def _give_up(pending: _Pending, flow: Hashable) -> None:
    """Removes a label that is no longer wanted from a flow's work."""
    work = pending.begun_by.pop(flow)
    work.begun.discard(pending)
    _cancel_if_idle(work)


def _cancel_if_idle(work: _Work) -> None:
    if not work.has_caller and not work.begun and work.task is not None:
        work.task.cancel()  # no effect if it has ended
        work.task = None  # its CancelledError has a frame in its traceback that holds `work`: a cycle


def _answer(settled: asyncio.Future[LabelEmbedding]) -> LabelEmbedding | InvalidArgument:
    """Returns an invalid label's error, so that a call reports all of them; raises any other error."""
    error = settled.exception()
    if error is None:
        return settled.result()
    if isinstance(error, InvalidArgument):
        return error
    raise _own(error)


def _own(error: BaseException) -> BaseException:
    """Returns a copy of an error for one caller: a shared one would hold the frames of all callers."""
    return error.again() if isinstance(error, ServingError) else error.with_traceback(None)
