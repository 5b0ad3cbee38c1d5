"""Labels are embedded once, by their prompts, for all calls that want them."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from alignserve_server.batching.label_cache import LabelCache
from alignserve_server.errors import InferenceFailed, ServingError, TextTooLong
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.zero_shot import LabelSet
from alignserve_server.observability.batch_observer import MetricsObserver

from tests.unit.fakes import settle


class Prompts:
    """Embeds prompts like `FakeEncoder` but not normalized; waits and fails on demand."""

    def __init__(self) -> None:
        self.chunks: list[list[str]] = []
        self.flows: list[object] = []  # one per chunk
        self.gate = asyncio.Event()
        self.gate.set()
        self.invalid: set[str] = set()
        self.failing: set[str] = set()
        self.error: Exception | None = None
        self.cancelled = 0

    @property
    def asked(self) -> list[str]:
        return [prompt for chunk in self.chunks for prompt in chunk]

    async def __call__(self, prompts: Sequence[str], flow: object) -> list[np.ndarray | ServingError]:
        self.chunks.append(list(prompts))
        self.flows.append(flow)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await settle()  # as in the engine, where undoing work takes a few iterations of the loop
            raise
        if self.error is not None:
            raise self.error
        return [self._answer(prompt) for prompt in prompts]

    async def release_chunk(self) -> None:
        """Lets the waiting chunk continue; later chunks wait again."""
        self.gate.set()
        self.gate.clear()
        await settle()

    def _answer(self, prompt: str) -> np.ndarray | ServingError:
        if prompt in self.invalid:
            return TextTooLong("too long")
        if prompt in self.failing:
            return InferenceFailed("the model failed on this text")
        return len(prompt) * _direction(prompt)


def _direction(prompt: str) -> np.ndarray:
    return FakeEncoder().embedding_of(prompt)


@pytest.fixture
def prompts() -> Prompts:
    return Prompts()


@pytest.fixture
def cache(prompts: Prompts, observer: MetricsObserver) -> LabelCache:
    return LabelCache(100, prompts, observer, prompts_at_once=64)


@pytest.fixture
def one_by_one(prompts: Prompts, observer: MetricsObserver) -> LabelCache:
    """A cache that embeds one prompt at a time."""
    return LabelCache(100, prompts, observer, prompts_at_once=1)


async def _start(
    cache: LabelCache, *labels: str, flow: str | None = None
) -> asyncio.Task[tuple[np.ndarray, int]]:
    """Starts embedding labels and returns once the call waits for the encoder."""
    task = asyncio.create_task(cache.embed(LabelSet.of(labels, []), flow))
    await settle()
    return task


async def _leave(task: asyncio.Task[object]) -> None:
    """Cancels a call, as gRPC does when its client disconnects."""
    task.cancel()
    await asyncio.wait([task])
    await settle()


async def _hits(cache: LabelCache, *labels: str) -> int:
    _, hits = await cache.embed(LabelSet.of(labels, []))
    return hits


async def test_labels_are_returned_in_order_and_normalized(cache):
    """Each row belongs to the label at its position, and has length 1."""
    embeddings, hits = await cache.embed(LabelSet.of(["cat", "a dog", "cat"], []))

    np.testing.assert_allclose(
        embeddings, [_direction(label) for label in ("cat", "a dog", "cat")], atol=1e-6
    )
    assert hits == 0


async def test_prompts_are_averaged_by_direction(cache):
    """A prompt with a longer embedding has no greater weight; the average has length 1."""
    embeddings, _ = await cache.embed(LabelSet.of(["cat"], ["{label}", "a much longer photo of a {label}"]))

    expected = _direction("cat") + _direction("a much longer photo of a cat")
    np.testing.assert_allclose(embeddings, [expected / np.linalg.norm(expected)], atol=1e-6)


async def test_invalid_labels_are_named_by_position(cache, prompts):
    """One bad prompt makes its label invalid; every position of the label is named."""
    prompts.invalid = {"bad, twice"}

    with pytest.raises(TextTooLong) as refused:
        await cache.embed(LabelSet.of(["a", "bad", "c", "bad"], ["{label}", "{label}, twice"]))

    assert [violation.field for violation in refused.value.violations] == ["labels[1]", "labels[3]"]


async def test_valid_labels_of_an_invalid_call_are_kept(cache, prompts):
    """When the client corrects the request, only the corrected label is embedded."""
    prompts.invalid = {"bad"}
    with pytest.raises(TextTooLong):
        await cache.embed(LabelSet.of(["a", "bad", "c"], []))

    prompts.invalid = set()

    assert await _hits(cache, "a", "bad", "c") == 2


async def test_a_known_label_is_not_embedded_again(cache, prompts):
    """Only missing labels go to the encoder; cached labels have the same embeddings as before."""
    first, _ = await cache.embed(LabelSet.of(["a", "b"], []))

    second, hits = await cache.embed(LabelSet.of(["b", "c", "a"], []))

    assert hits == 2
    assert prompts.asked == ["a", "b", "c"]
    np.testing.assert_array_equal(second[[2, 0]], first)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", []), ("b", [])),
        (("a", ["one {label}"]), ("a", ["two {label}"])),
        (("a", ["{label}"]), ("a", ["{label}", "{label}!"])),
        (("ab", ["c{label}"]), ("a", ["bc{label}"])),
        (("a", ["{label}b", "{label}"]), ("a", ["{label}", "b{label}"])),
    ],
    ids=["labels", "templates", "number of templates", "label and template", "two templates"],
)
async def test_different_prompts_have_different_cache_entries(cache, one, other):
    """A label with another text or other templates is not served from the cache."""
    await cache.embed(LabelSet.of([one[0]], one[1]))

    _, hits = await cache.embed(LabelSet.of([other[0]], other[1]))

    assert hits == 0


async def test_cached_returns_embeddings_only_if_all_labels_are_cached(cache, prompts, metrics):
    """They are in order and count as hits; if a label is missing, nothing is counted."""
    embeddings, _ = await cache.embed(LabelSet.of(["a", "b"], []))

    all_cached, one_missing = (cache.cached(LabelSet.of(labels, [])) for labels in ("ba", "bac"))

    np.testing.assert_array_equal(all_cached, embeddings[[1, 0]])
    assert one_missing is None
    assert metrics.registry.get_sample_value("alignserve_label_cache_hits_total") == 2


async def test_the_least_recently_used_label_is_dropped_first(prompts, observer):
    """A full cache drops the label that was not used for the longest time."""
    cache = LabelCache(2, prompts, observer, prompts_at_once=64)
    await cache.embed(LabelSet.of(["a", "b"], []))
    await cache.embed(LabelSet.of(["a"], []))

    await cache.embed(LabelSet.of(["c"], []))

    assert await _hits(cache, "a", "c") == 2
    assert await _hits(cache, "b") == 0


async def test_more_labels_than_the_cache_holds_are_answered(prompts, observer, metrics):
    """The bound limits the cache, not the request."""
    cache = LabelCache(1, prompts, observer, prompts_at_once=64)

    embeddings, _ = await cache.embed(LabelSet.of(["a", "b", "c"], []))

    assert len(embeddings) == 3
    assert metrics.registry.get_sample_value("alignserve_label_cache_entries") == 1


async def test_hits_misses_and_shared_work_are_counted(cache, prompts, metrics):
    """Each label of a request, even one sent twice, counts as exactly one of the three."""
    await cache.embed(LabelSet.of(["a", "b", "b"], []))

    await cache.embed(LabelSet.of(["a", "c"], []))

    counts = {
        kind: metrics.registry.get_sample_value(f"alignserve_label_cache_{kind}_total")
        for kind in ("hits", "misses", "coalesced")
    }
    assert counts == {"hits": 1, "misses": 3, "coalesced": 1}
    assert prompts.asked == ["a", "b", "c"]


@pytest.fixture
def held(prompts: Prompts) -> Prompts:
    """Prompts that wait until the gate is set."""
    prompts.gate.clear()
    return prompts


async def test_a_label_in_progress_is_not_embedded_twice(cache, held):
    """The second call embeds only labels that are not in progress; both calls get their answers."""
    first, second = await _start(cache, "a", "b"), await _start(cache, "b", "c")

    held.gate.set()
    (from_first, _), (from_second, hits) = await first, await second

    assert held.asked == ["a", "b", "c"]
    np.testing.assert_array_equal(from_first[1], from_second[0])
    assert hits == 0


async def test_an_error_reaches_all_waiting_calls(cache, held):
    """No call keeps waiting for an answer that never comes."""
    tasks = [await _start(cache, "a", "b"), await _start(cache, "b")]
    held.error = InferenceFailed("the model failed")

    held.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(answer) for answer in answers] == [InferenceFailed] * 2
    assert answers[0] is not answers[1]  # a shared error would hold the frames of both


async def test_a_call_whose_own_work_fails_does_not_wait_for_other_flows(observer):
    """It would wait forever if the calls that embed the rest were cancelled; they get their answers."""
    turns: dict[str, asyncio.Future[None]] = {}

    async def embed(prompts: Sequence[str], flow: str) -> list[np.ndarray]:
        turns[flow] = asyncio.get_running_loop().create_future()
        await turns[flow]
        return [_direction(prompt) for prompt in prompts]

    cache = LabelCache(100, embed, observer, prompts_at_once=1)
    other, failing = await _start(cache, "b", "c", flow="x"), await _start(cache, "a", "b", "c", flow="y")

    turns["y"].set_exception(InferenceFailed("the model failed"))
    await settle()

    assert isinstance(failing.exception(), InferenceFailed)
    for _ in "bc":
        turns["x"].set_result(None)
        await settle()
    embeddings, _ = await other
    np.testing.assert_allclose(embeddings, [_direction("b"), _direction("c")], atol=1e-6)


async def test_a_prompt_that_fails_fails_only_its_label(cache, held):
    """Another caller that shares a different label of the call gets it; the call itself fails."""
    held.failing = {"poison, twice"}
    embed = cache.embed(LabelSet.of(["cat", "poison"], ["{label}", "{label}, twice"]))
    poisoned = asyncio.create_task(embed)
    await settle()
    other = asyncio.create_task(cache.embed(LabelSet.of(["cat"], ["{label}", "{label}, twice"])))
    await settle()

    held.gate.set()
    answers = await asyncio.gather(poisoned, other, return_exceptions=True)

    assert isinstance(answers[0], InferenceFailed)
    assert not isinstance(answers[1], BaseException)
    assert len(answers[1][0]) == 1
    assert held.asked == ["cat", "cat, twice", "poison", "poison, twice"]


async def test_a_label_is_ready_before_the_rest_of_its_call(one_by_one, held):
    """A call that shares one label of a large call does not wait for the others."""
    large, small = await _start(one_by_one, "a", "b", "c"), await _start(one_by_one, "a")

    await held.release_chunk()

    assert small.done()
    assert not large.done()
    assert await _hits(one_by_one, "a") == 1
    await _leave(large)


async def test_after_a_bad_prompt_the_rest_of_its_label_is_not_embedded(one_by_one, prompts):
    """The label has already failed; the next label is still embedded."""
    prompts.invalid = {"1 bad"}

    with pytest.raises(TextTooLong):
        await one_by_one.embed(LabelSet.of(["bad", "good"], ["1 {label}", "2 {label}"]))

    assert prompts.asked == ["1 bad", "1 good", "2 good"]


async def test_prompts_are_embedded_in_chunks(prompts, observer):
    """A chunk can have prompts of several labels, and the last chunk can be smaller."""
    cache = LabelCache(100, prompts, observer, prompts_at_once=3)

    await cache.embed(LabelSet.of(["a", "b"], ["1 {label}", "2 {label}"]))

    assert prompts.chunks == [["1 a", "2 a", "1 b"], ["2 b"]]


async def test_prompts_are_built_only_at_their_turn(cache, held):
    """The prompts of all labels and templates, here 40 MB, are never in memory at once."""
    labels = [f"{i} {'l' * 2_000}" for i in range(100)]
    templates = [f"{i} {'t' * 2_000} {{label}}" for i in range(100)]
    tracemalloc.start()

    task = asyncio.create_task(cache.embed(LabelSet.of(labels, templates)))
    await settle()
    _, peak_bytes = tracemalloc.get_traced_memory()

    tracemalloc.stop()
    assert len(held.asked) == 64
    assert peak_bytes < 2_000_000
    await _leave(task)


async def test_an_error_is_not_kept(cache, held):
    """The next call for the label tries again."""
    held.gate.set()
    held.error = InferenceFailed("the model failed")
    with pytest.raises(InferenceFailed):
        await cache.embed(LabelSet.of(["a"], []))

    held.error = None
    embeddings, _ = await cache.embed(LabelSet.of(["a"], []))

    np.testing.assert_allclose(embeddings, [_direction("a")], atol=1e-6)


async def test_cancelling_the_first_call_does_not_affect_the_others(cache, held):
    """The work that it started continues for calls that wait for a part of it."""
    first, second = await _start(cache, "a", "b"), await _start(cache, "b")

    first.cancel()
    await settle()
    held.gate.set()
    embeddings, _ = await second

    np.testing.assert_allclose(embeddings, [_direction("b")], atol=1e-6)
    assert held.cancelled == 0


async def test_work_ends_when_its_last_call_is_cancelled(cache, held):
    """Labels that no call waits for are not embedded."""
    tasks = [await _start(cache, "a"), await _start(cache, "a")]

    for task in tasks:
        task.cancel()
    await settle()

    assert held.cancelled == 1


async def test_only_the_shared_part_of_a_cancelled_call_continues(one_by_one, held):
    """The rest of the cancelled call is never started."""
    large, small = await _start(one_by_one, "a", "b", "c"), await _start(one_by_one, "a")

    await _leave(large)
    assert held.cancelled == 0
    await held.release_chunk()

    assert small.done()
    assert held.asked == ["a"]


async def test_cancelling_a_call_ends_only_work_that_no_other_call_shares(cache, held):
    """Labels that two other calls wait for are still embedded."""
    first, second = await _start(cache, "a"), await _start(cache, "b")
    both = await _start(cache, "a", "b", "c")

    await _leave(both)
    held.gate.set()
    await asyncio.gather(first, second)

    assert held.cancelled == 1
    assert held.asked == ["a", "b", "c"]


async def test_a_call_does_not_join_work_that_is_being_cancelled(cache, held):
    """It starts the label again."""
    leaving = await _start(cache, "a")

    leaving.cancel()
    await asyncio.wait([leaving])
    coming = await _start(cache, "a")
    held.gate.set()
    embeddings, _ = await coming

    np.testing.assert_allclose(embeddings, [_direction("a")], atol=1e-6)
    assert held.asked == ["a", "a"]


async def test_a_label_that_another_call_has_not_started_is_started_at_once(one_by_one, held):
    """A call that shares the last label of a large call does not wait for the labels before it."""
    large = await _start(one_by_one, "a", "b", "c", flow="large")

    small = await _start(one_by_one, "c", flow="small")
    await held.release_chunk()

    assert small.done()
    assert (held.asked[:2], held.flows[:2]) == (["a", "c"], ["large", "small"])
    assert not large.done()
    await _leave(large)


async def test_a_label_started_by_the_same_caller_is_not_started_again(one_by_one, held):
    """No work of one caller is done twice, whichever of its calls reaches it first."""
    first = await _start(one_by_one, "a", "b", "c")
    second = await _start(one_by_one, "c")

    held.gate.set()
    await asyncio.gather(first, second)

    assert held.asked == ["a", "c", "b"]


async def test_a_label_started_by_two_callers_is_settled_by_the_first_result(cache, held):
    """No caller waits for another caller's turns, which may be far off."""
    slow = await _start(cache, "a", flow="slow")
    slow_gate, held.gate = held.gate, asyncio.Event()

    fast = await _start(cache, "a", flow="fast")
    held.gate.set()
    embeddings, _ = await fast
    await settle()

    np.testing.assert_array_equal((await slow)[0], embeddings)
    assert held.flows == ["slow", "fast"]
    assert not slow_gate.is_set()


