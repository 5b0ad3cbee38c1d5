"""The simulation and search of a plan, compared with cases that can be computed by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from alignserve_server.batching.scheduler import BatchPolicy
from alignserve_server.planning.curve import Curve, FrontCalls
from alignserve_server.planning.search import Traffic, expected, highest_rate, on_idle, sustains
from alignserve_server.planning.simulation import Arrival, Outcome, Replica, simulate

TEXTS = Traffic(image_share=0.0, text_tokens=(8, 8), calls=3000)


def _curve(
    forward: dict[int, float] | None = None,
    *,
    cores: int = 4,
    lanes: int = 1,
    has_parallel_lanes: bool = True,
    forward_cores: float = 0.0,
    call: float = 0.0,
    prepare: float = 0.0,
) -> Curve:
    """Returns a curve with the same forwards for images and for texts of any length; by default 10 ms."""
    by_size = forward or {1: 0.010, 64: 0.010}
    return Curve(
        "a model",
        cores,
        lanes,
        has_parallel_lanes,
        forward_cores,
        call={"image": call, "text": call},
        prepare={"image": prepare, "text": prepare},
        forward={"image": {1: by_size}, "text": {1: by_size, 64: by_size}},
    )


def _replica(
    curve: Curve, *, max_batch_size: int = 1, decode_threads: int = 1, max_queue_delay_seconds: float = 0.0
) -> Replica:
    policies = {"image": BatchPolicy(max_batch_size), "text": BatchPolicy(max_batch_size)}
    return Replica(curve, policies, decode_threads, 1024, max_queue_delay_seconds)


def _front_calls(front: float, device: float) -> FrontCalls:
    return FrontCalls(*({"image": each, "text": each} for each in (front, device)))


def _arrivals(times: Iterable[float], modality: str = "text") -> list[Arrival]:
    return [Arrival(time, modality, 1) for time in times]


def _latencies(outcome: Outcome) -> list[float]:
    return [round(float(seconds), 9) for seconds in outcome.latencies]


class TestCurve:
    """Interpolation between measured times."""

    @pytest.mark.parametrize(
        ("size", "seconds"), [(1, 0.010), (2, 0.020), (3, 0.025), (4, 0.030), (8, 0.060)]
    )
    def test_sizes_are_interpolated_and_larger_ones_extrapolated(self, size: int, seconds: float) -> None:
        """Measured sizes have their measured times."""
        curve = _curve({1: 0.010, 2: 0.020, 4: 0.030})

        assert curve.forward_seconds("image", size, 1) == pytest.approx(seconds)

    @pytest.mark.parametrize(("length", "seconds"), [(4, 0.010), (8, 0.010), (12, 0.015), (16, 0.020)])
    def test_text_lengths_are_interpolated(self, length: int, seconds: float) -> None:
        """A text shorter than the shortest measured length takes as long as that one."""
        curve = replace(_curve(), forward={"image": {1: {1: 1.0}}, "text": {8: {1: 0.010}, 16: {1: 0.020}}})

        assert curve.forward_seconds("text", 1, length) == pytest.approx(seconds)

    @pytest.mark.parametrize("forward", [{}, {"image": {}, "text": {}}, {"image": {1: {}}, "text": {8: {}}}])
    def test_a_curve_without_times_is_refused(self, forward: dict[str, dict[int, dict[int, float]]]) -> None:
        """A file with parts removed by hand is not a valid curve."""
        with pytest.raises(ValueError, match="missing"):
            replace(_curve(), forward=forward)


class TestSimulation:
    """Calls that arrive at given times."""

    def test_a_single_call_takes_the_sum_of_its_steps(self) -> None:
        """Receiving, decoding, forward and responding follow each other."""
        replica = _replica(_curve(call=0.002, prepare=0.003))

        outcome = simulate(replica, _arrivals([0.0], "image"))

        assert _latencies(outcome) == [0.015]

    def test_calls_that_are_spaced_by_a_forward_never_wait(self) -> None:
        """One call every 10 ms, of 10 ms each, keeps the device busy all the time."""
        outcome = simulate(_replica(_curve()), _arrivals(0.010 * number for number in range(100)))

        assert _latencies(outcome) == [0.010] * 100
        assert outcome.device_busy == pytest.approx(1.0)

    def test_calls_that_arrive_together_wait_for_each_other(self) -> None:
        """A single lane without batching runs them one after the other."""
        outcome = simulate(_replica(_curve()), _arrivals([0.0, 0.0, 0.0]))

        assert _latencies(outcome) == [0.010, 0.020, 0.030]

    def test_calls_that_arrive_during_a_forward_share_the_next_batch(self) -> None:
        """The first call runs on its own immediately, the others together."""
        outcome = simulate(_replica(_curve(), max_batch_size=8), _arrivals([0.0, 0.001, 0.002]))

        assert _latencies(outcome) == [0.010, 0.019, 0.018]
        assert outcome.mean_batch == {"text": 1.5}

    def test_a_queue_delay_fills_the_batch(self) -> None:
        """As in the real scheduler, a batch waits until its first entry has waited for the delay."""
        replica = _replica(_curve(), max_batch_size=8, max_queue_delay_seconds=0.005)

        outcome = simulate(replica, _arrivals([0.0, 0.004]))

        assert _latencies(outcome) == [0.015, 0.011]

    @pytest.mark.parametrize(
        ("has_parallel_lanes", "latencies"), [(True, [0.010, 0.010]), (False, [0.010, 0.020])]
    )
    def test_lanes_run_in_parallel_or_take_turns(
        self, *, has_parallel_lanes: bool, latencies: list[float]
    ) -> None:
        """Two lanes of a CPU run two batches in the time of one; those of a GPU do not."""
        curve = _curve(lanes=2, has_parallel_lanes=has_parallel_lanes)

        outcome = simulate(_replica(curve), _arrivals([0.0, 0.0]))

        assert _latencies(outcome) == latencies

    def test_decoding_slows_down_a_forward_on_the_same_core(self) -> None:
        """From 10 ms on, a decode of 4 ms and a forward of 10 ms share a core, each at half speed."""
        curve = _curve(cores=1, forward_cores=1.0, prepare=0.004)

        outcome = simulate(_replica(curve), _arrivals([0.0, 0.006], "image"))

        assert _latencies(outcome) == [0.018, 0.022]
        assert outcome.cores_busy == pytest.approx(1.0)

    def test_decoding_does_not_affect_a_forward_on_another_core(self) -> None:
        """With two cores, the second image is decoded while the first is in the model."""
        curve = _curve(cores=2, forward_cores=1.0, prepare=0.004)

        outcome = simulate(_replica(curve), _arrivals([0.0, 0.006], "image"))

        assert _latencies(outcome) == [0.014, 0.018]

    def test_a_modality_has_no_more_lanes_than_it_may(self) -> None:
        """The third lane stays free for the other modality."""
        curve = replace(_curve(lanes=3), lanes_per_modality=2)

        outcome = simulate(_replica(curve), _arrivals([0.0, 0.0, 0.0]))

        assert _latencies(outcome) == [0.010, 0.010, 0.020]

    def test_with_fronts_a_call_passes_through_two_processes(self) -> None:
        """The front prepares the input, and each process has half of its work before the forward."""
        curve = replace(_curve(prepare=0.003), front_calls=_front_calls(0.004, 0.002))

        outcome = simulate(replace(_replica(curve), front_processes=1), _arrivals([0.0], "image"))

        assert _latencies(outcome) == [0.019]

    @pytest.mark.parametrize(("fronts", "rate"), [(1, 250.0), (2, 500.0), (4, 1000.0), (8, 1000.0)])
    def test_more_fronts_take_more_calls_until_the_device_process_is_the_limit(
        self, fronts: int, rate: float
    ) -> None:
        """A front takes 250 calls a second and the device process 1,000; the model is faster."""
        curve = replace(_curve({1: 1e-5, 64: 1e-5}, cores=16), front_calls=_front_calls(0.004, 0.001))
        replica = replace(_replica(curve), front_processes=fronts)

        assert sustains(expected(replica, TEXTS, 0.9 * rate), 1.0)
        assert expected(replica, TEXTS, 1.1 * rate).is_saturated

    def test_calls_beyond_the_queue_are_refused(self) -> None:
        """The simulation uses the server's own admission: of ten concurrent calls, some are refused."""
        replica = replace(_replica(_curve()), max_queue_size=4)

        outcome = simulate(replica, _arrivals([0.0] * 10))

        assert outcome.refused > 0
        assert outcome.refused + len(outcome.latencies) == 10
        assert outcome.is_saturated


