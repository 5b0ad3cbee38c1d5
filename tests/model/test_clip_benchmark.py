"""`deploy/clip_benchmark`: CLIP_benchmark's own code measures a server's model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from alignserve import Client
from alignserve.cli import main
from alignserve.testing import FakeServer
from PIL import Image

from deploy.clip_benchmark.run import ServedModel, Texts, load
from tests.processes import ROOT, server_process

PHOTOS = ROOT / "tests/data/photos"
NAMES = ("astronaut", "cat", "coffee", "rocket", "dog", "tree")


def test_loader_returns_what_clip_benchmark_takes() -> None:
    """Model, transform and tokenizer; pictures are embedded in their own size, and texts as they are."""
    pictures = [Image.new("RGB", (30 + number, 20), (number, 0, 0)) for number in range(3)]
    with FakeServer(embedding_dimension=8) as server, Client(server.target) as client:
        model, transform, tokenizer = load(model_name="align", pretrained=server.target, cache_dir=None)
        batch = torch.stack([transform(picture) for picture in pictures])
        images = model.eval().encode_image(batch)
        texts = model.encode_text(tokenizer(["a cat", "a dog"]).to("cpu"))

        assert images.shape == (3, 8)
        np.testing.assert_array_equal(images.numpy(), client.embed_image(pictures))
        np.testing.assert_array_equal(texts.numpy(), client.embed_text(["a cat", "a dog"]))
        assert model.logit_scale.exp().item() == pytest.approx(1 / client.model_info().temperature)


def test_processes_of_a_data_loader_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They could not hand their pictures over; the message says what to do."""
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: "a process of a loader")
    with FakeServer(embedding_dimension=8) as server, Client(server.target) as client:
        model = ServedModel(client)

        with pytest.raises(RuntimeError, match="run with --num_workers 0"):
            model.transform(Image.new("RGB", (8, 8)))


def test_texts_stay_texts() -> None:
    """The server has the tokenizer."""
    assert list(Texts(["a cat"]).to("cuda").texts) == ["a cat"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_figures_are_those_of_evaluate(tmp_path: Path) -> None:
    """CLIP_benchmark and `alignserve evaluate` agree on a set in CLIP_benchmark's form."""
    if find_spec("clip_benchmark") is None:
        pytest.skip("no clip_benchmark; deploy/clip_benchmark/README.md says how to install it")
    source = _written_set(tmp_path / "photos")
    with server_process() as server:
        command = [sys.executable, str(ROOT / "deploy/clip_benchmark/run.py"), "eval", "--quiet"]
        places = [
            "--dataset",
            "wds/photos",
            "--dataset_root",
            str(source),
            "--output",
            str(tmp_path / "theirs"),
        ]
        subprocess.run([*command, "--pretrained", server.address, *places], check=True)
        code = main(["--server", server.address, "evaluate", str(source), "--to", str(tmp_path / "ours")])

    assert code == 0
    theirs = json.loads((tmp_path / "theirs").read_text())["metrics"]
    ours = json.loads((tmp_path / "ours/report.json").read_text())["classification"]
    assert theirs["acc1"] == pytest.approx(ours["top_1"])
    assert theirs["acc5"] == pytest.approx(ours["top_5"])
    assert theirs["mean_per_class_recall"] == pytest.approx(ours["mean_per_class"])


def _written_set(root: Path) -> Path:
    """Writes the photos, each turned in six ways, as CLIP_benchmark writes sets."""
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n{c}\n")
    (root / "test/nshards.txt").write_text("1\n")
    with tarfile.open(root / "test/0.tar", "w") as tar:
        for number, name in enumerate(NAMES[:4]):
            photo = Image.open(PHOTOS / f"{name}.jpg").convert("RGB")
            for turn in range(6):
                content = io.BytesIO()
                photo.rotate(25 * turn).save(content, "PNG")
                _add(tar, f"s{number}{turn}.png", content.getvalue())
                _add(tar, f"s{number}{turn}.cls", str(number).encode())
    return root


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
