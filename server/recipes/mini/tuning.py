"""Trains the head and the end of the text tower together, on sets of labels of which one is right.

The end is the last layer's feed-forward network and the projection. The projection by itself is linear, which
is too little to tell labels apart even for the training photographs. The layers before it stay as nouns
trained them: a few thousand phrases would bend them, and each text runs through them only once.

A step shows photographs and imagined features, and asks of each which of some texts is right. Texts about
which nothing is known for a picture are left out of its set. The loss is what `Classify` is judged by: the
logarithm of the right label's score.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from server.recipes.mini import colour
from server.recipes.mini.captions import Known, recoloured
from server.recipes.mini.imagined import Imagined
from server.recipes.mini.meaning import agreement, content_words, said_alone
from server.recipes.mini.phrases import TEMPLATES, filled, written
from server.recipes.mini.space import CLASS_DIMENSION
from server.recipes.mini.teacher import Noun
from server.recipes.mini.text import TextTower
from server.recipes.mini.training import NounSampler, noun_loss, rate_factor
from server.recipes.mini.vision import COLOURS, Head

_EVERYDAY = 0.5
_SURE, _MAYBE = 0.5, 0.02  # Lite0's probability from which a name is right, and up to which it is wrong
_START_SCALE = 20.0
_RATE = 1e-3
_CLASS_SCALE = 28.0
_HELD_NOUNS, _KEPT_NOUNS = 8_192, 384  # in all, and in a step
_NAMED_CLASSES = 64
_TOGETHER = 256
_HELD_WEIGHT = 2.0
_KEPT_IMAGES = 3.0  # the weight of what a picture's class elements were before
_PHOTOS, _PAINTED, _IMAGINED, _MORE_PHRASES, _MORE_NOUNS = 128, 12, 64, 16, 16
_OF_EACH_KIND, _RECOLOURED = 128, 2


@dataclass(frozen=True)
class Photos:
    """Photographs: features (photos, views, FEATURES), and the phrases that are right or wrong for each."""

    features: Tensor
    known: Known


@dataclass(frozen=True)
class Names:
    """Nouns that classes show.

    `shows` and `may` are (1000, nouns), 1 where they do; `may` has the classes of `shows` as well. `targets`
    are (nouns, DIMENSION). The first nouns are the classes themselves, in their order.
    """

    nouns: Sequence[Noun]
    shows: Tensor
    may: Tensor
    targets: Tensor
    class_words: Sequence[frozenset[str]]  # right for each of the 1,000 classes
    class_may_words: Sequence[frozenset[str]]  # those, and those that may be


@dataclass(frozen=True)
class Sets:
    """One step's pictures and texts. `right` is 1 right, 0 wrong, -1 unknown, (pictures, texts)."""

    features: Tensor
    texts: list[str]
    right: Tensor
    classes: Tensor  # Lite0's probabilities of all classes for all pictures but the painted ones
    noun_rows: Tensor  # which texts are names
    noun_targets: Tensor
    named: Tensor  # some classes, those of the imagined features among them
    class_names: list[str]  # a name of each of these


