"""`alignserve-server check` finds what only shows in the weights, and compares scores with transformers."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from alignserve_server.cli.check.command import examine_checkpoint
from alignserve_server.cli.check.deployment import Deployment
from alignserve_server.cli.check.model import load_model
from alignserve_server.cli.check.picture import PublishedLogits, compare_picture, served_logits
from alignserve_server.cli.check.report import CheckWarning, Report
from alignserve_server.cli.check.runtime import check_device
from alignserve_server.model.agreement import check_agreement
from alignserve_server.model.checkpoint import CheckpointError, resolve_checkpoint
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.serving.loading import load_encoder
from alignserve_server.settings import Settings
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.model.conftest import PHOTOS
from tests.model.tiny import tiny_model, write_tiny_checkpoint

pytestmark = pytest.mark.model

PHOTO = next(PHOTOS.glob("*.jpg"))


def deployment(folder: Path, **settings: Any) -> Deployment:
    return Deployment(
        Settings(**{"checkpoint": str(folder), "runtime": "torch", "device": "cpu", **settings}), ExitStack()
    )


def loaded(folder: Path) -> Deployment:
    """Returns a deployment after the checks that load it."""
    examined = deployment(folder)
    examine_checkpoint(examined, Report(is_json=True))
    load_model(examined)
    return examined


def _changed(name: str, change) -> Any:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights, name)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


DAMAGES = {
    "a missing weight": (
        _changed("text_projection.bias", lambda weights, name: weights.pop(name)),
        "lacks 1 weights, such as text_projection.bias",
    ),
    "a weight that is not finite": (
        _changed("text_projection.bias", lambda weights, name: weights[name].fill_(torch.inf)),
        "the weight text_projection.bias has values that are not finite",
    ),
    "weights of zeros": (
        _changed(
            "text_projection",
            lambda weights, name: [weights[f"{name}.{part}"].zero_() for part in ("weight", "bias")],
        ),
        "embeds 'cat' as numbers that are zero or not finite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_cannot_be_served_are_named_as_by_a_start(folder: Path, damage: str) -> None:
    """The headers of their files are sound, so this takes a load."""
    change, message = DAMAGES[damage]
    change(folder)
    report = Report(is_json=True)
    examined = deployment(folder)
    examine_checkpoint(examined, report)

    report.run("model", lambda: load_model(examined))

    *others, found = report.findings
    assert {finding.verdict for finding in others} <= {"ok", "warn"}
    assert (found.verdict, found.subject) == ("FAIL", "model")
    assert message in found.text
    with pytest.raises(CheckpointError) as refused:
        load_encoder(examined.settings)
    assert found.text == " ".join(str(refused.value).split())


@pytest.mark.parametrize(
    "changes",
    [
        {"text": {"vocab_size": 200, "max_position_embeddings": 70}},
        {"vision": {"hidden_dim": 48, "out_channels": [16, 48]}, "projection_dim": 48},
        {"text": {"position_embedding_type": "absolute"}},
    ],
    ids=str,
)
def test_checkpoints_of_any_size_agree(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The names and shapes of the weights are those that transformers writes, also in half precision."""
    folder = tmp_path / "model"
    dimension = changes.pop("projection_dim", 24)
    model = tiny_model(**changes)
    if dimension != model.config.projection_dim:
        model.config.projection_dim = dimension
        model.text_projection = torch.nn.Linear(16, dimension)
    write_tiny_checkpoint(folder, model.bfloat16())

    check_agreement(resolve_checkpoint(str(folder)))


def test_a_picture_has_the_scores_of_transformers(folder: Path) -> None:
    """Of any checkpoint, with the model and the processor of transformers, in this process."""
    text = compare_picture(loaded(folder), PHOTO)

    assert re.fullmatch(
        r"'a photo of a cat' -?[\d.]+, 'a photo of a dog' -?[\d.]+: as transformers gives for this picture "
        "and checkpoint",
        text,
    )


def test_a_picture_with_other_scores_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package resized it in another way."""
    examined = loaded(folder)
    preprocess = ImagePreprocessor.preprocess
    monkeypatch.setattr(ImagePreprocessor, "preprocess", lambda *given: preprocess(*given)[::-1].copy())

    with pytest.raises(ValueError, match=r"but transformers gives 'a photo of a cat' .* report this"):
        compare_picture(examined, PHOTO)


def test_another_picture_than_the_published_one_is_a_warning(folder: Path) -> None:
    """If transformers itself gives other scores, it is the picture or the checkpoint that differs."""
    examined = loaded(folder)
    encoder = examined.encoder
    assert encoder is not None
    with Image.open(PHOTO) as image:
        size = image.size
    logits = served_logits(encoder, PHOTO.read_bytes()) + 1
    figures = PublishedLogits(
        encoder.info.model_id, encoder.info.embedding_dimension, size, "a photo", tuple(logits), "their tests"
    )

    with pytest.raises(
        CheckWarning, match=r"but their tests has .*; give the original a photo, or copy itself"
    ):
        compare_picture(examined, PHOTO, [figures])


@pytest.mark.parametrize(("free", "is_enough"), [(2 << 30, True), (1 << 10, False)])
def test_the_free_memory_of_a_gpu_is_compared_with_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, is_enough: bool
) -> None:
    """The line names the GPU, its memory and the versions."""
    from alignserve_server.model.runtimes import cuda_devices

    monkeypatch.setattr(cuda_devices, "cuda_device", lambda index, **_: f"cuda:{index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    examined = deployment(folder, device="cuda")
    examined.checkpoint = resolve_checkpoint(str(folder))

    if is_enough:
        assert re.match(r"cuda:0 \(a GPU\), 2 of 80 GiB free, torch for CUDA ", check_device(examined))
    else:
        with pytest.raises(CheckWarning, match="stop other processes on the GPU"):
            check_device(examined)