async def test_labels_not_started_come_before_labels_that_others_started(one_by_one, held):
    """Two callers with the same labels share the work instead of doing it twice."""
    calls = [await _start(one_by_one, *"abcd", flow=flow) for flow in ("one", "other")]

    while not all(call.done() for call in calls):
        await held.release_chunk()

    assert sorted(held.asked[:4]) == [*"abcd"]


async def test_cancelling_a_call_does_not_cancel_another_callers_work(one_by_one, held):
    """Another caller that wants the same label still gets it, at its own turn."""
    leaving = await _start(one_by_one, "a", flow="leaving")
    staying = await _start(one_by_one, "a", flow="staying")

    await _leave(leaving)
    cancelled = held.cancelled
    held.gate.set()
    await staying

    assert cancelled == 1


async def test_each_waiting_call_gets_its_own_error(cache, held):
    """A shared error would hold the frames of other calls."""
    held.failing = {"a"}
    tasks = [await _start(cache, "a") for _ in range(2)]
    held.gate.set()

    one, other = await asyncio.gather(*tasks, return_exceptions=True)

    assert one is not other
    assert (type(one), str(one)) == (type(other), str(other))


async def test_a_label_that_another_caller_started_and_cancelled_is_started_again(one_by_one, held):
    """A call that postponed the label because it was in progress does not wait forever."""
    leaving = await _start(one_by_one, "a", flow="leaving")
    staying = await _start(one_by_one, "a", "b", flow="staying")

    await _leave(leaving)
    held.gate.set()
    await staying

    assert held.asked == ["a", "b", "a"]


