"""Damaged or misnamed files of a checkpoint give an error that names the file."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from alignserve_server.model.checkpoint import CheckpointError, open_checkpoint, resolve_checkpoint
from alignserve_server.model.configuration import check_configuration
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.serving.loading import load_encoder
from alignserve_server.serving.process import exit_code
from alignserve_server.settings import Settings

MINI = resolve_checkpoint().folder
JSON_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
FILES = (*JSON_FILES, "vocab.txt", "model.safetensors")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 25036052\n"

Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint, with few weights, to damage."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in FILES[:-1]:
        shutil.copy(MINI / name, copy)
    tensor = {"dtype": "F32", "shape": [2, 500], "data_offsets": [0, 4000]}
    (copy / FILES[-1]).write_bytes(_header({"a": tensor}) + bytes(4000))
    return copy


def opened(folder: Path) -> None:
    """Performs the checks that startup makes before it loads a runtime."""
    checkpoint = resolve_checkpoint(str(folder))
    check_configuration(checkpoint.config)
    ImagePreprocessor(checkpoint.image_processor, ImageDecoder(max_bytes=10 << 20, max_pixels=25_000_000))


def _replaced_by(make: Damage) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _listening(path: Path) -> None:
    os.chdir(path.parent)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "pointer": (lambda path: path.write_bytes(POINTER), "Git LFS pointer.*git lfs pull"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "folder": (_replaced_by(Path.mkdir), "is a folder, not a file"),
    "pipe": (_replaced_by(os.mkfifo), "is a named pipe, not a file"),
    "socket": (_replaced_by(_listening), "is a socket, not a file"),
    "device": (_replaced_by(lambda path: path.symlink_to("/dev/zero")), "is a device, not a file"),
    "dangling link": (_replaced_by(lambda path: path.symlink_to("../blobs/1")), "is a link to ../blobs/1"),
    "circular link": (_replaced_by(lambda path: path.symlink_to(path.name)), "cannot be read"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe" + bytes(range(256)) * 9), "UTF-8|safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_what_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    """The file is checked before anything loads it, and without blocking."""
    monkeypatch.chdir(folder)  # and back
    change, message = DAMAGES[damage]
    change(folder / name)

    with pytest.raises(CheckpointError, match=message) as raised:
        opened(folder)

    assert str(folder / name) in str(raised.value)


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'\xef\xbb\xbf{"a": 1}',
        b"<!DOCTYPE html><html>Sign in</html>",
    ],
    ids=lambda content: content[:12],
)
def test_invalid_json_is_named(folder: Path, name: str, content: bytes) -> None:
    """Files that only Python accepts as JSON, or whose numbers overflow, are refused."""
    (folder / name).write_bytes(content)

    with pytest.raises(CheckpointError, match=name):
        opened(folder)


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_cut_off_json_is_named(folder: Path, name: str, share: float) -> None:
    """A truncated file, as from an interrupted copy, is refused."""
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])

    with pytest.raises(CheckpointError, match=name):
        opened(folder)


def _header(tensors: object) -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header


WEIGHTS = {
    "half": (lambda content: content[: len(content) // 2], "is truncated: it has .* of .* bytes"),
    "one byte": (lambda content: content[:-1], "is truncated"),
    "in the header": (lambda content: content[:30], "is truncated"),
    "in the length": (lambda content: content[:5], "is not a safetensors file"),
    "too long": (lambda content: content + b"x", "1 more than its header says"),
    "zeros": (lambda content: bytes(len(content)), "is not a safetensors file"),
    "a pickle": (lambda _: b"PK\x03\x04" + bytes(4000), "is not a safetensors file"),
    "a page": (lambda _: b"<!DOCTYPE html><html>Sign in</html>", "is not a safetensors file"),
    "no weights": (lambda _: _header({"__metadata__": {}}), "has no weights"),
    "a list": (lambda _: _header([1, 2]), "is not a safetensors file"),
    "no offsets": (lambda _: _header({"a": {"dtype": "F32", "shape": [1]}}), "invalid safetensors header"),
    "offsets of text": (
        lambda _: _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}),
        "invalid safetensors header",
    ),
    "another shape": (
        lambda _: _header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + bytes(4),
        "its shape requires 8",
    ),
    "backwards": (
        lambda _: _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + bytes(4),
        "invalid safetensors header",
    ),
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_damaged_weights_are_named(folder: Path, damage: str) -> None:
    """Weights are checked by header and file size, before gigabytes are loaded."""
    change, message = WEIGHTS[damage]
    path = folder / "model.safetensors"
    path.write_bytes(change((MINI / path.name).read_bytes()))

    with pytest.raises(CheckpointError, match=message) as raised:
        opened(folder)

    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a\0b.safetensors", "", ".", "sub/a.safetensors", 7, None]
)
def test_an_index_names_only_files_in_its_folder(folder: Path, name: object) -> None:
    """Paths outside the folder and invalid names are refused."""
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))

    with pytest.raises(CheckpointError, match="not a file in the same folder") as raised:
        opened(folder)

    assert str(index) in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_size": {"height": 0, "width": 224}},
        {"crop_size": {"height": 224, "width": -224}},
        {"crop_size": 10**9},
        {"crop_size": {"height": "tall", "width": 1}},
        {"crop_size": []},
        {"crop_size": None},
        {"do_center_crop": False, "size": {"height": 0, "width": 0}},
        {"do_center_crop": False, "size": {"height": 10**30, "width": 1}},
        {"size": {"shortest_edge": 0}},
        {"size": {"shortest_edge": -5}},
        {"size": {"shortest_edge": 1e300}},
        {"size": {"max_height": 0, "max_width": 3}},
        {"size": "large"},
        {"size": {}},
        {"do_center_crop": False, "do_resize": False},
        {"resample": 99},
        {"resample": []},
        {"image_mean": [0.5]},
        {"image_mean": "grey", "include_top": True},
        {"image_std": [0, 0, 0]},
        {"image_std": {"a": 1}},
        {"rescale_factor": None},
        {"rescale_factor": 1e308},
        {"image_processor_type": "CLIPImageProcessor"},
        {"image_processor_type": ["EfficientNetImageProcessor"]},
    ],
    ids=str,
)
def test_a_broken_image_processor_is_named(folder: Path, changes: dict[str, object]) -> None:
    """Impossible sizes and values of wrong types are refused."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    try:
        opened(folder)
    except CheckpointError as error:
        assert "preprocessor_config.json" in str(error)  # noqa: PT017 — some are served, as include_top is off
    else:
        assert "image_mean" in changes


