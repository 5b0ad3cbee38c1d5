"""The choice of the runtime, its verification, and its cache."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError, resolve_checkpoint
from alignserve_server.model.prepared import is_undamaged
from alignserve_server.model.runtimes import openvino as openvino_runtime
from alignserve_server.model.runtimes import torch_cpu
from alignserve_server.model.runtimes.runtime import lowest_cosine
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from tests.model.conftest import PHOTOS
from tests.model.tiny import tiny_model, write_tiny_checkpoint

pytestmark = pytest.mark.model


@pytest.fixture
def events():
    """Records log events."""
    with capture_logs() as lines:
        yield lines


@pytest.fixture(scope="module")
def unprepared(random_folder) -> Checkpoint:
    """A checkpoint without its prepared form."""
    return resolve_checkpoint(str(random_folder))


def hide(monkeypatch, package: str) -> None:
    """Makes a package look as if it were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find(name))


def test_auto_on_a_cpu_is_openvino(mini, cache_dir):
    """The faster runtime is used if it is installed."""
    encoder = load_align(mini.checkpoint, LoadOptions(device="cpu", cache_dir=cache_dir))

    assert (encoder.info.runtime, encoder.info.dtype) == ("openvino", "float32")


def test_auto_without_openvino_is_torch(mini, monkeypatch):
    """Without OpenVINO, the server falls back to torch."""
    hide(monkeypatch, "openvino")

    encoder = load_align(mini.checkpoint, LoadOptions(device="cpu"))

    assert encoder.info.runtime == "torch"


def test_openvino_that_is_not_installed_says_so(mini, monkeypatch):
    """An explicit choice that is not installed is an error, not replaced."""
    hide(monkeypatch, "openvino")

    with pytest.raises(ValueError, match=r"alignserve\[server"):
        load_align(mini.checkpoint, LoadOptions(runtime="openvino"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "openvino", "device": "cuda"}, "runs on a CPU"),
        ({"runtime": "openvino", "dtype": "float16"}, "use float32, bfloat16 or int8"),
        ({"runtime": "torch", "dtype": "int8"}, "use --runtime openvino"),
        ({"runtime": "openvino", "dtype": "int8"}, "set --calibration-dir"),
    ],
)
def test_contradictory_choices_are_an_error(mini, options, message):
    """Contradictory choices fail at startup, with what to do."""
    with pytest.raises(ValueError, match=message):
        load_align(mini.checkpoint, LoadOptions(**{"device": "cpu", **options}))


def test_a_data_type_that_is_not_exact_enough_is_replaced(mini, cache_dir, events):
    """bfloat16 misses a strict limit, so float32 is served, and the log says so."""
    encoder = load_align(
        mini.checkpoint,
        LoadOptions(device="cpu", runtime="torch", dtype="bfloat16", min_cosine_similarity=0.99999),
    )

    (event,) = [event for event in events if event["event"] == "cosine_similarity_too_low"]
    assert (event["runtime"], event["dtype"]) == ("torch", "bfloat16")
    assert 0.9 < event["min_cosine_similarity"] < 0.99999
    assert encoder.info.dtype == "float32"
    assert encoder.info.min_cosine_similarity >= 0.99999


def test_a_runtime_that_is_not_exact_is_replaced_by_torch(mini, cache_dir, monkeypatch, events):
    """Wrong vectors are never served, whatever the runtime."""
    wrong = openvino_runtime.OpenVinoRuntime.embed_pixels
    monkeypatch.setattr(
        openvino_runtime.OpenVinoRuntime, "embed_pixels", lambda self, pixels: -wrong(self, pixels)
    )

    encoder = load_align(mini.checkpoint, LoadOptions(device="cpu", cache_dir=cache_dir))

    assert [event["event"] for event in events].count("cosine_similarity_too_low") == 1
    assert encoder.info.runtime == "torch"


def test_when_nothing_is_exact_nothing_is_served(mini, monkeypatch):
    """If even torch is not accurate enough, nothing is served."""
    monkeypatch.setattr(
        torch_cpu.CpuRuntime, "embed_pixels", lambda self, pixels: np.full((len(pixels), 512), np.nan)
    )

    with pytest.raises(
        CheckpointError, match="returned numbers that are not finite; lower --min-cosine-similarity"
    ):
        load_align(mini.checkpoint, LoadOptions(device="cpu", runtime="torch"))


