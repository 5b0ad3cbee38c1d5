"""Servers are compared only if they compute the same embeddings."""

from __future__ import annotations

from alignserve._bench.load import ClosedLoop
from alignserve._bench.recorder import Measurement, Recorder

from tests.load.pairs import Standing, Turn


def _measured(answers: int) -> Measurement:
    """A measurement of a second in which each answer took 10 ms."""
    recorder = Recorder(0.0, 1.0)
    for _ in range(answers):
        recorder.start(0.5, 0.5)
        recorder.succeed(0.5, 0.51, items=1)
    return recorder.measurement(ClosedLoop(1), 1.0, client_cores=0.0, was_interrupted=False)


def _standing(cosine: float) -> Standing:
    theirs = [Turn(_measured(100), cpu_ms) for cpu_ms in (2.0, 9.0, 4.0)]
    ours = [Turn(_measured(200), cpu_ms) for cpu_ms in (1.0, 1.0, 3.0)]
    return Standing("a server", "text", theirs, ours, cosine)


def test_a_row_has_the_medians_of_both_servers() -> None:
    """Rates and their ratio, latencies, CPU time of an item, and the similarity."""
    items, name, theirs, ours, gain, *latencies, cpu_ms, our_cpu_ms, cosine = _standing(0.99999).row

    assert (items, name, str(theirs), str(ours), gain) == ("text", "a server", "100", "200", "2.00")
    assert (cpu_ms, our_cpu_ms, cosine) == ("4.00", "1.00", "0.99999")
    assert len(latencies) == 2


def test_a_server_with_other_embeddings_is_not_compared() -> None:
    """It does other work, so no ratio is given."""
    assert "other embeddings" in _standing(0.99).row
