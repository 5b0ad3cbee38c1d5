"""Pairs with a known number of each defect, and how many of them a curation counts.

    python -m tests.client.curate.planted --rows 20000

makes the pairs, curates them as COYO-700M was, with a word list, a list of hashes and the similarities of a
fake server, compares every count, and prints a table.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from alignserve import Client
from alignserve.curate import language, rules
from alignserve.curate.duplicates import PhashSet
from alignserve.curate.measuring import Measures
from alignserve.curate.pictures import Limits, Picture, PictureProcesses
from alignserve.curate.plan import Options, Plan
from alignserve.curate.presets import coyo
from alignserve.curate.run import Outcome, curate
from alignserve.curate.similarity import Comparing
from alignserve.datasets.sources import SourceOptions, open_dataset
from alignserve.testing import FakeServer
from PIL import Image

BLOCKED_WORDS = ("floccinaucity", "slubberdegullion party")
_CYCLE = 200  # rows with one of each defect
_FREQUENT = 11
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("caption", pa.string()),
        ("nsfw_score_opennsfw2", pa.float64()),
        ("nsfw_score_gantman", pa.float64()),
    ]
)
_ADJECTIVES = [
    *("red", "green", "small", "large", "old", "new", "wooden", "quiet"),
    *("bright", "broken", "empty", "painted", "heavy", "narrow", "famous"),
]
_NOUNS = [
    *("bicycle", "bridge", "garden", "kitchen", "mountain", "river", "teacher"),
    *("window", "market", "engine", "harbor", "library", "bakery"),
]
_PLACES = [
    *("station", "river", "market", "school", "museum"),
    *("castle", "village", "forest", "airport", "theater"),
]


@dataclass(slots=True)
class Pair:
    """A pair, and what should become of it: a reason, a failure, or `None` to stay."""

    key: str
    image: bytes
    text: str
    expected: str | None = None
    columns: dict[str, float] = field(default_factory=dict)


@dataclass
class Planted:
    """Pairs in an order that spreads the defects over all shards.

    Args:
        rows: About how many; each block of 200 has the same defects.
    """

    rows: int
    excluded: list[bytes] = field(default_factory=list)

    def pairs(self) -> Iterator[Pair]:
        """Yields the pairs."""
        for block in range(max(self.rows // _CYCLE, 1)):
            rng = np.random.default_rng(block)
            made = list(self._block(block))
            for place in rng.permutation(len(made)):
                yield from made[place]

    def _block(self, block: int) -> Iterator[list[Pair]]:
        """Yields groups of pairs whose order matters."""
        numbers = iter(range(block * 10_000, (block + 1) * 10_000))

        def one(expected: str | None = None, **change: Any) -> list[Pair]:
            number = next(numbers)
            size = change.pop("size", (300, 260))
            pair = Pair(f"{number:08}", photo(number, *size), caption(number), expected)
            for name, value in change.items():
                setattr(pair, name, value)
            return [pair]

        seed = block * 10_000 + 9_000
        yield one(image=sized(pattern(seed, 220, 220), 4_999), expected="TOO_FEW_BYTES")
        yield one(image=sized(pattern(seed + 1, 220, 220), 5_000))
        for size in ((601, 200), (200, 601), (900, 290)):
            yield one("ASPECT_RATIO_TOO_HIGH", size=size)
        for size in ((600, 200), (200, 600), (200, 200)):
            yield one(size=size)
        for size in ((199, 300), (300, 199)):
            yield one("TOO_SMALL", size=size)
        yield one("NSFW_OPENNSFW2", columns={"nsfw_score_opennsfw2": 0.51})
        yield one("NSFW_GANTMAN", columns={"nsfw_score_gantman": 0.9, "nsfw_score_opennsfw2": 0.1})
        yield one(columns={"nsfw_score_opennsfw2": 0.5, "nsfw_score_gantman": float("nan")})
        yield one("TEXT_TOO_SHORT", text=f"{block % 100:02} cat"[:5])
        yield one("TEXT_TOO_LONG", text=long_text(seed))
        yield one("TOO_FEW_WORDS", text=f"bicycles {seed}")
        yield one("TOO_MANY_WORDS", text=" ".join(["a cat sat on it"] * 52))
        yield one(
            "OTHER_LANGUAGE",
            text=f"Ein kleines rotes Fahrrad steht vor dem alten Bahnhof in der Stadt {seed}",
        )
        yield one(
            "OTHER_LANGUAGE", text=f"Красный велосипед стоит перед старым вокзалом в центре города {seed}"
        )
        yield one("NO_NOUN", text=NO_NOUN[block % len(NO_NOUN)])
        yield one("BLOCKED_WORD", text=f"{caption(seed + 2)} with a Floccinaucity!")
        yield one("BLOCKED_WORD", text=f"the slubberdegullion party in {caption(seed + 3)}")
        yield one(text=f"{caption(seed + 4)} and slubberdegullion")
        yield one(text=f"\n   {caption(seed + 5)}\t\n  &amp; more \u00a0")
        yield one("IMAGE_UNREADABLE", image=photo(seed + 6, 300, 260)[:3000])
        yield one("IMAGE_UNREADABLE", image=b"<html>not found</html>")
        self.excluded.append(photo(seed + 7, 300, 260))
        yield one("EXCLUDED_PICTURE", image=self.excluded[-1])
        yield from self._repeated(block, seed, one)
        for _ in range(_CYCLE - 26 - 2 * _FREQUENT - 10):
            yield one()

    def _repeated(self, block: int, seed: int, one: Any) -> Iterator[list[Pair]]:
        often, rarely = caption(seed + 10), caption(seed + 11)
        for _ in range(_FREQUENT):
            yield one("TEXT_TOO_FREQUENT", text=often)
        for _ in range(_FREQUENT - 1):
            yield one(text=f" {rarely} ")
        same = {"image": photo(seed + 12, 300, 260), "text": caption(seed + 12)}
        yield [
            *one(**same),
            *one("DUPLICATE", **same),
            *one("DUPLICATE", **same, columns={"nsfw_score_gantman": 0.5}),
        ]
        same = {"image": photo(seed + 13, 300, 260), "text": caption(seed + 13)}
        bad = {"columns": {"nsfw_score_opennsfw2": 0.8}}
        yield [*one("NSFW_OPENNSFW2", **same, **bad), *one(**same), *one("DUPLICATE", **same)]
        yield [*one(image=same["image"])]  # the same picture with another text
        flat = flat_photo(seed)
        yield [
            *one(image=flat, text=caption(seed + 14)),
            *one("DUPLICATE", image=flat, text=caption(seed + 14)),
        ]
        yield [*one(image=flat_photo(seed + 1), text=caption(seed + 14))]  # as flat, but another file


NO_NOUN = [
    f"{first} {second} and very {third}"
    for first in ("quickly", "slowly", "quietly", "really")
    for second in ("happily", "suddenly", "gently", "finally", "rarely")
    for third in ("softly", "badly", "carefully", "loudly", "politely")
]


def photo(seed: int, width: int, height: int) -> bytes:
    """Returns a JPEG with a pattern of its own, of at least 5,200 bytes."""
    image = pattern(seed, width, height)
    return image if len(image) > 5_200 else sized(image, 5_200)


def pattern(seed: int, width: int, height: int) -> bytes:
    """Returns a JPEG with a pattern of its own, of a few thousand bytes."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-3, 4, (height, width, 1), np.int16)
    return jpeg(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def flat_photo(seed: int) -> bytes:
    """Returns a picture of one colour, which has no perceptual hash; the file's comment makes it unique."""
    return sized(jpeg(np.full((260, 300, 3), 128, np.uint8)) + f"{seed}".encode(), 5_200)


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=30)
    return file.getvalue()


