"""The stages that train on photographs: their features, the training itself, and the temperature.

The temperature is that of a rehearsal: the same training without some sources, whose photographs then say how
confident to be about photographs of strangers. The checkpoint itself is trained on all photographs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from server.recipes.mini import calibration, captions, features, imagenet, nouns, text_start, tuning
from server.recipes.mini.captions import Photo
from server.recipes.mini.imagined import Imagined
from server.recipes.mini.meaning import Implications, content_words, said_alone
from server.recipes.mini.phrases import filled
from server.recipes.mini.space import ImageSpace, lite0_state, with_free_elements
from server.recipes.mini.teacher import Noun
from server.recipes.mini.text import TextTower
from server.recipes.mini.training import NounSampler
from server.recipes.mini.vision import FEATURES, LITE0_FEATURES, Head, Lite0, linear_head

TRAININGS = 2
"""Number of trainings whose weights are averaged."""

_QUESTIONS_PER_PHOTO = 8
_FEWEST_LABELS, _MOST_LABELS = 3, 6
_LOOK_ALIKES, _NEAREST = 0.5, 20


def extract(
    sources: Path,
    photos: Sequence[Photo],
    folder: Path,
    out: Path,
    views: int,
    seed: int,
    device: torch.device,
    report: Callable[[int, int], None],
) -> None:
    """Writes `features.safetensors`, (photos, views, FEATURES), and `photos.json`."""
    model = Lite0({name: tensor.to(device) for name, tensor in lite0_state(sources).items()})
    found = features.extract(model, [folder / photo.file for photo in photos], views, seed, report)
    save_file({"features": found}, out / "features.safetensors")
    (out / "photos.json").write_text(json.dumps([asdict(photo) for photo in photos]) + "\n", "utf-8")


def read_photos(folder: Path) -> tuple[list[Photo], Tensor]:
    """The photographs, and their features (photos, views, FEATURES)."""
    documents = json.loads((folder / "photos.json").read_text("utf-8"))
    photos = [Photo(**{name: _frozen(value) for name, value in document.items()}) for document in documents]
    return photos, load_file(folder / "features.safetensors")["features"]


@dataclass(frozen=True)
class Inputs:
    """The folders of earlier stages."""

    sources: Path
    space: Path
    nouns: Path
    text: Path
    training: Path
    features: Path


def train(
    inputs: Inputs,
    out: Path,
    steps: int,
    seed: int,
    device: torch.device,
    report: Callable[[int, int, float], None],
    *,
    is_rehearsal: bool,
) -> None:
    """Writes `tower.safetensors` and `head.safetensors`: the mean of the weights of several trainings.

    They start from the same weights and differ in what they draw, so that the mean of their weights is a good
    model as well (Wortsman et al., 2022, https://arxiv.org/abs/2203.05482). `report` gets the training, the
    step and the loss.
    """
    photos, found = read_photos(inputs.features)
    rows = learned(photos, is_rehearsal=is_rehearsal)
    lite0 = lite0_state(inputs.sources)
    space = ImageSpace(**load_file(inputs.space / "space.safetensors"))
    space = with_free_elements(space, found[rows].flatten(0, 1))
    lite0_classes = classifier(lite0)
    data = photo_data(
        [photos[at] for at in rows], found[rows], Implications(nouns.read_wordnet(inputs.sources))
    )
    names = read_names(inputs.sources, inputs.nouns)
    said = {phrase.text for at in rows for phrase in captions.phrases_of(photos[at])}
    kept = not_shown(*nouns.read(inputs.nouns), said)

    def imagined(draw_seed: int) -> Imagined:
        generator = torch.Generator().manual_seed(draw_seed)
        weight, bias = lite0_classes.weight.detach(), lite0_classes.bias.detach()
        return Imagined(found[rows].flatten(0, 1), weight, bias, generator)

    trained = []
    for training in range(TRAININGS):
        draw_seed = seed * TRAININGS + training
        tower = text_start.read(inputs.text / "vocab.txt", inputs.training / "tower.safetensors").to(device)
        head = linear_head(space.weight, space.bias, space.spread, seed).to(device)
        tuning.train_sets(
            tower,
            head,
            tuning.SetSampler(data, names, imagined(draw_seed), lite0_classes, draw_seed),
            NounSampler(*kept, np.random.default_rng([draw_seed, 4])),
            space.classes.to(device),
            steps,
            draw_seed,
            partial(report, training),
        )
        trained.append((tower.cpu().state_dict(), head.cpu().state_dict()))
    save_file(mean_of_weights([tower for tower, _ in trained]), out / "tower.safetensors")
    save_file(mean_of_weights([head for _, head in trained]), out / "head.safetensors")


def learned(photos: Sequence[Photo], *, is_rehearsal: bool) -> list[int]:
    """Which photographs train, by index: in a rehearsal, those that are not withheld from it."""
    return [at for at, photo in enumerate(photos) if not (is_rehearsal and photo.is_withheld)]


def mean_of_weights(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Averages each tensor over models of the same shape."""
    return {name: torch.stack([model[name] for model in models]).mean(dim=0) for name in models[0]}


def not_shown(listed: Sequence[Noun], targets: Tensor, said: set[str]) -> tuple[list[Noun], Tensor]:
    """The nouns but those without classes that photographs show: these know better what they look like."""
    words = {content_words(text) for text in said}
    kept = [
        at
        for at, noun in enumerate(listed)
        if noun.shows or words.isdisjoint(content_words(name) for name in noun.names)
    ]
    return [listed[at] for at in kept], targets[kept]


def calibrate(sources: Path, text: Path, rehearsal: Path, extracted: Path, out: Path, seed: int) -> None:
    """Writes `calibration.json`: the temperature, and how good the rehearsal is on what it did not see."""
    photos, found = read_photos(extracted)
    rows = [at for at, photo in enumerate(photos) if photo.is_withheld]
    tower = text_start.read(text / "vocab.txt", rehearsal / "tower.safetensors")
    head = Head()
    head.load_state_dict(load_file(rehearsal / "head.safetensors"))
    data = photo_data([photos[at] for at in rows], found[rows, :1], Implications(nouns.read_wordnet(sources)))
    questions = withheld_questions(tower, head, data, seed)
    temperature = calibration.best_temperature(questions)
    document = {"temperature": temperature, **asdict(calibration.reliability(questions, temperature))}
    (out / "calibration.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def withheld_questions(
    tower: TextTower, head: Head, photos: tuning.Photos, seed: int
) -> list[calibration.Question]:
    """Questions of a few labels: one phrase that is right for a photo, others that are known to be wrong."""
    rng = np.random.default_rng([seed, 3])
    texts = [phrase.text for phrase in photos.known.phrases]
    written = [*texts, *(filled("a photo of a {}", text) for text in texts)]
    with torch.inference_mode():
        images = nn.functional.normalize(head(photos.features[:, 0])).numpy()
        embedded = torch.cat([tower(written[at : at + 128]) for at in range(0, len(written), 128)])
        vectors = nn.functional.normalize(embedded).numpy().reshape(2, len(texts), -1)
    alike = vectors[0] @ vectors[0].T
    questions = []
    for row, image in enumerate(images):
        right, wrong = (np.flatnonzero(photos.known.right[row].numpy() == value) for value in (1, 0))
        for _ in range(_QUESTIONS_PER_PHOTO):
            answer = int(rng.choice(right))
            labels = [answer, *_others(answer, wrong, photos.known.phrases, alike[answer], rng)]
            questions.append(calibration.Question(vectors[rng.integers(2), labels] @ image, 0))
    return questions


def _others(
    answer: int,
    wrong: NDArray[np.int64],
    phrases: Sequence[captions.Phrase],
    alike: NDArray[np.float32],
    rng: np.random.Generator,
) -> list[int]:
    """Wrong labels for a question, of the answer's kind if there are enough, and often the most like it.

    `alike` are the phrases' similarities to the answer, (phrases,). People ask what is easily confused.
    """
    count = int(rng.integers(_FEWEST_LABELS, _MOST_LABELS + 1)) - 1
    same = np.array([at for at in wrong if phrases[at].kind == phrases[answer].kind], np.int64)
    pool = same if len(same) >= count else wrong
    if rng.random() < _LOOK_ALIKES:
        pool = pool[np.argsort(-alike[pool], kind="stable")[:_NEAREST]]
    return [int(at) for at in rng.choice(pool, size=min(count, len(pool)), replace=False)]


def classifier(lite0: dict[str, Tensor]) -> nn.Linear:
    """Lite0's classifier. It does not look at the features of colour and of the last map."""
    weight, more = lite0["_fc.weight"], FEATURES - LITE0_FEATURES
    layer = nn.Linear(FEATURES, len(weight))
    layer.load_state_dict({"weight": nn.functional.pad(weight, (0, more)), "bias": lite0["_fc.bias"]})
    return layer


def photo_data(photos: Sequence[Photo], found: Tensor, implications: Implications) -> tuning.Photos:
    """Features (photos, views, FEATURES) with what captions and tags say."""
    phrases = [captions.phrases_of(photo) for photo in photos]
    return tuning.Photos(found, captions.known(phrases, implications))


def _frozen(value: str | list[str]) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)


def read_names(sources: Path, listed: Path) -> tuning.Names:
    net = nouns.read_wordnet(sources)
    classes = imagenet.read(sources, net)
    class_words = []
    for each in classes:
        names = {name for offset in net.above(each.offset) for name in nouns.own_names(net, offset)}
        class_words.append(frozenset().union(*(said_alone(name) for name in (*each.names, *names))))
    return tuning.names_with_classes(*nouns.read(listed), class_words)