@pytest.mark.parametrize("value", [1, 0, 4, "3", None, [3]])
def test_images_have_three_channels(folder: Path, value: object) -> None:
    """Other numbers of channels are refused with the field's name."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["num_channels"] = value
    path.write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=r"config\.json: vision_config\.num_channels"):
        opened(folder)


def is_private(folder: Path) -> bool:
    return not folder.stat().st_mode & stat.S_IXOTH


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_may_not_be_read_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    """A file of another user, as after a copy by root, is refused."""
    (folder / name).chmod(0)
    if os.geteuid() == 0:  # which can read everything
        for path in takewhile(is_private, (tmp_path, *tmp_path.parents)):
            path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(CheckpointError, match=r"cannot be read: Permission denied") as raised:
            open_checkpoint(folder)
    finally:
        os.seteuid(os.getuid())

    assert str(folder / name) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (str(MINI / "config.json"), "is a file; give the folder"),
        ("~nobody-of-that-name/model", "cannot be found"),
        ("a" * 5000, "cannot be found"),
        ("a\0b", "neither a folder nor a hub id|cannot be found"),
    ],
)
def test_an_invalid_folder_name_is_explained(name: str, message: str) -> None:
    """Any error of the operating system becomes a CheckpointError."""
    with pytest.raises(CheckpointError, match=message):
        resolve_checkpoint(name)


@pytest.mark.parametrize("runtime", ["auto", "torch"])
def test_the_log_of_a_refused_start_has_no_traceback(
    folder: Path, capsys: pytest.CaptureFixture[str], runtime: str
) -> None:
    """The command prints one line with the reason and exits with 1."""
    (folder / "model.safetensors").write_bytes(POINTER)

    async def serving() -> int:
        load_encoder(Settings(checkpoint=str(folder), runtime=runtime))
        return 0

    code = exit_code(serving)

    output = capsys.readouterr()
    assert code == 1
    assert "git lfs pull" in output.out + output.err
    assert "Traceback" not in output.out + output.err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A hub that always refuses; the yielded function sets the refusal."""
    refusal: dict[str, Any] = {"status": 500, "headers": {}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(refusal["status"])
            for name, value in refusal["headers"].items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 — http.server's name

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    yield lambda status, **headers: refusal.update(
        status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {"X_Error_Message": "Invalid credentials in Authorization header"}, "HTTP 401.*HF_TOKEN"),
        (401, {"X_Error_Code": "RepoNotFound"}, "on the hub, or it is private.*HTTP 401.*HF_TOKEN"),
        (403, {}, "HTTP 403.*HF_TOKEN"),
        (403, {"X_Error_Code": "GatedRepo"}, "gated; request access"),
        (404, {"X_Error_Code": "RepoNotFound"}, "check the name"),
        (500, {}, "the hub answers HTTP 500"),
    ],
)
def test_a_refusal_of_the_hub_differs_from_a_missing_network(
    hub: Callable[..., None], status: int, headers: dict[str, str], message: str
) -> None:
    """A rejected token and a missing network have different errors."""
    hub(status, **headers)

    with pytest.raises(CheckpointError, match=message) as raised:
        resolve_checkpoint("alignserve/no-such-checkpoint")

    assert "cannot be reached" not in str(raised.value)
