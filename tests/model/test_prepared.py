"""Prepared checkpoints are served without torch and transformers, as accurately as before, or refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from alignserve_server.cli import prepare as prepare_cli
from alignserve_server.model import probe
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError, resolve_checkpoint
from alignserve_server.model.preparation import shipped_form, undamaged
from alignserve_server.model.prepared import SHIPPED, PreparedCheckpoint, open_prepared, resolve
from alignserve_server.model.probe import Reference

from tests.model.conftest import PHOTOS

pytestmark = pytest.mark.model

# Makes any import of these fail from here on, as if they were not installed.
_WITHOUT_TORCH = """
import importlib.util, sys
for name in ("torch", "transformers", "safetensors", "nncf"):
    sys.modules[name] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if sys.modules.get(name, 0) is None else find(name)
"""


@pytest.fixture(scope="module")
def prepared_folder(converted) -> Path:
    """The random checkpoint's prepared form, as a server with the original keeps it."""
    (folder,) = (converted / "openvino").iterdir()
    return folder


@pytest.fixture(scope="module")
def by_command(random_folder, tmp_path_factory) -> Path:
    """The random checkpoint, with a licence, prepared by the command."""
    source = shutil.copytree(random_folder, tmp_path_factory.mktemp("source") / "random")
    (source / "LICENSE").write_text("terms")
    folder = tmp_path_factory.mktemp("prepared") / "random"
    assert prepare_cli.run(["--checkpoint", str(source), "--to", str(folder)]) == 0
    return folder


@pytest.fixture
def prepared_copy(prepared_folder, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(prepared_folder, tmp_path / "copy")


def run_without_torch(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def embed(encoder) -> np.ndarray:
    """Returns embeddings of the photos and some texts, not normalized."""
    images = [encoder.preprocess_image(path.read_bytes()) for path in sorted(PHOTOS.glob("*.jpg"))]
    texts = [
        encoder.tokenize(text, truncate=True).token_ids for text in ("a cat", "a photo of the dogs", "rocket")
    ]
    return np.concatenate([encoder.encode_images(images), encoder.encode_texts(texts)])


@pytest.mark.long
def test_a_prepared_checkpoint_answers_as_the_original(by_command, random_folder, converted):
    """Numbers and fingerprint equal those of the original, so that vectors of both are comparable."""
    original = load_align(resolve(str(random_folder)), LoadOptions(runtime="openvino", cache_dir=converted))

    prepared = load_align(resolve(str(by_command)))

    assert prepared.info.fingerprint == original.info.fingerprint
    np.testing.assert_array_equal(embed(prepared), embed(original))


@pytest.mark.parametrize("which", ["mini", "prepared"])
def test_neither_torch_nor_transformers_is_needed(which, prepared_folder):
    """The embedded checkpoint and a prepared folder are served without torch and transformers."""
    name = "mini" if which == "mini" else prepared_folder
    program = """
from alignserve_server.model.align import load_align
from alignserve_server.model.prepared import resolve
encoder = load_align(resolve(sys.argv[1]))
assert not {"torch", "transformers"} & {name for name, module in sys.modules.items() if module}
print(encoder.info.min_cosine_similarity)
"""

    done = run_without_torch(program, name)

    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.99999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runtime", "torch"], "alignserve[server,torch]"),
        (["--device", "cuda"], "alignserve[server,torch]"),
        (["--checkpoint", "random"], "alignserve[server,torch]"),
    ],
)
def test_what_needs_torch_says_what_to_install(options, message, random_folder, tmp_path):
    """A runtime, GPU or checkpoint that needs torch gives an error that names the extra."""
    options = [str(random_folder) if option == "random" else option for option in options]
    program = "from alignserve_server.cli.main import run\nsys.exit(run(sys.argv[1:]))"

    done = run_without_torch(
        program,
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--cache-dir", tmp_path, *options),
    )

    assert done.returncode == 1
    assert '"event": "startup_failed"' in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_int8_without_torch_names_all_that_it_needs(tmp_path):
    """int8 without torch names everything to install at once."""
    program = "from alignserve_server.cli.main import run\nsys.exit(run(sys.argv[1:]))"
    options = ["--weights", "int8", "--calibration-dir", PHOTOS, "--to", tmp_path / "to"]

    done = run_without_torch(program, "prepare", *options)

    assert done.returncode == 1
    assert "alignserve[server,torch,int8]" in done.stderr


def test_the_prepared_form_of_the_embedded_checkpoint_is_not_stale():
    """The shipped form has the same weights, and the probe of this release."""
    checkpoint = resolve_checkpoint()

    prepared = open_prepared(checkpoint.folder / SHIPPED)

    reference = Reference.load(prepared.folder)
    assert dict(prepared.fingerprints) == {
        dtype: checkpoint.fingerprint(runtime="openvino", dtype=dtype) for dtype in ("float32", "bfloat16")
    }
    assert set(probe.TEXTS) <= set(reference.input_ids)
    assert reference.images == probe.images()


