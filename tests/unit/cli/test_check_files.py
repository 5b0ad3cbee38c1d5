"""`alignserve-server check` names each fault of a checkpoint, and a start refuses in the same words."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from alignserve_server.cli.check.command import examine_checkpoint
from alignserve_server.cli.check.deployment import Deployment
from alignserve_server.cli.check.report import Finding, Report
from alignserve_server.errors import StartupError
from alignserve_server.model.checkpoint import CheckpointError, resolve_checkpoint
from alignserve_server.observability.logs import configure_logs
from alignserve_server.serving.loading import load_encoder
from alignserve_server.serving.process import exit_code
from alignserve_server.settings import Settings

MINI = resolve_checkpoint().folder
SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 25036052\n"
WORDS = "text_model.embeddings.word_embeddings.weight"
LAST = "vision_model.encoder.blocks.1.projection.project_conv.weight"
TOKENS = json.loads((MINI / "config.json").read_text("utf-8"))["text_config"]["vocab_size"]
SHAPES: dict[str, list[int]] = {
    WORDS: [TOKENS, 1],
    "text_model.embeddings.position_embeddings.weight": [64, 1],
    "text_projection.weight": [512, 1],
    "vision_model.encoder.blocks.0.projection.project_conv.weight": [16, 1, 1, 1],
    LAST: [512, 1, 1, 1],
}

Damage = Callable[[Path], object]


def write_weights(
    folder: Path, shapes: Mapping[str, list[int]] = MappingProxyType({}), temperature: float = 0.035
) -> None:
    """Writes weights of zeros that have the sizes of the embedded checkpoint, except for those given."""
    tensors: dict[str, Any] = {}
    end = 0
    for name, shape in {"temperature": [], **SHAPES, **shapes}.items():
        start, end = end, end + 4 * math.prod(shape)
        tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(tensors).encode()
    values = struct.pack("<f", temperature) + bytes(end - 4)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint, with few weights, to damage."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in SMALL_FILES:
        shutil.copy(MINI / name, copy)
    write_weights(copy)
    return copy


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The embedded checkpoint's prepared form, as links."""
    copy = tmp_path / "prepared"
    shutil.copytree(MINI / "prepared", copy, copy_function=lambda source, to: Path(to).symlink_to(source))
    return copy


def examined(checkpoint: Path) -> list[Finding]:
    """Returns what the checks of a checkpoint find, without loading it."""
    report = Report(is_json=True)
    with ExitStack() as held:
        examine_checkpoint(Deployment(_settings(checkpoint), held), report)
    return report.findings


def refusal(checkpoint: Path) -> str:
    """Returns why a start refuses."""
    with pytest.raises((CheckpointError, StartupError)) as raised:
        load_encoder(_settings(checkpoint))
    return " ".join(str(raised.value).split())


def _settings(checkpoint: Path) -> Settings:
    return Settings(checkpoint=str(checkpoint), device="cpu")


def _edit(name: str, **changes: object) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for path, value in changes.items():
            section, _, field = path.rpartition("__")
            (content[section] if section else content)[field] = value
        (folder / name).write_text(json.dumps(content))

    return damage


