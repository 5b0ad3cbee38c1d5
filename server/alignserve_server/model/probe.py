"""The texts and image files on which a server is compared with transformers, and transformers' results.

The comparison starts from strings and encoded images, as callers send them: a tokenizer whose settings are
ignored gives correct vectors for the wrong tokens, which comparing vectors of equal tokens cannot detect.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter

from alignserve_server.model.checkpoint_files import (
    CheckpointError,
    check_file,
    parse_tokenizer,
    read_json,
    validated,
)
from alignserve_server.model.encoder import Embeddings

# These are also embedded; the last one is truncated, so it covers every position that a text can have.
EMBEDDED_TEXTS = (
    "cat",
    "a photo of a dog on a sofa",
    "an old map of the city, drawn by hand in ink on paper, with hills, two rivers and seven bridges",
    "Of rockets and dogs, of the cat and a cup of coffee: " * 12,
)
TEXTS = (
    *EMBEDDED_TEXTS,
    "A Photo of THE Cat",
    "mixedCase iPhone USA",
    "École, naïve café; Ünïcödé, ŁÓDŹ",
    "cafe\u0301 A\u030angstro\u0308m",  # accents as characters of their own
    "İstanbul ß ﬁ Ⅳ ㎏ ½",
    ".",
    "a",
    "Q",
    "?!…",
    "1,234.5% & @#_~ (x) [y] {z} <w> 'quoted' \"twice\"",
    "don't we'll it's o'clock",
    "http://example.org/a_b?c=d&e=f#g",
    "  two  spaces\tand\nlines \r\n ",
    "\u00a0no\u00a0break\u3000wide",
    "zero\u200bwidth so\u00adft \ufeffmark",
    "bell\x07 and \x7f delete \ufffd replaced",
    "猫と犬 cats猫dogs",
    "東京都 カタカナ ひらがな 한국어",
    "مرحبا שלום привет γειά हिन्दी",
    "🚀",
    "a 🐈 and 👩‍👩‍👧 🇩🇪 ❤️",
    "x" * 120,  # longer than WordPiece's maximum word
    "antidisestablishmentarianism",
    "##cat cat## ##",
    "[CLS] [SEP] [PAD] [UNK] [MASK] [cls] [ CLS ] [CLS][SEP]",
    "<s> </s> <pad> <unk> <mask> <|endoftext|>",
)
_FACTS, _ARRAYS, _IMAGES = "reference.json", "reference.npz", "probe"  # in a reference's folder
REFERENCE_FILES = (_FACTS, _ARRAYS)
_MAX_ARRAYS_BYTES = 1 << 30  # the largest ALIGN has a tenth of this
_TOKENS_PER_TEXT = 8  # tokens that a tokenizer adds to its vocabulary
_PATTERN_CELLS = (3, 24, 96)  # along a side: from soft gradients to fine texture
EMBEDDED_IMAGES = tuple(f"pattern-{cells}.png" for cells in _PATTERN_CELLS)


def _floats(array: object, *, dimensions: int) -> NDArray[np.float32]:
    """Returns the array; raises ValueError for another type, number of dimensions, or no rows."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise ValueError("must be an array of float32")
    if array.ndim != dimensions or not array.size:
        raise ValueError(f"must have {dimensions} dimensions, but has the shape {array.shape}")
    return array


Count = Annotated[int, Field(ge=1, lt=2**31)]


@dataclass(frozen=True, slots=True)
class Reference:
    """The results of transformers' tokenizer, image processor and AlignModel, in float32, for the probe."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    tokenizer: str  # as JSON, with everything that transformers applies on top of tokenizer.json
    splits_special_tokens: bool  # a setting that is not in the JSON
    truncation_side: Literal["left", "right"]
    max_text_tokens: Count
    vocabulary_rows: Count  # of the word embeddings
    unembedded_tokens: tuple[str, ...]  # tokens with ids beyond the rows
    temperature: Annotated[float, Field(allow_inf_nan=False)]
    embedding_dimension: Count
    # Of every text, truncated to the limit.
    input_ids: dict[str, list[Annotated[int, Field(ge=0, lt=2**31)]]]
    embedded_texts: list[str]
    images: dict[str, bytes]  # image files, by name
    pillow: str  # version, whose decoders affect `pixel_values`
    # Of every image, (images, 3, height, width).
    pixel_values: Annotated[NDArray[np.float32], PlainValidator(partial(_floats, dimensions=4))]
    # Of EMBEDDED_IMAGES, then of the embedded texts; not normalized.
    embeddings: Annotated[Embeddings, PlainValidator(partial(_floats, dimensions=2))]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        _, _, height, width = self.pixel_values.shape
        return height, width

    def save(self, folder: Path) -> None:
        """Writes two files, and a folder with the images. Raises OSError."""
        facts: dict[str, Any] = asdict(self)  # Any: of JSON
        arrays = {name: facts.pop(name) for name in ("pixel_values", "embeddings")}
        facts["images"] = list(self.images)
        (folder / _FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")
        np.savez_compressed(folder / _ARRAYS, **arrays)
        (folder / _IMAGES).mkdir()
        for name, content in self.images.items():
            (folder / _IMAGES / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Reads what `save` wrote. Raises CheckpointError for anything else."""
        content = {**read_json(folder / _FACTS), **_arrays(folder / _ARRAYS)}
        names, unembedded = content.get("images"), content.get("unembedded_tokens")
        if isinstance(names, list):
            content["images"] = {str(name): _image(folder / _IMAGES, name) for name in names}
        if isinstance(unembedded, list):
            content["unembedded_tokens"] = tuple(unembedded)
        reference = validated(_REFERENCE, content, folder / _FACTS)
        parse_tokenizer(reference.tokenizer, folder / _FACTS)
        if faults := [what for what, holds in _AGREEMENTS.items() if not holds(reference)]:
            raise CheckpointError(
                f"{folder / _FACTS} does not match {_ARRAYS}: {faults[0]}; prepare it again"
            )
        return reference


