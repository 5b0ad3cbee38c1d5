"""`alignserve-server prepare`: writes a checkpoint that is served without torch and transformers."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from alignserve_server.model.align import load_align
from alignserve_server.model.checkpoint import EMBEDDED, Checkpoint, CheckpointError
from alignserve_server.model.drafts import draft_folder, install, is_draft, move_into
from alignserve_server.model.preparation import Weights, fingerprints, prepare, shipped_form
from alignserve_server.model.prepared import (
    DIGESTS,
    FACTS,
    PreparedCheckpoint,
    is_prepared,
    open_prepared,
    other_files,
    resolve,
)
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.model.runtimes.calibration import CalibrationImages
from alignserve_server.model.runtimes.runtime import DtypeName

_Weights: TypeAlias = Literal["float32", "float16", "int8"]

_EXAMPLES = """\
examples:
  alignserve-server prepare --checkpoint kakaobrain/align-base --to /models/align
  alignserve-server --checkpoint /models/align

Preparing needs torch and transformers (pip install 'alignserve[server,torch]'), a few minutes, and three
times the memory of the weights. The folder can be copied to any machine. Serving it needs neither package,
and each start verifies its tokens, pixels and embeddings against those of transformers. A folder that
already holds the same checkpoint is left as it is, so the command can run before each start; a damaged one
is prepared again.
"""


def run(argv: list[str]) -> int:
    """Prepares a checkpoint; returns 0 if the folder can be served, 1 if not. Wrong usage exits with 2."""
    arguments = _parser().parse_args(argv)
    try:
        _prepare(arguments)
    except (CheckpointError, ValueError) as error:
        return _fail(str(error))
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        return _fail(f"cannot write {arguments.to}: {error}; make room, or give another folder")
    return 0


def _fail(reason: str) -> int:
    print(f"alignserve-server prepare: {reason}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alignserve-server prepare",
        description="Writes everything needed to serve a checkpoint on a CPU without torch and transformers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint",
        default=EMBEDDED,
        metavar="ID|FOLDER",
        help="hub id or folder of an ALIGN checkpoint; default: the embedded one",
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--weights",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="data type of the stored weights; float16 halves the size, changes vectors in the fourth "
        "digit and has its own fingerprint; int8 needs --calibration-dir; default: float32",
    )
    parser.add_argument(
        "--calibration-dir",
        type=Path,
        metavar="FOLDER",
        help="images like those that callers send, for int8",
    )
    parser.add_argument(
        "--min-cosine-similarity",
        type=_cosine,
        default=0.999,
        metavar="COSINE",
        help="minimum cosine similarity to transformers in float32, or nothing is written; default: 0.999",
    )
    parser.add_argument("--force", action="store_true", help="replace another prepared checkpoint")
    return parser


def _cosine(text: str) -> float:
    cosine = float(text)
    if not 0 <= cosine <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return cosine


def _prepare(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.to
    source = resolve(arguments.checkpoint, arguments.revision)
    calibration = _calibration(arguments, source)
    expected = _fingerprints(source, calibration, arguments.weights)
    if _is_done(folder, expected, is_forced=arguments.force):
        print(f"{folder} is already prepared from this checkpoint")
    else:
        print(f"preparing {source.model_id} ...", flush=True)
        cosine = _write(folder, source, calibration, expected, arguments)
        size = sum(path.stat().st_size for path in folder.rglob("*"))
        print(f"wrote {folder}: {size / 1e6:.0f} MB, weights in {arguments.weights}")
        print(f"lowest cosine with transformers in float32: {cosine:.6f} (limit {arguments.min_cosine})")
    name = f"./{folder}" if str(folder) == EMBEDDED else str(folder)  # else the embedded one is meant
    print(f"serve it with: alignserve-server --checkpoint {shlex.quote(name)}")


def _calibration(
    arguments: argparse.Namespace, source: Checkpoint | PreparedCheckpoint
) -> CalibrationImages | None:
    if (arguments.weights == "int8") != (arguments.calibration_dir is not None):
        raise ValueError("--weights int8 and --calibration-dir belong together; give both or neither")
    if arguments.weights != "int8":
        return None
    return CalibrationImages(
        arguments.calibration_dir,
        ImagePreprocessor(source.image_processor, ImageDecoder(max_bytes=64 << 20, max_pixels=100_000_000)),
    )


def _fingerprints(
    source: Checkpoint | PreparedCheckpoint, calibration: CalibrationImages | None, weights: _Weights
) -> Mapping[DtypeName, str]:
    if isinstance(source, Checkpoint):
        return fingerprints(source, calibration, _stored(weights))
    if source.weights != weights:
        raise ValueError(
            f"{source.folder} is prepared with weights in {source.weights}; for {weights} give the "
            f"checkpoint that it was prepared from ({source.model_id})"
        )
    return source.fingerprints


def _is_done(folder: Path, expected: Mapping[DtypeName, str], *, is_forced: bool) -> bool:
    """Says whether a folder is what would be written there. Raises CheckpointError if it has to be kept."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder that is new or empty")
    if not is_prepared(folder):
        others = list(folder.iterdir())
    elif _has(folder, expected, is_forced=is_forced):
        return True
    else:
        others = other_files(folder)
    # A volume may have the former, and an earlier run that was killed there has left the latter.
    if kept := [path for path in others if path.name != "lost+found" and not is_draft(path)]:
        raise CheckpointError(
            f"{folder} holds other files, such as {kept[0].name}; give a folder that is new or empty"
        )
    return False