def test_a_converted_checkpoint_is_served_without_torch(unprepared, converted):
    """The second start uses the cached conversion, and gives the same vectors."""
    first = load_align(unprepared, LoadOptions(runtime="openvino", cache_dir=converted))
    expected = first.encode_texts([first.tokenize("a cat", truncate=False).token_ids])[0, :4].tolist()
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from alignserve_server.model.align import LoadOptions, load_align\n"
        "from alignserve_server.model.checkpoint import resolve_checkpoint\n"
        "folder, cache = sys.argv[1:]\n"
        "options = LoadOptions(runtime='openvino', cache_dir=Path(cache))\n"
        "encoder = load_align(resolve_checkpoint(folder), options)\n"
        "print(encoder.encode_texts([encoder.tokenize('a cat', truncate=False).token_ids])[0, :4].tolist())\n"
        "print({'torch', 'transformers'} & set(sys.modules))\n"
        "print([name for name, module in sys.modules.items() if 'telemetry' in name and module])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, unprepared.folder, converted],
        capture_output=True,
        text=True,
        check=True,
    )

    vector, modules, reporters = done.stdout.splitlines()
    assert vector == str(expected)
    assert modules == "set()"
    assert reporters == "[]" or "stub" in reporters


def test_nowhere_to_write_a_conversion_is_named(unprepared, tmp_path, monkeypatch):
    """If neither the cache nor a temporary folder is writable, the message says what to set."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: read_only())

    with pytest.raises(CheckpointError, match=r"neither to .* nor to a temporary folder.*--cache-dir"):
        load_align(unprepared, LoadOptions(runtime="openvino", cache_dir=tmp_path))


@pytest.mark.long
def test_changed_weights_are_converted_again(random_folder, tmp_path, cache_dir):
    """The cache key is the checkpoint's content, not its name."""
    folder = shutil.copytree(random_folder, tmp_path / "changed")
    before = load_align(resolve_checkpoint(str(folder)), LoadOptions(runtime="openvino", cache_dir=cache_dir))
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.bias"] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    after = load_align(resolve_checkpoint(str(folder)), LoadOptions(runtime="openvino", cache_dir=cache_dir))

    def text(encoder):
        return encoder.encode_texts([encoder.tokenize("cat", truncate=False).token_ids])

    np.testing.assert_allclose(text(after) - text(before), 1.0, atol=1e-3)
    assert before.info.fingerprint != after.info.fingerprint


def test_a_conversion_leaves_nothing_but_itself(converted):
    """A conversion appears complete, under its fingerprint, and its draft is gone."""
    (folder,) = (converted / "openvino").iterdir()
    assert {"image.xml", "text.xml", "reference.json", "reference.npz"} <= {
        path.name for path in folder.iterdir()
    }


def damage_a_word(folder: Path) -> None:
    """Zeroes weights, as a power failure can, in rows of words that the probe does not use."""
    with (folder / "text.bin").open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))


def remove_files(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


@pytest.mark.long
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage_a_word, id="weights"),
        pytest.param(remove_files, id="no files", marks=pytest.mark.long),
    ],
)
def test_a_damaged_conversion_is_made_again(unprepared, converted, tmp_path, damage, events):
    """A conversion damaged by a power failure is never served, and is replaced at startup."""
    cache = shutil.copytree(converted, tmp_path / "cache")
    (folder,) = (cache / "openvino").iterdir()
    expected = load_align(unprepared, LoadOptions(runtime="openvino", cache_dir=cache)).info
    damage(folder)

    encoder = load_align(unprepared, LoadOptions(runtime="openvino", cache_dir=cache))

    assert encoder.info == expected
    assert [event["event"] for event in events][-1] == "converting"
    assert is_undamaged(folder)
    assert [path.name for path in (cache / "openvino").glob("alignserve-*")] == []


