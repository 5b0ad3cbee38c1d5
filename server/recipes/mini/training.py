"""Teaches the text tower where nouns point: near the teacher's target, with its ranking of the classes.

Meanwhile MiniLM's embeddings of phrases must stay readable from what the projection gets, or the tower would
forget what nouns do not need: numbers, actions, colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from server.recipes.mini.phrases import written
from server.recipes.mini.teacher import Noun
from server.recipes.mini.text import WIDTH, TextTower

_RANKING_SCALE = 16.0
_RANKING_WEIGHT = 0.5
_MEANING_WEIGHT = 1.0
_WARM_UP = 50
_LONGEST_DEFINITION = 90
_KINDS = ("class", "class", "above", "everyday", "other", "other")  # each entry is drawn equally often


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: learning rates for MiniLM's parts and for the new ones.

    `bfloat16` computes the text tower in it, in half the time on a CPU that has its instructions.
    """

    steps: int
    batch: int
    old_rate: float
    new_rate: float
    bfloat16: bool = False


def optimizer(tower: TextTower, schedule: Schedule, others: Sequence[nn.Parameter] = ()) -> torch.optim.AdamW:
    """AdamW in groups: MiniLM's parameters; the tower's new ones, and `others` at the same rate."""
    new = tower.untrained_parameters()
    known = {id(parameter) for parameter in new}
    old = [parameter for parameter in tower.parameters() if id(parameter) not in known]
    groups = [{"params": old, "lr": schedule.old_rate}, {"params": [*new, *others], "lr": schedule.new_rate}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    warm_up = min(_WARM_UP, max(1, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up))))


class NounSampler:
    """Draws texts about nouns with the direction that each should have."""

    def __init__(self, nouns: Sequence[Noun], targets: Tensor, rng: np.random.Generator) -> None:
        self._nouns = nouns
        self._targets = targets  # (nouns, DIMENSION)
        self._rng = rng
        self._by_kind = {
            kind: np.array([at for at, noun in enumerate(nouns) if noun.kind == kind]) for kind in set(_KINDS)
        }
        self._kinds = [kind for kind in _KINDS if len(self._by_kind[kind])]

    def draw(self, count: int) -> tuple[list[str], Tensor]:
        """`count` texts, and their targets (count, DIMENSION), normalized."""
        drawn = [self._one() for _ in range(count)]
        return [text for text, _ in drawn], nn.functional.normalize(
            torch.stack([target for _, target in drawn])
        )

    def _one(self) -> tuple[str, Tensor]:
        at = self._noun()
        chance = self._rng.random()
        if chance < 0.1:
            return self._nouns[at].definition[:_LONGEST_DEFINITION], self._targets[at]
        if chance < 0.2:
            other = self._noun()
            return f"{self._name(at)} and {self._name(other)}", self._targets[at] + self._targets[other]
        return written(self._name(at), self._rng, adjective=0.15), self._targets[at]

    def _noun(self) -> int:
        kind = self._kinds[self._rng.integers(len(self._kinds))]
        return int(self._rng.choice(self._by_kind[kind]))

    def _name(self, at: int) -> str:
        names = self._nouns[at].names
        # the first name is the commonest
        return names[0] if self._rng.random() < 0.5 else names[self._rng.integers(len(names))]


def noun_loss(predicted: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """1 - cosine, plus the divergence of the two rankings of all classes. Targets are normalized."""
    predicted = nn.functional.normalize(predicted)
    cosine = (predicted * targets).sum(dim=1)
    wanted = (_RANKING_SCALE * targets @ classes.T).log_softmax(dim=1)
    ranked = (_RANKING_SCALE * predicted @ classes.T).log_softmax(dim=1)
    divergence = nn.functional.kl_div(ranked, wanted, log_target=True, reduction="batchmean")
    return (1 - cosine).mean() + _RANKING_WEIGHT * divergence


class Sentences:
    """Draws texts with MiniLM's embeddings of them, (texts, WIDTH), normalized."""

    def __init__(self, texts: Sequence[str], embeddings: Tensor, seed: int) -> None:
        self._texts, self._embeddings = texts, embeddings
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> tuple[list[str], Tensor]:
        rows = torch.randint(len(self._texts), (count,), generator=self._generator)
        return [self._texts[row] for row in rows.tolist()], self._embeddings[rows.to(self._embeddings.device)]


def train_nouns(
    tower: TextTower,
    sampler: NounSampler,
    sentences: Sentences,
    classes: Tensor,
    schedule: Schedule,
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """Trains in place. `report` gets each step's number and loss."""
    torch.manual_seed(seed)
    reader = nn.Linear(WIDTH, WIDTH, device=classes.device)
    adam = optimizer(tower, schedule, list(reader.parameters()))
    rates = [group["lr"] for group in adam.param_groups]
    tower.train()
    for step in range(schedule.steps):
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor(step, schedule.steps)
        texts, targets = sampler.draw(schedule.batch)
        phrases, meanings = sentences.draw(schedule.batch // 2)
        with torch.autocast(classes.device.type, torch.bfloat16, enabled=schedule.bfloat16):
            hidden = tower.first_token([*texts, *phrases])
            predicted = tower.projection(hidden[: len(texts)])
            read = reader(hidden[len(texts) :])
        loss = noun_loss(predicted.float(), targets.to(classes.device), classes)
        loss = loss + _MEANING_WEIGHT * (1 - nn.functional.cosine_similarity(read.float(), meanings)).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        adam.step()
        report(step, loss.item())
    tower.eval()
