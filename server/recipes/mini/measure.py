"""Measures the embedded checkpoint, and writes its card: `python -m server.recipes.mini.measure`."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignserve import Client, cli
from safetensors import safe_open

from deploy.quickstart import LABELS, PHOTO, TEMPLATE
from server.recipes.mini import card, install, photo_list
from server.recipes.mini.digests import file_digest
from tests.load.processor import processor
from tests.processes import ROOT, server_process

QUESTIONS = Path(__file__).parent / "questions.jsonl"

_PROGRAM = (sys.executable, "-m", "alignserve_server")
_TIMED = 200  # images, and texts
_SERVER_FLAGS = ("--extra-image-formats=avif", "--max-image-pixels=100000000", "--text-cache-bytes=0")


def main() -> None:
    """Measures, and writes measured.json, the plot, and the pages with tables of it."""
    parser = argparse.ArgumentParser(prog="python -m server.recipes.mini.measure", description=__doc__)
    parser.add_argument("--photographs", type=Path, default=Path(".recipe/photographs"))
    parser.add_argument(
        "--imagenet", type=Path, help="folder of ImageNet's sample photographs, such as n01440764_tench.JPEG"
    )
    parser.add_argument(
        "--former", type=Path, help="an earlier checkpoint to compare with (default: figures of the last run)"
    )
    arguments = parser.parse_args()
    photographs, imagenet = arguments.photographs.resolve(), arguments.imagenet
    measured = {
        "checkpoint": install.checkpoint_digest(),
        "questions": file_digest(QUESTIONS),
        "machine": processor(),
        "load": os.getloadavg()[0],
        "date": str(datetime.now(UTC).date()),
        "first_answer": first_answer(),
        "figures": figures(install.CHECKPOINT, photographs, imagenet, card.PLOT),
        "former": figures(arguments.former, photographs, imagenet) if arguments.former else _former(),
    }
    card.MEASURED.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")
    page = ROOT / "README.md"
    page.write_text(card.with_first_answer(page.read_text("utf-8"), measured["first_answer"]), "utf-8")
    subprocess.run([sys.executable, "-m", "deploy.docs.tables"], cwd=ROOT, check=True)
    install.put_card_into_prepared()


def figures(
    checkpoint: Path, photographs: Path, imagenet: Path | None, plot: Path | None = None
) -> dict[str, Any]:
    """Returns what a real server says about a checkpoint, and writes the plot if it has a place."""
    flags = ("--checkpoint", str(checkpoint.resolve()), *_SERVER_FLAGS)
    with (
        server_process(*flags, program=_PROGRAM) as server,
        Client(server.address) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        to = Path(folder, "questions")
        asked = _evaluated(server.address, to, QUESTIONS, "--image-root", photographs)
        if plot is not None:
            shutil.copyfile(to / "reliability.svg", plot)
        return {
            **_size(checkpoint / "model.safetensors"),
            "temperature": client.model_info().temperature,
            "questions": _by_kind(asked),
            "calibration": _calibration(asked),
            "sources": {
                name: {"questions": _by_kind(part), "calibration": _calibration(part)}
                for name, questions in by_source(QUESTIONS, photo_list.SOURCES).items()
                for part in [_of_part(server.address, Path(folder, name), questions, photographs)]
            },
            "imagenet": None if imagenet is None else _of_imagenet(server.address, Path(folder), imagenet),
            "milliseconds": _milliseconds(client, photographs),
        }


def first_answer() -> str:
    """Returns what `make run` shows first."""
    question = ["classify", PHOTO, "--template", TEMPLATE, *(f"--label={label}" for label in LABELS)]
    with (
        server_process(program=_PROGRAM) as server,
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(io.StringIO()) as shown,
    ):
        _run("--server", server.address, *question)
    return f"{PHOTO}, asked {TEMPLATE!r}:\n\n{shown.getvalue()}"


def by_class(samples: Iterable[Path], folder: Path) -> None:
    """Links photographs named by class, such as n01440764_tench.JPEG, into a folder for each class."""
    for sample in samples:
        name = sample.stem.partition("_")[2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / sample.name).symlink_to(sample.resolve())


def by_source(questions: Path, sources: Path) -> dict[str, list[str]]:
    """Returns the lines with questions about sources of which other photographs train, and the others."""
    trains = {
        source["id"]: any(picture["split"] == "train" for picture in source["pictures"])
        for source in json.loads(sources.read_text("utf-8"))["sources"]
    }
    parts: dict[str, list[str]] = {"seen": [], "unseen": []}
    for line in questions.read_text("utf-8").splitlines(keepends=True):
        source = json.loads(line)["image"].partition("/")[0]
        parts["seen" if trains[source] else "unseen"].append(line)
    return parts


def _of_part(address: str, to: Path, questions: Iterable[str], photographs: Path) -> dict[str, Any]:
    listed = to.with_suffix(".jsonl")
    listed.write_text("".join(questions), "utf-8")
    return _evaluated(address, to, listed, "--image-root", photographs)


def _by_kind(report: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {
        kind["name"]: {"count": kind["count"], "right": kind["right"]}
        for kind in sorted(report["questions"]["by_kind"], key=lambda kind: kind["name"])
    }


def _calibration(report: dict[str, Any]) -> dict[str, float]:
    found = report["calibration"]
    return {
        "error": found["expected_calibration_error"],
        "if_calibrated": found["calibration_error_if_calibrated"],
        **{name: found[name] for name in ("mean_score", "sure", "sure_and_wrong")},
    }


def _former() -> dict[str, Any] | None:
    """Returns the figures of the earlier checkpoint in the last run, if the questions were the same."""
    if not card.MEASURED.exists():
        return None
    last = card.read()
    found: dict[str, Any] | None = last["former"] if last["questions"] == file_digest(QUESTIONS) else None
    return found


def _of_imagenet(address: str, folder: Path, samples: Path) -> dict[str, float]:
    by_class(sorted(samples.glob("n*_*.JPEG")), folder / "classes")
    report = _evaluated(address, folder / "answers", folder / "classes")["classification"]
    return {"top_1": report["top_1"], "top_5": report["top_5"]}


def _evaluated(address: str, to: Path, source: Path, *options: str | Path) -> dict[str, Any]:
    """Returns the report of `alignserve evaluate`."""
    with contextlib.redirect_stdout(io.StringIO()):
        _run("--server", address, "evaluate", source, "--to", to, *options)
    report: dict[str, Any] = json.loads((to / "report.json").read_text("utf-8"))
    return report


def _run(*arguments: str | Path) -> None:
    if cli.main([str(argument) for argument in arguments]) != cli.OK:
        raise SystemExit("the measurement is not complete")


def _size(weights: Path) -> dict[str, int]:
    with safe_open(weights, "np") as tensors:
        counts = [math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    return {"weight_bytes": weights.stat().st_size, "parameters": sum(counts)}


def _milliseconds(client: Client, photographs: Path) -> dict[str, float]:
    """Returns the medians of the times in the model, of calls with one image and with one text."""
    questions = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    images = sorted({photographs / question["image"] for question in questions})[:_TIMED]
    texts = sorted({label for question in questions for label in question["labels"]})[:_TIMED]
    of_images = [client.embed_image_detailed([image]).stats[0].compute_seconds for image in images]
    of_texts = [client.embed_text_detailed([text]).stats[0].compute_seconds for text in texts]
    return {
        "image": round(statistics.median(of_images) * 1000, 2),
        "text": round(statistics.median(of_texts) * 1000, 2),
    }


if __name__ == "__main__":
    main()
