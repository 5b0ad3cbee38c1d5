"""Checkpoints, and transformers as the reference for the encoder."""

from __future__ import annotations

import os
import shutil
import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from alignserve_server.model.align import AlignEncoder, LoadOptions, load_align
from alignserve_server.model.checkpoint import Checkpoint, resolve_checkpoint
from PIL import Image
from torch import nn
from transformers import AlignConfig, AlignModel, AlignProcessor, BertTokenizer
from transformers.image_utils import load_image
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

from tests.model.tiny import SPECIAL_TOKENS, write_tiny_checkpoint

WORDS = ["a", "photo", "of", "the", "cat", "dog", "coffee", "rocket", "##s", ".", ",", "!"]
PHOTOS = Path(__file__).parents[1] / "data" / "photos"

# Threads of a forward spin at barriers, which takes ten times as long on a busy machine.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Reference:
    """transformers' own model and processor (PIL backend), in float32."""

    model: AlignModel
    processor: AlignProcessor

    @classmethod
    @cache
    def load(cls, folder: Path) -> Reference:
        """Loads a checkpoint that no test changes, once."""
        model = AlignModel.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, AlignProcessor.from_pretrained(folder, backend="pil"))

    def pixel_values(self, content: bytes) -> np.ndarray:
        image = load_image(Image.open(BytesIO(content)))
        return self.processor(images=image, return_tensors="np")["pixel_values"][0]

    def input_ids(self, text: str) -> list[int]:
        return self.processor(text=text, truncation=True, padding=False)["input_ids"]

    def forward(self, contents: Iterable[bytes], texts: Iterable[str]):
        """Returns AlignModel's output: normalized embeddings, and logits of each image against each text."""
        return _forward(self, tuple(contents), tuple(texts))


@cache
@torch.inference_mode()
def _forward(reference: Reference, contents: tuple[bytes, ...], texts: tuple[str, ...]):
    images = torch.from_numpy(np.stack([reference.pixel_values(content) for content in contents]))
    tokens = reference.processor(text=list(texts), truncation=True, return_tensors="pt")
    return reference.model(pixel_values=images, **tokens)


@dataclass(frozen=True)
class Pair:
    """An encoder under test and the reference, on the same checkpoint."""

    checkpoint: Checkpoint
    encoder: AlignEncoder
    reference: Reference


def build_random_checkpoint(folder: Path) -> Path:
    """Writes a small random ALIGN with every kind of block of kakaobrain/align-base."""
    letters = [*string.ascii_lowercase, *string.digits]
    vocabulary = [*SPECIAL_TOKENS, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer.from_pretrained(folder, model_max_length=64)
    image_processor = EfficientNetImageProcessorPil(
        size={"height": 346, "width": 346},
        resample=2,
        do_center_crop=True,
        crop_size={"height": 289, "width": 289},
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )
    AlignProcessor(image_processor, tokenizer).save_pretrained(folder)
    _random_model(len(vocabulary)).save_pretrained(folder)
    return folder


def _random_model(vocab_size: int) -> AlignModel:
    torch.manual_seed(0)
    config = AlignConfig(
        projection_dim=80,
        temperature_init_value=0.07,
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
        },
        vision_config={
            "image_size": 289,
            "hidden_dim": 80,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.5,
            "depthwise_padding": [],
        },
    )
    model = AlignModel(config)
    for module in model.vision_model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    _calibrate(model)
    return model


@torch.no_grad()
def _calibrate(model: AlignModel) -> None:
    # Statistics of real activations keep the signal alive through the layers.
    model.train()
    model.vision_model(torch.rand(4, 3, 289, 289) * torch.linspace(0.2, 2, 4).view(4, 1, 1, 1) - 1)
    model.eval()


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_checkpoint(tmp_path_factory.mktemp("random-align"))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder for converted models, shared by the tests and by all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture(scope="session")
def converted(random_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that contains one conversion, that of the random checkpoint."""
    cache = tmp_path_factory.mktemp("converted")
    load_align(resolve_checkpoint(str(random_folder)), LoadOptions(runtime="openvino", cache_dir=cache))
    return cache


@pytest.fixture(scope="session", params=["torch", "openvino"])
def runtime(request: pytest.FixtureRequest) -> Literal["torch", "openvino"]:
    """Each runtime in turn."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return request.param


@pytest.fixture(scope="session", params=["mini", "random"])
def pair(
    request: pytest.FixtureRequest,
    random_folder: Path,
    runtime: Literal["torch", "openvino"],
) -> Pair:
    checkpoint = resolve_checkpoint("mini" if request.param == "mini" else str(random_folder))
    is_converted = (request.param, runtime) == ("random", "openvino")
    cache_dir = request.getfixturevalue("converted" if is_converted else "cache_dir")
    encoder = load_align(checkpoint, LoadOptions(device="cpu", runtime=runtime, cache_dir=cache_dir))
    return Pair(checkpoint, encoder, Reference.load(checkpoint.folder))


@pytest.fixture(scope="session")
def mini() -> Pair:
    checkpoint = resolve_checkpoint()
    return Pair(
        checkpoint,
        load_align(checkpoint, LoadOptions(device="cpu", runtime="torch")),
        Reference.load(checkpoint.folder),
    )


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few kilobytes, the same for all tests."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels run in few programs: the interpreter takes milliseconds for one of any size."""
    pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA on Linux")
    from alignserve_server.model.runtimes.kernels import convolutions, passes

    if not torch.cuda.is_available():
        for module, name, size in (
            (passes, "_ELEMENTS", 1 << 14),
            (passes, "_CHUNK_TILES", 1),
            (convolutions, "_DEPTHWISE_ELEMENTS", 1 << 14),
            (convolutions, "_DEPTHWISE_TILES", 1),
            (convolutions, "_PROGRAMS", 1),
        ):
            monkeypatch.setattr(module, name, size)