@pytest.mark.long
def test_the_licence_goes_along(by_command):
    """Licence files are part of the folder."""
    assert (by_command / "LICENSE").read_text() == "terms"


@pytest.mark.long
def test_weights_in_float16_have_another_fingerprint(prepared_folder, random_folder, tmp_path):
    """Rounded weights take half the space, give similar vectors, and have another fingerprint."""
    folder = tmp_path / "to"

    prepare_cli.run(
        [
            "--checkpoint",
            str(random_folder),
            "--to",
            str(folder),
            "--weights",
            "float16",
            "--min-cosine-similarity",
            "0.9",
        ]
    )

    exact, rounded = open_prepared(prepared_folder), open_prepared(folder)
    assert (folder / "image.bin").stat().st_size < 0.6 * (prepared_folder / "image.bin").stat().st_size
    assert not set(exact.fingerprints.values()) & set(rounded.fingerprints.values())
    assert load_align(rounded, LoadOptions(min_cosine_similarity=0.9)).info.min_cosine_similarity < 1


def test_an_inaccurate_checkpoint_is_not_written(prepared_folder, tmp_path, capsys):
    """A folder that is less accurate than required is not written."""
    options = ["--to", str(tmp_path / "to"), "--min-cosine-similarity", "1"]

    code = prepare_cli.run(["--checkpoint", str(prepared_folder), *options])

    assert code == 1
    assert "--min-cosine-similarity" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_int8_is_prepared_from_images(tmp_path):
    """A folder in int8 is served only as int8."""
    pytest.importorskip("nncf")
    folder = tmp_path / "to"
    options = ["--weights", "int8", "--calibration-dir", str(PHOTOS), "--min-cosine-similarity", "0"]

    code = prepare_cli.run(["--to", str(folder), *options])

    assert code == 0
    assert load_align(open_prepared(folder), LoadOptions(min_cosine_similarity=0)).info.dtype == "int8"
    with pytest.raises(ValueError, match="is prepared for dtype int8, not for float32"):
        load_align(open_prepared(folder), LoadOptions(dtype="float32"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "torch"}, "use the checkpoint that it was prepared from"),
        ({"device": "cuda"}, "use the checkpoint that it was prepared from"),
        ({"dtype": "int8"}, "not for int8"),
        ({"dtype": "float16"}, "not for float16"),
    ],
)
def test_unprepared_configurations_are_refused(prepared_folder, options, message):
    """The message says what the folder supports, or what to use instead."""
    with pytest.raises(ValueError, match=message):
        load_align(open_prepared(prepared_folder), LoadOptions(**options))


@pytest.mark.parametrize(
    "name", ["image.bin", "text.xml", "reference.json", "reference.npz", "prepared.json", "probe/L.jpg"]
)
@pytest.mark.parametrize("damage", ["cut", "emptied", "missing", "changed"])
def test_a_damaged_file_is_named(prepared_copy, name, damage):
    """A folder with any changed byte is refused."""
    damage_file(prepared_copy / name, damage)

    with pytest.raises(CheckpointError, match=f"is damaged: .*{name}"):
        open_prepared(prepared_copy)


def damage_file(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
        return
    if damage == "changed":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"cut": len(content) // 2, "emptied": 0}.get(damage)])


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"{", b'{"image.bin": 1}', b"\xff"])
def test_broken_digests_are_damage(prepared_copy, content):
    """A folder with an invalid or missing digests file is refused."""
    (prepared_copy / "digests.json").write_bytes(content)

    with pytest.raises(CheckpointError, match="is damaged: "):
        open_prepared(prepared_copy)


def test_a_later_format_is_refused(prepared_copy):
    """A folder in a newer format is refused."""
    facts = json.loads((prepared_copy / "prepared.json").read_text())
    rewrite(prepared_copy, {**facts, "format": 2})

    with pytest.raises(CheckpointError, match="format 2, but this release reads 1"):
        open_prepared(prepared_copy)


def rewrite(folder: Path, facts: dict[str, object]) -> None:
    """Replaces the facts, with a matching digest."""
    path = folder / "prepared.json"
    before = path.read_bytes()
    path.write_text(json.dumps(facts))
    digests = folder / "digests.json"
    old, new = (sha256(content).hexdigest() for content in (before, path.read_bytes()))
    digests.write_text(digests.read_text().replace(old, new))


