"""Types work in users' type checkers and at run time."""

from __future__ import annotations

import subprocess
import sys
import typing
from pathlib import Path

import alignserve
import pytest
from alignserve import (
    AsyncClient,
    ClassifyItem,
    Client,
    CompareItem,
    ImageInput,
    ImageItem,
    QueryItem,
    TextItem,
)

PROGRAM = """
from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from alignserve import AlignserveError, AsyncClient, Classification, Client, ImageInput, ImageItem, Item
from alignserve import CompareItem, Comparison, Query, QueryItem, QueryTerm, StreamResult

Photo = ImageInput | None


def blocking(client: Client, paths: list[Path]) -> StreamResult:
    photo = Image.open("a.jpg")
    client.embed_image(photo)
    client.embed_image([photo, photo.convert("L")])
    client.embed_image(np.asarray(photo))
    client.embed_image(np.zeros((2, 2, 3), np.uint8))
    client.embed_image(paths)
    client.embed_image(path for path in paths)
    client.embed_image(io.BytesIO(b"a"))
    with open("a.jpg", "rb") as file:
        client.embed_image(file)
    vector: npt.NDArray[np.float32] = client.embed_text("a")
    one: list[Classification] = client.classify(photo, ["cat"])
    many: list[list[Classification]] = client.classify([photo], ["cat"])
    for position, found in enumerate(client.embed_image(paths, on_error="return")):
        if isinstance(found, AlignserveError):
            print(paths[position], found.reason)
        else:
            print(found.shape)
    either: npt.NDArray[np.floating] | AlignserveError = client.embed_text("a", on_error="return")
    texts: list[npt.NDArray[np.floating] | AlignserveError] = client.embed_text(["a"], on_error="return")
    labels: list[list[Classification] | AlignserveError] = client.classify(
        [photo], ["cat"], on_error="return", on_progress=lambda done, total: print(done / total)
    )
    label: list[Classification] | AlignserveError = client.classify(photo, ["cat"], on_error="return")
    pair: Comparison = client.compare(photo, "a cat")
    pairs: list[Comparison] = client.compare(paths, ["a"] * len(paths))
    either_pairs: list[Comparison | AlignserveError] = client.compare([photo], ["a"], on_error="return")
    small: npt.NDArray[np.int8] = client.embed_text("a", dtype="int8")
    query: npt.NDArray[np.float32] = client.embed_query([photo, ("red", 0.5), QueryTerm(text="blue")])
    both = client.embed_query([[photo, "red"], [(Path("a.jpg"), -1)]])
    found_queries: list[npt.NDArray[np.floating] | AlignserveError] = client.embed_query(
        [[photo, "red"]], on_error="return"
    )
    client.embed_query_detailed([[photo, "red"], ["a", (photo, 2)]])
    items: list[Item] = [ImageItem(photo, id=vector.size + len(one) + len(many))]
    items += [CompareItem(photo, "a"), QueryItem([photo, "a"], dtype="int8")]
    return next(client.stream(items))


async def asynchronous(client: AsyncClient, photo: Photo) -> list[Classification]:
    await client.embed_image(photo or Image.new("L", (2, 2)))
    rows: npt.NDArray[np.floating] = await client.embed_text(["a"], total_timeout_seconds=5)
    found: list[npt.NDArray[np.floating] | AlignserveError] = await client.embed_text(
        ["a"], on_error="return"
    )
    return await client.classify(Image.open("a.jpg"), ["cat"])
"""


@pytest.mark.long
def test_a_users_program_passes_a_strict_type_checker(tmp_path: Path) -> None:
    """Every form of an image, including Pillow's, is accepted, and results have exact types."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    config = tmp_path / "mypy.ini"  # so that none is inherited
    config.write_text(f"[mypy]\nmypy_path = {Path(alignserve.__file__).parent.parent}\n")
    arguments = ["--strict", "--python-version=3.11", f"--config-file={config}", f"--cache-dir={tmp_path}"]

    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, program], capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_annotations_can_be_read_at_run_time(kind: type) -> None:
    """Frameworks that inspect annotations find real types."""
    methods = [value for name, value in vars(kind).items() if callable(value) and not name.startswith("_")]

    hints = [typing.get_type_hints(method) for method in methods]

    assert all("return" in hint for hint in hints)


@pytest.mark.parametrize("item", [ImageItem, TextItem, ClassifyItem, CompareItem, QueryItem])
def test_fields_of_items_can_be_read_at_run_time(item: type) -> None:
    """Items are plain dataclasses with real types."""
    assert "id" in typing.get_type_hints(item)


def test_unions_can_be_extended_at_run_time() -> None:
    """`ImageInput` is a real type, not a string."""
    assert type(None) in typing.get_args(ImageInput | None)
    assert typing.get_type_hints(alignserve.StreamResult)["value"]
