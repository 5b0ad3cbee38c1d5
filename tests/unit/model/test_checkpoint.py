"""Checkpoints are found, validated and fingerprinted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from alignserve_server.model.checkpoint import CheckpointError, open_checkpoint, resolve_checkpoint

MINI = resolve_checkpoint().folder
TRUNCATION = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}


def weights(content: bytes) -> bytes:
    """Returns a safetensors file."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}})
    return len(header).to_bytes(8, "little") + header.encode() + content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a few bytes for weights."""
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MINI / name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights(b"weights"))
    return tmp_path


def fingerprint(folder: Path, runtime: str = "torch", dtype: str = "float32") -> str:
    return open_checkpoint(folder).fingerprint(runtime=runtime, dtype=dtype)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=7))


def test_the_default_is_embedded():
    """Without a name, the checkpoint inside the package is served."""
    checkpoint = resolve_checkpoint()

    assert checkpoint.model_id == "mini"
    assert checkpoint.revision == ""
    assert (checkpoint.folder / "NOTICE").is_file()


def test_a_folder_is_named_after_itself(folder):
    """The id of a local model does not reveal its path."""
    checkpoint = resolve_checkpoint(str(folder))

    assert checkpoint.model_id == folder.name


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "what is this?"])
def test_refuses_names_of_neither_folder_nor_hub_id(name):
    """A mistyped folder is not looked up on the hub."""
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        resolve_checkpoint(name)


def test_an_unreachable_hub_is_explained(monkeypatch):
    """When offline, the error says so and what to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        resolve_checkpoint("alignserve/no-such-checkpoint")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "config.json is missing"),
        ("preprocessor_config.json", "preprocessor_config.json is missing"),
        ("tokenizer.json", "no tokenizer: neither tokenizer.json nor vocab.txt"),
        ("model.safetensors", "lacks weights: model.safetensors"),
    ],
)
def test_a_missing_file_is_named(folder, name, message):
    """The error names each missing file."""
    (folder / name).unlink()

    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_pickled_weights_are_refused(folder):
    """A pickle, which could run code, is not loaded; the error says how to convert it."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"pickle.*save_pretrained"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(folder):
    """Weights in several files must be complete."""
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match="lacks weights: model-00002"):
        open_checkpoint(folder)


def test_another_kind_of_model_is_refused(folder):
    """A CLIP checkpoint is not served as ALIGN."""
    edit(folder / "config.json", model_type="clip")

    with pytest.raises(CheckpointError, match="type 'clip', not 'align'"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_broken_json_is_named(folder, content):
    """A file that is not a JSON object is reported differently from a missing one."""
    (folder / "config.json").write_text(content)

    with pytest.raises(CheckpointError, match=r"config\.json (is empty|is corrupt|is not a JSON object)"):
        open_checkpoint(folder)


def test_the_image_processor_may_be_nested(folder):
    """processor_config.json, as transformers 5 writes it, is read too."""
    expected = open_checkpoint(folder).image_processor
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": expected}))

    assert open_checkpoint(folder).image_processor == expected


def test_the_fingerprint_ignores_place_time_and_layout(folder, tmp_path):
    """A copy with another path, timestamps and white space has the same fingerprint."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (1, 1))
    edit(copy / "config.json", _name_or_path="/home/someone", transformers_version="9")

    assert fingerprint(copy) == fingerprint(folder)
    assert len(fingerprint(folder)) == 32


def test_the_fingerprint_tells_everything_else_apart(folder):
    """Weights, configuration, preprocessing, tokenizer, runtime and data type each change the fingerprint."""
    seen = {fingerprint(folder), fingerprint(folder, runtime="onnx"), fingerprint(folder, dtype="float16")}

    (folder / "model.safetensors").write_bytes(weights(b"Weights"))
    seen.add(fingerprint(folder))
    edit(folder / "config.json", temperature_init_value=0.5)
    seen.add(fingerprint(folder))
    edit(folder / "preprocessor_config.json", resample=2)
    seen.add(fingerprint(folder))
    edit(folder / "tokenizer.json", padding=None, truncation=TRUNCATION)
    seen.add(fingerprint(folder))
    edit(folder / "tokenizer_config.json", model_max_length=32)
    seen.add(fingerprint(folder))
    for name in ("special_tokens_map.json", "added_tokens.json", "tokenizer.4.0.0.json"):
        (folder / name).write_text("{}")
        seen.add(fingerprint(folder))

    assert len(seen) == 11