@pytest.mark.parametrize("seed", range(40))
async def test_every_call_is_answered_in_any_order_of_events(prompts, observer, seed):
    """Calls share labels, are cancelled at any time, and labels fail: none waits forever."""
    rng = random.Random(seed)
    cache = LabelCache(rng.randrange(1, 4), prompts, observer, prompts_at_once=rng.randrange(1, 4))
    prompts.gate.clear()
    prompts.failing, prompts.invalid = {"f"}, {"g"}
    calls: list[asyncio.Task[tuple[np.ndarray, int]]] = []
    asked: list[str] = []
    for _ in range(60):
        if rng.random() < 0.5:
            asked.append("".join(rng.choices("abcdefg", weights=[6] * 5 + [1, 1], k=rng.randrange(1, 6))))
            labels = LabelSet.of([*asked[-1]], ["{label}"] * rng.randrange(3))
            calls.append(asyncio.create_task(cache.embed(labels, rng.choice("xyz"))))
        if calls and rng.random() < 0.3:
            rng.choice(calls).cancel()
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            await prompts.release_chunk()
    prompts.gate.set()

    await asyncio.wait_for(asyncio.wait(calls), 10.0)
    await settle()

    assert cache._pending == {}
    assert len(asyncio.all_tasks()) == 1
    for call, wanted in zip(calls, asked, strict=True):
        if not call.cancelled() and call.exception() is None:
            np.testing.assert_allclose(call.result()[0], [_direction(label) for label in wanted], atol=1e-6)
