"""Forged prepared folders, whose digests match, are still refused by name."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from alignserve_server.cli import prepare as prepare_cli
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.checkpoint import CheckpointError, resolve_checkpoint
from alignserve_server.model.prepared import DIGESTS, SHIPPED, open_prepared, resolve
from alignserve_server.model.runtimes.calibration import CalibrationImages

pytestmark = pytest.mark.model

READY = resolve_checkpoint().folder / SHIPPED

Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint's prepared form that a test may damage."""
    return shutil.copytree(READY, tmp_path / "copy")


def sign(folder: Path) -> None:
    """Writes matching digests."""
    names = [path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS]
    digests = {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in names}
    (folder / DIGESTS).write_text(json.dumps(digests))


def facts(name: str, **changes: object) -> Damage:
    """Changes facts; None removes one."""

    def damage(folder: Path) -> None:
        changed = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: it for key, it in changed.items() if it is not None}))

    return damage


def arrays(**changes: object) -> Damage:
    def damage(folder: Path) -> None:
        np.savez(folder / "reference.npz", **{**np.load(READY / "reference.npz"), **changes})

    return damage


def content(name: str, written: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(written)


def other_network(name: str, other: str) -> Damage:
    def damage(folder: Path) -> None:
        for suffix in (".xml", ".bin"):
            shutil.copy(READY / f"{other}{suffix}", folder / f"{name}{suffix}")

    return damage


def unpacks_to_terabytes(folder: Path) -> None:
    """An array whose header promises more data than exists."""
    with zipfile.ZipFile(folder / "reference.npz", "w") as archive:
        for name in ("pixel_values", "embeddings"):
            with archive.open(f"{name}.npy", "w") as file:
                shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 2)}
                np.lib.format.write_array_header_1_0(file, shape)