class SetSampler:
    """Draws steps."""

    def __init__(self, photos: Photos, names: Names, imagined: Imagined, lite0: nn.Linear, seed: int) -> None:
        self._photos, self._names, self._imagined = photos, names, imagined
        self._rng = np.random.default_rng([seed, 2])
        with torch.no_grad():
            self._photo_classes = lite0(photos.features).softmax(dim=-1)
            probabilities = self._photo_classes[:, 0]
            self._photo_nouns = known_by_mass(probabilities @ names.shows, probabilities @ names.may)
        self._sure_photo = probabilities.max(dim=1).values > _SURE
        self._noun_agreement = best_agreement([noun.names for noun in names.nouns], photos.known.words)
        self._everyday = torch.tensor([noun.kind == "everyday" for noun in names.nouns])
        self._words = [content_words(phrase.text) for phrase in photos.known.phrases]
        self._right_phrases = [torch.nonzero(row == 1).flatten().numpy() for row in photos.known.right]
        self._class_phrases = known_by_words(
            *(
                torch.from_numpy(agreement(self._words, words))
                for words in (names.class_words, names.class_may_words)
            )
        )
        said = np.flatnonzero((photos.known.right == 1).any(dim=0).numpy())
        self._by_kind = {
            kind: np.array([at for at in said if photos.known.phrases[at].kind == kind])
            for kind in sorted({phrase.kind for phrase in photos.known.phrases})
        }
        self._place = {phrase: at for at, phrase in enumerate(photos.known.phrases)}
        self._shade_names, self._shades = colour.named_shades()

    @property
    def class_names(self) -> list[str]:
        """The best name of each class."""
        return [noun.names[0] for noun in self._names.nouns[: self._names.shows.shape[0]]]

    def draw(self) -> Sets:
        """One step."""
        rng, features, known = self._rng, self._photos.features, self._photos.known
        count = len(features)
        shown = rng.choice(count, size=min(_PHOTOS, count), replace=False)
        views = rng.integers(features.shape[1], size=len(shown))
        imagined, probabilities = self._imagined.draw(_IMAGINED)
        named_by = known_by_mass(probabilities @ self._names.shows, probabilities @ self._names.may)

        said = [int(rng.choice(self._right_phrases[row])) for row in shown]
        said += [int(at) for at in rng.integers(len(known.phrases), size=_MORE_PHRASES)]
        nouns = [
            self._noun_of(known_nouns, mass)
            for known_nouns, mass in zip(named_by, probabilities, strict=True)
        ]
        nouns += [int(at) for at in rng.integers(len(self._names.nouns), size=_MORE_NOUNS)]

        imagined_phrases = self._class_phrases[probabilities.argmax(dim=1)]
        noun_words = self._noun_agreement[shown][:, nouns]
        photo_nouns = self._photo_nouns[shown][:, nouns]
        photo_nouns[~self._sure_photo[shown][:, None] & (photo_nouns == 1)] = -1
        photo_nouns[noun_words > 0] = -1
        photo_nouns[noun_words == 1] = 1
        written_out = len(said)
        said += self._others(shown)
        photo_phrases = known.right[shown][:, said].float()
        right = torch.cat(
            [
                torch.cat([photo_phrases, photo_nouns], dim=1),
                torch.cat([imagined_phrases[:, said], named_by[:, nouns]], dim=1),
            ]
        )

        texts = [self._phrase_as_written(known.phrases[at].text) for at in said[:written_out]]
        texts += [known.phrases[at].text for at in said[written_out:]]
        rows = torch.arange(len(said), len(said) + len(nouns))
        texts += [written(self._name(at), rng) for at in nouns]
        pictures = torch.cat([features[shown, views], imagined])
        painted, colours, right_colours = self._painted()
        others = torch.from_numpy(rng.integers(probabilities.shape[1], size=_NAMED_CLASSES))
        named = torch.cat([probabilities.argmax(dim=1), others]).unique()
        return Sets(
            torch.cat([painted, pictures]),
            [*texts, *colours],
            blocks(right_colours, right),
            torch.cat([self._photo_classes[shown, views], probabilities]),
            rows,
            self._names.targets[nouns],
            named,
            [written(self._name(at), rng) for at in named.tolist()],
        )

    def _others(self, shown: NDArray[np.int64]) -> list[int]:
        """More phrases for all pictures: some of each kind, and other colours of things that are shown."""
        rng, known = self._rng, self._photos.known
        found = [int(at) for rows in self._by_kind.values() for at in rng.permutation(rows)[:_OF_EACH_KIND]]
        for row in shown:
            coloured = [at for at in self._right_phrases[row] if known.phrases[at].kind == "colour"]
            if coloured:
                others = recoloured(known.phrases[rng.choice(coloured)])
                found += [self._place[others[at]] for at in rng.permutation(len(others))[:_RECOLOURED]]
        return found

    def _painted(self) -> tuple[Tensor, list[str], Tensor]:
        """Photographs of which a part is painted in one colour, texts with colours, and which are right.

        The first texts are colours; then each picture has a thing of it in its colour and in another one.
        """
        rng, photos = self._rng, self._photos
        rows = rng.integers(len(photos.features), size=_PAINTED)
        features = photos.features[rows, rng.integers(photos.features.shape[1], size=_PAINTED)].clone()
        texts = [written(f"{name} thing" if rng.random() < 0.3 else name, rng) for name in colour.NAMES]
        right = torch.full((_PAINTED, len(texts) + 2 * _PAINTED), -1.0)
        for at, row in enumerate(rows):
            own, other = rng.choice(len(colour.NAMES), size=2, replace=False)
            shade = rng.choice(
                [each for each, name in enumerate(self._shade_names) if name == colour.NAMES[own]]
            )
            middle = rng.uniform(0.4, 0.9)  # of the middle that is painted
            shares = torch.full((colour.UNITS,), float(middle))
            shares[: colour.WHOLE_UNITS] *= float(rng.uniform(0.3, 1.0))
            features[at, COLOURS] = features[at, COLOURS].lerp(self._shades[shade], shares)
            right[at, : len(colour.NAMES)] = 0
            right[at, own] = 1
            things = [
                photos.known.phrases[phrase].text
                for phrase in self._right_phrases[row]
                if photos.known.phrases[phrase].kind == "thing"
            ]
            thing = str(rng.choice(things)) if things else "thing"
            right[at, len(texts) : len(texts) + 2] = torch.tensor([1.0, 0.0])
            texts += [written(f"{colour.NAMES[each]} {thing}", rng) for each in (own, other)]
        return features, texts, right

    def _noun_of(self, known_nouns: Tensor, probabilities: Tensor) -> int:
        """A name that is right for an imagined feature: often an everyday one, else any."""
        right = known_nouns == 1
        if self._rng.random() < _EVERYDAY and (right & self._everyday).any():
            right = right & self._everyday
        rows = torch.nonzero(right).flatten().numpy()
        return int(self._rng.choice(rows)) if len(rows) else int(probabilities.argmax())

    def _name(self, at: int) -> str:
        names = self._names.nouns[at].names
        return names[0] if self._rng.random() < 0.6 else names[self._rng.integers(len(names))]

    def _phrase_as_written(self, phrase: str) -> str:
        chance = self._rng.random()
        if chance < 0.5:
            return phrase
        if chance < 0.7:
            return filled("a photo of a {}", phrase)
        if chance < 0.8:
            return filled("This is a photo of {}.", phrase)
        return filled(TEMPLATES[self._rng.integers(len(TEMPLATES))], phrase)