_REFERENCE = TypeAdapter(Reference)
_AGREEMENTS: dict[str, Callable[[Reference], bool]] = {
    "images without pixels": lambda one: len(one.images) == len(one.pixel_values),
    "pixels without three channels": lambda one: one.pixel_values.shape[1] == len("RGB"),
    "an image of the probe is missing": lambda one: set(EMBEDDED_IMAGES) <= one.images.keys(),
    "an embedded text without tokens": lambda one: {"", *one.embedded_texts} <= one.input_ids.keys(),
    "embeddings do not match texts and images": lambda one: (
        one.embeddings.shape == (len(EMBEDDED_IMAGES) + len(one.embedded_texts), one.embedding_dimension)
    ),
}


def _image(folder: Path, name: object) -> bytes:
    path = folder / str(name)
    if path.parent != folder:
        raise CheckpointError(
            f"{folder.parent / _FACTS} names the image {str(name)[:80]!r}, which is outside the folder"
        )
    check_file(path)
    return path.read_bytes()


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads arrays of limited size, without pickles. Raises CheckpointError."""
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MAX_ARRAYS_BYTES:
            raise CheckpointError(f"{path} unpacks to {size} bytes, limit {_MAX_ARRAYS_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    # The errors of numpy, zipfile and zlib for a corrupt or truncated file.
    except (OSError, ValueError, LookupError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path} is corrupt: {type(error).__name__}: {error}; prepare it again"
        ) from error


def texts_with(tokens: list[str]) -> list[str]:
    """Returns texts that contain each token as a word, inside a word, and with its case swapped."""
    groups = [tokens[i : i + _TOKENS_PER_TEXT] for i in range(0, len(tokens), _TOKENS_PER_TEXT)]
    return [
        written
        for group in groups
        for written in (
            " ".join(group),
            " ".join(f"a{token}s" for token in group),
            " ".join(token.swapcase() for token in group),
        )
    ]


@cache
def images() -> dict[str, bytes]:
    """Returns encoded images of several formats, modes and sizes, by name; the same in every process.

    16-bit greyscale and corrupt metadata are left out, since there `decode` deliberately differs from
    transformers.
    """
    encoded = {
        name: _encoded(_pattern(cells, 320))
        for name, cells in zip(EMBEDDED_IMAGES, _PATTERN_CELLS, strict=True)
    }
    picture = _pattern(9, 97).crop((0, 0, 97, 61))
    for mode in ("1", "L", "LA", "RGBA", "P"):
        encoded[f"{mode}.png"] = _encoded(_with_mode(picture, mode))
    encoded["transparent-palette.png"] = _encoded(picture.convert("P"), transparency=3)
    encoded["L.jpg"] = _encoded(picture.convert("L"), "JPEG")
    encoded["CMYK.jpg"] = _encoded(picture.convert("CMYK"), "JPEG")
    encoded["turned.jpg"] = _encoded(picture, "JPEG", exif=_turned())
    encoded["turned.png"] = _encoded(picture, exif=_turned())
    encoded["RGBA.webp"] = _encoded(_with_mode(picture, "RGBA"), "WEBP")
    encoded["frames.gif"] = _encoded(picture, "GIF", save_all=True, append_images=[picture.rotate(180)])
    encoded["RGB.bmp"] = _encoded(picture, "BMP")
    encoded["pixel.png"] = _encoded(picture.crop((40, 30, 41, 31)))
    encoded["thin.png"] = _encoded(picture.crop((0, 0, 40, 3)))
    encoded["tall.png"] = _encoded(picture.crop((0, 0, 7, 60)))
    encoded["large.jpg"] = _encoded(picture.resize((1031, 769)), "JPEG")
    return encoded


@cache
def digest() -> str:
    """Returns a digest that identifies this version of the probe, as 16 hexadecimal digits."""
    parts = [*(text.encode() for text in TEXTS), *images().values()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def _pattern(cells: int, side: int) -> Image.Image:
    grid = np.random.default_rng(cells).integers(0, 256, (cells, cells, 3), np.uint8)
    at = np.arange(side) * cells // side
    return Image.fromarray(grid[at][:, at])


def _with_mode(picture: Image.Image, mode: str) -> Image.Image:
    picture = picture.convert(mode)
    if mode.endswith("A"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return picture


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def _encoded(
    picture: Image.Image, file_format: str = "PNG", **options: Any
) -> bytes:  # Any: Pillow's options
    buffer = BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()
