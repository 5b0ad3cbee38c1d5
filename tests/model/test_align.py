"""Loading refuses checkpoints that would give wrong vectors, and forwards are independent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.checkpoint import CheckpointError, resolve_checkpoint
from alignserve_server.model.encoder import OutOfDeviceMemory
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.model


@pytest.fixture
def folder(random_folder: Path, tmp_path: Path) -> Path:
    """A copy of the random checkpoint that a test may damage."""
    return shutil.copytree(random_folder, tmp_path / "copy")


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_info_says_what_is_served(pair, runtime):
    """The model's description comes from its checkpoint."""
    info = pair.encoder.info

    assert info.temperature == pair.reference.model.temperature.item()
    assert info.embedding_dimension == pair.reference.model.config.projection_dim
    assert (info.runtime, info.dtype, info.device, info.max_text_tokens) == (runtime, "float32", "cpu", 64)
    assert info.fingerprint == pair.checkpoint.fingerprint(runtime=runtime, dtype="float32")
    assert info.min_cosine_similarity > 0.99999
    assert pair.encoder.device_memory_bytes > 100_000


@pytest.mark.long
def test_loading_prints_nothing():
    """transformers' progress bars and notices stay out of the server's output."""
    program = (
        "from alignserve_server.model.align import LoadOptions, load_align\n"
        "from alignserve_server.model.checkpoint import resolve_checkpoint\n"
        "load_align(resolve_checkpoint(), LoadOptions(device='cpu', runtime='torch'))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("", "")


def test_a_checkpoint_without_the_text_pooler_is_complete(folder):
    """The text pooler is not used, so its weights may be missing."""
    change_weights(
        folder, lambda weights: [weights.pop(name) for name in list(weights) if "text_model.pooler" in name]
    )

    encoder = load_align(resolve_checkpoint(str(folder)), LoadOptions(device="cpu", runtime="torch"))

    assert np.isfinite(encoder.encode_texts([encoder.tokenize("cat", truncate=False).token_ids])).all()


@pytest.mark.parametrize(
    "name", ["temperature", "text_projection.bias", "vision_model.embeddings.convolution.weight"]
)
def test_a_missing_weight_is_an_error(folder, name):
    """A checkpoint with missing weights, which transformers would initialize randomly, is refused."""
    change_weights(folder, lambda weights: weights.pop(name))

    with pytest.raises(CheckpointError, match=f"lacks 1 weights, such as {name}"):
        load_align(resolve_checkpoint(str(folder)), LoadOptions(device="cpu", runtime="torch"))


def test_a_weight_of_another_shape_is_an_error(folder):
    """A configuration that does not match the weights is refused."""
    change_config(folder, projection_dim=64)

    with pytest.raises(CheckpointError, match=r"projection_dim is 64, but .* has 80 rows"):
        load_align(resolve_checkpoint(str(folder)), LoadOptions(device="cpu", runtime="torch"))


def test_modalities_of_different_dimensions_are_an_error(folder):
    """Modalities with different dimensions are refused at startup."""
    change_config(folder, projection_dim=64)
    change_weights(
        folder,
        lambda weights: weights.update(
            {
                "text_projection.weight": torch.zeros(64, 48),
                "text_projection.bias": torch.zeros(64),
            }
        ),
    )

    with pytest.raises(CheckpointError, match="images have 80 dimensions, but texts 64"):
        load_align(resolve_checkpoint(str(folder)), LoadOptions(device="cpu", runtime="torch"))


def test_a_checkpoint_with_only_vocab_txt_tokenizes_alike(random_folder, folder):
    """An old checkpoint, which has no tokenizer.json, gives the same tokens."""
    whole = load_align(resolve_checkpoint(str(random_folder)), LoadOptions(device="cpu", runtime="torch"))
    (folder / "tokenizer.json").unlink()

    encoder = load_align(resolve_checkpoint(str(folder)), LoadOptions(device="cpu", runtime="torch"))

    text = "A photo of the rockets, " * 20
    assert encoder.tokenize(text, truncate=True) == whole.tokenize(text, truncate=True)


@pytest.mark.parametrize(
    ("device", "message"), [("tpu", "not one of auto, cpu, cuda"), ("cuda:99", "does not exist")]
)
def test_an_unknown_device_is_an_error(device, message):
    """A missing device is reported at startup."""
    with pytest.raises(ValueError, match=message):
        load_align(resolve_checkpoint(), LoadOptions(device=device))


def test_lanes_run_at_once(mini, photos):
    """Concurrent forwards on two lanes give the same results as on one."""
    encoder = mini.encoder
    images = [encoder.preprocess_image(photo) for photo in photos.values()]
    texts = [
        encoder.tokenize(text, truncate=False).token_ids for text in ("a cat", "a photo of a dog", "rocket")
    ]
    expected = encoder.encode_images(images), encoder.encode_texts(texts)

    with ThreadPoolExecutor(2, initializer=encoder.enter_lane) as lanes:
        results = [
            (lanes.submit(encoder.encode_images, images), lanes.submit(encoder.encode_texts, texts))
            for _ in range(6)
        ]
        actual = [(image.result(), text.result()) for image, text in results]

    for image_embeds, text_embeds in actual:
        np.testing.assert_allclose(image_embeds, expected[0], rtol=0, atol=1e-4)
        np.testing.assert_allclose(text_embeds, expected[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("threads_per_lane", "expected"), [(None, 1), (3, 3)])
def test_a_lane_has_one_thread_or_as_many_as_it_is_told(mini, threads_per_lane, expected):
    """Lanes share the cores instead of each taking them all."""
    encoder = load_align(
        mini.checkpoint, LoadOptions(device="cpu", runtime="torch", threads_per_lane=threads_per_lane)
    )

    with ThreadPoolExecutor(1, initializer=encoder.enter_lane) as lane:
        threads = lane.submit(torch.get_num_threads).result()

    assert threads == expected


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["default", "count", "policy"],
)
def test_threads_do_not_wait_spinning_for_long(chosen, spins):
    """Importing the model limits OpenMP's spinning, unless the operator has chosen otherwise."""
    program = "import os, alignserve_server.model; print(os.environ.get('GOMP_SPINCOUNT'))"
    others = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=others | chosen
    )

    assert done.stdout.strip() == spins


def test_too_large_a_batch_is_out_of_memory(mini):
    """A failed allocation raises OutOfDeviceMemory, and the encoder keeps working."""
    pixels = np.zeros((224, 224, 3), np.uint8)
    batch = [np.broadcast_to(np.uint8(0), (1 << 31, 1 << 29, 3))] * 2  # more than the address space

    with pytest.raises(OutOfDeviceMemory):
        mini.encoder.encode_images(batch)

    assert np.isfinite(mini.encoder.encode_images([pixels])).all()