def best_agreement(names: Sequence[Sequence[str]], photos: Sequence[frozenset[str]]) -> Tensor:
    """(photos, nouns): the largest share of the words of one of a noun's names that hold for a photo."""
    words = [content_words(name) for own in names for name in own]
    starts = np.cumsum([0, *(len(own) for own in names[:-1])])
    return torch.from_numpy(np.maximum.reduceat(agreement(words, photos), starts, axis=1))


def blocks(first: Tensor, second: Tensor) -> Tensor:
    """Both on a diagonal: rows of the first above, columns of the second left. Elsewhere -1, unknown."""
    both = torch.full((len(first) + len(second), first.shape[1] + second.shape[1]), -1.0)
    both[: len(first), second.shape[1] :] = first
    both[len(first) :, : second.shape[1]] = second
    return both


def known_by_mass(shown: Tensor, may: Tensor) -> Tensor:
    """What Lite0's probabilities say: 1 right, 0 wrong, -1 unknown. `may` is not less than `shown`."""
    known = torch.full_like(shown, -1)
    known[shown > _SURE] = 1
    known[may < _MAYBE] = 0
    return known


def known_by_words(right: Tensor, may: Tensor) -> Tensor:
    """What shares of words say: all are right is right, none may be is wrong, else unknown."""
    known = torch.full_like(right, -1)
    known[right == 1] = 1
    known[may == 0] = 0
    return known


def set_loss(logits: Tensor, right: Tensor, generator: torch.Generator, smoothing: float = 0.02) -> Tensor:
    """The mean of -log score of one right text of each row among a random share of its wrong ones.

    `logits` and `right` are (rows, texts). Rows without a right text, or without a wrong one, do not count.
    """
    noise = torch.rand(logits.shape, generator=generator).to(logits.device)
    positive = (torch.where(right == 1, noise, torch.full_like(noise, -1.0))).argmax(dim=1)
    # from about three wrong ones up to all
    fewest = (3 / (right == 0).sum(dim=1, keepdim=True).clamp(min=1)).clamp(max=1)
    keep = fewest ** torch.rand(len(logits), 1, generator=generator).to(logits.device)
    wrong = (right == 0) & (torch.rand(logits.shape, generator=generator).to(logits.device) < keep)
    counted = (right == 1).any(dim=1) & wrong.any(dim=1)
    if not counted.any():
        return logits.sum() * 0.0
    shown = wrong.clone()
    shown[torch.arange(len(logits)), positive] = True
    scores = logits.masked_fill(~shown, -1e4).log_softmax(dim=1)
    chosen = scores[torch.arange(len(logits)), positive]
    others = (scores * wrong).sum(dim=1) / wrong.sum(dim=1).clamp(min=1)
    return -((1 - smoothing) * chosen + smoothing * others)[counted].mean()


def ranking_loss(images: Tensor, probabilities: Tensor, classes: Tensor) -> Tensor:
    """The divergence of an image's ranking of classes from Lite0's own: what it knew stays.

    `images` (rows, DIMENSION) and `classes` (classes, DIMENSION) are normalized, directions or texts.
    """
    ranked = (_CLASS_SCALE * images @ classes.T).log_softmax(dim=1)
    return nn.functional.kl_div(ranked, probabilities, reduction="batchmean")


