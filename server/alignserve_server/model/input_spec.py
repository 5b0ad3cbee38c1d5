"""What another process needs to prepare a model's inputs: preprocessing and tokenizer, without weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

from alignserve_server.model.checkpoint_files import Json
from alignserve_server.model.encoder import ImageInput, PixelValues, TokenizedText
from alignserve_server.model.preprocessing.decode import IMAGE_FORMATS, ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.model.preprocessing.texts import TextTokenizer
from alignserve_server.model.probe import Reference

NewPixels: TypeAlias = Callable[[tuple[int, ...]], PixelValues]


@dataclass(frozen=True, slots=True)
class InputLimits:
    """The limits on inputs.

    Attributes:
        max_image_bytes: Maximum size of an encoded image.
        max_image_pixels: Maximum size of a decoded image, width times height.
        max_text_bytes: Maximum size of a text in UTF-8.
        image_formats: As `accepted_formats` returns them.
    """

    max_image_bytes: int = 10 << 20
    max_image_pixels: int = 25_000_000
    max_text_bytes: int = 32 << 10
    image_formats: Sequence[str] = IMAGE_FORMATS

    def image_preprocessor(self, config: Json) -> ImagePreprocessor:
        """Returns the preprocessor of an image processor's configuration. Raises CheckpointError."""
        decoder = ImageDecoder(
            max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels, formats=self.image_formats
        )
        return ImagePreprocessor(config, decoder)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A checkpoint's preprocessing; see `Reference` for the fields of the tokenizer."""

    image_processor: Json
    tokenizer: str
    splits_special_tokens: bool
    truncation_side: str
    max_text_tokens: int
    vocabulary_rows: int

    @classmethod
    def of(cls, image_processor: Json, reference: Reference) -> InputSpec:
        """Returns the preprocessing that was compared with transformers'."""
        return cls(
            image_processor,
            reference.tokenizer,
            reference.splits_special_tokens,
            reference.truncation_side,
            reference.max_text_tokens,
            reference.vocabulary_rows,
        )

    def to_bytes(self) -> bytes:
        """Returns what `from_bytes` reads."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> InputSpec:
        """Reads what `to_bytes` has returned, in another process of the same server."""
        return cls(**json.loads(content))


class SpecReader:
    """Prepares inputs as an `Encoder` of the same checkpoint does; safe to call from several threads."""

    def __init__(self, spec: InputSpec, limits: InputLimits, new_pixels: NewPixels) -> None:
        """Prepares nothing yet; `new_pixels` returns the uninitialized array of a shape for an image."""
        self._images = limits.image_preprocessor(spec.image_processor)
        self._images.new_pixels = new_pixels
        self._texts = TextTokenizer.of(spec, max_bytes=limits.max_text_bytes)

    def preprocess_image(self, image: ImageInput) -> PixelValues:
        """Decodes, resizes and crops an image; see `Encoder.preprocess_image`."""
        return self._images(image)

    def tokenize(self, text: str, *, truncate: bool) -> TokenizedText:
        """Splits a text into tokens; see `Encoder.tokenize`."""
        return self._texts(text, truncate=truncate)