def _has(folder: Path, expected: Mapping[DtypeName, str], *, is_forced: bool) -> bool:
    """Says whether a prepared checkpoint is undamaged and the expected one.

    Raises:
        CheckpointError: It is another one, which only force replaces.
    """
    try:
        found = open_prepared(folder).fingerprints
    except CheckpointError as error:
        print(f"it is made again, since {error}")
        return False
    if found != expected and not is_forced:
        raise CheckpointError(f"{folder} holds another prepared checkpoint; give another folder, or --force")
    return found == expected


def _write(
    folder: Path,
    source: Checkpoint | PreparedCheckpoint,
    calibration: CalibrationImages | None,
    expected: Mapping[DtypeName, str],
    arguments: argparse.Namespace,
) -> float:
    """Writes the folder, or where a link leads to; returns the lowest cosine with the reference."""
    place = folder.resolve()
    is_kept = place.is_dir() and _has_to_stay(place)
    with draft_folder(place if is_kept else place.parent) as draft:
        _fill(draft, source, calibration, arguments.weights)
        cosine = load_align(open_prepared(draft), min_cosine=arguments.min_cosine).info.min_cosine
        if is_kept:
            move_into(draft, place, first=FACTS, last=DIGESTS)
        else:
            _share(draft)
            install(draft, place, is_usable=partial(_is_what, expected))
    return cosine


def _has_to_stay(folder: Path) -> bool:
    """Says whether a folder can only be filled: a mount, the one of a shell, or one of somebody else's."""
    return folder.is_mount() or folder == Path.cwd() or not os.access(folder.parent, os.W_OK | os.X_OK)


def _is_what(expected: Mapping[DtypeName, str], folder: Path) -> bool:
    try:
        return open_prepared(folder).fingerprints == expected
    except CheckpointError:
        return False


def _fill(
    draft: Path,
    source: Checkpoint | PreparedCheckpoint,
    calibration: CalibrationImages | None,
    weights: _Weights,
) -> None:
    if isinstance(source, PreparedCheckpoint):
        ready: PreparedCheckpoint | None = source
    else:
        ready = shipped_form(source) if weights == "float32" else None
        if ready is None:
            prepare(source, draft, calibration=calibration, weights=_stored(weights))
    if ready is not None:
        ready.copy_to(draft)


def _stored(weights: _Weights) -> Weights:
    """Returns the data type of what int8 leaves as it is, or of all."""
    return "float16" if weights == "float16" else "float32"


def _share(draft: Path) -> None:
    """Gives a draft, which is for its owner alone, the permissions of any new folder."""
    umask = os.umask(0)
    os.umask(umask)
    draft.chmod(0o777 & ~umask)
