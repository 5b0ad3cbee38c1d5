"""Zero-shot classification: labels become text embeddings, images are scored against them.

The method and the temperature are those of ALIGN (Jia et al., 2021, https://arxiv.org/abs/2102.05918);
averaging several prompts per label follows CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020,
section 3.1.4).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignserve_server.errors import InvalidArgument, ServingError, all_valid
from alignserve_server.metrics import Metrics
from alignserve_server.model.encoder import l2_normalize

PLACEHOLDER = "{label}"

LabelEmbedding = NDArray[np.float32]  # (embedding_dimension,), L2-normalized
EmbedPrompts = Callable[[Sequence[str], Any], Awaitable[Sequence[NDArray[np.float32] | ServingError]]]


class ScoredLabel(NamedTuple):  # made by the ten thousand: a frozen dataclass takes three times as long
    """How well one label matches an image."""

    label_index: int
    score: float  # softmax of logit over all labels
    similarity: float  # cosine
    logit: float  # similarity / temperature


def prompts_of(label: str, templates: Sequence[str]) -> Iterator[str]:
    """Yields the texts that stand for a label: each template filled in, or the label itself."""
    return (template.replace(PLACEHOLDER, label) for template in templates or (PLACEHOLDER,))


def is_template(text: str) -> bool:
    """Says whether a text has exactly one placeholder."""
    return text.count(PLACEHOLDER) == 1


def score_images(
    images: NDArray[np.float32], labels: NDArray[np.float32], temperature: float, top_k: int = 0
) -> list[list[ScoredLabel]]:
    """Scores images against labels.

    Args:
        images: (images, embedding_dimension), each L2-normalized.
        labels: (labels, embedding_dimension), each L2-normalized.
        temperature: The checkpoint's; logits are cosine divided by it.
        top_k: Most labels to return per image; 0 returns all.

    Returns:
        For each image, labels in descending order of score; equal scores stay in the order of the request.
    """
    # In float64 and rounded, since a float32 product gives the same label other last digits at another
    # position, and so another place in the order.
    similarities = (images.astype(np.float64) @ labels.T.astype(np.float64)).astype(np.float32)
    logits = similarities.astype(np.float64) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = weights / weights.sum(axis=1, keepdims=True)
    order = np.argsort(-logits, axis=1, kind="stable")[:, : top_k or None]
    columns = [np.take_along_axis(of, order, axis=1) for of in (scores, similarities.clip(-1.0, 1.0), logits)]
    # tolist() first: taking numbers out of arrays one by one costs four times as much
    rows = zip(order.tolist(), *(column.tolist() for column in columns), strict=True)
    return [list(map(ScoredLabel, *row)) for row in rows]


@dataclass(eq=False, slots=True)
class _Group:
    """Labels that one task embeds, and how many calls wait for any of them."""

    templates: Sequence[str]
    on_behalf_of: object
    labels: list[_Pending] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    waiters: int = 0

    def prompts(self) -> Iterator[tuple[_Pending, str]]:
        """Yields what is left to embed, each prompt with its label. Written only when it is its turn."""
        for pending in self.labels:
            for prompt in prompts_of(pending.label, self.templates):
                if pending.future.done():  # a prompt before this one failed
                    break
                yield pending, prompt


@dataclass(eq=False, slots=True)
class _Pending:
    """A label that is being embedded."""

    key: bytes
    label: str
    group: _Group
    future: asyncio.Future[LabelEmbedding]
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)  # of its prompts so far

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # marks it as retrieved: if every waiter has left, nobody to warn


class LabelCache:
    """Embeddings of recent labels, least recently used out first.

    Calls that miss the same label at the same time share one embedding of it. When the last of them leaves,
    the work is cancelled.
    """

    def __init__(
        self, max_labels: int, embed_prompts: EmbedPrompts, metrics: Metrics, *, prompts_at_once: int
    ) -> None:
        """Starts empty.

        Args:
            max_labels: Most labels kept.
            embed_prompts: Embeds prompts on somebody's behalf: for each an embedding, not normalized, or
                why there is none.
            metrics: Where hits and misses are counted.
            prompts_at_once: Most prompts that one call writes and embeds at a time. Labels times templates
                are many times what the request itself holds.
        """
        self._max_labels = max_labels
        self._embed_prompts = embed_prompts
        self._metrics = metrics
        self._prompts_at_once = prompts_at_once
        self._cached: OrderedDict[bytes, LabelEmbedding] = OrderedDict()
        self._pending: dict[bytes, _Pending] = {}
        metrics.label_cache_entries.set_function(lambda: len(self._cached))

    async def embed(
        self, labels: Sequence[str], templates: Sequence[str], on_behalf_of: object = None
    ) -> tuple[NDArray[np.float32], int]:
        """Embeds labels, each as the average of its prompts.

        `on_behalf_of` is handed to `embed_prompts`; of those who share a label's embedding, the first one's.

        Returns:
            Embeddings in order, (labels, embedding_dimension), L2-normalized; and how many were at hand.

        Raises:
            InvalidArgument: A prompt is too long; names each label at fault.
            ServingError: A prompt failed, or whatever `embed_prompts` raises.
        """
        keys = _keys(labels, templates)
        found = self._look_up(keys)
        hits = sum(key in found for key in keys)
        missing = {
            key: label
            for key, label in zip(keys, labels, strict=True)
            if key not in found and key not in self._pending
        }
        self._metrics.label_cache_hits.inc(hits)
        self._metrics.label_cache_misses.inc(len(missing))
        self._metrics.label_cache_coalesced.inc(len(keys) - hits - len(missing))
        if missing:
            self._start(missing, templates, on_behalf_of)
        unsettled = [self._pending[key] for key in dict.fromkeys(keys) if key not in found]
        answers = found | await self._wait(unsettled)
        embeddings = all_valid([answers[key] for key in keys], "labels[{}]")
        return np.stack(embeddings), hits

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, LabelEmbedding | InvalidArgument]:
        found: dict[bytes, LabelEmbedding | InvalidArgument] = {}
        for key in keys:
            if key in self._cached:
                self._cached.move_to_end(key)
                found[key] = self._cached[key]
        return found

    def _start(self, labels: dict[bytes, str], templates: Sequence[str], on_behalf_of: object) -> None:
        loop = asyncio.get_running_loop()
        group = _Group(templates, on_behalf_of)
        group.labels = [_Pending(key, label, group, loop.create_future()) for key, label in labels.items()]
        group.task = loop.create_task(self._embed_group(group))
        self._pending.update((pending.key, pending) for pending in group.labels)

    async def _embed_group(self, group: _Group) -> None:
        prompts = group.prompts()
        try:
            while chunk := list(islice(prompts, self._prompts_at_once)):
                answers = await self._embed_prompts([prompt for _, prompt in chunk], group.on_behalf_of)
                for (pending, _), answer in zip(chunk, answers, strict=True):
                    self._take(pending, answer)
        except Exception as error:  # noqa: BLE001 — every waiter gets the answer, whatever it is
            for pending in group.labels:
                pending.fail(error)
        finally:
            self._forget(group)

    def _take(self, pending: _Pending, answer: NDArray[np.float32] | ServingError) -> None:
        """Adds the answer to one prompt of a label; the last one settles it, and so does an error."""
        if pending.future.done():
            return
        if isinstance(answer, ServingError):
            pending.fail(answer)
            del self._pending[pending.key]
            return
        pending.embeddings.append(answer)
        if len(pending.embeddings) == max(1, len(pending.group.templates)):
            embedding = l2_normalize(l2_normalize(np.stack(pending.embeddings)).mean(axis=0))
            pending.future.set_result(embedding)
            del self._pending[pending.key]
            self._keep(pending.key, embedding)

    def _keep(self, key: bytes, embedding: LabelEmbedding) -> None:
        self._cached[key] = embedding
        while len(self._cached) > self._max_labels:
            self._cached.popitem(last=False)

    def _forget(self, group: _Group) -> None:
        for pending in group.labels:
            pending.future.cancel()  # no effect on those that have their answer
            if self._pending.get(pending.key) is pending:
                del self._pending[pending.key]

    async def _wait(self, labels: Sequence[_Pending]) -> dict[bytes, LabelEmbedding | InvalidArgument]:
        if not labels:
            return {}
        groups = {pending.group for pending in labels}
        for group in groups:
            group.waiters += 1
        try:
            # not `gather`: a caller who leaves must not cancel what others wait for
            await asyncio.wait([pending.future for pending in labels])
        finally:
            for group in groups:
                group.waiters -= 1
                self._cancel_if_abandoned(group)
        return {pending.key: _answer(pending.future) for pending in labels}

    def _cancel_if_abandoned(self, group: _Group) -> None:
        if group.waiters == 0 and group.task is not None and not group.task.done():
            group.task.cancel()
            self._forget(group)  # at once, so that nobody who comes now waits for what is being cancelled


def _answer(settled: asyncio.Future[LabelEmbedding]) -> LabelEmbedding | InvalidArgument:
    """Returns an invalid label's error, so that all of a call are found; raises any other."""
    try:
        return settled.result()
    except InvalidArgument as error:
        return error


def _keys(labels: Sequence[str], templates: Sequence[str]) -> list[bytes]:
    # Digests, not the texts, so that the size of the cache depends on the number of labels alone. The
    # templates are hashed once, and not for each label.
    of_templates = hashlib.blake2b(digest_size=16)
    for template in templates:
        _update(of_templates, template)
    return [_key(of_templates.copy(), label) for label in labels]


def _key(digest: hashlib.blake2b, label: str) -> bytes:
    _update(digest, label)
    return digest.digest()


def _update(digest: hashlib.blake2b, part: str) -> None:
    # Lengths separate the parts: ("ab", ["c"]) is not ("a", ["bc"]).
    encoded = part.encode()
    digest.update(len(encoded).to_bytes(8, "little"))
    digest.update(encoded)
