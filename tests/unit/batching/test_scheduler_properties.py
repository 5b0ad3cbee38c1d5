"""In any order of events, batches lose and duplicate no entry, and stay within their limits."""

from __future__ import annotations

from collections import defaultdict

from alignserve_server.batching.collect import padding_ratio
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.batching.queue import Entry
from alignserve_server.batching.scheduler import Batch, BatchPolicy, Scheduler
from alignserve_server.modality import MODALITIES
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.fakes import entry

_LIMIT = {"image": 4, "text": 8}
_OVERHEAD = {"image": 0, "text": 6}
_NUMBERS = st.integers(0, 99)
_FLOWS = st.builds(Flow, st.sampled_from("abc"), st.sampled_from(Priority))
_MODALITY = st.sampled_from(MODALITIES)


class Scheduling(RuleBasedStateMachine):
    """A scheduler, and a model of the entries that must wait in it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waiting: dict[str, list[Entry]] = {modality: [] for modality in MODALITIES}
        self.lines: dict[tuple[str, Flow], list[Entry]] = defaultdict(list)  # by modality and flow
        self.running: list[Batch] = []

    @initialize(delay=st.sampled_from([0.0, 1.0]))
    def start(self, delay: float) -> None:
        """Starts with empty queues."""
        self.delay = delay
        self.scheduler = Scheduler(
            {modality: BatchPolicy(_LIMIT[modality], _OVERHEAD[modality]) for modality in MODALITIES}, delay
        )

    @rule(modality=_MODALITY, lengths=st.lists(st.integers(1, 64), min_size=1, max_size=12), flow=_FLOWS)
    def push(self, modality: str, lengths: list[int], flow: Flow) -> None:
        """Entries of one caller arrive."""
        for size_bytes in lengths:
            length = size_bytes if modality == "text" else 1
            new = entry(length=length, size_bytes=size_bytes, enqueue_time=self.now, flow=flow)
            self.scheduler.push(modality, new)
            self.waiting[modality].append(new)
            self.lines[modality, flow].append(new)

    @rule(modality=_MODALITY, number=_NUMBERS, flow=_FLOWS)
    def join(self, modality: str, number: int, flow: Flow) -> None:
        """Another caller also wants a waiting entry."""
        if waiting := self.waiting[modality]:
            wanted = waiting[number % len(waiting)]
            if wanted not in self.lines[modality, flow]:
                assert self.scheduler.join(modality, wanted, flow)
                self.lines[modality, flow].append(wanted)

    @rule(modality=_MODALITY, flow=_FLOWS, number=_NUMBERS)
    def leave(self, modality: str, flow: Flow, number: int) -> None:
        """A caller no longer wants an entry; it stays if others want it."""
        if line := self.lines[modality, flow]:
            gone = line.pop(number % len(line))
            self.scheduler.leave(modality, gone, flow)
            is_wanted = any(gone in line for line in self.lines.values())
            assert self.scheduler.is_waiting(modality, gone) == is_wanted
            if not is_wanted:
                self.waiting[modality].remove(gone)

    @rule(seconds=st.sampled_from([0.1, 1.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @rule(idle_lanes=st.integers(1, 4), is_draining=st.booleans())
    def take(self, idle_lanes: int, is_draining: bool) -> None:
        """A free lane gets a batch of one kind, within its limits, if anything may run."""
        kinds = [(modality, priority) for modality in MODALITIES for priority in Priority]
        may_run = [kind for kind in kinds if self._of(*kind) and (is_draining or self._is_due(*kind))]

        batch = self.scheduler.next_batch(self.now, idle_lanes, is_draining)

        assert (batch is not None) == bool(may_run)
        if batch is None:
            return
        waiting = self._of(batch.modality, batch.priority)
        assert (batch.modality, batch.priority) in may_run
        assert 1 <= len(batch.entries) <= self.scheduler.max_batch_size(batch.modality)
        assert len(set(batch.entries)) == len(batch.entries)
        assert set(batch.entries) <= set(waiting)
        assert set(self._heads(batch.modality, batch.priority)) & set(batch.entries)
        assert not any(self.scheduler.is_waiting(batch.modality, each) for each in batch.entries)
        padding = padding_ratio(batch.entries) * len(batch.entries) * max(e.length for e in batch.entries)
        assert padding <= _OVERHEAD[batch.modality] * (len(batch.entries) - 1) + 1e-9
        self.waiting[batch.modality] = [
            each for each in self.waiting[batch.modality] if each not in batch.entries
        ]
        for line in self.lines.values():
            line[:] = [each for each in line if each not in batch.entries]
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
    def waiting_entries_are_counted(self) -> None:
        """The counts are those of the entries that arrived, minus those that left or were taken."""
        for modality, waiting in self.waiting.items():
            assert self.scheduler.waiting(modality) == len(waiting)
            assert self.scheduler.waiting_bytes(modality) == sum(each.size_bytes for each in waiting)
            assert 1 <= self.scheduler.max_batch_size(modality) <= _LIMIT[modality]
            for priority in Priority:
                turns = list(self.scheduler._queues[modality].of(priority))
                assert len(turns) == len(set(turns))
                assert set(turns) == set(self._of(modality, priority))

    def teardown(self) -> None:
        """A draining server runs all waiting entries, in at most one batch per entry."""
        for _ in range(sum(map(len, self.waiting.values()))):
            self.take(1, True)
        assert not any(self.waiting.values())

    def _of(self, modality: str, priority: Priority) -> list[Entry]:
        """Returns the entries that flows of a priority want."""
        lines = [
            self.lines[key] for key in list(self.lines) if key[0] == modality and key[1].priority is priority
        ]
        return [each for each in self.waiting[modality] if any(each in line for line in lines)]

    def _heads(self, modality: str, priority: Priority) -> list[Entry]:
        lines = {key: line for key, line in self.lines.items() if line}
        return [line[0] for (of, flow), line in lines.items() if of == modality and flow.priority is priority]

    def _is_due(self, modality: str, priority: Priority) -> bool:
        is_full = len(self._of(modality, priority)) >= self.scheduler.max_batch_size(modality)
        oldest = min(head.enqueue_time for head in self._heads(modality, priority))
        return is_full or oldest + self.delay <= self.now


TestScheduling = Scheduling.TestCase
