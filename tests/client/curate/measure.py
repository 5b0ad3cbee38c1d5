"""Measures what curating costs: `python -m tests.client.curate.measure`. Needs the extra `curate`."""

from __future__ import annotations

import io
import resource
import time
from collections.abc import Callable
from pathlib import Path

from alignserve.curate.language import detect, has_noun
from alignserve.curate.pictures import PictureProcesses
from PIL import Image

from tests.client.curate.captions import ENGLISH, OTHERS

_PHOTOS = sorted((Path(__file__).parents[2] / "data/photos").glob("*.jpg"))


def _photos(side: int) -> list[bytes]:
    found = []
    for path in _PHOTOS:
        with Image.open(path) as image:
            file = io.BytesIO()
            image.resize((side, side * 3 // 4)).save(file, "JPEG", quality=90)
            found.append(file.getvalue())
    return found


def _pictures(side: int, count: int) -> str:
    images = _photos(side)
    with PictureProcesses() as pool:
        list(pool.measure(images * pool.processes))  # starts the processes
        start = time.perf_counter()
        list(pool.measure(images[number % len(images)] for number in range(count)))
        seconds = time.perf_counter() - start
        processes = pool.processes
    return f"pictures of {side} x {side * 3 // 4}: {count / seconds:,.0f} a second, {processes} processes"


def _texts(what: str, measure: Callable[[str], object]) -> str:
    texts = [*ENGLISH, *(text for texts in OTHERS.values() for text in texts)]
    measure(texts[0])  # loads its model
    start = time.process_time()
    for _ in range(20):
        for text in texts:
            measure(text)
    return f"{what}: {20 * len(texts) / (time.process_time() - start):,.0f} texts a CPU second"


def main() -> None:
    for side, count in ((256, 2000), (640, 600), (4000, 20)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        line = _pictures(side, count)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{line}; {cpu / count * 1e3:.1f} ms of CPU each, with startup; {after.ru_maxrss / 1e3:.0f} MB")
    print(_texts("language", detect))
    print(_texts("nouns", has_noun))


if __name__ == "__main__":
    main()
