"""The command `alignserve-server prepare`: writes a checkpoint that can be served without torch."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from alignserve_server.cli.command import add_renamed_flags, command_failed, command_parser
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.checkpoint import EMBEDDED, Checkpoint, CheckpointError
from alignserve_server.model.drafts import draft_folder, install, is_draft, move_into
from alignserve_server.model.preparation import Weights, fingerprints, prepare, shipped_form, undamaged
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
times the memory of the weights. The directory can be copied to any machine. Serving it needs neither
package, and each start verifies its tokens, pixels and embeddings against those of transformers. A directory
that already contains the same checkpoint is not changed, so the command can run before each start; a damaged
one is prepared again.
"""


def run(argv: list[str]) -> int:
    """Prepares a checkpoint.

    Returns:
        The exit code: 0 if the directory can be served, 1 if not, 2 for invalid usage.
    """
    arguments = _parser().parse_args(argv)
    try:
        _prepare(arguments)
    except (CheckpointError, ValueError) as error:
        return command_failed("prepare", str(error), 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        return command_failed(
            "prepare", f"cannot write {arguments.to}: {error}; free some space or use another directory", 1
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "prepare",
        "Writes everything needed to serve a checkpoint on a CPU without torch and transformers.",
        _EXAMPLES,
    )
    add_renamed_flags(parser, "calibration_folder", "min_cosine")
    parser.add_argument(
        "--checkpoint",
        default=EMBEDDED,
        metavar="ID|DIR",
        help="directory or Hugging Face Hub id of an ALIGN checkpoint (default: the embedded one)",
    )
    parser.add_argument(
        "--revision", metavar="REVISION", help="branch, tag or commit on the Hugging Face Hub"
    )
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--weights",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="data type of the stored weights; float16 halves the size, changes embeddings in the fourth "
        "digit and has its own fingerprint; int8 requires --calibration-dir (default: float32)",
    )
    parser.add_argument(
        "--calibration-dir",
        type=Path,
        metavar="DIR",
        help="directory of sample images that resemble production traffic; required for int8",
    )
    parser.add_argument(
        "--min-cosine-similarity",
        type=_cosine,
        default=0.999,
        metavar="RATIO",
        help="minimum cosine similarity to the float32 reference; below it nothing is written "
        "(default: 0.999)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite a different prepared checkpoint")
    return parser


def _cosine(text: str) -> float:
    cosine = float(text)
    if not 0 <= cosine <= 1:
        raise argparse.ArgumentTypeError(f"invalid value {text}: must be from 0 to 1")
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
        limit = arguments.min_cosine_similarity
        print(f"minimum cosine similarity to the float32 reference: {cosine:.6f} (limit {limit})")
    name = f"./{folder}" if str(folder) == EMBEDDED else str(folder)  # otherwise it means the embedded one
    print(f"serve it with: alignserve-server --checkpoint {shlex.quote(name)}")


def _calibration(
    arguments: argparse.Namespace, source: Checkpoint | PreparedCheckpoint
) -> CalibrationImages | None:
    if (arguments.weights == "int8") != (arguments.calibration_dir is not None):
        raise ValueError("--weights int8 and --calibration-dir must be given together")
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
            f"{source.folder} is prepared with weights in {source.weights}; for {weights}, use the "
            f"checkpoint that it was prepared from ({source.model_id})"
        )
    return source.fingerprints


def _is_done(folder: Path, expected: Mapping[DtypeName, str], *, is_forced: bool) -> bool:
    """Returns whether a folder is up to date. Raises CheckpointError if it must not be overwritten."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; use a directory that is new or empty")
    if not is_prepared(folder):
        others = list(folder.iterdir())
    elif _has(folder, expected, is_forced=is_forced):
        return True
    else:
        others = other_files(folder)
    # lost+found is on volumes; drafts are left by an earlier run that was killed.
    if kept := [path for path in others if path.name != "lost+found" and not is_draft(path)]:
        raise CheckpointError(
            f"{folder} contains other files, such as {kept[0].name}; use a directory that is new or empty"
        )
    return False


def _has(folder: Path, expected: Mapping[DtypeName, str], *, is_forced: bool) -> bool:
    """Returns whether a prepared checkpoint is undamaged and the expected one.

    Raises:
        CheckpointError: It is a different one, which only force overwrites.
    """
    try:
        found = open_prepared(folder).fingerprints
    except CheckpointError as error:
        print(f"preparing again: {error}")
        return False
    if found != expected and not is_forced:
        raise CheckpointError(
            f"{folder} contains a different prepared checkpoint; use another directory or --force"
        )
    return found == expected


def _write(
    folder: Path,
    source: Checkpoint | PreparedCheckpoint,
    calibration: CalibrationImages | None,
    expected: Mapping[DtypeName, str],
    arguments: argparse.Namespace,
) -> float:
    """Writes the folder, following links; returns the minimum cosine similarity to the reference."""
    place = folder.resolve()
    is_kept = place.is_dir() and _has_to_stay(place)
    with draft_folder(place if is_kept else place.parent) as draft:
        _fill(draft, source, calibration, arguments.weights)
        options = LoadOptions(min_cosine_similarity=arguments.min_cosine_similarity)
        cosine = load_align(open_prepared(draft), options).info.min_cosine_similarity
        if is_kept:
            move_into(draft, place, first=FACTS, last=DIGESTS)
        else:
            _share(draft)
            install(draft, place, is_usable=partial(_is_what, expected))
    return cosine


def _has_to_stay(folder: Path) -> bool:
    """Returns whether a folder cannot be replaced: a mount, the current one, or one in a read-only parent."""
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
        ready = undamaged(lambda: shipped_form(source)) if weights == "float32" else None
        if ready is None:
            prepare(source, draft, calibration=calibration, weights=_stored(weights))
    if ready is not None:
        ready.copy_to(draft)


def _stored(weights: _Weights) -> Weights:
    """Returns the data type of the weights that are not quantized."""
    return "float16" if weights == "float16" else "float32"


def _share(draft: Path) -> None:
    """Gives a draft, which only its owner can read, the permissions of a new folder."""
    umask = os.umask(0)
    os.umask(umask)
    draft.chmod(0o777 & ~umask)