def test_a_finished_folder_is_not_prepared_again(prepared_folder, random_folder, capsys):
    """Preparing an existing folder again has no effect, so an init container can run it before each start."""
    before = (prepared_folder / "digests.json").stat()

    code = prepare_cli.run(["--checkpoint", str(random_folder), "--to", str(prepared_folder)])

    assert code == 0
    assert "is already prepared" in capsys.readouterr().out
    assert (prepared_folder / "digests.json").stat() == before


def test_a_damaged_folder_is_prepared_again(tmp_path):
    """A damaged folder is prepared again, without manual work."""
    folder = tmp_path / "to"
    prepare_cli.run(["--to", str(folder)])
    damage_file(folder / "text.bin", "cut")

    code = prepare_cli.run(["--to", str(folder)])

    assert code == 0
    assert isinstance(open_prepared(folder), PreparedCheckpoint)


def test_another_checkpoint_is_kept_unless_forced(prepared_copy, capsys):
    """A folder with another checkpoint is not overwritten."""
    refused = prepare_cli.run(["--to", str(prepared_copy)])

    assert refused == 1
    assert "--force" in capsys.readouterr().err
    assert prepare_cli.run(["--to", str(prepared_copy), "--force"]) == 0
    assert open_prepared(prepared_copy).model_id == "mini"


def test_other_files_are_never_replaced(tmp_path, capsys):
    """Folders that are not prepared checkpoints are never overwritten, even with --force."""
    (tmp_path / "thesis.txt").touch()

    code = prepare_cli.run(["--to", str(tmp_path), "--force"])

    assert code == 1
    assert "contains other files" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("options", [[], ["--force"]], ids=["damaged", "forced"])
def test_other_files_next_to_a_prepared_checkpoint_are_kept(prepared_copy, capsys, options):
    """A folder with other files is refused, since it would be replaced as a whole."""
    (prepared_copy / "thesis.txt").touch()
    if not options:
        damage_file(prepared_copy / "text.bin", "cut")

    code = prepare_cli.run(["--to", str(prepared_copy), *options])

    assert code == 1
    assert "contains other files, such as thesis.txt" in capsys.readouterr().err
    assert (prepared_copy / "thesis.txt").exists()


@pytest.mark.parametrize("left", [["alignserve-draft-a/image.bin"], ["lost+found/x", "prepared.json"]])
def test_a_volume_in_which_an_earlier_run_was_killed_is_filled(tmp_path, monkeypatch, left):
    """An interrupted preparation is completed by the next run."""
    folder = tmp_path / "volume"
    for name in left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)

    code = prepare_cli.run(["--to", str(folder)])

    assert code == 0
    assert open_prepared(folder).model_id == "mini"
    assert not list(folder.glob("alignserve-*"))


def test_a_prepared_checkpoint_is_copied(prepared_folder, tmp_path):
    """The image build accepts both kinds of checkpoint."""
    code = prepare_cli.run(["--checkpoint", str(prepared_folder), "--to", str(tmp_path / "to")])

    assert code == 0
    assert open_prepared(tmp_path / "to").fingerprints == open_prepared(prepared_folder).fingerprints


@pytest.mark.parametrize(
    ("pillow", "levels", "is_served"), [("1.0", 2, True), ("1.0", 20, False), (None, 2, False)]
)
def test_another_pillow_may_decode_a_little_differently(prepared_copy, pillow, levels, is_served):
    """Small pixel differences are accepted from another Pillow version, but not from the same one."""
    prepared, reference = open_prepared(prepared_copy), Reference.load(prepared_copy)
    shifted = reference.pixel_values + levels * np.float32(prepared.image_processor["rescale_factor"])
    shutil.rmtree(prepared_copy / "probe")
    replace(reference, pillow=pillow or reference.pillow, pixel_values=shifted).save(prepared_copy)
    prepared.save()

    with nullcontext() if is_served else pytest.raises(CheckpointError, match="differ from transformers"):
        load_align(open_prepared(prepared_copy))


@pytest.mark.parametrize("which", ["of other weights", "damaged"])
def test_a_form_that_does_not_fit_is_not_served(which, random_folder, prepared_copy, tmp_path):
    """If the included form is damaged, the checkpoint is prepared again."""
    source = shutil.copytree(random_folder, tmp_path / "source")
    if which == "damaged":
        damage_file(prepared_copy / "text.bin", "cut")
        prepared_copy.rename(source / SHIPPED)
    else:
        shutil.copytree(resolve_checkpoint().folder / SHIPPED, source / SHIPPED)
    checkpoint = resolve(str(source))

    assert isinstance(checkpoint, Checkpoint)
    with pytest.raises(CheckpointError, match=r"prepared from other files|is damaged: "):
        shipped_form(checkpoint)
    assert undamaged(lambda: shipped_form(checkpoint)) is None
