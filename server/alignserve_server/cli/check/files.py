"""Checks of the checkpoint's files, with the functions of the loader, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from alignserve_server.cli.check.deployment import Check, Deployment
from alignserve_server.cli.check.report import CheckFailed, CheckWarning
from alignserve_server.model.agreement import (
    check_sizes,
    stored_dimension,
    stored_temperature,
    tokenizer_fit,
)
from alignserve_server.model.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_faults,
    locate_checkpoint,
    open_checkpoint,
)
from alignserve_server.model.configuration import check_configuration
from alignserve_server.model.preparation import shipped_form
from alignserve_server.model.prepared import SHIPPED, PreparedCheckpoint, is_prepared, open_prepared
from alignserve_server.model.probe import Reference
from alignserve_server.serving.reading import input_limits

_PROCESSOR_TOKENS = 64  # up to which transformers' AlignProcessor reads a text
_DEFAULT_IMAGE_SIZE = 600  # of transformers' AlignVisionConfig
_LOW_TEMPERATURE, _HIGH_TEMPERATURE = 0.001, 1.0  # trained ones are about 0.01 to 0.1
_WIDEST_PIXELS = 20.0  # from black to white; usual are 1 to 8, since include_top divides twice


def find_checkpoint(deployment: Deployment) -> str:
    """Finds the checkpoint and checks each of its files."""
    settings = deployment.settings
    location = locate_checkpoint(settings.checkpoint, settings.revision)
    if is_prepared(location.folder):
        prepared = open_prepared(location.folder)
        deployment.checkpoint = prepared
        return f"{prepared.folder}: {prepared.model_id}, prepared in {prepared.weights}; every digest matches"
    if faults := checkpoint_faults(location.folder):
        raise CheckFailed(*faults)
    checkpoint = open_checkpoint(location.folder, model_id=location.model_id, revision=location.revision)
    deployment.checkpoint = checkpoint
    files = checkpoint.files()
    size = sum(path.stat().st_size for path in files)
    digests = ", ".join(f"{name} {digest}" for name, digest in checkpoint.weight_digests().items())
    return (
        f"{checkpoint.folder}: {checkpoint.model_id}, {len(files)} files, {size / 1e6:.1f} MB; "
        f"SHA-256 of {digests}"
    )


def checks_of_files(deployment: Deployment) -> Iterator[tuple[str, Check]]:
    """Yields the checks of a checkpoint whose files were found."""
    checkpoint = deployment.checkpoint
    if isinstance(checkpoint, Checkpoint):
        yield "config", _of(checkpoint, configuration)
        yield "tokenizer", _of(checkpoint, tokenizer)
        yield "image_processor", lambda one: image_processor(one, checkpoint)
        yield "dimensions", _of(checkpoint, dimensions)
        yield "temperature", _of(checkpoint, temperature)
        if is_prepared(checkpoint.folder / SHIPPED):
            yield "prepared", _of(checkpoint, prepared_form)
    elif checkpoint is not None:
        yield "reference", lambda one: reference(one, checkpoint)


def configuration(checkpoint: Checkpoint) -> str:
    """Checks config.json, by itself and against the weights."""
    check_configuration(checkpoint.config)
    check_sizes(checkpoint)
    return "config.json has only supported values, and the sizes of the weights"


def tokenizer(checkpoint: Checkpoint) -> str:
    """Compares the tokenizer with the word embeddings and the positions."""
    fit = tokenizer_fit(checkpoint)
    rows = "an unknown number of" if fit.rows is None else fit.rows
    text = f"{fit.tokens} tokens, {rows} rows of word embeddings; texts of up to {fit.max_tokens} tokens"
    if fit.unembedded:
        raise CheckWarning(
            f"{text}; {len(fit.unembedded)} tokens have no embedding, such as {fit.unembedded[0]!r}, and "
            "texts with them are refused (TEXT_UNSUPPORTED); use the tokenizer that belongs to the weights"
        )
    if fit.max_tokens < _PROCESSOR_TOKENS:
        raise CheckWarning(
            f"{text}, fewer than the {_PROCESSOR_TOKENS} of AlignProcessor (model_max_length, "
            "max_position_embeddings); longer texts are refused or truncated"
        )
    return text


def image_processor(deployment: Deployment, checkpoint: Checkpoint) -> str:
    """Builds the server's preprocessing from the image processor's configuration."""
    images = input_limits(deployment.settings).image_preprocessor(checkpoint.image_processor)
    height, width = images.output_size
    low, high = images.offset, images.offset + 255 * images.scale  # of black and of white
    resized = images.resampling or "not resized"
    text = f"{height} x {width}, {resized}, pixels from {low.min():.3g} to {high.max():.3g}"
    trained = (checkpoint.config.get("vision_config") or {}).get("image_size", _DEFAULT_IMAGE_SIZE)
    if (height, width) != (trained, trained):
        raise CheckWarning(
            f"{text}, but vision_config.image_size in config.json is {trained}; embeddings are "
            "those of transformers, but worse than of that size: compare crop_size and size in "
            "preprocessor_config.json with the original's"
        )
    if low.min() > 0 or high.max() <= 0 or high.max() - low.min() > _WIDEST_PIXELS:
        raise CheckWarning(
            f"{text}: networks are trained on about -1 to 1; compare rescale_factor, image_mean, image_std "
            "and include_top in preprocessor_config.json with the original's"
        )
    return f"{text}; the model's image_size is {trained}"


def dimensions(checkpoint: Checkpoint) -> str:
    """Compares the dimensions of the two modalities."""
    size = stored_dimension(checkpoint)
    return "the weights do not tell" if size is None else f"images and texts have {size}"


def temperature(checkpoint: Checkpoint) -> str:
    """Checks that scores can be computed, and are neither flat nor all or nothing."""
    value = stored_temperature(checkpoint)
    if value is None:
        return "the weights do not tell"
    if not _LOW_TEMPERATURE <= value <= _HIGH_TEMPERATURE:
        effect = "all or nothing" if value < _LOW_TEMPERATURE else "almost equal"
        raise CheckWarning(
            f"{value:.4g}: scores would be {effect}; "
            "trained models have about 0.01 to 0.1, so compare the weight temperature with the original's"
        )
    return f"{value:.4g}: a cosine that is 0.1 higher multiplies a score by {math.exp(0.1 / value):.3g}"


def prepared_form(checkpoint: Checkpoint) -> str:
    """Checks the form for OpenVINO that a checkpoint includes; without it, a start converts."""
    try:
        found = shipped_form(checkpoint)
    except CheckpointError as error:
        raise CheckWarning(
            f"{error}; until then a start converts the checkpoint again, with torch"
        ) from error
    assert found is not None  # noqa: S101 — otherwise not checked
    return f"{found.folder} belongs to these files; every digest matches"


def reference(deployment: Deployment, checkpoint: PreparedCheckpoint) -> str:
    """Reads what transformers said when the checkpoint was prepared."""
    found = Reference.load(checkpoint.folder)
    input_limits(deployment.settings).image_preprocessor(checkpoint.image_processor)
    height, width = found.image_size
    made = ", ".join(f"{name} {number}" for name, number in checkpoint.made_with.items())
    text = (
        f"{found.embedding_dimension} dimensions, images of {height} x {width}, texts of up to "
        f"{found.max_text_tokens} tokens, temperature {found.temperature:.4g}; made with {made}"
    )
    if found.unembedded_tokens:
        raise CheckWarning(
            f"{text}; {len(found.unembedded_tokens)} tokens have no embedding, such as "
            f"{found.unembedded_tokens[0]!r}, and texts with them are refused (TEXT_UNSUPPORTED)"
        )
    return text


def _of(checkpoint: Checkpoint, check: Callable[[Checkpoint], str]) -> Check:
    return lambda _: check(checkpoint)
