"""Batch sizes: measured at startup, saved for the next startup, and corrected while serving."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from alignserve_server.model.encoder import Embeddings, TokenIds
from alignserve_server.model.fake import FakeEncoder

from tests.integration.serving import running, text_request, until


class MeasurableEncoder(FakeEncoder):
    """A model whose batches take as long as one entry; records the sizes of its text batches."""

    def __init__(self) -> None:
        super().__init__(seconds_per_batch=0.002)
        self.is_measurable = True
        self.text_sizes: set[int] = set()

    def encode_texts(self, batch: Sequence[TokenIds]) -> Embeddings:
        self.text_sizes.add(len(batch))
        return super().encode_texts(batch)


async def test_the_next_start_measures_nothing(tmp_path: Path) -> None:
    """The second server uses the sizes that the first saved in the cache folder."""
    first, second = MeasurableEncoder(), MeasurableEncoder()
    # A sleeping fake uses no CPU time, so the measured sizes are set by the test.
    async with running(first, cache_dir=tmp_path, max_batch_size=8):
        pass
    (file,) = (tmp_path / "tuning").iterdir()
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "max_batch_size": {"image": 2, "text": 4}}))
    async with running(second, cache_dir=tmp_path, max_batch_size=8) as served:
        caps = {name: served.sample("alignserve_max_batch_size", modality=name) for name in ("image", "text")}

    assert 8 in first.text_sizes
    assert second.text_sizes == {1}  # the warm-up
    assert caps == {"image": 2, "text": 4}


async def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    """The file is treated as missing, and overwritten."""
    async with running(MeasurableEncoder(), cache_dir=tmp_path, max_batch_size=8):
        pass
    (file,) = (tmp_path / "tuning").iterdir()
    file.write_bytes(b"\0" * 64)
    again = MeasurableEncoder()
    async with running(again, cache_dir=tmp_path, max_batch_size=8):
        pass

    assert 8 in again.text_sizes
    assert json.loads(file.read_text())["max_batch_size"]


async def test_sizes_from_settings_are_neither_measured_nor_saved(tmp_path: Path) -> None:
    """This applies to texts and to images."""
    encoder = MeasurableEncoder()
    async with running(encoder, cache_dir=tmp_path, max_image_batch_size=3, max_text_batch_size=5) as served:
        caps = {name: served.sample("alignserve_max_batch_size", modality=name) for name in ("image", "text")}

    assert caps == {"image": 3, "text": 5}
    assert encoder.text_sizes == {1}
    assert not (tmp_path / "tuning").exists()


async def test_a_size_that_was_once_set_is_measured_later(tmp_path: Path) -> None:
    """A startup without the setting does not treat the earlier size as measured."""
    first, second = MeasurableEncoder(), MeasurableEncoder()
    async with running(first, cache_dir=tmp_path, max_batch_size=8, max_text_batch_size=1):
        pass
    async with running(second, cache_dir=tmp_path, max_batch_size=8):
        pass

    assert first.text_sizes == {1}
    assert 8 in second.text_sizes


async def test_serving_corrects_a_size_that_was_measured_too_small(tmp_path: Path) -> None:
    """A worker restarted under load does not stay at 2, nor does the next startup."""
    async with running(MeasurableEncoder(), cache_dir=tmp_path, max_batch_size=8):
        pass
    (file,) = (tmp_path / "tuning").iterdir()
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "max_batch_size": {"image": 2, "text": 2}}))
    encoder = MeasurableEncoder()
    async with running(encoder, cache_dir=tmp_path, max_batch_size=8, text_cache_bytes=0) as served:

        async def call(number: int) -> None:
            for turn in range(40):
                texts = [f"{number} {turn} {text}" for text in range(32)]
                await served.stub.EmbedText(text_request(*texts))

        await asyncio.gather(*(call(number) for number in range(4)))
        cap = served.sample("alignserve_max_batch_size", modality="text")
        await until(lambda: json.loads(file.read_text())["max_batch_size"]["text"] == cap)

    assert cap in (4, 8)
    assert cap in encoder.text_sizes
