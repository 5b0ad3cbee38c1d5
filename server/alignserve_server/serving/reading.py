"""Prepares inputs in a process without the model, as the model's process does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from alignserve_server.batching.preprocessor import InputReader
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.input_spec import InputLimits, InputSpec, NewPixels, SpecReader
from alignserve_server.model.preprocessing.decode import accepted_formats
from alignserve_server.settings import Settings

LoadReader: TypeAlias = Callable[[Settings, bytes, NewPixels], InputReader]


def load_reader(settings: Settings, input_spec: bytes, new_pixels: NewPixels) -> InputReader:
    """Returns a reader of inputs for the encoder that has returned this `input_spec`; see `SpecReader`."""
    if settings.checkpoint == "fake":
        return FakeEncoder(is_recording=False)
    return SpecReader(InputSpec.from_bytes(input_spec), input_limits(settings), new_pixels)


def input_limits(settings: Settings) -> InputLimits:
    """Returns the limits on inputs.

    Raises:
        ValueError: A package for an image format is missing.
    """
    return InputLimits(
        settings.max_image_bytes,
        settings.max_image_pixels,
        settings.max_text_bytes,
        accepted_formats(settings.accepted_extra_formats),
    )