def zip_bomb(folder: Path) -> None:
    """An archive whose directory announces more than a gigabyte."""
    with zipfile.ZipFile(folder / "reference.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pixel_values.npy", bytes(1 << 20))
        archive.getinfo("pixel_values.npy").file_size = 1040 << 20


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no name": (facts("prepared.json", model_id=""), "prepared.json"),
    "a number for a name": (facts("prepared.json", model_id=5), "prepared.json"),
    "no image processor": (facts("prepared.json", image_processor=[]), "prepared.json"),
    "no fingerprints": (facts("prepared.json", fingerprints={}), "prepared.json"),
    "fingerprints without types": (facts("prepared.json", fingerprints="x"), "prepared.json"),
    "fingerprints of no type": (facts("prepared.json", fingerprints={"f8": "x"}), "prepared.json"),
    "facts of tomorrow": (facts("prepared.json", later=1), "prepared.json"),
    "no tokenizer": (facts("reference.json", tokenizer=None), "reference.json"),
    "a broken tokenizer": (facts("reference.json", tokenizer="{}"), "reference.json"),
    "no tokens allowed": (facts("reference.json", max_text_tokens=-1), "reference.json"),
    "cut in the middle": (facts("reference.json", truncation_side="middle"), "reference.json"),
    "tokens of nothing": (facts("reference.json", input_ids={}), "reference.json"),
    "texts without tokens": (facts("reference.json", embedded_texts=["other"]), "reference.json"),
    "an endless temperature": (content("reference.json", b'{"temperature": NaN}'), "reference.json"),
    "an image elsewhere": (facts("reference.json", images=["../../../etc/passwd"]), "reference.json"),
    "deep JSON": (content("reference.json", b"[" * 200_000), "reference.json"),
    "pickles": (arrays(embeddings=np.array([object()])), "reference.npz"),
    "flat arrays": (arrays(embeddings=np.zeros(3, np.float32)), "reference.json"),
    "arrays of words": (arrays(embeddings=np.array([["a"]])), "reference.json"),
    "few pixels": (arrays(pixel_values=np.zeros((2, 3, 4, 4), np.float32)), "reference.json"),
    "no archive": (content("reference.npz", b"hello"), "reference.npz"),
    "terabytes": (unpacks_to_terabytes, "reference.npz"),
    "a zip bomb": (zip_bomb, "reference.npz"),
    "text for image": (other_network("image", "text"), "openvino"),
    "image for text": (other_network("text", "image"), "openvino"),
    "a web page": (content("image.xml", b"<html/>"), "image.xml"),
    "half a network": (content("image.xml", b"<?xml version='1.0'?><net"), "the networks"),
    "no weights": (content("text.bin", b"\0"), "the networks"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_was_made_up_is_refused(damage, folder):
    """Invalid content with matching digests gives a CheckpointError that says what is wrong."""
    change, named = DAMAGES[damage]
    change(folder)
    sign(folder)

    with pytest.raises(CheckpointError, match=named):
        load_align(resolve(str(folder)))


@pytest.mark.parametrize("name", ["../../secret", "/proc/kcore", "/dev/zero"])
def test_digests_of_other_folders_are_not_computed(name, folder):
    """Files outside the folder, which may be endless or private, are never read."""
    digests = json.loads((folder / DIGESTS).read_text())
    (folder / DIGESTS).write_text(json.dumps({**digests, name: "00"}))

    with pytest.raises(CheckpointError, match="outside the folder"):
        open_prepared(folder)


@pytest.mark.parametrize("name", ["image.bin", "text.bin", "reference.json", "reference.npz"])
def test_every_file_that_serving_reads_needs_a_digest(name, folder):
    """A file without a digest is refused, since damage would crash OpenVINO or numpy."""
    digests = json.loads((folder / DIGESTS).read_text())
    del digests[name]
    (folder / DIGESTS).write_text(json.dumps(digests))

    with pytest.raises(CheckpointError, match=name):
        open_prepared(folder)


def test_a_link_is_filled_and_not_replaced(tmp_path):
    """If the folder is a link, the target is prepared, such as on a larger disk."""
    link = tmp_path / "link"
    (tmp_path / "disk").mkdir()
    link.symlink_to("disk")

    assert prepare_cli.run(["--to", str(link)]) == 0

    assert link.is_symlink()
    open_prepared(tmp_path / "disk")


def test_a_folder_in_a_read_only_parent_is_filled(tmp_path, monkeypatch):
    """Preparing works with write permission for only the folder itself, as in a container."""
    place = tmp_path / "models" / "align"
    place.mkdir(parents=True)
    monkeypatch.setattr(
        os, "access", lambda path, *_: Path(path) != place.parent
    )  # since root has every permission
    inode = place.stat().st_ino

    assert prepare_cli.run(["--to", str(place)]) == 0

    assert place.stat().st_ino == inode
    assert [path.name for path in place.parent.iterdir()] == ["align"]
    open_prepared(place)


def test_a_copy_has_only_the_checkpoints_files(folder):
    """Only the checkpoint's files are copied, even into a subfolder of the source."""
    (folder / "notes.txt").write_text("mine")

    assert prepare_cli.run(["--checkpoint", str(folder), "--to", str(folder / "inside")]) == 0

    names = {path.relative_to(folder / "inside") for path in (folder / "inside").rglob("*")}
    assert names == {path.relative_to(READY) for path in READY.rglob("*")}


@pytest.mark.long
def test_many_prepare_the_same_folder_at_once(tmp_path):
    """Concurrent preparations all succeed: later ones find the same result."""
    codes: list[int] = []
    runs = [
        Thread(target=lambda: codes.append(prepare_cli.run(["--to", str(tmp_path / "to")]))) for _ in "123"
    ]

    for run in runs:
        run.start()
    for run in runs:
        run.join()

    assert codes == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["to"]
    open_prepared(tmp_path / "to")


@pytest.mark.parametrize("kind", ["file", "loop", "below a file"])
def test_a_place_that_cannot_be_is_named(kind, tmp_path, capsys):
    """The message names the requested folder, not a temporary one."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    place = tmp_path / kind if kind != "below a file" else tmp_path / "file" / "x"

    assert prepare_cli.run(["--to", str(place)]) == 1

    error = capsys.readouterr().err
    assert str(place) in error
    assert "draft" not in error


def test_calibration_uses_only_regular_files(tmp_path):
    """Folders and named pipes with image suffixes are skipped."""
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    shutil.copy(READY / "probe" / "L.jpg", tmp_path / "image.jpg")

    images = CalibrationImages(tmp_path, lambda content: np.zeros((1, 1, 3), np.uint8))

    assert images.digest
    assert len(images.pixels()) == 1


def test_a_cache_that_may_not_be_searched_costs_the_embedded_checkpoint_nothing(tmp_path, monkeypatch):
    """The included form is used; without transformers, a cached form of any version is."""
    monkeypatch.setattr("alignserve_server.model.runtimes.openvino_cache._version", lambda _: None)
    glob = Path.glob

    def denied(folder: Path, pattern: str) -> Iterator[Path]:
        if folder.is_relative_to(tmp_path):  # root can search it, whatever its mode
            raise PermissionError(13, "Permission denied")
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", denied)

    encoder = load_align(resolve(), LoadOptions(runtime="openvino", cache_dir=tmp_path))

    assert encoder.info.runtime == "openvino"
