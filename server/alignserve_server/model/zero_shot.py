"""Zero-shot classification: labels become text embeddings, images are scored against them.

The method and the temperature are those of ALIGN (Jia et al., 2021, https://arxiv.org/abs/2102.05918);
averaging several prompts per label follows CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020,
section 3.1.4).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignserve_server.errors import InvalidArgument, all_valid
from alignserve_server.metrics import Metrics
from alignserve_server.model.encoder import l2_normalize

PLACEHOLDER = "{label}"

LabelEmbedding = NDArray[np.float32]  # (embedding_dimension,), L2-normalized
EmbedPrompts = Callable[[Sequence[str]], Awaitable[Sequence[NDArray[np.float32] | InvalidArgument]]]


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """How well one label matches an image."""

    label_index: int
    score: float  # softmax of logit over all labels
    similarity: float  # cosine
    logit: float  # similarity / temperature


def prompts_of(label: str, templates: Sequence[str]) -> list[str]:
    """Returns the texts that stand for a label: each template filled in, or the label itself."""
    return [template.replace(PLACEHOLDER, label) for template in templates] or [label]


def is_template(text: str) -> bool:
    """Says whether a text has exactly one placeholder."""
    return text.count(PLACEHOLDER) == 1


def score_labels(
    image: NDArray[np.float32], labels: NDArray[np.float32], temperature: float, top_k: int = 0
) -> list[ScoredLabel]:
    """Scores one image against labels.

    Args:
        image: (embedding_dimension,), L2-normalized.
        labels: (labels, embedding_dimension), each L2-normalized.
        temperature: The checkpoint's; logits are cosine divided by it.
        top_k: Most labels to return; 0 returns all.

    Returns:
        Labels in descending order of score; equal scores stay in the order of the request.
    """
    similarities = labels @ image
    logits = similarities.astype(np.float64) / temperature
    weights = np.exp(logits - logits.max())
    scores = weights / weights.sum()
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    columns = order, scores[order], similarities[order].clip(-1.0, 1.0), logits[order]
    # tolist() first: taking numbers out of arrays one by one costs four times as much
    return [ScoredLabel(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@dataclass(eq=False, slots=True)
class _Pending:
    """A label that is being embedded, and how many calls wait for it."""

    future: asyncio.Future[LabelEmbedding]
    task: asyncio.Task[None] | None = None
    waiters: int = 0


class LabelCache:
    """Embeddings of recent labels, least recently used out first.

    Calls that miss the same label at the same time share one embedding of it. When the last of them leaves,
    the work is cancelled.
    """

    def __init__(self, max_labels: int, embed_prompts: EmbedPrompts, metrics: Metrics) -> None:
        """Starts empty.

        Args:
            max_labels: Most labels kept.
            embed_prompts: Embeds prompts: for each an embedding, not normalized, or why it is invalid.
            metrics: Where hits and misses are counted.
        """
        self._max_labels = max_labels
        self._embed_prompts = embed_prompts
        self._metrics = metrics
        self._cached: OrderedDict[bytes, LabelEmbedding] = OrderedDict()
        self._pending: dict[bytes, _Pending] = {}
        metrics.label_cache_entries.set_function(lambda: len(self._cached))

    async def embed(self, labels: Sequence[str], templates: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Embeds labels, each as the average of its prompts.

        Returns:
            Embeddings in order, (labels, embedding_dimension), L2-normalized; and how many were at hand.

        Raises:
            InvalidArgument: A prompt is too long; names each label at fault.
            ServingError: Whatever `embed_prompts` raises.
        """
        keys = [_key(label, templates) for label in labels]
        found = self._look_up(keys)
        hits = sum(key in found for key in keys)
        missing = {
            key: prompts_of(label, templates)
            for key, label in zip(keys, labels, strict=True)
            if key not in found and key not in self._pending
        }
        self._metrics.label_cache_hits.inc(hits)
        self._metrics.label_cache_misses.inc(len(missing))
        self._metrics.label_cache_coalesced.inc(len(keys) - hits - len(missing))
        if missing:
            self._start(missing)
        answers = found | await self._wait({key for key in keys if key not in found})
        embeddings = all_valid([answers[key] for key in keys], "labels[{}]")
        return np.stack(embeddings), hits

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, LabelEmbedding | InvalidArgument]:
        found: dict[bytes, LabelEmbedding | InvalidArgument] = {}
        for key in keys:
            if key in self._cached:
                self._cached.move_to_end(key)
                found[key] = self._cached[key]
        return found

    def _start(self, prompts: dict[bytes, list[str]]) -> None:
        loop = asyncio.get_running_loop()
        group = {key: _Pending(loop.create_future()) for key in prompts}
        task = loop.create_task(self._embed_group(prompts, group))
        for pending in group.values():
            pending.task = task
        self._pending.update(group)

    async def _embed_group(self, prompts: dict[bytes, list[str]], group: dict[bytes, _Pending]) -> None:
        try:
            answers = iter(await self._embed_prompts([text for texts in prompts.values() for text in texts]))
            for key, texts in prompts.items():
                self._settle(key, group[key], [next(answers) for _ in texts])
        except Exception as error:  # noqa: BLE001 — every waiter gets the answer, whatever it is
            for pending in group.values():
                _fail(pending.future, error)
        finally:
            self._forget(group)

    def _settle(
        self, key: bytes, pending: _Pending, answers: list[NDArray[np.float32] | InvalidArgument]
    ) -> None:
        for answer in answers:
            if isinstance(answer, InvalidArgument):
                _fail(pending.future, answer)
                return
        embedding = l2_normalize(l2_normalize(np.stack(answers)).mean(axis=0))  # type: ignore[arg-type]  # checked above
        pending.future.set_result(embedding)
        self._cached[key] = embedding
        while len(self._cached) > self._max_labels:
            self._cached.popitem(last=False)

    def _forget(self, group: dict[bytes, _Pending]) -> None:
        for key, pending in group.items():
            pending.future.cancel()  # no effect on those that have their answer
            if self._pending.get(key) is pending:
                del self._pending[key]

    async def _wait(self, keys: set[bytes]) -> dict[bytes, LabelEmbedding | InvalidArgument]:
        waited = {key: self._pending[key] for key in keys}
        for pending in waited.values():
            pending.waiters += 1
        try:
            # shield: a caller who leaves must not cancel what others wait for
            answers = await asyncio.gather(
                *(asyncio.shield(pending.future) for pending in waited.values()), return_exceptions=True
            )
        finally:
            for pending in waited.values():
                pending.waiters -= 1
            self._cancel_abandoned(waited)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, InvalidArgument):
                raise answer
        return dict(zip(waited, answers, strict=True))  # type: ignore[arg-type]  # others were raised

    def _cancel_abandoned(self, left: dict[bytes, _Pending]) -> None:
        wanted = {pending.task for pending in self._pending.values() if pending.waiters}
        for pending in left.values():
            if pending.task is not None and pending.task not in wanted and not pending.task.done():
                pending.task.cancel()
                # at once, so that nobody who comes now waits for work that is being cancelled
                self._forget(
                    {key: other for key, other in self._pending.items() if other.task is pending.task}
                )


def _fail(future: asyncio.Future[LabelEmbedding], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks it as retrieved: if every waiter has left, there is nobody to warn


def _key(label: str, templates: Sequence[str]) -> bytes:
    # A digest, not the texts, so that the size of the cache depends on the number of labels alone. Lengths
    # separate the parts: ("ab", ["c"]) is not ("a", ["bc"]).
    digest = hashlib.blake2b(digest_size=16)
    for part in (label, *templates):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()