def sized(image: bytes, size: int) -> bytes:
    """Returns a JPEG padded behind its end to this many bytes."""
    assert len(image) <= size, f"{len(image)} bytes, but {size} wanted"
    return image.ljust(size, b"\0")


def caption(number: int) -> str:
    """Returns an English sentence that no other number has."""
    adjective, noun = _ADJECTIVES[number % 15], _NOUNS[number // 15 % 13]
    place = _PLACES[number // 195 % 10]
    return f"A photograph of the {adjective} {noun} that we saw near the {place} on our trip number {number}"


def long_text(seed: int) -> str:
    """Returns more than 1,000 characters in fewer than 256 words."""
    text = ""
    while len(text) <= 1000:
        text += (
            f"{caption(seed)}, wonderfully illuminated throughout the extraordinarily colourful afternoon. "
        )
    return text.strip()


def write(planted: Planted, folder: Path, rows_per_file: int = 4000) -> Counter[str]:
    """Writes the pairs as Parquet files, and returns the expected number of each outcome."""
    expected: Counter[str] = Counter()
    folder.mkdir(parents=True)
    waiting: list[dict[str, Any]] = []
    number = 0

    def flush() -> None:
        nonlocal number
        table = pa.Table.from_pylist(waiting, _SCHEMA)
        pq.write_table(table, folder / f"{number:03}.parquet", row_group_size=500)
        number += 1
        waiting.clear()

    for pair in planted.pairs():
        expected[pair.expected or "kept"] += 1
        waiting.append({"id": pair.key, "image": pair.image, "caption": pair.text, **pair.columns})
        if len(waiting) == rows_per_file:
            flush()
    if waiting:
        flush()
    return expected


def curate_as_coyo(
    source: Path,
    planted: Planted,
    folder: Path,
    client: Client,
    *,
    rows_per_shard: int = 4096,
    resume: bool = False,
) -> Outcome:
    """Curates the pairs as COYO-700M was."""
    dataset = open_dataset(
        [source], SourceOptions(image_column="image", text_column="caption", key_column="id", columns=("*",))
    )
    with PictureProcesses(Limits(), processes=2) as pictures:
        hashes = [
            one.phash for one in pictures.measure(planted.excluded) if isinstance(one, Picture) and one.phash
        ]
        assert len(hashes) == len(planted.excluded)
        chosen = coyo().plus(
            [
                rules.blocked_words(BLOCKED_WORDS),
                rules.excluded_phashes(PhashSet(np.array([int(one, 16) for one in hashes], np.uint64))),
            ]
        )
        measures = Measures.for_rules(
            chosen, dataset.schema, pictures.measure, language, comparing=Comparing(client)
        )
        options = Options(rows_per_shard=rows_per_shard)
        return curate(Plan(dataset, chosen, measures, options, pictures.thumbnail), folder, resume=resume)


def counted(outcome: Outcome) -> Counter[str]:
    """Returns the number of each outcome: kept, first reasons, and reasons of failures."""
    found = Counter({"kept": outcome.counts["kept"], **outcome.ledger.failed})
    return found + Counter(outcome.counts["first_reasons"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.client.curate.planted", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    args = parser.parse_args()
    planted = Planted(args.rows)
    with tempfile.TemporaryDirectory() as scratch, FakeServer() as server, Client(server.target) as client:
        expected = write(planted, Path(scratch) / "source")
        start = time.monotonic()
        outcome = curate_as_coyo(Path(scratch) / "source", planted, Path(scratch) / "curated", client)
        seconds = time.monotonic() - start
    found = counted(outcome)
    for name in sorted(expected | found):
        print(f"{name:24} planted {expected[name]:6}  counted {found[name]:6}")
    print(outcome.summary())
    print(f"{seconds:.1f} s, {outcome.ledger.rows_in / seconds:.0f} rows/s")
    return 0 if found == expected else 1


if __name__ == "__main__":
    sys.exit(main())
