"""Compares scores of a picture with those of transformers.

The tests of transformers publish the logits that kakaobrain/align-base gives one picture, COCO val2017
000000039769, for two texts. Other checkpoints and pictures are compared with transformers itself, which runs
in this process.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignserve_server.cli.check.deployment import Deployment
from alignserve_server.cli.check.report import CheckWarning
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.encoder import Encoder, l2_normalize
from alignserve_server.model.prepared import PreparedCheckpoint

TEXTS = ("a photo of a cat", "a photo of a dog")
_TOLERANCE = 1e-3  # absolute, plus relative, as in the tests of transformers

Logits = NDArray[np.float32]  # (texts,)


@dataclass(frozen=True, slots=True)
class PublishedLogits:
    """Logits of a checkpoint for `TEXTS`, as published.

    Attributes:
        model_id: On the Hugging Face Hub.
        embedding_dimension: Of the checkpoint.
        size: (width, height) of the picture.
        picture: Its name.
        logits: For each text.
        source: Where they are published.
    """

    model_id: str
    embedding_dimension: int
    size: tuple[int, int]
    picture: str
    logits: tuple[float, ...]
    source: str

    def fits(self, model_id: str, embedding_dimension: int, size: tuple[int, int]) -> bool:
        """Returns whether they may be those of a checkpoint, by its id or folder, and of a picture."""
        name = self.model_id.rpartition("/")[2]
        return (
            model_id in (self.model_id, name)
            and embedding_dimension == self.embedding_dimension
            and size == self.size
        )


PUBLISHED = (
    PublishedLogits(
        "kakaobrain/align-base",
        640,
        (640, 480),
        "COCO val2017 000000039769",
        (9.7093, 3.4679),
        "transformers' tests/models/align/test_modeling_align.py",
    ),
)


def compare_picture(
    deployment: Deployment, path: Path, published: Sequence[PublishedLogits] = PUBLISHED
) -> str:
    """Compares the server's logits of a picture with published ones or, without any, with transformers'.

    Raises:
        CheckWarning: There is nothing to compare with, or the picture is not the published one.
        ValueError: The logits differ.
    """
    encoder = deployment.encoder
    assert encoder is not None  # noqa: S101 — otherwise not checked
    content = path.read_bytes()
    ours, tolerance = served_logits(encoder, content), _tolerance(encoder)
    found = next((one for one in published if _fits(one, encoder, content)), None)
    if found is not None and _agree(ours, found.logits, tolerance):
        return f"{_text(ours)}: as published for {found.model_id} and {found.picture} in {found.source}"
    theirs = _transformers(deployment.checkpoint, content)
    if isinstance(theirs, str):
        if found is not None:
            raise ValueError(f"{_text(ours)}, but {found.source} has {_text(found.logits)}; {theirs}")
        raise CheckWarning(f"{_text(ours)}, compared with nothing: {theirs}")
    if not _agree(ours, theirs, tolerance):
        raise ValueError(
            f"{_text(ours)}, but transformers gives {_text(theirs)} for the same files; report this with the "
            "versions of the packages above, and serve with --runtime torch --dtype float32 meanwhile"
        )
    if found is not None:
        raise CheckWarning(
            f"{_text(ours)}: as transformers gives for this picture and checkpoint, but {found.source} has "
            f"{_text(found.logits)}; give the original {found.picture}, or {found.model_id} itself"
        )
    return f"{_text(ours)}: as transformers gives for this picture and checkpoint"


def served_logits(encoder: Encoder, picture: bytes) -> Logits:
    """Returns the logits of `TEXTS` as Classify and Compare compute them."""
    encoder.enter_lane()
    image = l2_normalize(encoder.encode_images([encoder.preprocess_image(picture)]))[0]
    tokens = [encoder.tokenize(text, truncate=True).token_ids for text in TEXTS]
    logits: Logits = l2_normalize(encoder.encode_texts(tokens)) @ image / encoder.info.temperature
    return logits


def _fits(published: PublishedLogits, encoder: Encoder, picture: bytes) -> bool:
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(picture)) as image:
        return published.fits(encoder.info.model_id, encoder.info.embedding_dimension, image.size)


def _transformers(checkpoint: Checkpoint | PreparedCheckpoint | None, picture: bytes) -> Logits | str:
    """Returns the logits of transformers, or why there are none."""
    if not isinstance(checkpoint, Checkpoint):
        return (
            "transformers needs the checkpoint in Hugging Face format; give the one that it was prepared from"
        )
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; pip install 'alignserve[server,torch]'"
    from alignserve_server.model.reference import logits_of_transformers

    return logits_of_transformers(checkpoint, picture, TEXTS)


def _tolerance(encoder: Encoder) -> float:
    """Returns by how much logits may differ: more in data types that round more than float32.

    Vectors of cosine c with the reference's are at an angle of acos(c), which the cosine of two may change by
    twice that.
    """
    if encoder.info.dtype == "float32":
        return _TOLERANCE
    return _TOLERANCE + 2 * math.acos(min(1.0, encoder.info.min_cosine_similarity)) / encoder.info.temperature


def _agree(ours: Logits, theirs: Sequence[float] | Logits, tolerance: float) -> bool:
    return np.allclose(ours, np.asarray(theirs), rtol=_TOLERANCE, atol=tolerance)


def _text(logits: Sequence[float] | Logits) -> str:
    values: Mapping[str, float] = dict(zip(TEXTS, map(float, logits), strict=True))
    return ", ".join(f"{text!r} {value:.4f}" for text, value in values.items())
