"""Compares alignserve with each server that people install, in turn, on the same checkpoint."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from alignserve._bench.load import ClosedLoop
from alignserve._bench.recorder import Measurement
from alignserve._bench.runner import RunLength
from alignserve_server.model.checkpoint import resolve_checkpoint
from numpy.typing import NDArray

from tests.load.contenders import ALIGNSERVE, Contender, NotReady, Running, contenders, peers
from tests.load.inputs import MODALITIES, bodies
from tests.load.measuring import Plan, Rates, in_turn, progress
from tests.load.peers.plain_model import PlainModel
from tests.load.report import Section, number, ratio, table
from tests.processes import family_cpu_seconds

_CALLERS = 64
_SAMPLES = 8  # items of each modality whose embeddings are compared
_MIN_COSINE = 0.999

_NOTE = f"""\
Calls of one item from {_CALLERS} callers, over the fastest protocol that the server documents. alignserve and
the other server both run and take turns; figures are medians of the turns after the first. CPU time is that
of all processes of the server. Cosine is the lowest similarity of {_SAMPLES} embeddings with those of
transformers. All compute in float32 and batch; the others do so on torch, or on ONNX Runtime where the name
says so, and alignserve runs with its defaults. No server is limited in its threads."""


@dataclass(frozen=True)
class Turn:
    """One turn of a server."""

    measured: Measurement
    cpu_ms: float  # of all processes of the server, per call


@dataclass(frozen=True)
class Standing:
    """The results of a server and of alignserve for one modality."""

    server: str
    modality: str
    theirs: Sequence[Turn]
    ours: Sequence[Turn]
    cosine: float  # lowest of some items, between the server's embedding and transformers'

    @property
    def row(self) -> tuple[object, ...]:
        """The row of the table; a server with other embeddings does other work, and is not compared."""
        theirs, ours = (Rates.of([turn.measured for turn in turns]) for turns in (self.theirs, self.ours))
        cpu_ms, our_cpu_ms = (_cpu_ms(turns) for turns in (self.theirs, self.ours))
        is_same = self.cosine >= _MIN_COSINE
        return (
            *(self.modality, self.server, theirs, ours),
            f"{ratio(ours.items_per_second, theirs.items_per_second):.2f}" if is_same else "other embeddings",
            *(number(theirs.p99_ms), number(ours.p99_ms)),
            *(number(cpu_ms), number(our_cpu_ms), f"{self.cosine:.5f}"),
        )


_HEAD = (
    *("items", "server", "items/s", "alignserve's", "alignserve ÷ it"),
    *("p99 ms", "alignserve's", "CPU ms an item", "alignserve's", "cosine"),
)


def run(plan: Plan) -> Section:
    """Measures alignserve and each installed server; names the others, with the reason."""
    (ours,) = (each for each in contenders(plan.checkpoint) if each.name == ALIGNSERVE)
    expected = _expected(str(resolve_checkpoint(plan.checkpoint).folder))
    standings: list[Standing] = []
    skipped = []
    with ours.start() as alignserve:
        for peer in peers(plan.checkpoint):
            progress(peer.name)
            try:
                standings += list(_standings(peer, alignserve, expected, plan))  # all of its rows or none
            except NotReady as reason:
                skipped.append(f"{peer.name} ({reason})")
    rows = [one.row for modality in MODALITIES for one in standings if one.modality == modality]
    absent = [f"Not measured: {'; '.join(skipped)}."] if skipped else []
    return Section(f"In pairs: {plan.model}", [_NOTE, table(_HEAD, rows), *absent])


def _standings(
    peer: Contender, alignserve: Running, expected: Mapping[str, NDArray[np.float32]], plan: Plan
) -> Iterator[Standing]:
    if peer.absence is not None:
        raise NotReady(peer.absence)
    with peer.start() as server:
        for modality in peer.modalities:
            turns = {
                name: partial(_turn, running, modality, plan.seconds)
                for name, running in (("ours", alignserve), ("theirs", server))
            }
            taken = in_turn(turns, plan.rounds + 1)
            yield Standing(
                peer.name,
                modality,
                **{name: of[1:] for name, of in taken.items()},
                cosine=_cosine(server, modality, expected[modality]),
            )


def _turn(server: Running, modality: str, seconds: float) -> Turn:
    before = family_cpu_seconds(server.process)
    # No warm-up, so that every call counts in the CPU time.
    measured = server.measure(modality, ClosedLoop(_CALLERS), RunLength(seconds))
    used = family_cpu_seconds(server.process) - before
    return Turn(measured, 1e3 * used / max(1, measured.requests))


def _cpu_ms(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.cpu_ms for turn in turns)


def _samples(modality: str) -> list[bytes]:
    return list(islice(bodies(modality, seed=0), _SAMPLES))


def _expected(folder: str) -> dict[str, NDArray[np.float32]]:
    """Returns transformers' embeddings of the samples, by modality: (samples, dimension)."""
    model = PlainModel(folder)
    return {
        modality: np.stack(
            [np.frombuffer(row, np.float32) for row in model.embed(modality, _samples(modality))]
        )
        for modality in MODALITIES
    }


def _cosine(server: Running, modality: str, expected: NDArray[np.float32]) -> float:
    rows = np.stack([server.embed(modality, body) for body in _samples(modality)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return float((rows * expected).sum(axis=1).min())