def _cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def _filled(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def _linked(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return damage


def _missing(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def _as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _in_parts(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    parts = {"temperature": "model-1.safetensors", WORDS: "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def _changed_in_the_cache(folder: Path) -> None:
    blob = folder.parent / hashlib.sha256(b"the original").hexdigest()
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)


def _special_token_beyond(folder: Path) -> None:
    """Swaps the ids of [CLS] and of the last token, in the vocabulary and where it is added."""
    last_id = TOKENS - 1
    _edit("config.json", text_config__vocab_size=last_id)(folder)
    write_weights(folder, {WORDS: [last_id, 1]})
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    last = next(token for token, index in vocabulary.items() if index == last_id)
    vocabulary[last], vocabulary["[CLS]"] = vocabulary["[CLS]"], last_id
    content["post_processor"] = json.loads(
        json.dumps(content["post_processor"]).replace("[2]", f"[{last_id}]")
    )
    for token in content["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    path.write_text(json.dumps(content))


def _fewer_rows(folder: Path) -> None:
    _edit("config.json", text_config__vocab_size=TOKENS - 10)(folder)
    write_weights(folder, {WORDS: [TOKENS - 10, 1]})


# By the broken part: how to break it, and the subject and the text of the line.
FAULTS: dict[str, tuple[Damage, str, str]] = {
    "config missing": (_missing("config.json"), "checkpoint", "config.json is missing; save_pretrained"),
    "config cut": (_cut("config.json"), "checkpoint", "config.json is corrupt.*download it again"),
    "config is a pointer": (
        _filled("config.json", POINTER),
        "checkpoint",
        "config.json is a Git LFS.*git lfs",
    ),
    "another model": (_edit("config.json", model_type="clip"), "checkpoint", "type 'clip', not 'align'"),
    "weights missing": (_missing("model.safetensors"), "checkpoint", "lacks weights: model.safetensors"),
    "weights cut": (_cut("model.safetensors"), "checkpoint", "is truncated: it has .*download it again"),
    "weights are a pointer": (
        _filled("model.safetensors", POINTER),
        "checkpoint",
        "model.safetensors is a Git LFS pointer.*git lfs pull",
    ),
    "weights empty": (_filled("model.safetensors", b""), "checkpoint", "model.safetensors is empty; copy"),
    "weights unreadable": (
        _linked("model.safetensors", "model.safetensors"),
        "checkpoint",
        "model.safetensors cannot be read: Too many levels",
    ),
    "weights are a dangling link": (
        _linked("model.safetensors", "../blobs/1"),
        "checkpoint",
        "is a link to ../blobs/1, which is missing; copy the target",
    ),
    "weights in a pickle": (_as_pickle, "checkpoint", "in a pickle.*convert it once"),
    "a part is missing": (_in_parts, "checkpoint", "lacks weights: model-2.safetensors"),
    "weights changed since the download": (
        _changed_in_the_cache,
        "checkpoint",
        "has changed since it was downloaded.*download it again",
    ),
    "tokenizer missing": (
        _missing("tokenizer.json", "vocab.txt"),
        "checkpoint",
        "has no tokenizer: neither tokenizer.json nor vocab.txt",
    ),
    "tokenizer cut": (_cut("tokenizer.json"), "checkpoint", "tokenizer.json is corrupt"),
    "tokenizer of another kind": (
        _filled("tokenizer.json", b"{}"),
        "checkpoint",
        "tokenizer.json is not a tokenizer.*save it again",
    ),
    "image processor missing": (
        _missing("preprocessor_config.json"),
        "checkpoint",
        "preprocessor_config.json is missing",
    ),
    "an unsupported field": (
        _edit("config.json", vision_config__num_channels=1),
        "config",
        "num_channels is 1, which is not supported.*supported: 3",
    ),
    "rows of another vocabulary": (
        _edit("config.json", text_config__vocab_size=30522),
        "config",
        f"vocab_size is 30522, but the weight .* has {TOKENS} rows; the file belongs to other weights",
    ),
    "positions of another model": (
        _edit("config.json", text_config__max_position_embeddings=512),
        "config",
        "max_position_embeddings is 512, but the weight .* has 64 rows",
    ),
    "dimension of another model": (
        _edit("config.json", projection_dim=640),
        "config",
        "projection_dim is 640, but the weight .* has 512 rows",
    ),
    "special token without a row": (
        _special_token_beyond,
        "tokenizer",
        rf"the token '\[CLS\]' has an id beyond the {TOKENS - 1} rows .* belongs to another model",
    ),
    "no length": (
        _edit("tokenizer_config.json", model_max_length=0),
        "tokenizer",
        "model_max_length is 0; it must be a number of tokens above 0",
    ),
    "image processor of another model": (
        _edit("preprocessor_config.json", image_processor_type="CLIPImageProcessor"),
        "image_processor",
        "'CLIPImageProcessor' is not supported; supported is EfficientNetImageProcessor",
    ),
    "images of any size": (
        _edit("preprocessor_config.json", do_center_crop=False, size={"shortest_edge": 256}),
        "image_processor",
        "gives images of different sizes.*needs do_center_crop",
    ),
    "division by zero": (
        _edit("preprocessor_config.json", image_std=[0, 0, 0]),
        "image_processor",
        "image_std or rescale_factor is missing, zero or too large",
    ),
    "an unknown filter": (
        _edit("preprocessor_config.json", resample=99),
        "image_processor",
        "99 is not a valid Resampling; save it again",
    ),
    "modalities of other dimensions": (
        lambda folder: write_weights(folder, {LAST: [640, 1, 1, 1]}),
        "dimensions",
        "images have 640 dimensions, but texts 512; projection_dim must equal",
    ),
    **{
        f"temperature {value}": (
            partial(write_weights, temperature=value),
            "temperature",
            "the weight temperature is .*must be above 0",
        )
        for value in (0.0, -0.1, math.nan, math.inf, 1e-40)
    },
}

DOUBTS: dict[str, tuple[Damage, str, str]] = {
    "a larger vocabulary": (
        _fewer_rows,
        "tokenizer",
        rf"{TOKENS} tokens, {TOKENS - 10} rows .*10 tokens have no embedding.*use the tokenizer that belongs",
    ),
    "short texts": (
        _edit("tokenizer_config.json", model_max_length=16),
        "tokenizer",
        "up to 16 tokens, fewer than the 64 of AlignProcessor",
    ),
    "images of another size": (
        _edit("preprocessor_config.json", crop_size={"height": 96, "width": 96}),
        "image_processor",
        "96 x 96.*image_size in config.json is 224.*compare crop_size",
    ),
    "pixels that are not rescaled": (
        _edit("preprocessor_config.json", do_rescale=False),
        "image_processor",
        "trained on about -1 to 1; compare rescale_factor, image_mean",
    ),
    "a hot temperature": (
        lambda folder: write_weights(folder, temperature=7.0),
        "temperature",
        "scores would be almost equal; .*compare the weight temperature",
    ),
    "a cold temperature": (
        lambda folder: write_weights(folder, temperature=1e-5),
        "temperature",
        "scores would be all or nothing",
    ),
    "a damaged prepared form": (
        lambda folder: [(folder / "prepared").mkdir(), (folder / "prepared/image.xml").touch()],
        "prepared",
        "is damaged: .*digests.json is missing; prepare it again.*until then a start converts",
    ),
    "the prepared form of other files": (
        lambda folder: (folder / "prepared").symlink_to(MINI / "prepared"),
        "prepared",
        "was prepared from other files.*copy both again, or delete",
    ),
}


def test_a_sound_checkpoint_has_no_fault(folder: Path) -> None:
    """Every line is ok, and each subject has one."""
    findings = examined(folder)

    subjects = ["checkpoint", "config", "tokenizer", "image_processor", "dimensions", "temperature"]
    assert [finding.subject for finding in findings] == [*subjects, "device", "runtime"]
    assert {finding.verdict for finding in findings} == {"ok"}


def test_the_embedded_checkpoint_has_no_fault() -> None:
    """This includes its prepared form, whose files match their digests."""
    findings = {finding.subject: finding for finding in examined(MINI)}

    assert {finding.verdict for finding in findings.values()} == {"ok"}
    assert "every digest matches" in findings["prepared"].text


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_a_start_refuses_in_the_same_words(folder: Path, fault: str) -> None:
    """The line says which file it is and what to do; nothing is loaded for it."""
    damage, subject, message = FAULTS[fault]
    damage(folder)

    failed = [finding for finding in examined(folder) if finding.verdict == "FAIL"]

    (found,) = [finding for finding in failed if finding.subject == subject]
    assert _matches(message, found.text)
    assert refusal(folder) in [finding.text for finding in failed]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refused_start_logs_one_line(folder: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    """It exits with 1, and its reason is a line of the check; there is no traceback."""
    FAULTS[fault][0](folder)
    texts = [finding.text for finding in examined(folder) if finding.verdict == "FAIL"]
    configure_logs("info", "json")

    async def serving() -> int:
        load_encoder(_settings(folder))
        return 0

    code = exit_code(serving)

    for handler in logging.getLogger().handlers:
        handler.flush()
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert code == 1
    assert set(line) == {"event", "level", "timestamp", "reason"}
    assert line["event"] == "startup_failed"
    assert " ".join(line["reason"].split()) in texts


@pytest.mark.parametrize("doubt", DOUBTS)
def test_what_a_start_accepts_is_only_a_warning(folder: Path, doubt: str) -> None:
    """The line says what is unusual and what to compare."""
    damage, subject, message = DOUBTS[doubt]
    damage(folder)

    findings = examined(folder)

    (found,) = [finding for finding in findings if finding.verdict != "ok"]
    assert (found.verdict, found.subject) == ("warn", subject)
    assert _matches(message, found.text)


def test_every_damaged_kind_of_file_has_a_line(folder: Path) -> None:
    """A start stops at the first one."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (folder / name).write_bytes(POINTER)

    failed = [finding.text for finding in examined(folder) if finding.subject == "checkpoint"]

    assert [Path(text.split()[0]).name for text in failed] == [
        *("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")
    ]
    assert refusal(folder) == failed[0]


PREPARED_FAULTS: dict[str, tuple[Damage, str]] = {
    "missing": (_missing("image.xml"), "image.xml is missing"),
    "changed": (lambda folder: _replace(folder / "reference.json", b"{}"), "does not match its digest"),
    "cut": (lambda folder: _replace(folder / "reference.npz", b"PK"), "does not match its digest"),
    "a pointer": (lambda folder: _replace(folder / "text.bin", POINTER), "text.bin is a Git LFS pointer"),
    "no digests": (_missing("digests.json"), "digests.json is missing"),
    "a dangling link": (_linked("text.bin", "nowhere"), "text.bin is a link to nowhere"),
}


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_a_sound_prepared_checkpoint_has_no_fault(prepared: Path) -> None:
    """It has a line for the reference that it includes."""
    findings = examined(prepared)

    assert [finding.subject for finding in findings] == ["checkpoint", "reference", "device", "runtime"]
    assert {finding.verdict for finding in findings} == {"ok"}


@pytest.mark.parametrize("fault", PREPARED_FAULTS)
def test_a_fault_of_a_prepared_checkpoint_is_named(prepared: Path, fault: str) -> None:
    """Every file is compared with its digest."""
    damage, message = PREPARED_FAULTS[fault]
    damage(prepared)

    failed = [finding for finding in examined(prepared) if finding.verdict == "FAIL"]

    assert failed[0].subject == "checkpoint"
    assert _matches(f"{message}.*; prepare it again", failed[0].text)
    assert refusal(prepared) == failed[0].text


def test_a_missing_checkpoint_is_a_fault(tmp_path: Path) -> None:
    """The words are those of a start."""
    (found, *_) = examined(tmp_path / "nowhere")

    assert found.verdict == "FAIL"
    assert refusal(tmp_path / "nowhere") == found.text


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None
