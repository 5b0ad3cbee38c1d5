"""Embeds inputs over one stream, in their order and with a bounded number of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve._client import Client
from alignserve._items import ImageItem, StreamResult, TextItem
from alignserve._results import ModelInfo
from alignserve.datasets.faults import ModelChangedError, Verdict, failure_of, verdict_on_item
from alignserve.datasets.row import RowFailure
from alignserve.datasets.sources.rows import RowError, image_in
from alignserve.evaluate.inputs import Account, Input

Vector: TypeAlias = NDArray[np.float32]  # (dimension,), of length 1

_DIGEST_BYTES = 16


class Embedder:
    """Embeds images and texts on one server, and keeps account of them.

    Args:
        client: Of the server.
        account: Counts what became of each input.
        window: Inputs in flight.

    Attributes:
        info: The server's model.
        account: As given.
    """

    def __init__(self, client: Client, account: Account, *, window: int = 64) -> None:
        self.info: ModelInfo = client.model_info()
        self.account = account
        self._client = client
        self._window = window
        self._digest = blake2b(digest_size=_DIGEST_BYTES)

    @property
    def digest(self) -> str:
        """Returns a digest of all inputs so far: their keys, content and labels, in their order."""
        return self._digest.hexdigest()

    def embed(self, inputs: Iterable[Input]) -> Iterator[tuple[Input, Vector]]:
        """Yields each input with its vector, in their order; those that fail are counted and left out.

        Args:
            inputs: Read in another thread.

        Raises:
            AlignserveError: The server cannot be reached any more, or fails through no fault of an input.
        """
        failed: deque[tuple[str, RowFailure]] = deque()
        items = self._items(inputs, failed)
        for result in self._client.stream(items, ordered=True, window=self._window):
            self._count_all(failed)
            one: Input = result.id
            if result.error is None:
                self._count(result)
                yield one, np.asarray(result.embedding, np.float32)
            elif verdict_on_item(result.error) is Verdict.ROW_FAILS:
                self.account.fail(one.key, failure_of(result.error))
            else:
                raise result.error
        self._count_all(failed)

    def embed_labels(self, prompts: Sequence[Sequence[str]]) -> list[Vector | None]:
        """Returns the vector of each label, as `Classify` makes it: the mean of its prompts, of length 1.

        A label of which a prompt fails has none; the failure is counted under the prompt.

        Args:
            prompts: Of each label, at least one each.
        """
        texts = (
            Input(f"prompt {text!r}", text, about=number)
            for number, of_label in enumerate(prompts)
            for text in of_label
        )
        vectors: list[Vector | None] = [None] * len(prompts)
        pending: list[Vector] = []
        label = 0
        for one, vector in self.embed(texts):
            if one.about != label:
                label, pending = one.about, []
            pending.append(vector)
            if len(pending) == len(prompts[label]):
                vectors[label] = _mean(pending)
        return vectors

    def note(self, key: str, content: bytes, label: str = "") -> None:
        """Adds something to the digest that is not embedded, such as a question."""
        inner = blake2b(content, digest_size=_DIGEST_BYTES).digest()
        for part in (key.encode(errors="surrogateescape"), inner, label.encode()):
            self._digest.update(len(part).to_bytes(8, "little") + part)

    def check_model(self) -> None:
        """Returns if the server still has the model that it had at the beginning.

        Raises:
            ModelChangedError: It has another.
        """
        now = self._client.model_info().fingerprint
        if now != self.info.fingerprint:
            raise ModelChangedError(
                f"the server's model changed during the run, from fingerprint {self.info.fingerprint} to "
                f"{now}; run the command again"
            )

    def _items(
        self, inputs: Iterable[Input], failed: deque[tuple[str, RowFailure]]
    ) -> Iterator[ImageItem | TextItem]:
        for one in inputs:
            if one.failure is not None:
                self.note(one.key, b"", one.label)
                failed.append((one.key, one.failure))
                continue
            if isinstance(one.content, str):
                self.note(one.key, one.content.encode(), one.label)
                yield TextItem(one.content, truncate=one.truncate, id=one)
                continue
            try:
                content = self._content(one.content)
            except RowError as error:
                self.note(one.key, b"", one.label)
                failed.append((one.key, error.failure))
                continue
            self.note(one.key, content, one.label)
            yield ImageItem(content, id=Input(one.key, about=one.about))  # without the content

    def _content(self, content: bytes | Path) -> bytes:
        if isinstance(content, bytes):
            return content
        return image_in(str(content), self.info.max_image_bytes)

    def _count(self, result: StreamResult) -> None:
        if isinstance(result.item, TextItem):
            self.account.texts += 1
            self.account.truncated += result.tokenization is not None and result.tokenization.truncated
        else:
            self.account.images += 1
            self.account.on_input(False)

    def _count_all(self, failed: deque[tuple[str, RowFailure]]) -> None:
        while failed:
            self.account.fail(*failed.popleft())


def _mean(vectors: Sequence[Vector]) -> Vector:
    mean = np.stack(vectors).mean(axis=0)
    return np.asarray(mean / np.sqrt(np.add.reduce(mean * mean)), np.float32)