def train_sets(
    tower: TextTower,
    remembered: Remembered,
    head: Head,
    sampler: SetSampler,
    nouns: NounSampler,
    classes: Tensor,
    steps: int,
    seed: int,
    report: Callable[[int, float], None],
    *,
    bfloat16: bool,
) -> None:
    """Trains the end of the tower and the head in place, on the device of `classes`.

    `remembered` must be of a tower with the same weights before its end. `nouns` and Lite0's ranking of
    classes hold on to what both knew before. With `bfloat16`, the end is computed in it.
    """
    device = classes.device

    def embed(inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return tower.embed_from(inputs).float()

    generator = torch.Generator().manual_seed(seed)
    anchor = copy.deepcopy(head)
    log_scale = nn.Parameter(torch.log(torch.tensor(_START_SCALE, device=device)))
    trained = [*tower.parameters_of_end(), *head.parameters(), log_scale]
    adam = torch.optim.AdamW(trained, lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    held_texts, held = nouns.draw(_HELD_NOUNS)
    held, held_inputs = held.to(device), remembered(held_texts)
    name_inputs = remembered(sampler.class_names)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = _RATE * rate_factor(step, steps)
        sets = sampler.draw()
        features, right = sets.features.to(device), sets.right.to(device)
        predicted = embed(remembered(sets.texts))
        texts = nn.functional.normalize(predicted)
        images = nn.functional.normalize(head(features))
        with torch.no_grad():
            before = nn.functional.normalize(anchor(features))
        logits = log_scale.exp() * images @ texts.T
        loss = set_loss(logits, right, generator) + 0.5 * set_loss(logits.T, right.T, generator)
        targets = nn.functional.normalize(sets.noun_targets).to(device)
        loss = loss + 0.5 * noun_loss(predicted[sets.noun_rows], targets, classes)
        loss = loss + _KEPT_IMAGES * (1 - cosine_of_classes(images, before)).mean()
        ranked, probabilities = images[-len(sets.classes) :], sets.classes.to(device)
        loss = loss + ranking_loss(ranked, probabilities, classes)
        every = nn.functional.normalize(embed(name_inputs))
        loss = loss + ranking_loss(ranked, probabilities, every)
        names = nn.functional.normalize(embed(remembered(sets.class_names)))
        among = probabilities[:, sets.named.to(device)]
        loss = loss + ranking_loss(ranked, among / among.sum(dim=1, keepdim=True), names)
        kept = torch.randint(len(held), (_KEPT_NOUNS,), generator=generator).to(device)
        loss = loss + _HELD_WEIGHT * noun_loss(embed(held_inputs[kept]), held[kept], classes)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        report(step, loss.item())


class Remembered:
    """What the end of a tower gets of texts, (texts, WIDTH), each computed once."""

    def __init__(self, tower: TextTower, *, bfloat16: bool) -> None:
        self._tower = tower
        self._bfloat16 = bfloat16
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        new = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        device = self._tower.projection.weight.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self._bfloat16):
            for start in range(0, len(new), _TOGETHER):
                some = new[start : start + _TOGETHER]
                self._known |= zip(some, self._tower.attention_output(some).float(), strict=True)
        return torch.stack([self._known[text] for text in texts])


def cosine_of_classes(first: Tensor, second: Tensor) -> Tensor:
    """Of each two rows, in the elements that point to classes."""
    return nn.functional.cosine_similarity(first[:, :CLASS_DIMENSION], second[:, :CLASS_DIMENSION])


def names_with_classes(
    nouns: Sequence[Noun], targets: Tensor, class_words: Sequence[frozenset[str]]
) -> Names:
    """The nouns of which it is known what classes show them. `class_words` are those of each class itself."""
    kept = [at for at, noun in enumerate(nouns) if noun.shows or noun.may]
    shows, may = (torch.zeros(len(class_words), len(kept)) for _ in range(2))
    right, perhaps = ([set(words) for words in class_words] for _ in range(2))
    for column, at in enumerate(kept):
        noun = nouns[at]
        shows[list(noun.shows), column] = 1.0
        may[[*noun.shows, *noun.may], column] = 1.0
        if noun.kind == "everyday":
            words = {word for name in noun.names for word in said_alone(name)}
            for each in noun.shows:
                right[each] |= words
            for each in (*noun.shows, *noun.may):
                perhaps[each] |= words
    return Names(
        [nouns[at] for at in kept],
        shows,
        may,
        targets[kept],
        [frozenset(words) for words in right],
        [frozenset(words) for words in perhaps],
    )
