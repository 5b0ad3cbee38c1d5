"""Whatever waits, in whatever order it came: batches lose nothing, double nothing and keep their limits."""

from __future__ import annotations

from alignserve_server.batching.collect import padding_ratio
from alignserve_server.batching.fair import Flow, Priority
from alignserve_server.batching.queue import Entry
from alignserve_server.batching.scheduler import Batch, BatchPolicy, Scheduler
from alignserve_server.metrics import MODALITIES
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.fakes import entry

_LIMIT = {"image": 4, "text": 8}
_OVERHEAD = {"image": 0, "text": 6}
_NUMBERS = st.integers(0, 99)
_FLOWS = st.builds(Flow, st.sampled_from("abc"), st.sampled_from(Priority))
_MODALITY = st.sampled_from(MODALITIES)


class Scheduling(RuleBasedStateMachine):
    """A scheduler, and what has to wait in it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waiting: dict[str, list[Entry]] = {modality: [] for modality in MODALITIES}
        self.running: list[Batch] = []

    @initialize(delay=st.sampled_from([0.0, 1.0]))
    def start(self, delay: float) -> None:
        """Starts with nothing there."""
        self.delay = delay
        self.scheduler = Scheduler(
            {modality: BatchPolicy(_LIMIT[modality], _OVERHEAD[modality]) for modality in MODALITIES}, delay
        )

    @rule(modality=_MODALITY, lengths=st.lists(st.integers(1, 64), min_size=1, max_size=12), flow=_FLOWS)
    def push(self, modality: str, lengths: list[int], flow: Flow) -> None:
        """Entries of one caller come."""
        for size_bytes in lengths:
            length = size_bytes if modality == "text" else 1
            new = entry(length=length, size_bytes=size_bytes, enqueue_time=self.now, flow=flow)
            self.scheduler.push(modality, new)
            self.waiting[modality].append(new)

    @rule(modality=_MODALITY, number=_NUMBERS)
    def discard(self, modality: str, number: int) -> None:
        """A caller leaves."""
        if waiting := self.waiting[modality]:
            gone = waiting.pop(number % len(waiting))
            assert self.scheduler.discard(modality, gone)
            assert not self.scheduler.discard(modality, gone)

    @rule(seconds=st.sampled_from([0.1, 1.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @rule(idle_lanes=st.integers(1, 4), is_draining=st.booleans())
    def take(self, idle_lanes: int, is_draining: bool) -> None:
        """A lane is free: it gets a batch if anything may run, of one kind and within its limits."""
        kinds = [(modality, priority) for modality in MODALITIES for priority in Priority]
        may_run = [kind for kind in kinds if self._of(*kind) and (is_draining or self._is_ripe(*kind))]

        batch = self.scheduler.next_batch(self.now, idle_lanes, is_draining)

        assert (batch is not None) == bool(may_run)
        if batch is None:
            return
        waiting = self._of(batch.modality, batch.priority)
        assert (batch.modality, batch.priority) in may_run
        assert 1 <= len(batch.entries) <= self.scheduler.max_batch_size(batch.modality)
        assert len(set(batch.entries)) == len(batch.entries)
        assert set(batch.entries) <= set(waiting)
        first_of_each_caller = {each.flow: each for each in reversed(waiting)}
        assert set(first_of_each_caller.values()) & set(batch.entries)
        padding = padding_ratio(batch.entries) * len(batch.entries) * max(e.length for e in batch.entries)
        assert padding <= _OVERHEAD[batch.modality] * (len(batch.entries) - 1) + 1e-9
        self.waiting[batch.modality] = [
            each for each in self.waiting[batch.modality] if each not in batch.entries
        ]
        self.running.append(batch)

    @rule(number=_NUMBERS, seconds=st.sampled_from([0.0, 0.01, 3.0]), is_out_of_memory=st.booleans())
    def end(self, number: int, seconds: float, is_out_of_memory: bool) -> None:
        """A batch ends, or does not fit the device."""
        if self.running:
            batch = self.running.pop(number % len(self.running))
            if is_out_of_memory:
                size = len(batch.entries)
                assert self.scheduler.shrink(batch.modality, size) <= (
                    size // 2 if size > 1 else _LIMIT["text"]
                )
            self.scheduler.finish(batch, seconds)

    @invariant()
    def what_waits_is_known(self) -> None:
        """Entries and bytes are those that came, less those that left or were taken."""
        for modality, waiting in self.waiting.items():
            assert self.scheduler.waiting(modality) == len(waiting)
            assert self.scheduler.waiting_bytes(modality) == sum(each.size_bytes for each in waiting)
            assert 1 <= self.scheduler.max_batch_size(modality) <= _LIMIT[modality]

    def teardown(self) -> None:
        """A server that drains runs all that waits, in as many batches as there are entries at the most."""
        for _ in range(sum(map(len, self.waiting.values()))):
            self.take(1, True)
        assert not any(self.waiting.values())

    def _of(self, modality: str, priority: Priority) -> list[Entry]:
        return [each for each in self.waiting[modality] if each.flow.priority is priority]

    def _is_ripe(self, modality: str, priority: Priority) -> bool:
        waiting = self._of(modality, priority)
        is_full = len(waiting) >= self.scheduler.max_batch_size(modality)
        return is_full or waiting[0].enqueue_time + self.delay <= self.now


TestScheduling = Scheduling.TestCase