@pytest.mark.long
def test_a_damaged_conversion_on_a_full_or_read_only_disk_is_made_elsewhere(
    unprepared, converted, tmp_path, monkeypatch, events
):
    """If a damaged conversion cannot be replaced, the server uses a temporary folder and removes it."""
    cache = shutil.copytree(converted, tmp_path / "cache")
    for folder in (cache / "openvino").iterdir():
        damage_a_word(folder)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    make = tempfile.mkdtemp
    monkeypatch.setattr(
        "tempfile.mkdtemp",
        lambda **where: make(**where) if where["dir"] == temporary else read_only(),
    )

    encoder = load_align(unprepared, LoadOptions(runtime="openvino", cache_dir=cache))

    assert encoder.encode_texts([encoder.tokenize("cat", truncate=False).token_ids]).any()
    assert "cache_not_writable" in [event["event"] for event in events]
    assert list(temporary.iterdir()) == []


def read_only() -> str:
    raise OSError(30, "Read-only file system")


def test_a_disk_that_is_full_is_named(random_folder, tmp_path, monkeypatch):
    """The message says what could not be written and what to do, and no draft remains."""
    monkeypatch.setattr("numpy.savez", lambda *_, **__: full())

    with pytest.raises(CheckpointError, match="No space left on device; free some space there"):
        load_align(
            resolve_checkpoint(str(random_folder)), LoadOptions(runtime="openvino", cache_dir=tmp_path)
        )

    assert list((tmp_path / "openvino").iterdir()) == []


def test_no_folder_at_all_to_write_to_is_named(random_folder, tmp_path, monkeypatch):
    """If neither the cache nor a temporary folder is usable, the message says so, and what to set."""
    (tmp_path / "file").touch()

    def no_folder() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", no_folder)

    with pytest.raises(CheckpointError, match=r"No usable temporary directory.*set --cache-dir"):
        load_align(
            resolve_checkpoint(str(random_folder)),
            LoadOptions(runtime="openvino", cache_dir=tmp_path / "file" / "cache"),
        )


def full() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_not_held_twice(converted, unprepared, tmp_path):
    """Releasing memory drops the mapped weights file without changing vectors."""
    folder = shutil.copytree(converted, tmp_path / "cache")  # not mapped by another encoder
    encoder = load_align(unprepared, LoadOptions(runtime="openvino", cache_dir=folder))
    text = encoder.tokenize("a cat", truncate=False).token_ids
    before = encoder.encode_texts([text]).copy()
    resident_before = _resident_bytes(folder)

    encoder.release_memory()

    assert resident_before > 1 << 16
    assert _resident_bytes(folder) == 0
    np.testing.assert_array_equal(encoder.encode_texts([text]), before)


def _resident_bytes(folder: Path) -> int:
    """Returns how much of a folder's files this process has in memory."""
    is_inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split(maxsplit=5)
        if not name.endswith(":"):
            is_inside = len(values) == 5 and str(folder) in values[-1]
        elif name == "Rss:" and is_inside:
            total += int(values[0]) << 10
    return total


@pytest.fixture(scope="session")
def int8(mini, cache_dir):
    """The embedded checkpoint in int8, calibrated with the test photos."""
    pytest.importorskip("nncf")
    return _load_int8(mini.checkpoint, cache_dir)


def _load_int8(checkpoint, cache_dir, min_cosine_similarity=0.0):
    return load_align(
        checkpoint,
        LoadOptions(
            runtime="openvino",
            dtype="int8",
            min_cosine_similarity=min_cosine_similarity,
            cache_dir=cache_dir,
            calibration_dir=PHOTOS,
        ),
    )


@pytest.mark.long
def test_int8_stays_near_on_images_like_those_it_has_seen(int8, mini, photos):
    """Embeddings stay within 25 degrees, and the fingerprint differs."""
    images = [int8.preprocess_image(content) for content in photos.values()]
    texts = [int8.tokenize("a photo of a cat", truncate=False).token_ids]

    image_cosine = lowest_cosine(int8.encode_images(images), mini.encoder.encode_images(images))
    text_cosine = lowest_cosine(int8.encode_texts(texts), mini.encoder.encode_texts(texts))

    assert int8.info.dtype == "int8"
    assert int8.info.fingerprint != mini.checkpoint.fingerprint(runtime="openvino", dtype="int8")
    assert text_cosine > 0.99
    assert image_cosine > 0.9  # with depthwise convolutions or the last blocks in int8 it would be 0.7