class TestSearch:
    """The maximum load of one replica."""

    def test_on_an_idle_replica_p99_is_the_time_of_a_single_call(self) -> None:
        """Calls that never overlap do not wait."""
        outcome = on_idle(_replica(_curve(call=0.001)), TEXTS)

        assert outcome.latency(99) == pytest.approx(0.011)

    def test_the_rate_found_is_sustained_and_a_higher_one_is_not(self) -> None:
        """It is the maximum, within a few percent."""
        replica = _replica(_curve(), max_batch_size=4)

        rate = highest_rate(replica, TEXTS, 0.050)

        assert sustains(expected(replica, TEXTS, rate), 0.050)
        assert not sustains(expected(replica, TEXTS, 1.05 * rate), 0.050)

    def test_the_rate_stays_below_the_capacity_of_the_device(self) -> None:
        """Without batching, 10 ms per call is at most 100 calls per second, however long callers wait."""
        rate = highest_rate(_replica(_curve()), TEXTS, 1000.0)

        assert 90.0 < rate < 105.0

    def test_single_server_queue_agrees_with_theory(self) -> None:
        """In an M/D/1 queue at half load, the mean wait is half a service time (Pollaczek, Khinchine)."""
        outcome = expected(_replica(_curve()), TEXTS, 50.0)

        assert float(outcome.latencies.mean()) == pytest.approx(0.015, rel=0.05)
        assert outcome.device_busy == pytest.approx(0.5, rel=0.05)

    def test_a_longer_p99_sustains_more(self) -> None:
        """The rate grows with the p99 target."""
        replica = _replica(_curve(), max_batch_size=4)
        few = replace(TEXTS, calls=1000)

        rates = [highest_rate(replica, few, p99) for p99 in (0.015, 0.060)]

        assert rates == sorted(rates)

    def test_latency_grows_with_the_rate(self) -> None:
        """The same calls arrive at each rate, only closer together."""
        replica = _replica(_curve())

        latencies = [expected(replica, TEXTS, rate).latency(99) for rate in (20.0, 50.0, 80.0, 95.0)]

        assert latencies == sorted(latencies)

    def test_a_rate_above_capacity_is_saturated(self) -> None:
        """The wait grows without end, which percentiles of a finite run cannot show."""
        outcome = expected(_replica(_curve()), TEXTS, 120.0)

        assert outcome.is_saturated

    def test_the_time_of_a_single_call_is_not_sustained_at_any_rate(self) -> None:
        """Any wait would be too long, so the result is 0 instead of a tiny rate."""
        rate = highest_rate(_replica(_curve()), replace(TEXTS, calls=1000), 0.0099)

        assert rate == 0.0