@pytest.mark.long
def test_the_last_blocks_stay_in_float32(tmp_path):
    """All blocks before the last two are quantized."""
    pytest.importorskip("nncf")
    model = tiny_model()
    checkpoint = resolve_checkpoint(str(write_tiny_checkpoint(tmp_path / "tiny", model)))

    _load_int8(checkpoint, tmp_path / "cache")

    (image,) = (tmp_path / "cache").rglob("image.xml")
    names = re.findall(r'name="([^"]*)" type="FakeQuantize"', image.read_text())
    blocks = {int(number) for name in names for number in re.findall(r"blocks\.(\d+)\.", name)}
    assert blocks == set(range(len(model.vision_model.encoder.blocks) - 2))


@pytest.mark.long
def test_int8_that_is_not_exact_enough_is_replaced(int8, mini, cache_dir, events):
    """int8 is verified like every configuration, and falls back to float32 on the same runtime."""
    encoder = _load_int8(mini.checkpoint, cache_dir, min_cosine_similarity=0.999)

    assert "cosine_similarity_too_low" in [event["event"] for event in events]
    assert (encoder.info.runtime, encoder.info.dtype) == ("openvino", "float32")


@pytest.mark.long
def test_int8_is_served_from_the_cache_without_nncf(int8, mini, cache_dir, without_nncf):
    """A model quantized on another machine is served."""
    encoder = _load_int8(mini.checkpoint, cache_dir)

    assert encoder.info == int8.info


def test_int8_that_must_be_made_needs_nncf(mini, tmp_path, without_nncf):
    """If int8 must be created and nncf is missing, the error names what to install."""
    with pytest.raises(ValueError, match=r"alignserve\[server,int8\]"):
        _load_int8(mini.checkpoint, tmp_path)


@pytest.fixture
def without_nncf(monkeypatch):
    """As if nncf were not installed."""

    def version(package):
        if package == "nncf":
            raise PackageNotFoundError(package)
        return metadata.version(package)

    monkeypatch.setattr("alignserve_server.model.runtimes.openvino_cache.version", version)
    hide(monkeypatch, "nncf")


@pytest.mark.long
def test_a_conversion_that_fails_says_why(random_folder, tmp_path, cache_dir):
    """The error has the conversion process's reason, and no draft remains."""
    folder = shutil.copytree(random_folder, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"lacks 1 weights, such as text_projection.bias"):
        load_align(
            resolve_checkpoint(str(folder)), LoadOptions(runtime="openvino", cache_dir=tmp_path / "cache")
        )

    assert list((tmp_path / "cache" / "openvino").iterdir()) == []


@pytest.mark.long
def test_a_conversion_ends_with_the_server(tmp_path):
    """If the parent process ends, the conversion ends and its draft is removed."""
    program = "from alignserve_server.model.runtimes.openvino_conversion import main; main()"
    draft = tmp_path / "draft"
    draft.mkdir()
    checkpoint = tmp_path / "fifo"
    checkpoint.mkdir()
    os.mkfifo(checkpoint / "config.json")  # the conversion blocks here until it is stopped
    np.savez(draft / "inputs.npz", scale=0, offset=0)
    process = subprocess.Popen([sys.executable, "-c", program, checkpoint, draft], stdin=subprocess.PIPE)

    process.communicate()

    assert process.returncode == 1
    assert not draft.exists()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([[1, 0], [0, 2]], 1.0), ([[1, 0], [0, -1]], -1.0), ([[1, 1], [0, 1]], 2**-0.5)],
)
def test_likeness_is_that_of_the_worst_row(rows, expected):
    """The lowest cosine is that of a single wrong row."""
    reference = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)

    assert lowest_cosine(np.array(rows, np.float32), reference) == pytest.approx(expected)


def test_numbers_that_are_not_finite_are_not_alike():
    """NaN never passes a limit."""
    reference = np.ones((2, 2), np.float32)

    assert not lowest_cosine(np.array([[1, 1], [np.nan, 1]], np.float32), reference) >= 0.0
